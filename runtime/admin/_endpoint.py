"""The admin endpoint of an application: it answers probes over HTTP as long as a run lasts."""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, NamedTuple

from ..._logs import get_logger
from ..._texts import bracketed
from ...errors import ConfigurationError
from ..diagnostics._health import Health
from ..options._admin_address import AdminAddress
from ._actor_controls import ActorControls

if TYPE_CHECKING:
    from ..metrics._prometheus import Exposition
    from ._letter_pages import LetterPages
    from ._server import AdminServer

__all__ = ["AdminEndpoint", "Answers"]

log = get_logger("spa_dat")


class Answers(NamedTuple):
    """What the endpoint tells of a run, and does to it.

    Attributes:
        health: returns its health.
        reasons_not_ready: returns why it cannot be given work; cheaper than all of its health.
        picture: makes a live picture, as JSON.
        controls: what can be done to its actors.
        letters: answers about its dead letters.
        exposition: has its metrics; None if it has none for Prometheus.
    """

    health: Callable[[], Health]
    reasons_not_ready: Callable[[], dict[str, str]]
    picture: Callable[[], Awaitable[bytes]]
    controls: ActorControls
    letters: LetterPages
    exposition: Exposition | None


class AdminEndpoint:
    """Answers probes from before the start of a run until after its stop.

    Args:
        address: where; None for nowhere.
        application: its name, for the log.
        answers: what it tells.
    """

    def __init__(
        self, address: AdminAddress | None, application: str, answers: Answers | None
    ) -> None:
        self._address = address
        self._application = application
        self._answers = answers
        self._socket: socket.socket | None = None
        self._server: AdminServer | None = None

    async def open(self) -> None:
        """Begin to answer.

        Raises:
            ConfigurationError: the address cannot be used, or aiohttp is not installed.
        """
        if self._address is None or self._answers is None:
            return
        try:
            # Only who asks for it needs it.
            from ._server import AdminServer
        except ImportError as error:
            raise ConfigurationError(
                f"{self._address}: aiohttp is not installed, which it needs: pip install"
                " 'spa-dat[admin]'"
            ) from error
        self._socket = listening = self._address.bound()
        self._server = AdminServer(self._address, self._answers)
        await self._server.open(listening)
        host, port = listening.getsockname()[:2]
        log.info(
            "application %r answers probes at http://%s:%d",
            self._application,
            bracketed(host),
            port,
        )

    async def close(self) -> None:
        """Answer no more; waits for nobody."""
        server, self._server = self._server, None
        if server is not None:
            await server.close()
        self.abandon()

    def abandon(self) -> None:
        """Release the port after the event loop has ended."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
