"""The admin endpoint of an application: it answers probes over HTTP as long as a run lasts."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING

from ..._busy_threads import has_own_clock
from ..._logs import get_logger
from ..._texts import bracketed
from ...errors import ConfigurationError
from ..diagnostics._health import Health
from ..options._admin_address import AdminAddress

if TYPE_CHECKING:
    from ._admin_server import AdminServer
    from ._lifecycle import Run

__all__ = ["AdminEndpoint"]

log = get_logger("spa_dat")


class AdminEndpoint:
    """Answers probes from before the start of a run until after its stop.

    Args:
        address: where; None for nowhere.
        application: its name, for the log.
        health: returns the health of the run.
        run: gives access to its dead letters.
    """

    def __init__(
        self,
        address: AdminAddress | None,
        application: str,
        health: Callable[[], Health],
        run: Run,
    ) -> None:
        self._address = address
        self._application = application
        self._health = health
        self._run = run
        self._socket: socket.socket | None = None
        self._server: AdminServer | None = None

    async def open(self) -> None:
        """Begin to answer.

        Raises:
            ConfigurationError: the address cannot be used, or aiohttp is not installed.
        """
        if self._address is None or has_own_clock(asyncio.get_running_loop()):
            return
        try:
            # Only who asks for it needs it.
            from ._admin_server import AdminServer
            from ._letter_pages import LetterPages
        except ImportError as error:
            raise ConfigurationError(
                f"{self._address}: aiohttp is not installed, which it needs: pip install"
                " 'spa-dat[admin]'"
            ) from error
        self._socket = listening = self._address.bound()
        self._server = AdminServer(self._address, self._health, LetterPages(self._run))
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
