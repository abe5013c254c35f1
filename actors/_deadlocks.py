"""Deadlocks of actors: who is waiting for whom, and refusing to close a circle."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from contextvars import Context, ContextVar
from sys import getrefcount
from typing import Protocol

import msgspec

from ..errors import DeadlockDetected

__all__ = [
    "CURRENT",
    "Frame",
    "actor_behind",
    "chain_names",
    "current_actor",
    "current_frame",
    "enter_chain",
    "enter_chain_apart",
    "find_cycle",
    "refuse_cycle",
    "variables_of",
]

LIMIT = 16
CURRENT: ContextVar[Frame | None] = ContextVar("spa_dat_chain", default=None)


class Named(Protocol):
    """An actor as the chain sees it."""

    @property
    def address(self) -> str:
        """The name, preceded by the system's name if it has one."""


class Waiter(Protocol):
    """What an asker is waiting on."""

    def done(self) -> bool:
        """Return whether the asker has its answer or has given up."""


class Frame(msgspec.Struct, eq=False):
    """One actor at work on one message.

    Attributes:
        owner: the actor; just a name in a chain that came over the wire.
        parent: the frame of the asker of this message, if it is an ask.
        waiter: what the asker is waiting on; once it is done the asker no longer waits for us.
        active: False as soon as the message is done. A task that the handler has left
            behind still sees the frame, but must not count as part of it.
    """

    owner: Named | str
    parent: Frame | None = None
    waiter: Waiter | None = None
    active: bool = True

    @property
    def name(self) -> str:
        owner = self.owner
        return owner if isinstance(owner, str) else owner.address

    def end(self) -> None:
        """Note that the message is done: nobody waits through this frame any more."""
        # `actors._actor_cell.work` does the same without the call.
        self.active = False
        self.parent = self.waiter = None


# From 3.14 on what a local variable refers to may be borrowed, and its count depends on the place.
_COUNTS_LOCALS = sys.implementation.name == "cpython" and sys.version_info < (3, 14)


def variables_of(context: Context, frame: Frame) -> object | None:
    """Return that by whose reference count one can tell whether a frame is known to others.

    Copies of a context, which tasks, callbacks and threads get, share the table of its variables;
    if a variable is set, the table is replaced by another one with the same values. So as long as
    the table and the frame have as many references as before, no code that a message has left
    behind knows its frame, and the next message may have the same one.

    Args:
        context: a copy of the current one.
        frame: the value of `CURRENT` there.

    Returns:
        The table; None if it is of a kind for which this might not be true.
    """
    if not _COUNTS_LOCALS:
        return None
    tables = gc.get_referents(context)
    nodes = gc.get_referents(*tables)
    # Of a large table a part with the frame may be in several tables.
    if len(tables) != 1 or len(nodes) != 1 or not _is_in(frame, gc.get_referents(*nodes)):
        return None
    (table,) = tables
    count = getrefcount(table)
    copy = context.copy()
    shared = getrefcount(table) == count + 1
    del copy
    return table if shared else None


def _is_in(frame: Frame, values: Iterable[object]) -> bool:
    # Not by ==, which may be code of the user's.
    return any(value is frame for value in values)


def current_frame() -> Frame | None:
    """Return the frame of the running code if its actor is still at work on that message."""
    frame = CURRENT.get()
    return frame if frame is not None and frame.active else None


def _walk(frame: Frame | None) -> Iterator[Frame]:
    """Iterate over the waiting frames, innermost first."""
    while frame is not None and frame.active:
        yield frame
        if frame.waiter is not None and frame.waiter.done():
            return
        frame = frame.parent


def current_actor() -> str | None:
    """Return the name of the actor whose handler is running; None outside of actors."""
    frame = current_frame()
    return None if frame is None else frame.name


def actor_behind() -> tuple[str, bool] | None:
    """Return the name of the actor whose code is running, and whether it is at work on a message.

    It is not if the running code is a task or a callback that it has left behind. None outside of
    actors.
    """
    frame = CURRENT.get()
    # A mere name may have come over the wire.
    if frame is None or isinstance(frame.owner, str):
        return None
    return frame.name, frame.active


def chain_names() -> tuple[str, ...]:
    """Return the actors that wait for the running code, outermost first, the current one last.

    At most 16, the innermost ones. Names are preceded by the system's name if it has one, as in
    ``plant/boiler``.
    """
    frame = current_frame()
    if frame is None:
        return ()
    if frame.parent is None:
        return (frame.name,)
    names = [waiting.name for waiting in _walk(frame)][:LIMIT]
    return tuple(reversed(names))


def find_cycle(frame: Frame | None, target: Named) -> tuple[str, ...] | None:
    """Return the names from ``target`` to the running code if ``target`` is one of those waiting.

    Actors of this process are compared by identity, those in a chain from the wire by name.
    """
    names: list[str] = []
    for waiting in _walk(frame):
        names.append(waiting.name)
        owner = waiting.owner
        if owner is target or (isinstance(owner, str) and owner == target.address):
            return tuple(reversed(names))
    return None


def refuse_cycle(target: str, names: Sequence[str] | None = None) -> None:
    """Refuse to wait for an actor that is waiting for us.

    Args:
        target: the address of the actor that is to be asked.
        names: the waiting actors, outermost first; None for the chain of the running code.

    Raises:
        DeadlockDetected: ``target`` is in the chain; the text names the cycle.
    """
    chain = chain_names() if names is None else tuple(names)
    if target in chain:
        raise deadlock(chain[chain.index(target) :], target)


def deadlock(cycle: Sequence[str], target: str) -> DeadlockDetected:
    """Return the error for a cycle that ``target`` would close."""
    path = " -> ".join((*cycle, target))
    return DeadlockDetected(
        f"{path}: {target!r} is already waiting for the asker and could never answer;"
        " use tell, or answer first and ask later"
    )


def enter_chain(names: Sequence[str]) -> AbstractContextManager[None]:
    """Run the block as part of a chain that came over the wire.

    Args:
        names: what `chain_names` returned at the asker, outermost first.
    """
    return _EnteredChain(names)


def enter_chain_apart(context: Context, names: Sequence[str]) -> list[Frame]:
    """Do as `enter_chain` in a copy of the current context; return the frames, to be ended."""
    frames = _frames_of(names)
    context.run(CURRENT.set, frames[-1] if frames else None)
    return frames


def _frames_of(names: Sequence[str]) -> list[Frame]:
    base: Frame | None = None
    frames: list[Frame] = []
    for name in names[-LIMIT:]:
        base = Frame(name, base)
        frames.append(base)
    outer = current_frame()
    if outer is not None:
        frames.append(Frame(outer.owner, base))
    return frames


class _EnteredChain:
    # Not a generator, which would cost more: most requests have a chain.
    __slots__ = ("_frames", "_names", "_token")

    def __init__(self, names: Sequence[str]) -> None:
        self._names = names

    def __enter__(self) -> None:
        self._frames = _frames_of(self._names)
        self._token = CURRENT.set(self._frames[-1] if self._frames else None)

    def __exit__(self, *_: object) -> None:
        for frame in self._frames:
            frame.end()
        CURRENT.reset(self._token)
