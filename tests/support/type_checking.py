"""A strict type checker, run over what users would write."""

from __future__ import annotations

from pathlib import Path

__all__ = ["check_types"]


def check_types(text: str, path: Path) -> tuple[str, int]:
    """Write a program to a file and return what mypy says of it, and its exit status."""
    from mypy import api

    path.write_text(text)
    arguments = ["--strict", "--follow-imports=silent", "--cache-dir", str(path.parent / "cache")]
    out, errors, status = api.run([*arguments, str(path)])
    assert errors == ""
    return out, status
