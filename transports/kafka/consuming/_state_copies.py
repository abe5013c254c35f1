"""State copies: the states of an actor's keys, in a changelog with another number of partitions."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import aiokafka.errors as kafka
from aiokafka import AIOKafkaConsumer
from aiokafka.structs import OffsetAndMetadata, TopicPartition

from ...._texts import quoted
from ....errors import ConfigurationError, TransportError
from ..._contract import Identity
from .._aiokafka_private import (
    check_libraries,
    client_of,
    find_topics,
    group_offsets,
    group_state,
    keep_connections,
    new_client,
    stop_consumer,
)
from .._client_options import common_options, fetch_options, renewed_options
from .._config import KafkaConfig
from .._errors import connect_problem, describe, translate
from .._offset_notes import offset_note
from .._partitioner import hash_of
from .._reachability import reach
from .._records import Record
from .._topic_facts import topic_facts
from .._topic_names import Names
from ..producing._topic_creation import Topics
from ..producing._transactions import Placed, TransactionalProducer, TransactionFailed

__all__ = ["CopiedStates", "copy_states"]

_CLIENT = "spa-dat-states"
_FOUND_WITHIN = 5.0
_FETCHED = 8_388_608
# The last poll brings nothing: what lies behind the last record is never handed out.
_POLL_MS = 100
_STOP_TIMEOUT = 1.0
_LONGEST_KEY = 80
# Of one transaction.
_MOST_RECORDS, _MOST_BYTES = 5_000, 4_194_304
_NO_MEMBERS = ("Empty", "Dead")
_AGAIN = "call it again: what is there already is not written twice"


class CopiedStates(NamedTuple):
    """What has been copied.

    Attributes:
        states: how many there are.
        written: how many of them were not there yet.
        source: the changelog that they come from.
        target: the one that has them now.
        before: the partitions of the first.
        after: the partitions of the second.
    """

    states: int
    written: int
    source: str
    target: str
    before: int
    after: int


async def copy_states(
    config: KafkaConfig, application: str, actor: str, to: str, topics: Sequence[str]
) -> CopiedStates:
    """Copy the states of an actor's keys for another actor, whose topics have other partitions.

    The application has to be stopped. In topics that both read the second goes on where the first
    has ended. Nothing of the first is changed.

    Args:
        config: the configuration.
        application: its name.
        actor: whose states they are.
        to: the actor that goes on with them.
        topics: all that it reads, by their names on the cluster.

    Raises:
        ConfigurationError: it cannot be done, or not yet; nothing was changed.
        UnknownTopic, NotAuthorised: a topic does not exist, or may not be used.
        ConnectFailed: no connection.
        TransportError: it has failed and may be begun again.
    """
    check_libraries()
    try:
        await reach(config, _CLIENT)
        client = new_client(common_options(config, _CLIENT))
        keep_connections(client, partial(renewed_options, config), config.connect_timeout)
        try:
            await client.bootstrap()
            return await _Copy(config, client, application, actor, to, topics).run()
        finally:
            await client.close()
    except TransactionFailed as error:
        why = describe(error.__cause__ or error)
        raise TransportError(f"copying states has failed, {_AGAIN}: {why}") from error
    except Exception as error:  # noqa: BLE001 (whatever the library raises)
        problem = connect_problem(error, config.address, config.login.username)
        raise problem.error from (None if problem.error is error else error)


class _State(NamedTuple):
    """What there is of a key, as it is in a record."""

    value: bytes
    headers: list[tuple[str, bytes | None]]


class _Copy:
    """Copies the states of one actor; see `copy_states`."""

    def __init__(
        self,
        config: KafkaConfig,
        client: Any,
        application: str,
        actor: str,
        to: str,
        topics: Sequence[str],
    ) -> None:
        names, identity = Names(config), Identity(application)
        self._config = config
        self._client = client
        self._read_next = [*dict.fromkeys(topics)]
        self._source = names.states(application, actor)
        self._target = names.states(application, to)
        self._old_group = names.group(identity.group_of(actor))
        self._new_group = names.group(identity.group_of(to))
        self._topics = Topics(config, names, _CLIENT)

    async def run(self) -> CopiedStates:
        """Look whether all is as it has to be, and copy."""
        before, *counts = await self._counts(self._source, *self._read_next)
        if not before:
            raise ConfigurationError(
                f"there is no topic {self._source!r} at {self._config.address}: check the names of"
                " the application and of the actor whose states are to be copied"
            )
        for topic, count in zip(self._read_next, counts, strict=True):
            if not count:
                raise ConfigurationError(
                    f"there is no topic {topic!r} at {self._config.address}: give all that the new"
                    " actor reads, by their names on the cluster"
                )
        after = counts[0]
        if any(count != after for count in counts):
            all_counts = zip(self._read_next, counts, strict=True)
            raise ConfigurationError(
                "the topics of the new actor have different numbers of partitions ("
                + ", ".join(f"{topic!r} has {count}" for topic, count in all_counts)
                + "): give all of them as many"
            )
        found = await self._members()
        if found is not None:
            raise ConfigurationError(
                f"{found}: stop all instances of the application, and wait until their"
                " session_timeout (30 s by default) is over, for which the cluster takes each of"
                " them for a member after its end"
            )
        await self._check_transactions(before)
        await self._end_predecessors(before)
        ends = await self._ends(_places(self._source, before))
        offsets = await self._offsets(after)
        states = await self._states(before)
        await self._topics_exist(after)
        missing = await self._missing(states, after)
        producer = self._producer(f"{self._new_group}.copy")
        await producer.start()
        try:
            for chunk in _chunks(missing, states):
                await producer.commit(
                    [Placed(Record(self._target, key, *states[key], None)) for key in chunk], {}
                )
            if await self._members() or await self._ends(ends) != ends:
                raise TransportError(
                    f"{self._source!r} was changed while it was copied, or an instance of the"
                    f" application was started: delete {self._target!r}, and begin again when none"
                    " is running"
                )
            if offsets:
                await producer.commit([], offsets)
        finally:
            await producer.close()
        return CopiedStates(len(states), len(missing), self._source, self._target, before, after)

    # What has to be the case.

    async def _counts(self, *names: str) -> list[int]:
        """Return how many partitions topics have; 0 for one that does not exist."""
        counts: dict[str, int] = {}
        for code, name, _, partitions in await find_topics(self._client, names):
            error = kafka.for_code(code)
            if error not in (kafka.NoError, kafka.UnknownTopicOrPartitionError):
                raise translate(error(), f"topic {name!r}")
            counts[name] = len(partitions)
        return [counts[name] for name in names]

    async def _members(self) -> str | None:
        """Return which of the two groups has members, as text; None if neither has."""
        for group in (self._old_group, self._new_group):
            state = await group_state(self._client, group)
            if state not in _NO_MEMBERS:
                return f"group {group!r} has members (it is {state!r})"
        return None

    async def _check_transactions(self, count: int) -> None:
        places = _places(self._source, count)
        # One that ends meanwhile leaves a marker, so this is the order.
        ends = await self._ends(places)
        stable = await self._ends(places, "read_committed")
        for place, end in ends.items():
            if stable[place] < end:
                raise ConfigurationError(
                    f"a transaction is open in partition {place.partition} of {place.topic!r}, from"
                    f" offset {stable[place]} on: stop all instances of the application, and wait"
                    " until it is over, which takes half a minute at the most"
                )

    async def _end_predecessors(self, count: int) -> None:
        """See to it that no instance of the actor that comes back can still commit anything."""
        for number in range(count):
            producer = self._producer(f"{self._old_group}.{number}")
            await producer.start()
            await producer.close()

    async def _offsets(self, after: int) -> dict[TopicPartition, OffsetAndMetadata]:
        """Return where the new actor goes on in the topics that the old one has read.

        Raises:
            ConfigurationError: there is something that the old one has to handle before, or the new
                one has handled something already.
        """
        done = await group_offsets(self._client, self._old_group)
        if not done:
            raise ConfigurationError(
                f"group {self._old_group!r} has committed nothing: check the names of the"
                " application and of the actor whose states are to be copied"
            )
        for name in sorted({place.topic for place in done}):
            (count,) = await self._counts(name)
            # A topic that is gone has nothing that is left to do.
            if count:
                read_next = name in self._read_next
                await self._check_handled(name, count, done, after if read_next else 0)
        begun = await group_offsets(self._client, self._new_group)
        going_on: dict[TopicPartition, OffsetAndMetadata] = {}
        both = [topic for topic in self._read_next if any(place.topic == topic for place in done)]
        facts = await topic_facts(self._client, both)
        for topic in both:
            note = offset_note(facts[topic].id if facts and topic in facts else None)
            places = _places(topic, after)
            starts, _ = await self._bounds(places)
            for place in places:
                going_on[place] = done.get(place) or OffsetAndMetadata(starts[place], note)
        if begun and begun != going_on:
            raise ConfigurationError(
                f"group {self._new_group!r} has handled messages already, so its actor has states"
                " of its own: give the actor a name that it never had"
            )
        return {} if begun else going_on

    async def _check_handled(
        self,
        name: str,
        count: int,
        done: Mapping[TopicPartition, OffsetAndMetadata],
        after: int,
    ) -> None:
        """Refuse what is not handled yet and would be handled without the state of its key.

        Args:
            name: a topic of the old actor.
            count: its partitions.
            done: what is handled.
            after: the partitions by which the new actor finds states, if it reads this topic, too;
                otherwise 0.
        """
        starts, ends = await self._bounds(_places(name, count))
        left = {
            place: max(done[place].offset if place in done else 0, start)
            for place, start in starts.items()
        }

        def look(place: TopicPartition, record: Any) -> None:
            # What has no key is a dead letter wherever it is.
            if not after or (
                record.key is not None and hash_of(record.key) % after != place.partition
            ):
                self._refuse_unhandled(place, record.offset, after)

        await self._read(left, ends, look)

    def _refuse_unhandled(self, place: TopicPartition, offset: int, after: int) -> None:
        moved = f", and its key belongs in another of {after} partitions" if after else ""
        raise ConfigurationError(
            f"the record at offset {offset} of partition {place.partition} of {place.topic!r} is"
            f" not handled yet{moved}: stop all senders, and let the application handle everything"
            + (" before the topic gets more partitions" if after else "")
        )

    # Reading.

    async def _states(self, count: int) -> dict[bytes, _State]:
        """Return all states, by their keys."""
        states: dict[bytes, _State] = {}
        for number, found in (await self._found(self._source, count)).items():
            for key in found:
                if hash_of(key) % count != number:
                    raise ConfigurationError(
                        f"the state of key {_shown(key)} is in partition {number} of"
                        f" {self._source!r}, and belongs in {hash_of(key) % count}: its messages"
                        " come from a sender that does not choose partitions as the Java client"
                        " does (murmur2), so nobody knows where they go next; mend that first"
                    )
            states |= found
        return states

    async def _missing(self, states: Mapping[bytes, _State], count: int) -> list[bytes]:
        """Return the keys whose states the target does not have yet.

        Raises:
            ConfigurationError: it has something else.
        """
        there: set[bytes] = set()
        for number, found in (await self._found(self._target, count)).items():
            for key, state in found.items():
                if states.get(key) != state or hash_of(key) % count != number:
                    raise ConfigurationError(
                        f"{self._target!r} is not empty: it has another state of key {_shown(key)}"
                        f" than {self._source!r}; give the new actor a name that it never had, or"
                        " delete that topic if nobody needs it"
                    )
                there.add(key)
        return [key for key in states if key not in there]

    async def _found(self, topic: str, count: int) -> dict[int, dict[bytes, _State]]:
        """Return what a changelog has, by the numbers of its partitions and by keys."""
        found: dict[int, dict[bytes, _State]] = {number: {} for number in range(count)}

        def take(place: TopicPartition, record: Any) -> None:
            states = found[place.partition]
            if record.key is None:
                return
            if record.value is None:
                states.pop(record.key, None)
            else:
                states[record.key] = _State(record.value, [*record.headers])

        starts, ends = await self._bounds(_places(topic, count))
        await self._read(starts, ends, take)
        return found

    async def _read(
        self,
        begins: Mapping[TopicPartition, int],
        ends: Mapping[TopicPartition, int],
        look: Callable[[TopicPartition, Any], None],
    ) -> None:
        """Have somebody look at all records between offsets, and maybe at later ones."""
        left = [place for place, begin in begins.items() if begin < ends[place]]
        if not left:
            return
        loop, patience = asyncio.get_running_loop(), self._config.request_timeout
        give_up = loop.time() + patience
        reader = await self._reader(left, "read_committed")
        try:
            for place in left:
                reader.seek(place, begins[place])
            while left:
                async with asyncio.timeout_at(give_up):
                    fetched = await reader.getmany(*left, timeout_ms=_POLL_MS)
                for place, records in fetched.items():
                    for record in records:
                        look(place, record)
                rest = [place for place in left if await reader.position(place) < ends[place]]
                if fetched or len(rest) < len(left):
                    give_up = loop.time() + patience
                left = rest
        finally:
            await stop_consumer(reader, _STOP_TIMEOUT)

    async def _ends(
        self, places: Iterable[TopicPartition], isolation: str = "read_uncommitted"
    ) -> dict[TopicPartition, int]:
        _, ends = await self._bounds([*places], isolation)
        return ends

    async def _bounds(
        self, places: Sequence[TopicPartition], isolation: str = "read_committed"
    ) -> tuple[dict[TopicPartition, int], dict[TopicPartition, int]]:
        """Return where partitions begin and end."""
        reader = await self._reader(places, isolation)
        try:
            return await reader.beginning_offsets(places), await reader.end_offsets(places)
        finally:
            await stop_consumer(reader, _STOP_TIMEOUT)

    async def _reader(self, places: Sequence[TopicPartition], isolation: str) -> Any:
        config = self._config
        reader = AIOKafkaConsumer(
            **common_options(config, _CLIENT),
            **fetch_options(_FETCHED),
            group_id=None,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            isolation_level=isolation,
        )
        renew = partial(renewed_options, config)
        keep_connections(client_of(reader), renew, config.connect_timeout)
        async with asyncio.timeout(config.request_timeout):
            await reader.start()
        reader.assign([*places])
        return reader

    # Writing.

    async def _topics_exist(self, count: int) -> None:
        self._topics.will_have(self._target, count)
        await self._topics.ensure([self._target], _FOUND_WITHIN)
        (found,) = await self._counts(self._target)
        if found != count:
            raise ConfigurationError(
                f"{self._target!r} has {found} partitions, and {self._read_next[0]!r}, which the"
                f" new actor reads, has {count}: give the new actor a name that it never had, or"
                " delete that topic if nobody needs it"
            )

    def _producer(self, identifier: str) -> TransactionalProducer:
        return TransactionalProducer(
            self._config, _CLIENT, identifier, self._new_group, self._topics, random.Random()
        )


def _places(topic: str, count: int) -> list[TopicPartition]:
    return [TopicPartition(topic, number) for number in range(count)]


def _chunks(keys: Sequence[bytes], states: Mapping[bytes, _State]) -> Iterable[list[bytes]]:
    chunk: list[bytes] = []
    size = 0
    for key in keys:
        if chunk and (len(chunk) >= _MOST_RECORDS or size >= _MOST_BYTES):
            yield chunk
            chunk, size = [], 0
        chunk.append(key)
        size += len(key) + len(states[key].value)
    if chunk:
        yield chunk


def _shown(key: bytes) -> str:
    return quoted(key.decode("utf-8", "backslashreplace"), _LONGEST_KEY)
