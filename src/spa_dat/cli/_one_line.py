"""Text on one line, as the command line writes it."""

from __future__ import annotations

__all__ = ["one_line"]


def one_line(text: str) -> str:
    """Return the text as one line.

    What a terminal would take for a command is written as an escape: it may come from a message.
    """
    return "".join(
        letter if letter.isprintable() else repr(letter)[1:-1] for letter in " ".join(text.split())
    )
