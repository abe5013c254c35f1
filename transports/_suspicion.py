"""Finding the message over which a broker ends its connections."""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum
from typing import Generic, Protocol, TypeVar

__all__ = ["Blame", "Course", "Suspicion"]

_ENDS = 3
_LEAST_QUIET = 1.0


class _Publish(Protocol):
    def done(self) -> bool: ...


W = TypeVar("W", bound=_Publish)


class Blame(Enum):
    """What the end of a connection says about the messages that were under way."""

    NONE = "something else was the reason: an outage, a goodbye for another reason, ourselves"
    POSSIBLE = "the other side ended it, and it may have been over one of them"
    NAMED = "the broker says that it was over a message"


class Course(Enum):
    """How to use a connection."""

    FREELY = "write whatever there is"
    ALONE = "write one message, the oldest, and no other before it is answered"
    QUIETLY = "write nothing for a while"
    REFUSE = "write nothing before the accused message is refused"


class Suspicion(Generic[W]):
    """Decides which message, if any, is refused because connections end over it. No I/O.

    The rule:

    1. An end counts against all messages that were written on the connection and not answered, if
       the other side ended it without giving another reason, and if the very next attempt to
       connect succeeds: otherwise it was an outage.
    2. A message against which three ends count is suspected. On the next connection it is alone:
       nothing else is written before it has its answer.
    3. If that connection ends, too, in a way that counts, the message is accused. If the broker
       said that it was over a message, it is refused. If not, the next connection is the
       cross-check: nothing is written for twice as long as the last one held, at least a second.
       If the connection holds, the message is refused. If it ends without the message, too, the
       message is innocent, and so are all others.

    So what is refused is what a broker did not take on four connections, was the only thing that
    it was given on the last of them, and is what it does well without.
    """

    def __init__(self) -> None:
        self.course = Course.FREELY
        self.quiet = 0.0
        """Seconds for which nothing is to be written, for `Course.QUIETLY`."""
        self._ends: dict[W, int] = {}
        self._latest: list[W] = []
        self._accused: W | None = None
        self._named = False

    def ends(self, message: W) -> int:
        """How many ends count against a message."""
        return self._ends.get(message, 0)

    def ended(self, written: Iterable[W], blame: Blame, lasted: float) -> None:
        """A connection has ended.

        Args:
            written: what was written on it and not answered, oldest first.
            blame: what the end says.
            lasted: seconds for which it held.
        """
        self._latest = []
        if blame is Blame.NONE:
            return
        if self.course is Course.QUIETLY:
            self._ends.clear()
            self._accused = None
            return
        self._latest = list(written)
        for message in self._latest:
            self._ends[message] = self._ends.get(message, 0) + 1
        if self.course is Course.ALONE and self._latest:
            self._accused = self._latest[0]
            self._named = blame is Blame.NAMED
            self.quiet = max(_LEAST_QUIET, 2 * lasted)

    def unreachable(self) -> None:
        """An attempt to connect has failed: the last end was that of an outage."""
        for message in self._latest:
            self._ends[message] -= 1
        self._latest = []
        self._accused = None

    def connected(self) -> Course:
        """There is a connection, or nothing is in the way of it any more; how to use it."""
        self._latest = []
        self._ends = {m: ends for m, ends in self._ends.items() if ends and not m.done()}
        if self._accused is not None and self._accused.done():
            self._accused = None
        if self._accused is not None:
            self.course = Course.REFUSE if self._named else Course.QUIETLY
        elif any(ends >= _ENDS for ends in self._ends.values()):
            self.course = Course.ALONE
        else:
            self.course = Course.FREELY
        return self.course

    def condemn(self) -> W | None:
        """The message to refuse, once the quiet time is over or for `Course.REFUSE`.

        Call `connected` afterwards. None when its sender has given it up meanwhile.
        """
        accused, self._accused = self._accused, None
        if accused is None or accused.done():
            return None
        self._ends.pop(accused, None)
        return accused

    def acquit(self) -> None:
        """The message that is alone has no answer after a long time, and nothing ended over it.

        Call `connected` afterwards.
        """
        self._ends = {m: ends for m, ends in self._ends.items() if ends < _ENDS}
