"""How far a child process has come with each delivery, in memory that outlives it."""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import tempfile
from time import monotonic

from ._shared_memory import ARENA, Arena

__all__ = ["DONE", "MISSED", "SENT", "SLOTS", "STARTED", "Progress"]

SLOTS = 4096
"""How many deliveries a child can have at a time."""

SENT, STARTED, DONE, MISSED = range(4)
"""The states of a delivery in the child.

It waits there; a handler is at work on it, or it waits for another attempt; it is settled; it has
missed its deadline, which is what the child has ended over.
"""
_BOOK = 9 * SLOTS + 8
_TO_CHILD = -(-_BOOK // mmap.PAGESIZE) * mmap.PAGESIZE
_FROM_CHILD = _TO_CHILD + ARENA
_SIZE = _FROM_CHILD + ARENA
# Of Linux 5.1; Python has no name for it.
_SEAL_FUTURE_WRITE = 0x10


class Progress:
    """What the child writes before each call of a handler and after it, and its parent reads.

    Nothing that ends the child (SIGKILL, SIGSEGV, lack of memory) can keep it from being read.

    Args:
        descriptor: of the memory, of which the object has a copy of its own; None to make it.

    Attributes:
        states: of the deliveries, by slot.
        since: when it was started, in seconds of `time.monotonic`.
        to_child: for large payloads.
        from_child: for large payloads.
    """

    def __init__(self, descriptor: int | None = None) -> None:
        self._own = _memory() if descriptor is None else descriptor
        try:
            self._map = mmap.mmap(self._own, _SIZE)
        except BaseException:
            os.close(self._own)
            raise
        self._view = memoryview(self._map)
        self.states = self._view[:SLOTS]
        self.since = self._view[SLOTS : 9 * SLOTS].cast("d")
        self._beat = self._view[9 * SLOTS : _BOOK].cast("d")
        self.to_child = Arena(self._view[_TO_CHILD:_FROM_CHILD])
        self.from_child = Arena(self._view[_FROM_CHILD:_SIZE])

    @property
    def descriptor(self) -> int:
        """What the child is to be given."""
        return self._own

    def seal(self) -> None:
        """Have nobody write to the memory by its descriptor, or change its size; in the child."""
        # Where it is not offered, who writes to descriptors that are not his does harm.
        with contextlib.suppress(OSError, AttributeError):
            seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | _SEAL_FUTURE_WRITE
            fcntl.fcntl(self._own, fcntl.F_ADD_SEALS, seals)

    def beat(self) -> None:
        """Note that the child's event loop goes on."""
        self._beat[0] = monotonic()

    @property
    def silent_for(self) -> float:
        """Seconds since the last `beat`."""
        return monotonic() - self._beat[0]

    def at_work_for(self, slot: int) -> float:
        """Seconds for which a delivery was surely at work without the loop having had a turn."""
        return monotonic() - max(self.since[slot], self._beat[0])

    def close(self) -> None:
        """Give the memory back."""
        self.states.release()
        self.since.release()
        self._beat.release()
        self.to_child.close()
        self.from_child.close()
        self._view.release()
        self._map.close()
        os.close(self._own)


def _memory() -> int:
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("spa_dat", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    else:
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    os.ftruncate(descriptor, _SIZE)
    return descriptor
