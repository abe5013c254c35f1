"""The problems of an application, as its health shows them."""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["Problems"]


class Problems:
    """Texts about what is wrong, by the name of whom each is about.

    Args:
        known: those to begin with.
    """

    def __init__(self, known: Mapping[str, str]) -> None:
        # At once: threads of the program's own may ask, while the loop goes on.
        self._texts = {name: [text] for name, text in dict(known).items()}

    def add(self, name: str, text: str | None) -> None:
        """Add a text; None says that nothing is wrong."""
        if text:
            self._texts.setdefault(name, []).append(text)

    def texts(self) -> dict[str, str]:
        """All texts, each once, those about the same joined."""
        return {name: "; ".join(dict.fromkeys(texts)) for name, texts in self._texts.items()}
