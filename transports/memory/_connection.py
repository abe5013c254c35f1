"""The connection of a client to the memory broker, which reconnects."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from ..._logs import get_logger
from ...errors import ConfigurationError, ConnectFailed
from .._contract import Surroundings
from .._reconnect import Backoff
from .._rivalry import Rivalry
from ._broker import Broker
from ._queue import ClientLink

__all__ = ["MemoryConnection"]

_log = get_logger(__name__)

_SETTLED = 2.0
_LASTING = 30.0


class MemoryConnection:
    """One client's connection, which reconnects after a backoff whenever it is lost.

    Args:
        broker: the broker to connect to.
        client_id: names the client in log and error messages.
        surroundings: those of the application.
        connect: connects once, and raises ConnectFailed if the broker refuses.
        lost: called when the connection has ended other than by `close`.
    """

    __slots__ = (
        "_attempt",
        "_backoff",
        "_broker",
        "_closed",
        "_loop",
        "_lost",
        "_rivalry",
        "_since",
        "_surroundings",
        "_timer",
        "client_id",
        "link",
    )

    def __init__(
        self,
        broker: Broker,
        client_id: str,
        surroundings: Surroundings,
        *,
        connect: Callable[[], ClientLink],
        lost: Callable[[], None],
    ) -> None:
        self.link: ClientLink | None = None
        self.client_id = client_id
        self._broker = broker
        self._surroundings = surroundings
        self._attempt = connect
        self._lost = lost
        # Most are never refused or lost, and there may be thousands.
        self._backoff: Backoff | None = None
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._since = 0.0
        self._rivalry: Rivalry | None = None
        self._closed = False

    @property
    def away(self) -> bool:
        """Whether it is not connected but will be."""
        return self.link is None and not self._closed

    async def start(self, timeout: float) -> None:
        """Connect, retrying after refusals for ``timeout`` seconds.

        Raises:
            ConnectFailed: refused until then.
        """
        deadline = self._loop.time() + timeout
        while True:
            try:
                self._connect()
                return
            except ConnectFailed as error:
                left = deadline - self._loop.time()
                if left <= 0:
                    raise ConnectFailed(
                        f"{self.client_id!r} got no connection to {self._broker.address}"
                        f" within {timeout:g} s: {error}"
                    ) from error
            await asyncio.sleep(min(left, self._next_delay()))
            if self._closed:
                raise ConnectFailed(f"{self.client_id!r} was closed before it was connected")

    def lost(self, taken_over: bool) -> None:
        """Reconnect, or give way, as the broker has ended the connection."""
        lasted = self._loop.time() - self._since
        self.link = None
        self._surroundings.stats["connections.lost"] += 1
        _log.warning("%s: connection of %r lost", self._broker.address, self.client_id)
        self._lost()
        if self._rivalry is None:
            self._rivalry = Rivalry(
                settled_after=_SETTLED, lasting=_LASTING, newcomer=5, settled=10
            )
        rivalry = self._rivalry
        rivalry.held(lasted)
        if taken_over:
            rivalry.pushed_out()
        else:
            rivalry.over()
        if rivalry.gives_way:
            self._surroundings.fatal(
                ConfigurationError(
                    f"client id {self.client_id!r} on {self._broker.address} was taken over"
                    f" {rivalry.count} times in a row: another application with the same"
                    " name and instance is running; give each its own instance"
                )
            )
            return
        self._retry(lasted)

    def close(self) -> None:
        """Disconnect, or stop trying to connect."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        link, self.link = self.link, None
        if link is not None:
            self._broker.close(link)

    def _connect(self) -> None:
        self._since = self._loop.time()
        self.link = self._attempt()

    def _retry(self, lasted: float) -> None:
        self._timer = self._loop.call_later(self._next_delay(lasted), self._again)

    def _next_delay(self, lasted: float = 0.0) -> float:
        if self._backoff is None:
            self._backoff = Backoff(self._surroundings.environment, maximum=1.0)
        return self._backoff.next_delay(lasted)

    def _again(self) -> None:
        self._timer = None
        try:
            self._connect()
        except ConnectFailed:
            self._retry(0.0)
