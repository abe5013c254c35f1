"""Reading a document again, before each attempt to connect."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from dataclasses import fields

from ..._busy_threads import busy_thread
from ..._logs import get_logger
from ..._texts import describe
from ...errors import ConfigurationError
from .._broker_config import BrokerConfig

__all__ = ["DocumentRenewal"]

_log = get_logger(__name__)

# All connections of an application may be lost at once, and each of them asks.
_SHORTEST_BETWEEN_REQUESTS = 1.0
_LOGIN = frozenset(
    [
        "username",
        "password",
        "tls_ca",
        "tls_cert",
        "tls_key",
        "tls_key_password",
    ]
)
"""What is taken over while the application runs; the rest is for its next start."""


class DocumentRenewal:
    """Keeps the login that a document has now.

    Attributes:
        origin: see `Renewal`.
        latest: see `Renewal`.
        first: the configuration that the application has started with.

    Args:
        origin: the document, for messages.
        load: returns the configuration as it is now; may block, so it runs in a thread.
        is_remote: whether loading is a request to a server, which is made once a second at most.
    """

    def __init__(self, origin: str, load: Callable[[], object], *, is_remote: bool) -> None:
        self.origin = origin
        self.latest: BrokerConfig | None = None
        self.first: object = None
        self._load = load
        self._pause = _SHORTEST_BETWEEN_REQUESTS if is_remote else 0.0
        self._reading: asyncio.Future[None] | None = None
        self._late: asyncio.Future[None] | None = None
        self._next = 0.0
        self._said = ""
        self._told_of: frozenset[str] = frozenset()

    def __deepcopy__(self, memo: object) -> DocumentRenewal:
        # A copy of the configuration has the same document.
        return self

    async def renew(self, patience: float) -> None:
        """Read the document, within so many seconds; several callers at a time share one reading.

        If that fails the last login is kept, which is said in the log: once for each reason.
        """
        loop = asyncio.get_running_loop()
        reading = self._reading
        if reading is None or reading.get_loop() is not loop:
            self._next = 0.0
        elif reading.done() and loop.time() < self._next:
            return
        if reading is None or reading.done() or reading.get_loop() is not loop:
            self._next = loop.time() + self._pause
            reading = self._reading = self._start(loop)
        if reading is self._late:
            return
        # A caller that is cancelled leaves it to the others.
        done, _ = await asyncio.wait((reading,), timeout=patience)
        if not done:
            # Nobody need wait for it once more.
            self._late = reading
            self._complain(f"it took longer than {patience:g} s")

    def _start(self, loop: asyncio.AbstractEventLoop) -> asyncio.Future[None]:
        reading: asyncio.Future[None] = loop.create_future()

        def finish(config: object, problem: str) -> None:
            if config is not None:
                self._take(config)
            else:
                self._complain(problem)
            if not reading.done():
                reading.set_result(None)

        busy = busy_thread("a configuration document")

        def read() -> None:
            config: object = None
            problem = ""
            with busy:
                try:
                    config = self._load()
                except ConfigurationError as error:
                    problem = str(error)
                except BaseException as error:  # noqa: BLE001 (the login is kept, whatever it is)
                    problem = describe(error)
                try:
                    loop.call_soon_threadsafe(finish, config, problem)
                except RuntimeError:
                    # The loop is closed.
                    return

        threading.Thread(target=read, name="spa_dat document", daemon=True).start()
        return reading

    def _take(self, config: object) -> None:
        first = self.first
        if (
            not isinstance(config, BrokerConfig)
            or not isinstance(first, BrokerConfig)
            or type(config) is not type(first)
        ):
            self._complain("it now names another kind of bus, which requires a restart")
            return
        change = _meant_for_others(config, first)
        if change is not None:
            self._complain(f"{change}, which requires a restart")
            return
        if self._said:
            self._said = ""
            _log.info("the configuration document %s can be read again", self.origin)
        self.latest = config
        changed = frozenset(
            entry.name
            for entry in fields(config)
            if entry.compare
            and entry.name not in _LOGIN
            and getattr(config, entry.name) != getattr(first, entry.name)
        )
        if changed - self._told_of:
            _log.warning(
                "the configuration document %s has changed options that take effect only when"
                " the application is restarted: %s",
                self.origin,
                ", ".join(sorted(changed)),
            )
        self._told_of = changed

    def _complain(self, problem: str) -> None:
        if problem == self._said:
            return
        self._said = problem
        _log.warning(
            "the configuration document %s cannot be used now, so the last login is kept: %s",
            self.origin,
            problem,
        )


def _meant_for_others(now: BrokerConfig, first: BrokerConfig) -> str | None:
    """Return what has changed, if the login is not one to send over connections as they are.

    It would go to a broker that it is not for, or unprotected where it is to be protected.
    """
    if now.hosts.isdisjoint(first.hosts):
        return "it now names another host"
    if now.tls and not first.tls:
        return "it now asks for TLS"
    if first.tls_insecure_skip_verification and not now.tls_insecure_skip_verification:
        return "it now asks for a check of the broker's certificate"
    return None
