"""Finding the message over which a broker ends its connections."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Generic, Protocol, TypeVar

__all__ = ["Blame", "Course", "Suspicion"]

_ENDS = 3
# Cross-checks that have to hold before a large message is refused whose ends did not follow at
# once. All others need one.
_AT_ONCE = 0.1
_CHECKS_OF_SLOW_ENDS = 3
_LEAST_QUIET = 1.0
_MOST_QUIET = 30.0


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


@dataclass
class _Case:
    """What counts against one message.

    Attributes:
        ends: connections that ended over it.
        seconds: for how long it was under way on all of them but the first, where it may have
            been written at any time.
        checks: connections that held without it after one that ended with it alone.
    """

    ends: int = 0
    seconds: float = 0.0
    checks: int = 0


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
       cross-check: nothing is written for twice as long as the message was under way on all of
       these connections, at least a second, at most thirty. If the connection ends without the
       message, too, the message is innocent, and so are all others.
    4. If the connection holds, the message is refused, unless it is a large one and the ends took
       their time: a network that fails again and again while it is on its way looks the same. Then
       the message is alone once more, until three cross-checks have held.

    So what is refused is what a broker did not take on four connections, was the only thing that
    it was given on the last of them, and is what it does well without.

    Args:
        is_large: whether a message may be on its way for long.
    """

    def __init__(self, is_large: Callable[[W], bool]) -> None:
        self._is_large = is_large
        self.course = Course.FREELY
        self.quiet = 0.0
        """Seconds for which nothing is to be written, for `Course.QUIETLY`."""
        self._cases: dict[W, _Case] = {}
        self._latest: list[W] = []
        self._lasted = 0.0
        self._accused: W | None = None
        self._named = False

    def ends(self, message: W) -> int:
        """How many ends count against a message."""
        case = self._cases.get(message)
        return 0 if case is None else case.ends

    def ended(self, written: Iterable[W], blame: Blame, lasted: float) -> None:
        """Count the end of a connection.

        Args:
            written: what was written on it and not answered, oldest first.
            blame: what the end says.
            lasted: seconds for which it held.
        """
        self._latest = []
        if blame is Blame.NONE:
            return
        if self.course is Course.QUIETLY:
            self._cases.clear()
            self._accused = None
            return
        self._latest = list(written)
        self._lasted = lasted
        for message in self._latest:
            case = self._cases.setdefault(message, _Case())
            case.seconds += lasted if case.ends else 0.0
            case.ends += 1
        if self.course is Course.ALONE and self._latest:
            self._accused = self._latest[0]
            self._named = blame is Blame.NAMED
            seconds = self._cases[self._accused].seconds
            self.quiet = min(max(_LEAST_QUIET, 2 * seconds), _MOST_QUIET)

    def unreachable(self) -> None:
        """Note that an attempt to connect has failed: the last end was that of an outage."""
        for message in self._latest:
            case = self._cases[message]
            case.ends -= 1
            case.seconds -= self._lasted if case.ends else 0.0
        self._latest = []
        self._accused = None

    def connected(self) -> Course:
        """There is a connection, or nothing is in the way of it any more; how to use it."""
        self._latest = []
        self._cases = {m: case for m, case in self._cases.items() if case.ends and not m.done()}
        if self._accused is not None and self._accused.done():
            self._accused = None
        if self._accused is not None:
            self.course = Course.REFUSE if self._named else Course.QUIETLY
        elif any(case.ends >= _ENDS for case in self._cases.values()):
            self.course = Course.ALONE
        else:
            self.course = Course.FREELY
        return self.course

    def condemn(self) -> W | None:
        """Return the message to refuse, once the quiet time is over or for `Course.REFUSE`.

        Call `connected` afterwards. None when its sender has given it up meanwhile, or when it is
        to be tried alone once more.
        """
        accused, self._accused = self._accused, None
        if accused is None or accused.done():
            return None
        case = self._cases[accused]
        case.checks += 1
        is_slow = case.seconds > _AT_ONCE and self._is_large(accused)
        if is_slow and not self._named and case.checks < _CHECKS_OF_SLOW_ENDS:
            return None
        del self._cases[accused]
        return accused

    def acquit(self) -> None:
        """Acquit the message that is alone and unanswered for long, with no end over it.

        Call `connected` afterwards.
        """
        self._cases = {m: case for m, case in self._cases.items() if case.ends < _ENDS}
