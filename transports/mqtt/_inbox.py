"""The inbox for replies: the subscription that requests need, asked for on each connection."""

from __future__ import annotations

import asyncio
import contextlib
import enum
from collections import Counter

from ..._logs import get_logger
from ...errors import ConfigurationError, ConnectFailed, ConnectionLost, SpaDatError
from .._suspicion import Blame
from ._config import MqttConfig
from ._publishing import blame
from .protocol._client import MqttClient
from .protocol._reason_codes import subscribe_refusal

__all__ = ["ReplyInbox"]

_log = get_logger(__name__)

_REFUSED = 0x80
_RETRY_REFUSED = 10.0
_MOST_DOUBLINGS = 5
# Connections that end over the inbox before the next one does without.
_MOST_ENDS = 3


class InboxState(enum.Enum):
    """How it stands with the inbox on the latest connection.

    Attributes:
        UNASKED: the attempt to connect did not come so far yet.
        ASKED: the broker was asked for it, and has not answered.
        OPEN: the broker grants it.
        REFUSED: the broker does not grant it, or ends connections over it; it is asked again.
        IMPOSSIBLE: the broker offers no wildcards.
    """

    UNASKED = "unasked"
    ASKED = "asked"
    OPEN = "open"
    REFUSED = "refused"
    IMPOSSIBLE = "impossible"


class ReplyInbox:
    """Keeps an application's subscription to replies, without which it can still publish.

    Args:
        config: timeouts and the broker's address.
        identifier: the client identifier, for messages.
        pattern: the filter of the subscription.
        stats: counters.

    Attributes:
        pattern: as given.
        problem: why no request can be made, as of the latest connection on which that was found
            out; None when they can.
    """

    def __init__(
        self, config: MqttConfig, identifier: str, pattern: str, stats: Counter[str]
    ) -> None:
        self.pattern = pattern
        self.problem: SpaDatError | None = None
        self._config = config
        self._identifier = identifier
        self._stats = stats
        self._state = InboxState.UNASKED
        # Connections in a row that ended while it was asked for.
        self._ends = 0
        self._regaining: asyncio.Task[None] | None = None

    def connecting(self) -> None:
        """Another attempt to connect begins."""
        if self._state in (InboxState.UNASKED, InboxState.IMPOSSIBLE):
            self._ends = 0
        self._become(InboxState.UNASKED, self.problem)

    async def open(self, client: MqttClient, *, first: bool) -> None:
        """Subscribe on a new connection; without it the connection is used all the same.

        Raises:
            SpaDatError: with ``first``, when the broker refuses it.
            ConnectionLost: the connection ended, or the broker did not answer.
        """
        self._become(InboxState.UNASKED)
        if client.limits.lacking(self.pattern) is not None:
            problem = ConfigurationError(
                f"the broker at {self._config.address} offers no wildcard subscriptions, which the"
                " replies need; use another broker"
            )
            self._become(InboxState.IMPOSSIBLE, problem)
            return
        self._become(InboxState.ASKED)
        refusal: SpaDatError | None
        if self._ends >= _MOST_ENDS and not first:
            refusal = ConnectFailed(
                f"the broker at {self._config.address} ends the connection when it is asked for the"
                " inbox for replies: look into its log and access rules"
            )
        else:
            refusal = await self._ask(client)
        if refusal is None:
            self._become(InboxState.OPEN)
            return
        if first:
            raise refusal
        # Publishes must not wait for it.
        self._become(InboxState.REFUSED, refusal)
        self._stats["mqtt.subscribe_refused"] += 1
        _log.error("%r: %s; trying again", self._identifier, refusal)
        self.close()
        self._regaining = asyncio.ensure_future(self._regain(client))

    def close(self) -> None:
        """Ask no more."""
        if self._regaining is not None:
            self._regaining.cancel()
            self._regaining = None

    def _become(self, state: InboxState, problem: SpaDatError | None = None) -> None:
        self._state = state
        self.problem = problem

    async def _ask(self, client: MqttClient) -> SpaDatError | None:
        """Subscribe; returns why the broker refuses it."""
        pattern = self.pattern
        try:
            codes = await client.subscribe([pattern], qos=1, timeout=self._config.connect_timeout)
        except ConnectionLost:
            if client.lost.done() and blame(client.lost.result()) is Blame.POSSIBLE:
                self._ends += 1
            raise
        self._ends = 0
        # What a broker leaves out of its answer it has not granted.
        code = codes[0] if codes else _REFUSED
        return None if code < _REFUSED else subscribe_refusal(code, pattern)

    async def _regain(self, client: MqttClient) -> None:
        # Each attempt may cost a connection.
        delay = _RETRY_REFUSED * 2 ** min(max(self._ends - _MOST_ENDS, 0), _MOST_DOUBLINGS)
        while True:
            await asyncio.sleep(delay)
            if client.lost.done():
                return
            # It may be that only this once there is no answer.
            with contextlib.suppress(ConnectionLost):
                refusal = await self._ask(client)
                if refusal is None:
                    self._become(InboxState.OPEN)
                    _log.info("%r: the broker grants the inbox for replies again", self._identifier)
                    return
                self._become(InboxState.REFUSED, refusal)
