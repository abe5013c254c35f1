"""Names that are looked for in the package itself, and that a module of it has."""

from __future__ import annotations

__all__ = ["advice_on_name"]


def advice_on_name(name: str) -> str | None:
    """Return which public module of the package has a name; None if there is no such module."""
    # Tools ask every module for names such as __wrapped__; that must not import anything. The
    # names of modules are asked for while these are being imported.
    if not name[:1].isupper():
        return None
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
            return f"{name} is in another module: write 'from spa_dat.{part} import {name}'"
    return None
