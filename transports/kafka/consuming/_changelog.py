"""The changelog of an actor's keys: reading the states of a partition's keys from it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from functools import partial
from typing import Any

import aiokafka.errors as kafka
from aiokafka import AIOKafkaConsumer
from aiokafka.structs import TopicPartition

from .._aiokafka_private import client_of, keep_connections, stop_consumer
from .._client_options import common_options, fetch_options, renewed_options
from .._config import KafkaConfig

__all__ = ["PartitionStates", "key_bytes", "restore"]

_FETCHED = 8_388_608
# The last poll brings nothing: what lies behind the last record is never handed out.
_POLL_MS = 10
_STOP_TIMEOUT = 1.0


class PartitionStates:
    """What is committed of the keys of one partition.

    Attributes:
        values: by the keys, as they are in records.
        position: the offset in the changelog up to which they are known.
    """

    def __init__(self) -> None:
        self.values: dict[bytes, bytes] = {}
        self.position = 0

    def apply(self, key: bytes, value: bytes | None) -> None:
        """Take notice of a record."""
        if value is None:
            self.values.pop(key, None)
        else:
            self.values[key] = value

    def forget(self) -> None:
        """Know nothing any more."""
        self.values = {}
        self.position = 0


def key_bytes(key: str) -> bytes:
    """Return a key as it is in records."""
    return key.encode("utf-8", "surrogatepass")


async def restore(
    config: KafkaConfig, client_id: str, topic: str, states: Mapping[int, PartitionStates]
) -> None:
    """Bring what is known of partitions up to date.

    To be called when nobody else can commit anything in them any more. It ends where the changelog
    ends, and not at its last record: markers and aborted records may lie behind that.

    Args:
        config: the configuration.
        client_id: our name in the cluster's logs.
        topic: the changelog.
        states: by the numbers of the partitions.

    Raises:
        OSError, aiokafka.errors.KafkaError: no answer.
    """
    places = [TopicPartition(topic, number) for number in sorted(states)]
    if not places:
        return
    options = {**common_options(config, client_id), **fetch_options(_FETCHED)}
    reader = AIOKafkaConsumer(
        **options,
        group_id=None,
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        isolation_level="read_committed",
    )
    keep_connections(client_of(reader), partial(renewed_options, config), config.connect_timeout)
    try:
        async with asyncio.timeout(config.request_timeout):
            await reader.start()
            reader.assign(places)
            starts = await reader.beginning_offsets(places)
            ends = await reader.end_offsets(places)
        for place in places:
            known = states[place.partition]
            if not starts[place] <= known.position <= ends[place]:
                # Another log, or one whose tombstones may be gone.
                known.forget()
            reader.seek(place, max(known.position, starts[place]))
        await _read(reader, config, places, ends, states)
    finally:
        await stop_consumer(reader, _STOP_TIMEOUT)


async def _read(
    reader: Any,
    config: KafkaConfig,
    places: list[TopicPartition],
    ends: Mapping[TopicPartition, int],
    states: Mapping[int, PartitionStates],
) -> None:
    loop = asyncio.get_running_loop()
    patience = config.request_timeout
    give_up = loop.time() + patience
    left = places
    while left:
        async with asyncio.timeout_at(give_up):
            fetched = await reader.getmany(timeout_ms=_POLL_MS)
        for place, records in fetched.items():
            apply = states[place.partition].apply
            for record in records:
                if record.key is not None:
                    apply(record.key, record.value)
        moved = False
        for place in left:
            position = await reader.position(place)
            moved = moved or position != states[place.partition].position
            states[place.partition].position = position
        left = [place for place in left if states[place.partition].position < ends[place]]
        if moved:
            give_up = loop.time() + patience
        elif loop.time() >= give_up:
            raise kafka.KafkaTimeoutError(f"topic {places[0].topic!r} cannot be read to its end")
