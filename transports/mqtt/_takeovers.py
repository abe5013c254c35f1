"""Takeovers: another client with our identifier, and which of the two gives way."""

from __future__ import annotations

from .._rivalry import Rivalry
from ._connection_events import Ending, Loss
from .protocol._reason_codes import SESSION_TAKEN_OVER

__all__ = ["SETTLED", "Takeovers"]

_LASTING = 5.0
_SHORT = 10.0
# The one that was there first returns after the shortest backoff, and so ends the first
# connection of the one that came second.
SETTLED = 2.0
_PATIENCE = 20
_PATIENCE_OF_A_NEWCOMER = 3
_WORDLESS = 3
_PUZZLING = 6


class Takeovers:
    """Counts the proofs that another client connects with the same identifier.

    There are two. The broker says so, with the reason "session taken over". Or, for brokers that
    close without a word: the session that we left on the broker a moment ago is not there, but
    another one is. Nothing else is proof: restarts, refusals, DISCONNECTs for any other reason and
    closed connections, however many.

    Of two that fight, the one that came second gives way: a client that had not held a connection
    for two seconds before gives up after three takeovers, one that had after twenty. A connection
    that holds for five seconds, or ends for another reason, ends the fight: if the second one is
    restarted again and again, the first one must not lose patience over it.
    """

    def __init__(self) -> None:
        self._rivalry = Rivalry(
            settled_after=SETTLED,
            lasting=_LASTING,
            newcomer=_PATIENCE_OF_A_NEWCOMER,
            settled=_PATIENCE,
        )
        self._wordless = 0
        self._trace_left = False

    @property
    def count(self) -> int:
        """The number of takeovers in this fight."""
        return self._rivalry.count

    @property
    def leaves_trace(self) -> bool:
        """Whether the next connection should leave a session behind, to be found by `looks`."""
        return self._wordless >= _WORDLESS - 1

    @property
    def looks(self) -> bool:
        """Whether to find out now whose session there is."""
        return self._trace_left and self._wordless >= _WORDLESS

    @property
    def doubts(self) -> bool:
        """Whether to find out now if the broker replaces identifiers, so that the other is ours."""
        return self.gives_way or (self._wordless > 0 and self._wordless % _WORDLESS == 0)

    @property
    def puzzles(self) -> bool:
        """Whether it is time to warn, once, that the broker keeps closing without a word."""
        return self._wordless == _PUZZLING

    @property
    def is_newcomer(self) -> bool:
        """Whether no connection has held for some seconds yet."""
        return self._rivalry.is_newcomer

    @property
    def hurries(self) -> bool:
        """Whether to reconnect at once, so that the one that came second cannot settle."""
        return self._rivalry.count > 0 and not self._rivalry.is_newcomer

    @property
    def gives_way(self) -> bool:
        """Whether another client is proven to be there, and this one has to end."""
        return self._rivalry.gives_way

    def ended(self, loss: Loss, lasted: float, *, left_trace: bool) -> None:
        """Evaluate the end of a connection.

        Args:
            loss: how it ended.
            lasted: seconds for which it held.
            left_trace: whether it left a session behind that distinguishes it from others.
        """
        self._rivalry.held(lasted)
        self._trace_left = left_trace
        if loss.ending in (Ending.CLOSED, Ending.RESET):
            self._wordless = self._wordless + 1 if lasted < _SHORT else 1
            return
        self._wordless = 0
        if loss.reason == SESSION_TAKEN_OVER:
            self._rivalry.pushed_out()
        else:
            self._rivalry.over()

    def unreachable(self) -> None:
        """Note that an attempt to connect failed: an outage explains what came before."""
        self._wordless = 0
        self._rivalry.over()

    def looked(self, *, foreign: bool) -> None:
        """Evaluate a look at the session, which is ``foreign`` if another client has created it."""
        if foreign:
            self._rivalry.pushed_out()
        else:
            self._wordless = 0
            self._rivalry.over()
