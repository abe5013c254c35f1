"""Real brokers in place of those that applications name."""

from __future__ import annotations

import abc
import asyncio
import contextlib
import secrets
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, TypeAlias

from ...transports import KafkaConfig, KafkaProvider, MqttConfig, MqttProvider, SocketProvider
from ..brokers import Kafka, Mosquitto
from ..simulated._stand_ins import Profile

__all__ = ["KafkaBrokers", "MosquittoBrokers", "RealBrokers", "Redirect"]

_SHARED = (
    "window", "window_bytes", "outbox", "outbox_bytes", "max_payload", "max_received", "qos",
    "backoff_min", "backoff_max",
)  # fmt: skip
_OPEN: dict[str, Any] = {
    "username": None,
    "password": None,
    "tls": False,
    "tls_ca": None,
    "tls_cert": None,
    "tls_key": None,
    "tls_key_password": None,
    "tls_insecure_skip_verification": False,
    "renewal": None,
}
_PARTITIONS = 3
_DELETING = 10.0
# The defaults are for clusters with a hundred members, not for tests that wait.
_QUICK: dict[str, Any] = {
    "topic_refresh": 0.1,
    "commit_interval": 0.05,
    "heartbeat_interval": 0.1,
    "session_timeout": 10.0,
}


Redirect: TypeAlias = Callable[[SocketProvider], SocketProvider]
"""Turns a provider into one with the same options that leads to a real bus."""


class RealBrokers(abc.ABC):
    """Makes a real bus that nobody else uses for each bus of a test.

    Attributes:
        profile: the kind of the brokers.
    """

    profile: Profile

    @abc.abstractmethod
    def bus(self) -> Redirect:
        """Make a new bus; return what leads to it."""

    @abc.abstractmethod
    def close(self) -> None:
        """Close the brokers, or clean them up."""


class MosquittoBrokers(RealBrokers):
    """A broker for each bus: it starts within some tens of milliseconds."""

    profile = "mqtt"

    def __init__(self) -> None:
        self._brokers: list[Mosquitto] = []

    def bus(self) -> Redirect:
        """See `RealBrokers.bus`."""
        broker = Mosquitto()
        self._brokers.append(broker)
        broker.start()
        return partial(_on_mosquitto, broker)

    def close(self) -> None:
        """See `RealBrokers.close`."""
        for broker in self._brokers:
            broker.close()
        self._brokers.clear()


class KafkaBrokers(RealBrokers):
    """One cluster for all buses; the topics and groups of each have their own prefix.

    Args:
        broker: a running broker.
    """

    profile = "kafka"

    def __init__(self, broker: Kafka) -> None:
        self._broker = broker
        self._prefixes: list[str] = []

    def bus(self) -> Redirect:
        """See `RealBrokers.bus`."""
        prefix = f"test-{secrets.token_hex(6)}."
        self._prefixes.append(prefix)
        return partial(_on_kafka, self._broker.server, prefix)

    def close(self) -> None:
        """See `RealBrokers.close`; each partition that is left costs the broker some open files."""
        if self._prefixes and self._broker.alive:
            asyncio.run(_delete_topics(self._broker.server, tuple(self._prefixes)))


def _on_mosquitto(broker: Mosquitto, original: SocketProvider) -> SocketProvider:
    config = original.config
    if isinstance(config, MqttConfig):
        return MqttProvider(replace(config, host=broker.host, port=broker.port, **_OPEN))
    return MqttProvider(MqttConfig(broker.host, port=broker.port, **_shared(config)))


def _on_kafka(server: str, prefix: str, original: SocketProvider) -> SocketProvider:
    config = original.config
    if isinstance(config, KafkaConfig):
        found = replace(config, **_OPEN, servers=server, prefix=prefix + config.prefix)
    else:
        found = KafkaConfig(server, prefix=prefix, partitions=_PARTITIONS, **_shared(config))
    return KafkaProvider(replace(found, create_topics="all", replication=None, **_QUICK))


async def _delete_topics(server: str, prefixes: tuple[str, ...]) -> None:
    # Not at the top: tests on other brokers need not import it.
    from aiokafka.admin import AIOKafkaAdminClient
    from aiokafka.errors import KafkaError

    admin = AIOKafkaAdminClient(bootstrap_servers=server)
    # A test may have left the broker in any state.
    with contextlib.suppress(KafkaError, OSError):
        async with asyncio.timeout(_DELETING):
            await admin.start()
            try:
                topics = [name for name in await admin.list_topics() if name.startswith(prefixes)]
                await admin.delete_topics(topics)
            finally:
                await admin.close()


def _shared(config: object) -> dict[str, Any]:
    return {name: getattr(config, name) for name in _SHARED if hasattr(config, name)}
