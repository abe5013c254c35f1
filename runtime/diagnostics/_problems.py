"""The problems of an application, collected: its health is that it has none."""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["Problems"]


class Problems:
    """Texts about what is wrong, by the name of the actor, bus or application concerned.

    Args:
        known: the problems to begin with.
    """

    def __init__(self, known: Mapping[str, str]) -> None:
        # Copied at once: other threads may ask while the event loop changes it.
        self._texts = {name: [text] for name, text in dict(known).items()}

    def add(self, name: str, text: str | None) -> None:
        """Add a text; None means that nothing is wrong."""
        if text:
            self._texts.setdefault(name, []).append(text)

    def texts(self) -> dict[str, str]:
        """Return the texts by name, those with the same name joined and without duplicates."""
        return {name: "; ".join(dict.fromkeys(texts)) for name, texts in self._texts.items()}
