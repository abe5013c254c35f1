"""Waits between two attempts, which end early when there is reason to."""

from __future__ import annotations

import asyncio

from ._router import Router

__all__ = ["LONGEST_PAUSE", "SHORTEST_PAUSE", "Pauses"]

SHORTEST_PAUSE = 0.1
"""Seconds between two attempts at what has to succeed some time, where the policy names none."""
LONGEST_PAUSE = 10.0


class Pauses:
    """The waits of one actor."""

    def __init__(self) -> None:
        self._open: dict[asyncio.Future[bool], Router | None] = {}
        self._stopped = False

    @property
    def stopped(self) -> bool:
        """Whether no wait begins any more."""
        return self._stopped

    async def wait(self, seconds: float, router: Router | None = None) -> bool:
        """Wait; False when the wait was cut short, by `stop` or on behalf of the router.

        Args:
            seconds: for how long at the most.
            router: whose message it is about; None for a wait that only `stop` ends.
        """
        if self._stopped:
            return False
        loop = asyncio.get_running_loop()
        pause: asyncio.Future[bool] = loop.create_future()
        self._open[pause] = router
        timer = loop.call_later(seconds, _wake, pause, True)
        try:
            return await pause
        finally:
            timer.cancel()
            del self._open[pause]

    def interrupt(self, router: Router) -> None:
        """End the waits that are about messages of this router."""
        for pause, waited_for in tuple(self._open.items()):
            if waited_for is router:
                _wake(pause, False)

    def stop(self) -> None:
        """End all waits, now and from now on."""
        self._stopped = True
        for pause in tuple(self._open):
            _wake(pause, False)


def _wake(pause: asyncio.Future[bool], result: bool) -> None:
    if not pause.done():
        pause.set_result(result)
