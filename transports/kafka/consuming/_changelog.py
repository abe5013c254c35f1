"""The changelog of an actor's keys: reading the states of a partition's keys from it."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import aiokafka.errors as kafka
from aiokafka import AIOKafkaConsumer
from aiokafka.structs import TopicPartition

from .._aiokafka_private import client_of, keep_connections, stop_consumer
from .._client_options import common_options, fetch_options, renewed_options
from .._config import KafkaConfig
from .._offset_notes import Claim
from ._leader_epochs import lost_ends
from ._snapshots import PartitionStates, SnapshotLost

__all__ = ["restore", "wake_header"]

# The header of a record that says when something is to be done with its key.
_WAKE = "wake"

_FETCHED = 8_388_608
# The last poll brings nothing: what lies behind the last record is never handed out.
_POLL_MS = 10
_STOP_TIMEOUT = 1.0
# Seconds after which what deletes a key may be gone: half of the time for which a cluster keeps it
# if whoever has created the topic has not said otherwise.
_TOO_OLD = 43_200.0


async def restore(
    config: KafkaConfig,
    client_id: str,
    topic: str,
    states: Mapping[int, PartitionStates],
    now: float,
    epochs: Mapping[int, int],
    on_restored: Callable[[PartitionStates], None] = lambda states: None,
) -> None:
    """Bring what is known of partitions up to date.

    To be called when nobody else can commit anything in them any more. It ends where the changelog
    ends, and not at its last record: markers and aborted records may lie behind that.

    Args:
        config: the configuration.
        client_id: our name in the cluster's logs.
        topic: the changelog.
        states: by the numbers of the partitions.
        now: seconds since 1970.
        epochs: the epochs of the leaders, by the numbers of the partitions, or of former ones.
        on_restored: called with those of each partition as soon as they are up to date.

    Raises:
        SnapshotLost: a snapshot could not be used; they have to be read once more.
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
            lost = await _lost(client_of(reader), topic, states)
        forgotten: dict[TopicPartition, int] = {}
        for place in places:
            known = states[place.partition]
            why = _why_useless(known, starts[place], ends[place], lost.get(place), now)
            if why is not None:
                known.forget()
                if known.snapshot is not None:
                    await known.snapshot.forget(known.partition, why)
            forgotten[place] = known.forgotten
            if not known.position:
                known.at = now
            known.epoch = epochs.get(place.partition, -1)
            reader.seek(place, max(known.position, starts[place]))
        await _read(reader, config, forgotten, ends, states, now, on_restored)
    finally:
        await stop_consumer(reader, _STOP_TIMEOUT)


def wake_header(wake: float | None) -> list[tuple[str, bytes | None]]:
    """Return the headers of a record with whose key something is to be done at a time."""
    return [] if wake is None else [(_WAKE, repr(wake).encode())]


def _wake_of(record: Any) -> float | None:
    if record.value is None:
        # Nothing could be done with it, so it would be woken for ever.
        return None
    for name, value in record.headers:
        if name == _WAKE and value is not None:
            try:
                record.key.decode("utf-8", "surrogatepass")
                wake = float(value)
            except ValueError:
                # Somebody else has written it: no key of the actor is like that.
                return None
            return wake if math.isfinite(wake) else None
    return None


async def _lost(
    client: Any, topic: str, states: Mapping[int, PartitionStates]
) -> Mapping[TopicPartition, int]:
    """Return the partitions that have less than is known of them, and up to where they have it."""
    claims = {
        TopicPartition(topic, number): [Claim(known.epoch, known.position)]
        for number, known in sorted(states.items())
        if known.position and known.epoch >= 0
    }
    lost, unknown = await lost_ends(client, claims)
    if unknown:
        raise kafka.LeaderNotAvailableError(f"topic {topic!r}: no leader says what it has")
    return lost


def _why_useless(
    known: PartitionStates, start: int, end: int, lost: int | None, now: float
) -> str | None:
    """Return why nothing can be read after what is known of a partition; None if it can."""
    if not known.position:
        return None
    if known.position < start:
        return f"it is up to offset {known.position}, and the changelog begins at {start}"
    if known.position > end:
        return f"it is up to offset {known.position}, and the changelog ends at {end}"
    if lost is not None:
        return (
            f"it is up to offset {known.position}, and the changelog has lost its end: what there"
            f" is from offset {lost} on has come since"
        )
    age = now - known.at
    # Behind what was written last there is the marker of its transaction.
    if end <= known.position + 1 or abs(age) <= _TOO_OLD:
        return None
    old = f"{age / 3600:.0f} hours old" if age > 0 else "from a time that has not come yet"
    return f"it is {old}, and what was deleted meanwhile may not be in the changelog any more"


async def _read(
    reader: Any,
    config: KafkaConfig,
    forgotten: Mapping[TopicPartition, int],
    ends: Mapping[TopicPartition, int],
    states: Mapping[int, PartitionStates],
    now: float,
    on_restored: Callable[[PartitionStates], None],
) -> None:
    loop = asyncio.get_running_loop()
    patience = config.request_timeout
    give_up = loop.time() + patience
    left = [*forgotten]

    def check() -> None:
        # A snapshot can fail at any time, for other partitions, too. What is read after that would
        # be taken for all there is.
        if any(states[place.partition].forgotten != forgotten[place] for place in left):
            raise SnapshotLost("what was known of the states was forgotten meanwhile")

    while left:
        try:
            async with asyncio.timeout_at(give_up):
                fetched = await reader.getmany(*left, timeout_ms=_POLL_MS)
        except TimeoutError:
            text = f"topic {left[0].topic!r} cannot be read to its end: nothing comes"
            raise kafka.KafkaTimeoutError(text) from None
        check()
        for place in left:
            apply = states[place.partition].apply
            for record in fetched.get(place, ()):
                if record.key is not None:
                    apply(record.key, record.value, _wake_of(record) if record.headers else None)
        positions = [await reader.position(place) for place in left]
        check()
        moved = False
        for place, position in zip(left, positions, strict=True):
            moved = moved or position != states[place.partition].position
            states[place.partition].position = position
        for place in [*left]:
            known = states[place.partition]
            is_over = known.position >= ends[place]
            if is_over:
                known.at = now
            if known.snapshot is not None and (is_over or known.many):
                await known.snapshot.write(known)
                check()
            if is_over:
                # What comes now is what the actor commits, and may be older than what it knows.
                reader.pause(place)
                known.restored = True
                on_restored(known)
                left.remove(place)
        if moved:
            give_up = loop.time() + patience
