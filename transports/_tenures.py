"""Tenures: how long a consumer is the only one to handle what comes from a source."""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["Tenure"]


class Tenure:
    """The time for which nobody but one consumer handles what comes from a source.

    It may go on over several connections and assignments. What the consumer's actors remember of
    the source's messages lacks none for that long.

    Attributes:
        began: higher than that of those that began before; 0 if nobody else has ever handled
            anything that comes from the source.
        over: whether it has ended.

    Args:
        began: see there.
    """

    __slots__ = ("_to_be_told", "began", "over")

    def __init__(self, began: int = 0) -> None:
        self.began: int = began
        self.over: bool = False
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
