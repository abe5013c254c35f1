"""Suspect publishes: finding the message over which a broker ends its connections."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Generic, Protocol, TypeVar

__all__ = ["Blame", "Course", "Suspicion"]

_ENDS = 3
# Cross-checks that have to hold before a large message is refused if the ends did not follow at
# once. All others need one.
_AT_ONCE = 0.1
_CHECKS_OF_SLOW_ENDS = 3
_LEAST_QUIET = 1.0
_MOST_QUIET = 30.0


class _Publish(Protocol):
    def done(self) -> bool: ...


W = TypeVar("W", bound=_Publish)


class Blame(Enum):
    """What the end of a connection says about the messages that were in flight."""

    NONE = "there was another cause: an outage, a DISCONNECT with another reason, ourselves"
    POSSIBLE = "the peer ended it, possibly over one of them"
    NAMED = "the broker says that a message was the reason"


class Course(Enum):
    """How to use a connection."""

    FREELY = "write everything there is"
    ALONE = "write only the oldest message, and no other until it is answered"
    QUIETLY = "write nothing for a while"
    REFUSE = "write nothing until the accused message is refused"


@dataclass
class _Case:
    """The evidence against one message.

    Attributes:
        ends: connections that ended over it.
        seconds: for how long it was in flight on all of them but the first, where it may have been
            written at any time.
        checks: connections that held without it, after one that ended with it alone.
    """

    ends: int = 0
    seconds: float = 0.0
    checks: int = 0


class Suspicion(Generic[W]):
    """Decides which message, if any, is refused because connections end over it. Does no I/O.

    The rule:

    1. An end counts against all messages that were written on the connection and not answered, if
       the peer ended it without giving another reason, and if the very next attempt to connect
       succeeds: otherwise it was an outage.
    2. A message against which three ends count is suspected. On the next connection it is alone:
       nothing else is written until it is answered.
    3. If that connection also ends in a way that counts, the message is accused. If the broker
       said that a message was the reason, it is refused. If not, the next connection is the
       cross-check: nothing is written for twice as long as the message was in flight on all of
       these connections, at least one second, at most thirty. If the connection ends without the
       message, too, the message is innocent, and so are all others.
    4. If the connection holds, the message is refused, unless it is large and the ends did not
       follow at once: a network that keeps failing while it is in flight looks the same. Then the
       message is tried alone once more, until three cross-checks have held.

    So a refused message is one that a broker did not accept on four connections, the last of them
    with nothing else in flight, and without which connections hold.

    Args:
        is_large: whether a message may be in flight for long.
    """

    def __init__(self, is_large: Callable[[W], bool]) -> None:
        self._is_large = is_large
        self.course = Course.FREELY
        self.quiet = 0.0
        """Seconds for which to write nothing, for `Course.QUIETLY`."""
        self._cases: dict[W, _Case] = {}
        self._latest: list[W] = []
        self._lasted = 0.0
        self._accused: W | None = None
        self._named = False

    def ends(self, message: W) -> int:
        """Return how many ends count against a message."""
        case = self._cases.get(message)
        return 0 if case is None else case.ends

    def ended(self, written: Iterable[W], blame: Blame, lasted: float) -> None:
        """Count the end of a connection.

        Args:
            written: what was written on it and not answered, oldest first.
            blame: what the end says about them.
            lasted: seconds for which the connection held.
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
        """Note that an attempt to connect has failed: so the last end was an outage."""
        for message in self._latest:
            case = self._cases[message]
            case.ends -= 1
            case.seconds -= self._lasted if case.ends else 0.0
        self._latest = []
        self._accused = None

    def connected(self) -> Course:
        """Return how to use a new connection, or one that may be used normally again."""
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
        """Return the message to refuse, after the quiet time or for `Course.REFUSE`.

        Call `connected` afterwards. None if its sender has given it up meanwhile, or if it is to be
        tried alone once more.
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
        """Acquit the message that has long been alone and unanswered without an end.

        Call `connected` afterwards.
        """
        self._cases = {m: case for m, case in self._cases.items() if case.ends < _ENDS}
