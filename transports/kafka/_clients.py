"""What all clients of the library get, and the first word with a cluster."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine
from typing import Any

import aiokafka.errors as kafka
from aiokafka.client import ConnectionGroup
from aiokafka.conn import CloseReason, collect_hosts, create_conn
from aiokafka.protocol.metadata import MetadataRequest

from ..._logs import get_logger
from .._tls import tls_context
from ._config import KafkaConfig

__all__ = [
    "MOVED",
    "Connections",
    "Whereabouts",
    "common_options",
    "end_tasks",
    "fetch_options",
    "overhear",
    "reach",
    "stop_consumer",
]

_log = get_logger(__name__)

MOVED = "the brokers known last are gone, and the cluster is at other addresses"
"""What is wrong when `Whereabouts.moved`."""

_LIBRARY = "aiokafka"
_LEAST_FETCHED = 65_536
_SILENCE = 10.0
_SHORTEST_RETRY, _LONGEST_RETRY = 0.02, 0.1
# After so many looks in a row at which the brokers known last did not answer, but the configured
# ones did, the whole cluster must have moved.
_MOVED = 3


def common_options(config: KafkaConfig, client_id: str) -> dict[str, Any]:
    """The keyword arguments that producers, consumers and admin clients share.

    Reads the certificate files anew each time. Also keeps the library's loggers from passing
    secrets on.

    Args:
        config: where and how.
        client_id: what the cluster's logs and quotas call the client.

    Raises:
        ConfigurationError: a TLS file cannot be read or is no certificate or key.
    """
    _restrain_loggers()
    retry = min(max(config.backoff_min, _SHORTEST_RETRY), _LONGEST_RETRY)
    return {
        "bootstrap_servers": config.servers.split(","),
        "request_timeout_ms": int(config.request_timeout * 1000),
        "metadata_max_age_ms": max(1, int(config.topic_refresh * 1000)),
        "retry_backoff_ms": int(retry * 1000),
        **_connection_options(config, client_id),
    }


def fetch_options(window_bytes: int) -> dict[str, Any]:
    """How much a consumer asks for: it may have that much of each broker beside its window.

    A record that is larger comes alone all the same.
    """
    most = max(_LEAST_FETCHED, min(window_bytes // 2, 2**31 - 1))
    return {"fetch_max_bytes": most, "max_partition_fetch_bytes": most}


async def reach(config: KafkaConfig, client_id: str) -> None:
    """Have one broker answer, within ``connect_timeout``; nothing stays open.

    The library's clients try all brokers themselves, but keep what went wrong to themselves.

    Raises:
        OSError: no broker could be reached; TimeoutError is one.
        aiokafka.errors.KafkaError: a broker refused the login, or did not answer as one.
        ConfigurationError: the TLS files cannot be used.
    """
    _restrain_loggers()
    options = _connection_options(config, client_id)
    loop = asyncio.get_running_loop()
    deadline = loop.time() + config.connect_timeout
    cause: Exception | None = None
    servers = collect_hosts(config.servers.split(","))
    for index, (host, port, _) in enumerate(servers):
        # A broker that does not answer must leave time for the others.
        share = max(deadline - loop.time(), 0.0) / (len(servers) - index)
        try:
            async with asyncio.timeout(share):
                await _greet(host, port, options)
        except (OSError, RuntimeError) as error:
            if cause is None or not isinstance(error, OSError):
                cause = error
        else:
            return
    raise cause or OSError("no broker is named")


class Whereabouts:
    """Tells whether what a client of the library knows of the cluster is still good for anything.

    After its start the library asks only the brokers that it was told of last. When all of them
    have come back at other addresses it asks in vain, for ever.

    Args:
        config: where the cluster is.
        client_id: what the cluster's logs call us.
        client: the library's.
    """

    def __init__(self, config: KafkaConfig, client_id: str, client: Any) -> None:
        self._config = config
        self._client_id = client_id
        self._client = client
        self._good: int | None = None
        self._elsewhere = 0
        # When the library had last heard anything, and since when that is known.
        self._heard = self._known_since = 0.0

    async def reachable(self) -> bool:
        """Whether one of the brokers that the client knows can be reached."""
        client = self._client
        if any(connection.connected() for connection in client._conns.values()):
            self._elsewhere = 0
            return True
        nodes = [broker.nodeId for broker in client.cluster.brokers()]
        nodes.sort(key=lambda node: node != self._good)
        for node in nodes:
            with contextlib.suppress(OSError, kafka.KafkaError):
                async with asyncio.timeout(self._config.connect_timeout):
                    if await client.ready(node):
                        self._good = node
                        self._elsewhere = 0
                        return True
        return False

    def silent(self) -> bool:
        """Whether brokers owe answers, and none has sent anything for ten seconds.

        To be called again and again. A broker that is frozen, or cut off without a word, shows only
        by that. Members that wait for their group have another connection for it, which does not
        count.
        """
        connections = [
            connection
            for (_, group), connection in self._client._conns.items()
            if group == ConnectionGroup.DEFAULT and connection.connected()
        ]
        heard = max((connection._last_action for connection in connections), default=0.0)
        owing = any(connection._requests for connection in connections)
        now = asyncio.get_running_loop().time()
        if not owing or heard != self._heard:
            self._heard, self._known_since = heard, now
        return now - self._known_since >= _SILENCE

    @property
    def suspicious(self) -> bool:
        """Whether the cluster may have moved, and a further look is to tell."""
        return self._elsewhere > 0

    async def moved(self) -> bool:
        """Whether it is time to start anew from the configured addresses.

        To be called again and again while `reachable` says no.
        """
        try:
            await reach(self._config, self._client_id)
        except Exception as error:  # noqa: BLE001 (whatever it is, there is no cluster)
            self._elsewhere = 0
            _log.debug("no connection to %s: %s", self._config.address, error)
            return False
        self._elsewhere += 1
        return self._elsewhere >= _MOVED


class Connections:
    """Makes the connections of a client of the library, and closes every one of them.

    The library leaves open what is still being made when it closes, and its first connection when
    its start is cancelled. Takes the place of the client's own methods.

    Args:
        client: the library's; not started.
        config: where and how.
        client_id: what the cluster's logs call us.
    """

    def __init__(self, client: Any, config: KafkaConfig, client_id: str) -> None:
        self._client = client
        self._options = {
            **_connection_options(config, client_id),
            "request_timeout_ms": int(config.request_timeout * 1000),
        }
        self._make, self._close_made = client._get_conn, client.close
        self._making: set[asyncio.Task[Any]] = set()
        self._closed = False
        client._get_conn, client.bootstrap, client.close = self._get, self._bootstrap, self._close

    async def _get(self, node_id: Any, **options: Any) -> Any:
        group = options.get("group", ConnectionGroup.DEFAULT)
        connection = self._client._conns.get((node_id, group))
        if connection is not None and connection.connected():
            return connection
        if self._closed:
            return None
        making = asyncio.ensure_future(self._make(node_id, **options))
        self._making.add(making)
        making.add_done_callback(self._making.discard)
        try:
            await asyncio.wait((making,))
        finally:
            making.cancel()
        return None if making.cancelled() else making.result()

    async def _bootstrap(self) -> None:
        client = self._client
        for host, port, _ in client.hosts:
            with contextlib.suppress(OSError, kafka.KafkaError):
                connection = await create_conn(host, port, **self._options)
                try:
                    client.cluster.update_metadata(await connection.send(MetadataRequest([])))
                except BaseException:
                    connection.close()
                    raise
                if client.cluster.brokers():
                    connection.close()
                else:
                    # The library asks here again until there are some.
                    client._conns["bootstrap", ConnectionGroup.DEFAULT] = connection
                break
        else:
            raise kafka.KafkaConnectionError(f"Unable to bootstrap from {client.hosts}")
        if client._sync_task is None:
            client._sync_task = asyncio.ensure_future(client._md_synchronizer())

    async def _close(self) -> None:
        self._closed = True
        making = [*self._making]
        for task in making:
            task.cancel()
        if making:
            await asyncio.wait(making)
        try:
            await self._close_made()
        finally:
            for connection in self._client._conns.values():
                connection.close(reason=CloseReason.SHUTDOWN)


def overhear(client: Any, hear: Callable[[Any, Any], None]) -> None:
    """Have ``hear`` called with each request of a client of the library and with its answer.

    There is more in some answers than the library passes on.
    """
    send = client.send

    async def send_and_tell(node: Any, request: Any, **options: Any) -> Any:
        answer = await send(node, request, **options)
        hear(request, answer)
        return answer

    client.send = send_and_tell


async def stop_consumer(consumer: Any, timeout: float) -> None:
    """Stop a consumer of the library, and all that it has started; never raises.

    Not by its own ``stop``: in the middle of a rebalance that waits for the end of it, and where a
    fetch has just begun or failed it ends half-way. It would do nothing else, as nothing is
    committed by the library, and a group is left with `leave`.

    Args:
        consumer: started or not.
        timeout: seconds for each of two steps.
    """
    consumer._closed = True
    await end_tasks(consumer, timeout)
    await _attempt(consumer._client.close(), timeout)


async def end_tasks(consumer: Any, timeout: float) -> None:
    """End all that a consumer of the library does by itself, within ``timeout`` seconds."""
    coordinator, fetcher = consumer._coordinator, consumer._fetcher
    parts = (
        getattr(coordinator, "_coordination_task", None),
        getattr(coordinator, "_heartbeat_task", None),
        getattr(coordinator, "_commit_refresh_task", None),
        getattr(coordinator, "_reset_committed_task", None),
        getattr(fetcher, "_fetch_task", None),
        *getattr(fetcher, "_pending_tasks", ()),
    )
    tasks = [task for task in parts if task is not None]
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks, timeout=timeout)
    for task in tasks:
        if task.done() and not task.cancelled():
            # What it ended with is of no interest any more.
            task.exception()


async def _attempt(step: Coroutine[Any, Any, None], timeout: float) -> None:
    task = asyncio.ensure_future(step)
    try:
        await asyncio.wait((task,), timeout=timeout)
    finally:
        if not task.done():
            task.cancel()
        elif not task.cancelled():
            task.exception()


async def _greet(host: str, port: int, options: dict[str, Any]) -> None:
    connection = await create_conn(host, port, **options)
    try:
        # A broker that wants a login first answers nothing but this.
        await connection.send(MetadataRequest([]))
    finally:
        connection.close()


def _connection_options(config: KafkaConfig, client_id: str) -> dict[str, Any]:
    protocol = "SSL" if config.tls else "PLAINTEXT"
    options: dict[str, Any] = {"client_id": client_id, "ssl_context": tls_context(config)}
    secret = config.secret
    if secret is not None:
        protocol = "SASL_SSL" if config.tls else "SASL_PLAINTEXT"
        options["sasl_mechanism"] = config.sasl_mechanism
        options["sasl_plain_username"] = config.username
        options["sasl_plain_password"] = secret.reveal()
    options["security_protocol"] = protocol
    return options


def _restrain_loggers() -> None:
    """At DEBUG the library logs passwords, and while a cluster is away several errors a second.

    Who wants to see more than what this package says of it sets a level for the logger, but not
    below INFO.
    """
    library = logging.getLogger(_LIBRARY)
    if library.level == logging.NOTSET:
        library.setLevel(logging.CRITICAL)
    for name in (_LIBRARY, *logging.root.manager.loggerDict):
        if name == _LIBRARY or name.startswith(f"{_LIBRARY}."):
            logger = logging.getLogger(name)
            if logger.level != logging.NOTSET and logger.level < logging.INFO:
                logger.setLevel(logging.INFO)
