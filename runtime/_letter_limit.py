"""How many dead letters each actor may store."""

from __future__ import annotations

from collections import Counter

__all__ = ["LetterLimit"]


class LetterLimit:
    """Counts the dead letters of one run, for each actor by itself.

    So nobody who may only write to one actor can use up those of another.

    Args:
        limit: dead letters that one actor may store.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._taken: Counter[str] = Counter()
        self._stored: Counter[str] = Counter()

    @property
    def problem(self) -> str:
        """What is wrong with an actor at its limit."""
        return (
            f"it has stored {self._limit} dead letters, as many as one run may"
            " (dead_letter_limit), and stops at the next message that fails: see to them, then"
            " start the application again"
        )

    def take(self, actor: str) -> bool:
        """Claim a place for one more; False when there is none."""
        if self._taken[actor] >= self._limit:
            return False
        self._taken[actor] += 1
        return True

    def give_back(self, actor: str) -> None:
        """A place that was claimed is not needed."""
        self._taken[actor] -= 1

    def stored(self, actor: str) -> bool:
        """One was stored in its place; True when it was the last that may be."""
        self._stored[actor] += 1
        return self._stored[actor] == self._limit
