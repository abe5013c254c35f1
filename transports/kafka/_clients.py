"""What all clients of the library get, and the first word with a cluster."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any

from aiokafka.conn import collect_hosts, create_conn
from aiokafka.protocol.metadata import MetadataRequest

from .._tls import tls_context
from ._config import KafkaConfig

__all__ = ["common_options", "end_tasks", "reach", "stop_consumer"]

_LIBRARY = "aiokafka"
_SHORTEST_RETRY, _LONGEST_RETRY = 0.02, 0.1


def common_options(config: KafkaConfig, client_id: str) -> dict[str, Any]:
    """The keyword arguments that producers, consumers and admin clients share.

    Reads the certificate files anew each time. Also keeps the library's loggers from passing
    secrets on.

    Args:
        config: where and how.
        client_id: what the cluster's logs and quotas call the client.

    Raises:
        ConfigurationError: a TLS file can not be read or is no certificate or key.
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


async def reach(config: KafkaConfig, client_id: str) -> None:
    """Have one broker answer, within ``connect_timeout``; nothing stays open.

    The library's clients try all brokers themselves, but keep what went wrong to themselves.

    Raises:
        OSError: no broker could be reached; TimeoutError is one.
        aiokafka.errors.KafkaError: a broker refused the login, or did not answer as one.
        ConfigurationError: the TLS files can not be used.
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
