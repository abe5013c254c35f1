"""Takeovers: another client with our identifier, and who of the two gives way."""

from __future__ import annotations

from .._reconnect import Rivalry
from ._session import Ending, Loss
from .protocol._reason_codes import SESSION_TAKEN_OVER

__all__ = ["SETTLED", "Takeovers"]

_LASTING = 5.0
_SHORT = 10.0
# The one that was there first is back after the shortest backoff, and so ends the first
# connection of the one that came second.
SETTLED = 2.0
_PATIENCE = 20
_PATIENCE_OF_A_NEWCOMER = 3
_WORDLESS = 3
_PUZZLING = 6


class Takeovers:
    """Counts what proves that another client connects with the same identifier.

    Two things do. The broker says so, with the reason "session taken over". Or, for brokers that
    close without a word: the session that we have left on the broker a moment ago is not there,
    and another one is. Nothing else does: restarts, refusals, goodbyes of any other kind and
    closed connections, however many.

    Of two that fight, the one that came second gives way: who had not held a connection for two
    seconds before gives up after three takeovers, who had after twenty. A connection that holds
    for five seconds, or is ended for another reason, ends the fight: where the second one is
    started again and again, the first one must not lose patience over it.
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
        """Takeovers in this fight."""
        return self._rivalry.count

    @property
    def leaves_trace(self) -> bool:
        """Whether the next connection is to leave a session behind, to be found by `looks`."""
        return self._wordless >= _WORDLESS - 1

    @property
    def looks(self) -> bool:
        """Whether to look now for whose session there is."""
        return self._trace_left and self._wordless >= _WORDLESS

    @property
    def puzzles(self) -> bool:
        """Whether it is time to say once that the broker keeps closing without a word."""
        return self._wordless == _PUZZLING

    @property
    def is_newcomer(self) -> bool:
        """Whether no connection has held for some seconds yet."""
        return self._rivalry.is_newcomer

    @property
    def hurries(self) -> bool:
        """Whether to come back as soon as may be, so that who came second holds no place."""
        return self._rivalry.count > 0 and not self._rivalry.is_newcomer

    @property
    def gives_way(self) -> bool:
        """Whether another client is proved to be there, and this one is to end."""
        return self._rivalry.gives_way

    def ended(self, loss: Loss, lasted: float, *, left_trace: bool) -> None:
        """A connection has ended.

        Args:
            loss: how.
            lasted: seconds for which it held.
            left_trace: it left a session behind that tells it from others.
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
        """An attempt to connect failed: the broker was away, which explains what came before."""
        self._wordless = 0
        self._rivalry.over()

    def looked(self, *, foreign: bool) -> None:
        """The session was looked at; ``foreign`` when another client has made it."""
        if foreign:
            self._rivalry.pushed_out()
        else:
            self._wordless = 0
            self._rivalry.over()
