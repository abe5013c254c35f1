"""Names that are looked for in the package itself, and that a module of it has."""

from __future__ import annotations

__all__ = ["check_name_of_part"]


def check_name_of_part(name: str) -> None:
    """Raise ImportError, which names the right module, for what another public module has."""
    # Tools ask every module for names such as __wrapped__; that must not import anything. The
    # names of modules are asked for while these are being imported.
    if not name[:1].isupper():
        return
    from .errors import __all__ as errors
    from .recording import __all__ as recording
    from .states import __all__ as states
    from .testing import __all__ as testing
    from .transports import __all__ as transports

    parts = {
        "errors": errors,
        "testing": testing,
        "recording": recording,
        "states": states,
        "transports": transports,
    }
    for part, names in parts.items():
        if name in names:
            raise ImportError(
                f"{name} is in another module: write 'from spa_dat.{part} import {name}'",
                name="spa_dat",
            )
