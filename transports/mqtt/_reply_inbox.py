"""The reply inbox on MQTT: the subscription that requests need, made on each connection."""

from __future__ import annotations

import asyncio
import contextlib
import enum
import itertools
from collections import Counter

from ..._logs import get_logger
from ...errors import ConfigurationError, ConnectFailed, ConnectionLost, SpaDatError
from .._suspect_publishes import Blame
from ._config import MqttConfig
from ._connection_events import MOST_ENDS
from ._publishing import blame
from .protocol._client import MqttClient
from .protocol._reason_codes import subscribe_refusal

__all__ = ["MqttReplyInbox"]

_log = get_logger(__name__)

_REFUSED = 0x80
_RETRY_REFUSED = 10.0
_MOST_DOUBLINGS = 5


class InboxState(enum.Enum):
    """The states of the inbox on the latest connection.

    Attributes:
        UNASKED: the attempt to connect has not got that far yet.
        ASKED: the broker was asked for it but has not answered.
        OPEN: the broker grants it.
        REFUSED: the broker does not grant it, or ends connections over it; it is asked again.
        IMPOSSIBLE: the broker offers no wildcards.
    """

    UNASKED = "unasked"
    ASKED = "asked"
    OPEN = "open"
    REFUSED = "refused"
    IMPOSSIBLE = "impossible"


class MqttReplyInbox:
    """Maintains an application's subscription to replies, without which it can still publish.

    Args:
        config: timeouts and the broker's address.
        identifier: the client identifier, for log and error messages.
        pattern: the filter of the subscription.
        stats: counters.

    Attributes:
        pattern: as given.
        command_topic: where operators reach the application; None if nobody is to. It can use the
            inbox even if the broker refuses this.
        problem: why requests are impossible, as of the latest connection on which that was found
            out; None if they are possible.
    """

    def __init__(
        self, config: MqttConfig, identifier: str, pattern: str, stats: Counter[str]
    ) -> None:
        self.pattern = pattern
        self.command_topic: str | None = None
        self.problem: SpaDatError | None = None
        self._config = config
        self._identifier = identifier
        self._stats = stats
        self._state = InboxState.UNASKED
        # Connections in a row that ended while it was being requested.
        self._ends = 0
        self._regaining: asyncio.Task[None] | None = None
        # Which warnings about what the broker does not grant have been logged.
        self._warned: set[str] = set()

    def connecting(self) -> None:
        """Start over, as another attempt to connect begins."""
        if self._state in (InboxState.UNASKED, InboxState.IMPOSSIBLE):
            self._ends = 0
        self._become(InboxState.UNASKED, self.problem)

    async def open(self, client: MqttClient, *, first: bool) -> None:
        """Subscribe on a new connection, which is used even if the broker refuses that.

        Raises:
            SpaDatError: with ``first``, when the broker refuses it.
            ConnectionLost: the connection ended, or the broker did not answer.
        """
        self._become(InboxState.UNASKED)
        if client.limits.lacking(self.pattern) is not None:
            problem = ConfigurationError(
                f"the broker at {self._config.address} offers no wildcard subscriptions, which"
                " replies need; use another broker"
            )
            self._become(InboxState.IMPOSSIBLE, problem)
            return
        self._become(InboxState.ASKED)
        refusal: SpaDatError | None
        if self._ends >= MOST_ENDS and not first:
            refusal = ConnectFailed(
                f"the broker at {self._config.address} ends the connection when asked for the"
                " inbox for replies: check its log and access rules"
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
        _log.error("%r: %s; retrying", self._identifier, refusal)
        self.close()
        self._regaining = asyncio.ensure_future(self._regain(client))

    def close(self) -> None:
        """Stop asking for it."""
        if self._regaining is not None:
            self._regaining.cancel()
            self._regaining = None

    def _become(self, state: InboxState, problem: SpaDatError | None = None) -> None:
        self._state = state
        self.problem = problem

    async def _ask(self, client: MqttClient) -> SpaDatError | None:
        """Subscribe, and return why the broker refuses it, if it does."""
        pattern = self.pattern
        wanted = [pattern] if self.command_topic is None else [pattern, self.command_topic]
        try:
            codes = await client.subscribe(wanted, qos=1, timeout=self._config.connect_timeout)
        except ConnectionLost:
            if client.lost.done() and blame(client.lost.result()) is Blame.POSSIBLE:
                self._ends += 1
            raise
        self._ends = 0
        # A broker has not granted what it leaves out of its answer.
        code, of_commands = itertools.islice(itertools.chain(codes, itertools.repeat(_REFUSED)), 2)
        if code >= _REFUSED:
            return subscribe_refusal(code, pattern)
        if code == 0:
            self._warn(
                "replies", f"the broker grants only QoS 0 for {pattern!r}: replies may be lost"
            )
        if self.command_topic is not None and of_commands >= _REFUSED:
            problem = subscribe_refusal(of_commands, self.command_topic)
            self._warn("commands", f"operators cannot have dead letters replayed: {problem}")
        return None

    def _warn(self, of: str, what: str) -> None:
        # The broker's own words may be others each time.
        if of not in self._warned:
            self._warned.add(of)
            _log.warning("%r: %s", self._identifier, what)

    async def _regain(self, client: MqttClient) -> None:
        # Each attempt may cost a connection.
        delay = _RETRY_REFUSED * 2 ** min(max(self._ends - MOST_ENDS, 0), _MOST_DOUBLINGS)
        while True:
            await asyncio.sleep(delay)
            if client.lost.done():
                return
            # The answer may be missing only this time.
            with contextlib.suppress(ConnectionLost):
                refusal = await self._ask(client)
                if refusal is None:
                    self._become(InboxState.OPEN)
                    _log.info("%r: the broker grants the inbox for replies again", self._identifier)
                    return
                self._become(InboxState.REFUSED, refusal)
