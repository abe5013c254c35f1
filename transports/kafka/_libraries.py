"""The check that the installed library is the one that this package was written for."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from importlib import metadata
from types import ModuleType

from aiokafka import codec
from aiokafka.client import AIOKafkaClient
from aiokafka.cluster import ClusterMetadata
from aiokafka.producer.message_accumulator import BatchBuilder
from aiokafka.producer.producer import AIOKafkaProducer
from aiokafka.producer.sender import Sender
from aiokafka.producer.transaction_manager import TransactionManager

from ...errors import ConfigurationError

__all__ = ["check_compression", "check_libraries"]

# Everything that is used below what the library documents.
_PARTS: tuple[tuple[object, tuple[str, ...]], ...] = (
    (
        AIOKafkaClient,
        (
            "_on_connection_closed",
            "add_topic",
            "bootstrap",
            "force_metadata_update",
            "get_random_node",
            "ready",
            "send",
        ),
    ),
    (
        ClusterMetadata,
        ("add_listener", "available_partitions_for_topic", "partitions_for_topic"),
    ),
    (BatchBuilder, ("append", "record_count")),
    (codec, ("has_gzip", "has_lz4", "has_snappy", "has_zstd")),
    (Sender, ("sender_task",)),
    (TransactionManager, ("increment_sequence_number",)),
)
_PRODUCER_STATE = ("_closed", "_sender", "_txn_manager", "client")
_CLIENT_STATE = ("_md_update_fut", "_sync_task", "_topics", "cluster")
_CLUSTER_STATE = ("controller", "unauthorized_topics")


@functools.cache
def check_libraries() -> None:
    """Make sure that the installed library has the inner parts used here.

    Must run inside an event loop.

    Raises:
        ConfigurationError: it does not; names the version found and the ones that fit.
    """
    missing = [lack for owner, names in _PARTS for lack in _lacking(owner, names)]
    probe = AIOKafkaProducer(enable_idempotence=True)
    missing += _lacking(probe, _PRODUCER_STATE)
    # It was never started, and would complain that it was not stopped.
    probe._closed = True
    if not missing:
        missing += _lacking(probe.client, _CLIENT_STATE)
        missing += _lacking(probe.client.cluster, _CLUSTER_STATE)
    if missing:
        raise ConfigurationError(
            f"aiokafka {metadata.version('aiokafka')} lacks {', '.join(missing)};"
            " install aiokafka>=0.14,<0.15"
        )


def check_compression(name: str | None) -> None:
    """Make sure that the library can compress so.

    Args:
        name: the option ``compression``.

    Raises:
        ConfigurationError: it can not.
    """
    if name is not None and not getattr(codec, f"has_{name}")():
        raise ConfigurationError(
            f"option compression={name!r} of KafkaConfig needs the package cramjam: install it, or"
            " use 'gzip'"
        )


def _lacking(thing: object, names: Sequence[str]) -> list[str]:
    if isinstance(thing, ModuleType):
        where = thing.__name__
    else:
        owner = thing if isinstance(thing, type) else type(thing)
        where = f"{owner.__module__}.{owner.__qualname__}"
    return [f"{where}.{name}" for name in names if not hasattr(thing, name)]
