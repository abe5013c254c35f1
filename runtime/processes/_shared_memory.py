"""Large payloads in memory that a child process and its parent share."""

from __future__ import annotations

from bisect import insort

__all__ = ["ARENA", "LARGE", "Arena"]

ARENA = 2**26
"""Bytes for each direction. Only what is used takes memory."""
LARGE = 131_072
"""Bytes from which on a payload goes through shared memory.

Below, the pipe is as fast; 1 MB takes 0.8 ms by the pipe and 0.15 ms so (docs/benchmarks.md).
"""


class Arena:
    """Places for payloads on their way in one direction.

    The one end puts payloads in and frees their places, the other one takes them out.

    Args:
        view: the memory.
    """

    def __init__(self, view: memoryview) -> None:
        self._view = view
        self._used: list[tuple[int, int]] = []

    def put(self, payload: bytes) -> tuple[int, int] | None:
        """Put a payload in; returns its place, for `take`, or None when there is no room."""
        size = len(payload)
        at = 0
        for begin, end in self._used:
            if begin - at >= size:
                break
            at = end
        if at + size > len(self._view):
            return None
        self._view[at : at + size] = payload
        insort(self._used, (at, at + size))
        return at, size

    def free(self, at: int) -> None:
        """Make room: what begins there was taken out."""
        self._used = [place for place in self._used if place[0] != at]

    def take(self, at: int, size: int) -> bytes:
        """Return what was put in at a place.

        Raises:
            ValueError: that is no place.
        """
        if not 0 <= at <= at + size <= len(self._view):
            raise ValueError(f"there are no {size} bytes at {at}")
        return bytes(self._view[at : at + size])

    def close(self) -> None:
        """Let go of the memory."""
        self._view.release()
