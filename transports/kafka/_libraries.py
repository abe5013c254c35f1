"""The check that the installed library is the one that this package was written for."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from importlib import metadata
from types import ModuleType
from typing import Any

from aiokafka import codec
from aiokafka.client import AIOKafkaClient
from aiokafka.cluster import ClusterMetadata
from aiokafka.consumer.consumer import AIOKafkaConsumer
from aiokafka.consumer.fetcher import Fetcher, FetchError, FetchResult, PartitionRecords
from aiokafka.consumer.group_coordinator import (
    BaseCoordinator,
    GroupCoordinator,
    NoGroupCoordinator,
)
from aiokafka.consumer.subscription_state import (
    Assignment,
    SubscriptionState,
    TopicPartitionState,
)
from aiokafka.coordinator.protocol import ConsumerProtocol
from aiokafka.producer.message_accumulator import BatchBuilder
from aiokafka.producer.producer import AIOKafkaProducer
from aiokafka.producer.sender import Sender
from aiokafka.producer.transaction_manager import TransactionManager
from aiokafka.record.default_records import _DefaultRecordBatchPy

from ...errors import ConfigurationError

__all__ = ["check_compression", "check_libraries"]

# Everything that is used below what the library documents.
_PARTS: tuple[tuple[object, tuple[str, ...]], ...] = (
    (
        AIOKafkaClient,
        (
            "_get_conn",
            "_md_synchronizer",
            "_on_connection_closed",
            "add_topic",
            "bootstrap",
            "close",
            "fetch_all_metadata",
            "force_metadata_update",
            "get_random_node",
            "hosts",
            "ready",
            "send",
            "set_topics",
        ),
    ),
    (
        ClusterMetadata,
        (
            "add_listener",
            "available_partitions_for_topic",
            "leader_for_partition",
            "partitions_for_topic",
            "topics",
        ),
    ),
    (Assignment, ("state_value",)),
    (BatchBuilder, ("append", "record_count")),
    (ConsumerProtocol, ("ASSIGNMENT",)),
    (Fetcher, ("error_future",)),
    (
        GroupCoordinator,
        (
            "_do_commit_offsets",
            "_get_metadata_snapshot",
            "_maybe_leave_group",
            "check_errors",
            "ensure_coordinator_known",
            "fetch_committed_offsets",
        ),
    ),
    (SubscriptionState, ("fetch_context", "is_assigned", "subscription")),
    (_DefaultRecordBatchPy, ("_read_msg", "validate_crc")),
    (codec, ("has_gzip", "has_lz4", "has_snappy", "has_zstd")),
    (Sender, ("sender_task",)),
    (TopicPartitionState, ("has_valid_position", "position")),
    (TransactionManager, ("increment_sequence_number",)),
)
_PRODUCER_STATE = ("_closed", "_sender", "_txn_manager", "client")
_CLIENT_STATE = ("_conns", "_md_update_fut", "_sync_task", "_topics", "cluster")
_CLUSTER_STATE = ("controller", "unauthorized_topics")
_CONSUMER_STATE = ("_client", "_closed", "_coordinator", "_fetcher", "_subscription")
# What a consumer makes when it starts, and sets there.
_STARTED: tuple[tuple[type, tuple[str, ...]], ...] = (
    (BaseCoordinator, ("_metadata_snapshot",)),
    (FetchError, ("_error",)),
    (FetchResult, ("_partition_records",)),
    (Fetcher, ("_fetch_task", "_isolation_level", "_pending_tasks", "_records")),
    (PartitionRecords, ("_records", "_records_iterator", "next_fetch_offset")),
    (SubscriptionState, ("_fetch_count",)),
    (
        GroupCoordinator,
        (
            "_commit_lock",
            "_commit_refresh_task",
            "_coordination_task",
            "_group_instance_id",
            "_group_subscription",
            "_heartbeat_task",
            "coordinator_id",
            "generation",
        ),
    ),
    (NoGroupCoordinator, ("_reset_committed_task",)),
)


@functools.cache
def check_libraries() -> None:
    """Make sure that the installed library has the inner parts used here.

    Must run inside an event loop.

    Raises:
        ConfigurationError: it does not; names the version found and the ones that fit.
    """
    missing = [lack for owner, names in _PARTS for lack in _lacking(owner, names)]
    missing += [
        f"{_name(owner)}.{name}"
        for owner, names in _STARTED
        for name in names
        if name not in vars(owner)["__init__"].__code__.co_names
    ]
    missing += _lacking(_never_started(AIOKafkaConsumer()), _CONSUMER_STATE)
    probe = _never_started(AIOKafkaProducer(enable_idempotence=True))
    missing += _lacking(probe, _PRODUCER_STATE)
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
        ConfigurationError: it cannot.
    """
    if name is not None and not getattr(codec, f"has_{name}")():
        raise ConfigurationError(
            f"option compression={name!r} of KafkaConfig needs the package cramjam: install"
            " spa-dat[compression], or use 'gzip'"
        )


def _never_started(probe: Any) -> Any:
    # It would complain that it was not stopped.
    probe._closed = True
    return probe


def _lacking(thing: object, names: Sequence[str]) -> list[str]:
    where = _name(thing if isinstance(thing, (ModuleType, type)) else type(thing))
    return [f"{where}.{name}" for name in names if not hasattr(thing, name)]


def _name(thing: ModuleType | type) -> str:
    if isinstance(thing, ModuleType):
        return thing.__name__
    return f"{thing.__module__}.{thing.__qualname__}"
