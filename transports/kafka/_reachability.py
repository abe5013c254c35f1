"""Reachability: whether the cluster can be reached, and is still where the library looks for it."""

from __future__ import annotations

import asyncio
import contextlib
import enum
import ssl
from collections.abc import Mapping
from typing import Any

import aiokafka.errors as kafka

from ..._logs import get_logger
from .._connect_failures import OtherEnd, is_wrong_setup
from .._tls_probe import answers_tls
from ._aiokafka_private import (
    accepted_logins,
    answers_plain,
    hosts_of,
    is_connected,
    traffic,
    try_connection,
)
from ._client_options import connection_options, renewed_options
from ._config import KafkaConfig
from ._errors import LoginMissing, connect_problem, is_login_failure, is_obstacle

__all__ = ["MOVED", "Brokers", "Reachability", "reach"]

_log = get_logger(__name__)

MOVED = "the last known brokers are gone, and the cluster is at other addresses"
"""The problem when `Reachability.moved`."""

_CUT_OFF = (ConnectionResetError, ssl.SSLEOFError, kafka.KafkaConnectionError)
_LONGEST_LOOK = 2.0
_SILENCE = 10.0
# After this many consecutive checks in which the last known brokers did not answer, but the
# configured ones did, the whole cluster must have moved.
_MOVED = 3


class Brokers(enum.Enum):
    """The states of the brokers that a consumer of the library knows.

    Attributes:
        ANSWERING: one can be reached, and answers.
        SILENT: one can be reached, but owes an answer for long.
        AWAY: none can be reached.
    """

    ANSWERING = enum.auto()
    SILENT = enum.auto()
    AWAY = enum.auto()


async def reach(config: KafkaConfig, client_id: str, patience: float | None = None) -> None:
    """Have one broker answer within ``patience`` seconds; leave nothing open.

    By default that is ``connect_timeout``. It does not count how long the login takes to be had.

    The library's clients try all brokers themselves, but do not say what went wrong.

    Raises:
        OSError: no broker could be reached, or there is no password to be had; TimeoutError is one.
        aiokafka.errors.KafkaError: a broker refused the login, or did not answer as one.
        ConfigurationError: the TLS files or the password cannot be used.
    """
    options = connection_options(config, client_id) | await renewed_options(config)
    loop = asyncio.get_running_loop()
    deadline = loop.time() + (config.connect_timeout if patience is None else patience)
    cause: Exception | None = None
    servers = hosts_of(config.servers)
    for index, (host, port) in enumerate(servers):
        # A broker that does not answer must leave time for the others.
        share = max(deadline - loop.time(), 0.0) / (len(servers) - index)
        try:
            await try_connection(host, port, options, share)
        except (OSError, RuntimeError) as error:
            # A token may be one that the broker fails over, instead of refusing it.
            if is_login_failure(error):
                config.login.forget_password()
            if cause is None or not isinstance(error, OSError) or is_wrong_setup(error):
                cause = error
                place = host, port
        else:
            return
    if cause is None:
        raise OSError("no broker is named")
    better = await _diagnosed(cause, *place, options)
    if better is not None:
        raise better from cause
    raise cause


async def _diagnosed(
    cause: Exception, host: str, port: int, options: Mapping[str, Any]
) -> Exception | None:
    """Return a better error if the broker ended the connection without an answer, and why shows."""
    if not isinstance(cause, _CUT_OFF):
        return None
    with contextlib.suppress(OSError, kafka.KafkaError):
        async with asyncio.timeout(_LONGEST_LOOK):
            if options["ssl_context"] is not None:
                if await answers_plain(host, port):
                    return OtherEnd("the broker answers there without TLS: use a port with TLS")
            elif await answers_tls(host, port):
                return OtherEnd("it speaks TLS there: give tls=True (in a URL write kafkas://)")
            if "sasl_mechanism" not in options:
                mechanisms = await accepted_logins(host, port, options)
                if mechanisms:
                    return LoginMissing(mechanisms)
    return None


class Reachability:
    """Tells whether what a client of the library knows about the cluster is still of any use.

    After its start the library asks only the last known brokers. If all of them have come back at
    other addresses it asks in vain, forever.

    Args:
        config: the configuration.
        client_id: our name in the cluster's logs.
        client: the library's.

    Attributes:
        obstacle: why no connection can be had, as text, if the last check found more than an
            outage: a login, a certificate, a file.
    """

    def __init__(self, config: KafkaConfig, client_id: str, client: Any) -> None:
        self._config = config
        self._client_id = client_id
        self._client = client
        self.obstacle: str | None = None
        self._good: int | None = None
        self._elsewhere = 0
        # When the library had last heard anything, and since when that has been known.
        self._heard = self._known_since = 0.0

    async def reachable(self) -> bool:
        """Return whether one of the brokers that the client knows can be reached."""
        client = self._client
        if is_connected(client):
            self._reached()
            return True
        nodes = [broker.nodeId for broker in client.cluster.brokers()]
        nodes.sort(key=lambda node: node != self._good)
        for node in nodes:
            with contextlib.suppress(OSError, kafka.KafkaError):
                async with asyncio.timeout(self._config.connect_timeout):
                    if await client.ready(node):
                        self._good = node
                        self._reached()
                        return True
        return False

    def _reached(self) -> None:
        self._elsewhere = 0
        self.obstacle = None

    def silent(self) -> bool:
        """Return whether brokers owe answers, and none has sent anything for ten seconds.

        To be called repeatedly. A broker that is frozen or silently cut off shows only by that.
        """
        heard, owing = traffic(self._client)
        now = asyncio.get_running_loop().time()
        if not owing or heard != self._heard:
            self._heard, self._known_since = heard, now
        return now - self._known_since >= _SILENCE

    @property
    def suspicious(self) -> bool:
        """Whether the cluster may have moved, which a further check will tell."""
        return self._elsewhere > 0

    async def moved(self) -> bool:
        """Return whether it is time to start over from the configured addresses.

        To be called repeatedly while `reachable` says no; finds out the `obstacle`.
        """
        try:
            await reach(self._config, self._client_id)
        except Exception as error:  # noqa: BLE001 (whatever it is, there is no cluster)
            self._elsewhere = 0
            _log.debug("no connection to %s: %s", self._config.address, error)
            self.obstacle = None
            if is_obstacle(error):
                config = self._config
                problem = connect_problem(error, config.address, config.login.username)
                self.obstacle = str(problem.error)
            return False
        self.obstacle = None
        self._elsewhere += 1
        return self._elsewhere >= _MOVED
