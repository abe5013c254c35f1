"""Lines that other processes append to a file."""

from __future__ import annotations

from pathlib import Path

__all__ = ["AppendedLines"]


class AppendedLines:
    """Reads a file to which other processes append whole lines; it is created if it is missing."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._read = 0
        path.touch()

    def new(self) -> list[str]:
        """Return the lines that were completed since the last time."""
        with self._path.open("rb") as file:
            file.seek(self._read)
            data = file.read()
        end = data.rfind(b"\n") + 1
        self._read += end
        return data[:end].decode().splitlines()
