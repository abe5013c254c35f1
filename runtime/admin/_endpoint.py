"""The admin endpoint of an application: it answers probes over HTTP as long as a run lasts."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterable
from typing import TYPE_CHECKING

from ..._logs import get_logger
from ..._texts import bracketed
from ...errors import ConfigurationError
from ..hosting._actor_observer import Observer, Observers
from ..hosting._actor_runner import ActorRunner
from ..options._admin_address import AdminAddress

if TYPE_CHECKING:
    from ..metrics._prometheus import Exposition
    from ._administered_run import AdministeredRun
    from ._live_observer import LiveObserver
    from ._server import AdminServer

__all__ = ["AdminEndpoint"]

log = get_logger("spa_dat")

# Seconds. Finding out whether a run is ready takes 8 µs for each actor.
_READINESS_OF_ACTOR = 0.0002
_OLDEST_READINESS = 1.0


class AdminEndpoint:
    """Answers probes from before the start of a run until after its stop, and measures for it.

    Args:
        run: the run.
        address: where; None for nowhere, and then it does nothing.
        exposition: has the run's metrics; None if it has none for Prometheus.
    """

    def __init__(
        self, run: AdministeredRun, address: AdminAddress | None, exposition: Exposition | None
    ) -> None:
        self._run = run
        self._address = address
        self._exposition = exposition
        self._picture: LiveObserver | None = None
        self._socket: socket.socket | None = None
        self._server: AdminServer | None = None
        if address is not None:
            # Not at the top: only who asks for it pays for it.
            from ._live_observer import LiveObserver

            self._picture = LiveObserver(run)

    def observing(self, observer: Observer | None) -> Observer | None:
        """Return what is to observe the run: this, besides the observer that there is already."""
        picture = self._picture
        if picture is None:
            return observer
        return picture if observer is None else Observers(observer, picture)

    def watch(self, actors: Iterable[ActorRunner]) -> None:
        """Begin to measure these actors, which have not been started yet."""
        if self._picture is not None:
            self._picture.start(actors)

    async def open(self) -> None:
        """Begin to answer.

        Raises:
            ConfigurationError: the address cannot be used, or aiohttp is not installed.
        """
        if self._address is None or self._picture is None:
            return
        try:
            # Only who asks for it needs it.
            from ._dead_letter_pages import LetterPages
            from ._server import AdminServer, Answers
        except ImportError as error:
            raise ConfigurationError(
                f"{self._address}: aiohttp is not installed, which it needs: pip install"
                " 'spa-dat[admin]'"
            ) from error
        self._socket = listening = self._address.bound()
        run = self._run
        answers = Answers(
            lambda: run.health_report.health,
            _Readiness(run).reasons,
            self._picture.document,
            run.controls,
            LetterPages(run),
            self._exposition,
        )
        self._server = AdminServer(self._address, answers)
        await self._server.open(listening)
        host, port = listening.getsockname()[:2]
        log.info(
            "application %r answers probes at http://%s:%d",
            run.settings.identity.application,
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
        """Measure no more, and release the port; also after the event loop has ended."""
        if self._picture is not None:
            self._picture.stop()
        if self._socket is not None:
            self._socket.close()
            self._socket = None


class _Readiness:
    """Why a run is not ready, found out only so often: anybody may ask.

    Args:
        run: the run.
    """

    def __init__(self, run: AdministeredRun) -> None:
        self._run = run
        self._loop = asyncio.get_running_loop()
        self._until = 0.0
        self._latest: dict[str, str] | None = None

    def reasons(self) -> dict[str, str]:
        """Return why, as found out lately; while it is starting or stopping, as it is now."""
        if not self._run.is_running:
            return self._run.health_report.reasons_not_ready()
        now = self._loop.time()
        if self._latest is None or now >= self._until:
            actors = len(self._run.actors)
            self._until = now + min(actors * _READINESS_OF_ACTOR, _OLDEST_READINESS)
            self._latest = self._run.health_report.reasons_not_ready()
        return self._latest
