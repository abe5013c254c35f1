"""Tenures: how long a consumer is the only one to handle what comes from a source."""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["Tenure"]


class Tenure:
    """The time for which nobody but one consumer handles what comes from a source.

    It may go on over several connections and assignments. What the consumer's actors remember of
    the source's messages lacks none for that long.

    Attributes:
        over: whether it has ended.
    """

    __slots__ = ("_to_be_told", "over")

    def __init__(self) -> None:
        self.over = False
        self._to_be_told: dict[Callable[[], None], None] = {}

    def tell(self, function: Callable[[], None]) -> None:
        """Have a function called once when it ends, however often this is said."""
        self._to_be_told[function] = None

    def end(self) -> None:
        """End it."""
        self.over = True
        told, self._to_be_told = self._to_be_told, {}
        for function in told:
            function()
