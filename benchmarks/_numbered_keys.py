"""Numbered messages of many keys, and what has to come out of them, on Kafka and on Mosquitto."""

from __future__ import annotations

import abc
import asyncio
import contextlib
import json
import random
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import aiomqtt
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.structs import TopicPartition

from spa_dat import DistributedApplication, Message
from spa_dat.testing import Kafka, Mosquitto

__all__ = ["KafkaSide", "MosquittoSide", "Side"]

_PARTITIONS = 6
_APPLICATION = "soak"
_POISON = ("reject", "spoil", "unreadable")
_JSON = "application/json"
_PATIENCE = 180.0
_PAUSE = 0.02
_AT_ONCE = 50
_SHOWN = 8
_STATES = f"_spa.state.{_APPLICATION}.count"
_BRIEF_STATES = f"_spa.state.{_APPLICATION}.brief"
_LETTERS = f"_spa.dead-letter.{_APPLICATION}"
# Shares of the messages: those that are published twice, that set a reminder, and besides them
# those whose states expire.
_TWICE, _RINGING, _BRIEF = 0.03, 0.1, 0.1
_RINGS_OF_A_KEY = 10
_BRIEF_KEYS = 40
# A state may be seen later than that by as much as a process is frozen meanwhile.
_TTL, _LATE = 3.0, 9.0


class Takeovers:
    """How long nothing came of what a killed process had.

    Attributes:
        by_itself: seconds, where the process that was started in its place went on.
        by_others: likewise, where another instance did.
    """

    def __init__(self) -> None:
        self.by_itself: list[float] = []
        self.by_others: list[float] = []
        # The process that has written last, by place.
        self._writers: dict[int, int] = {}
        # When, which process, and of which instance.
        self._since: dict[int, tuple[float, int, int]] = {}
        self._instances: dict[int, int] = {}

    def began(self, pid: int, instance: int) -> None:
        """Note that a process of an instance was started."""
        self._instances[pid] = instance

    def killed(self, pid: int) -> None:
        """Note that a process is killed now."""
        for place, writer in self._writers.items():
            if writer == pid:
                self._since[place] = (time.monotonic(), pid, self._instances[pid])

    def wrote(self, place: int, pid: int) -> None:
        """Note that something of a process was read in a place."""
        self._writers[place] = pid
        since = self._since.get(place)
        if since is None or since[1] == pid:
            return
        del self._since[place]
        seconds = time.monotonic() - since[0]
        same = self._instances.get(pid) == since[2]
        (self.by_itself if same else self.by_others).append(seconds)


class Found(NamedTuple):
    """What has come of the messages in the end.

    Attributes:
        counts: pairs of a message's number and its key's count, by key.
        copies: the number of each message, published without a key.
        letters: the payloads of dead letters.
        states: the counts that are kept, by key; None if they cannot be read from outside.
    """

    counts: Mapping[str, list[tuple[int, int]]]
    copies: Counter[int]
    letters: Counter[bytes]
    states: Mapping[str, int] | None


class Side(abc.ABC):
    """A broker, messages that are sent there, and what comes of them.

    Args:
        rng: chooses keys and poison.
        keys: how many there are.
        poison: which part of the messages cannot be handled.

    Attributes:
        sent: the numbers that are sent of each key, in order, without poison.
        poison: the payloads of what cannot be handled.
        looks: the counts that the keys have answered with.
        takeovers: how long nothing came after kills.
        bus: its name.
    """

    bus: str

    def __init__(self, rng: random.Random, keys: int, poison: float) -> None:
        self.sent: defaultdict[str, list[int]] = defaultdict(list)
        self.poison: list[bytes] = []
        self.looks: dict[str, int] = {}
        self.takeovers = Takeovers()
        self._rng = rng
        self._keys = keys
        self._share = poison
        self._number = 0
        self._counted: set[int] = set()
        # What could not be handled at first and can be now, by key.
        self._mended: defaultdict[str, list[int]] = defaultdict(list)
        self._of_poison: list[tuple[str, bytes]] = []

    @property
    @abc.abstractmethod
    def server(self) -> str:
        """What the application is told of the broker."""

    @property
    def number(self) -> int:
        """How many messages were sent."""
        return self._number

    @property
    def open(self) -> int:
        """How many messages were sent of which nothing has come yet, without poison."""
        return self._number - len(self.poison) - len(self._counted)

    @property
    def counted(self) -> int:
        """How many messages something has come of."""
        return len(self._counted)

    def _next(self) -> tuple[str, bytes]:
        key, number = f"k{self._rng.randrange(self._keys)}", self._number
        self._number += 1
        if self._rng.random() >= self._share:
            self.sent[key].append(number)
            return key, b'{"number": %d}' % number
        kind = self._rng.choice(_POISON)
        payload = b'{"number": %d, "asks": "%b"}' % (number, kind.encode())
        payload = b'{"number": %d' % number if kind == "unreadable" else payload
        self.poison.append(payload)
        self._of_poison.append((key, payload))
        return key, payload

    async def send(self, count: int) -> None:
        """Send so many more; returns when the broker has them."""
        while count > 0:
            some = [self._next() for _ in range(min(count, _AT_ONCE))]
            count -= len(some)
            await self._publish(some)

    async def missing(self) -> str:
        """Say of what nothing has come, for whoever looks for the reason."""
        left = {
            key: [number for number in numbers if number not in self._counted]
            for key, numbers in self.sent.items()
        }
        left = {key: numbers for key, numbers in left.items() if numbers}
        return f"nothing has come of {sum(map(len, left.values()))} messages: {left}"

    async def look(self) -> None:
        """Ask all keys for their state, and wait until they have answered.

        Raises:
            SystemExit: one does not.
        """
        self.looks.clear()
        await self._publish([(key, b'{"number": -1, "asks": "look"}') for key in self.sent])
        end = time.monotonic() + _PATIENCE
        while len(self.looks) < len(self.sent):
            if time.monotonic() > end:
                missing = sorted(self.sent.keys() - self.looks.keys())
                raise SystemExit(f"soak: no answer of {len(missing)} keys: {missing[:_SHOWN]}")
            await asyncio.sleep(_PAUSE)

    @abc.abstractmethod
    def restart_broker(self) -> str:
        """Restart or freeze the broker; returns what was done. Blocks until it answers again."""

    @abc.abstractmethod
    async def _publish(self, messages: Sequence[tuple[str, bytes]]) -> None: ...

    @abc.abstractmethod
    def running(self) -> contextlib.AbstractAsyncContextManager[None]:
        """Read what comes while this is entered."""

    async def wrong(self) -> list[str]:
        """Return what is not as it has to be, as texts."""
        found: list[str] = []
        counts, copies, letters, states = await self._all()
        for key, numbers in self.sent.items():
            # What is replayed comes after all others, in any order.
            replayed = [number for number, _ in counts.get(key, [])[len(numbers) :]]
            if sorted(replayed) != sorted(self._mended[key]):
                replayed = self._mended[key]
            right = [(number, place + 1) for place, number in enumerate([*numbers, *replayed])]
            if counts.get(key, []) != right:
                found.append(f"key {key}: {_difference(counts.get(key, []), right)}")
            if self.looks.get(key) != len(right):
                found.append(f"key {key}: state {self.looks.get(key)} instead of {len(right)}")
            if states is not None and states.get(key) != len(right):
                found.append(f"key {key}: kept {states.get(key)} instead of {len(right)}")
        unknown = counts.keys() - self.sent.keys()
        found += [f"key {key}: {counts[key][:_SHOWN]} and nothing was sent" for key in unknown]
        everything = Counter(
            number
            for numbers in (*self.sent.values(), *self._mended.values())
            for number in numbers
        )
        if copies != everything:
            found.append(f"copies: {_surplus(copies, everything)}")
        if letters != Counter(self.poison):
            found.append(f"dead letters: {_surplus(letters, Counter(self.poison))}")
        return found

    @abc.abstractmethod
    async def _all(self) -> Found:
        """Return everything that has come of the messages."""


def _difference(found: Sequence[object], right: Sequence[object]) -> str:
    for place, (one, other) in enumerate(zip(found, right, strict=False)):
        if one != other:
            around = slice(max(0, place - 2), place + 3)
            return f"{found[around]} instead of {right[around]} from {place} on"
    return f"{len(found)} instead of {len(right)}, the last {found[-2:]} and {right[-2:]}"


def _surplus(found: Counter[Any], right: Counter[Any]) -> str:
    missing, more = right - found, found - right
    return (
        f"{missing.total()} missing {list(missing)[:_SHOWN]},"
        f" {more.total()} too many {list(more)[:_SHOWN]}"
    )


def _headers(identifier: str) -> list[tuple[str, bytes]]:
    event = {"id": identifier, "source": "soak", "type": "number", "specversion": "1.0"}
    return [(f"ce_{name}", text.encode()) for name, text in event.items()]


class KafkaSide(Side):
    """As `Side`, on Kafka; what it reads is committed.

    Some messages are published twice, with one id, some set reminders, and there are others whose
    states expire.

    Attributes:
        twice: how many were published twice.
        replayed: how many dead letters were handled in the end.
    """

    bus = "kafka"

    def __init__(self, kafka: Kafka, rng: random.Random, keys: int, poison: float) -> None:
        super().__init__(rng, keys, poison)
        self._kafka = kafka
        self._producer: AIOKafkaProducer | None = None
        self._read_to: dict[int, int] = {}
        self.twice = self.replayed = 0
        # What is published once more with the next messages.
        self._again: list[tuple[str, bytes]] = []
        self._rings: defaultdict[str, list[int]] = defaultdict(list)
        self._rung: defaultdict[str, list[tuple[int, int, float]]] = defaultdict(list)
        self._briefs: defaultdict[str, list[int]] = defaultdict(list)
        self._seen: defaultdict[str, list[tuple[int, int, float]]] = defaultdict(list)
        self._kept: dict[str, bool] = {}
        self._expired = 0

    @property
    def open(self) -> int:
        """As in `Side`, with reminders, and with messages whose states expire."""
        left = [
            sum(map(len, asked.values())) - sum(map(len, come.values()))
            for asked, come in ((self._rings, self._rung), (self._briefs, self._seen))
        ]
        return super().open + sum(max(0, count) for count in left)

    def _next(self) -> tuple[str, bytes]:
        key, payload = super()._next()
        if b"asks" not in payload and payload.endswith(b"}"):
            rings = self._rings[key]
            if len(rings) < _RINGS_OF_A_KEY and self._rng.random() < _RINGING:
                payload = payload[:-1] + b', "asks": "ring%d"}' % len(rings)
                rings.append(self._number - 1)
            if self._rng.random() < _TWICE:
                self._again.append((key, payload))
        return key, payload

    @property
    def server(self) -> str:
        """See `Side.server`."""
        return self._kafka.server

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """See `Side.running`."""
        admin = AIOKafkaAdminClient(bootstrap_servers=self.server)
        await admin.start()
        names = ("numbers", "counts", "copies", "looks", "rings", "briefs", "seen")
        topics = [NewTopic(name, _PARTITIONS, 1) for name in names]
        compacted = {"cleanup.policy": "compact"}
        topics.append(NewTopic(_BRIEF_STATES, _PARTITIONS, 1, topic_configs=compacted))
        await admin.create_topics(topics)
        await admin.close()
        async with AIOKafkaProducer(
            bootstrap_servers=self.server,
            enable_idempotence=True,
            acks="all",
            # It waits while the broker is restarted.
            request_timeout_ms=int(_PATIENCE * 1000),
            retry_backoff_ms=50,
        ) as self._producer:
            reading = asyncio.create_task(self._read())
            try:
                yield
            finally:
                reading.cancel()
                ended = await asyncio.gather(reading, return_exceptions=True)
                if not isinstance(ended[0], asyncio.CancelledError):
                    print(f"the reader has ended with {ended[0]!r}", flush=True)

    async def _read(self) -> None:
        names = ("counts", "looks", "rings", "seen", _BRIEF_STATES)
        async with self._reader(*names) as consumer:
            while True:
                for records in (await consumer.getmany(timeout_ms=100)).values():
                    for record in records:
                        self._take(record)

    def _take(self, record: Any) -> None:
        key = record.key.decode()
        if record.topic == _BRIEF_STATES:
            self._kept[key] = record.value is not None
            return
        value = json.loads(record.value)
        if record.topic == "looks":
            self.looks[key] = value
        elif record.topic == "rings":
            self._rung[key].append(tuple(value))
        elif record.topic == "seen":
            self._seen[key].append(tuple(value))
        else:
            self._counted.add(value[0])
            self._read_to[record.partition] = record.offset + 1
            self.takeovers.wrote(record.partition, value[2])

    def _reader(self, *topics: str) -> AIOKafkaConsumer:
        return AIOKafkaConsumer(
            *topics,
            bootstrap_servers=self.server,
            auto_offset_reset="earliest",
            enable_auto_commit=False,
            isolation_level="read_committed",
            retry_backoff_ms=50,
        )

    async def _publish(self, messages: Sequence[tuple[str, bytes]]) -> None:
        assert self._producer is not None
        again, self._again = self._again, []
        self.twice += len(again)
        sent = [
            await self._producer.send(
                "numbers", payload, key.encode(), headers=_headers(f"{key} {payload!r}")
            )
            for key, payload in (*messages, *again)
        ]
        for number, (_, payload) in enumerate(messages):
            if b"look" not in payload and self._rng.random() < _BRIEF:
                key = f"b{self._rng.randrange(_BRIEF_KEYS)}"
                place = self._number * _AT_ONCE + number
                self._briefs[key].append(place)
                sent.append(await self._producer.send("briefs", b"%d" % place, key.encode()))
        await asyncio.gather(*sent)

    async def letters(self) -> Counter[bytes]:
        """Return what is stored as dead letters, including those that are gone."""
        found: Counter[bytes] = Counter()
        async for record in self._committed(_LETTERS):
            if record.value:
                found[record.value] += 1
        return found

    def mend(self) -> int:
        """Expect that what can be read is handled from now on; returns how many letters are left.

        What cannot be read stays.
        """
        for key, payload in self._of_poison:
            if payload.endswith(b"}"):
                self._mended[key].append(json.loads(payload)["number"])
                # So that it is looked at.
                self.sent[key]
        self.replayed = sum(map(len, self._mended.values()))
        return len(self.poison) - self.replayed

    @property
    def expired(self) -> bool:
        """Whether no state is left that was to expire."""
        return not any(self._kept.values())

    async def wrong(self) -> list[str]:
        """See `Side.wrong`."""
        found = await super().wrong()
        for key, rings in self._rings.items():
            rung = self._rung.get(key, [])
            if sorted(number for number, _, _ in rung) != rings:
                found.append(f"key {key}: reminded of {rung} instead of {rings}")
            elif [n for _, n, _ in rung] != list(range(1, len(rings) + 1)):
                found.append(f"key {key}: reminders counted {rung}")
            if any(late < 0 for _, _, late in rung):
                found.append(f"key {key}: reminded too early: {rung}")
        for key, places in self._briefs.items():
            seen = self._seen.get(key, [])
            if [place for place, _, _ in seen] != places:
                found.append(f"key {key}: {_difference([one[0] for one in seen], places)}")
            before, at = 0, 0.0
            for place, n, now in seen:
                if n not in (0, before) or (before and not n and now < at + _TTL):
                    found.append(f"key {key}: {n} at {now} after {before} at {at}, message {place}")
                elif before and n and now > at + _TTL + _LATE:
                    found.append(f"key {key}: {n} at {now}, as at {at}: it has not expired")
                before, at = n + 1, now
        if not self.expired:
            found.append(f"not deleted: {[key for key, there in self._kept.items() if there]}")
        return found

    def tell(self) -> str:
        """Say how much of what there was, for the end."""
        late = [one[2] for rung in self._rung.values() for one in rung]
        anew = sum(not n for seen in self._seen.values() for _, n, _ in seen)
        return (
            f"{self.twice} messages were published twice, {len(late)} reminders came,"
            f" at the most {max(late, default=0):.1f} s late, {self.replayed} dead letters were"
            f" replayed; of {sum(map(len, self._seen.values()))} messages of states that expire"
            f" {anew} found none"
        )

    async def missing(self) -> str:
        """See `Side.missing`; also says what is committed and readable of each partition."""
        texts = [await super().missing()]
        for what, asked, come in (
            ("reminders", self._rings, self._rung),
            ("messages of states that expire", self._briefs, self._seen),
        ):
            left = {
                key: missing
                for key, numbers in asked.items()
                if (missing := sorted({*numbers} - {number for number, *_ in come[key]}))
            }
            texts.append(f"nothing has come of {sum(map(len, left.values()))} {what}: {left}")
        async with AIOKafkaConsumer(
            bootstrap_servers=self.server,
            group_id=f"{_APPLICATION}.count",
            enable_auto_commit=False,
        ) as consumer:
            for number in range(_PARTITIONS):
                inputs, counts = (TopicPartition(name, number) for name in ("numbers", "counts"))
                ends = await consumer.end_offsets([inputs, counts])
                texts.append(
                    f"partition {number}: {await consumer.committed(inputs)} of {ends[inputs]}"
                    f" committed, counts read to {self._read_to.get(number)} of {ends[counts]}"
                )
        return "\n".join(texts)

    def restart_broker(self) -> str:
        """See `Side.restart_broker`."""
        how = self._rng.choice(("restarted", "killed", "frozen"))
        if how == "frozen":
            self._kafka.pause()
            time.sleep(self._rng.uniform(1.0, 6.0))
            self._kafka.resume()
        else:
            self._kafka.restart(kill=how == "killed")
        return how

    async def _all(self) -> Found:
        counts: defaultdict[str, list[tuple[int, int]]] = defaultdict(list)
        copies: Counter[int] = Counter()
        letters: Counter[bytes] = Counter()
        states: dict[str, int] = {}
        async for record in self._committed("counts", "copies", _LETTERS, _STATES):
            if record.topic == "counts":
                number, n, _ = json.loads(record.value)
                counts[record.key.decode()].append((number, n))
            elif record.topic == "copies":
                copies[json.loads(record.value)] += 1
            elif record.topic == _STATES:
                states[record.key.decode()] = json.loads(record.value.partition(b"\n")[2])["n"]
            elif record.value:
                letters[record.value] = 1
        return Found(counts, copies, letters, states)

    async def _committed(self, *topics: str) -> AsyncIterator[Any]:
        """Everything that is committed in topics, up to their ends."""
        async with self._reader(*topics) as consumer:
            places = [
                TopicPartition(topic, partition)
                for topic in topics
                for partition in consumer.partitions_for_topic(topic) or ()
            ]
            ends = await consumer.end_offsets(places)
            while any([await consumer.position(place) < ends[place] for place in places]):
                for records in (await consumer.getmany(timeout_ms=200)).values():
                    for record in records:
                        yield record


class MosquittoSide(Side):
    """As `Side`, on Mosquitto: what comes twice has to have the same id and content.

    Attributes:
        repeated: how many counts came twice.
    """

    bus = "mqtt"

    def __init__(self, mosquitto: Mosquitto, rng: random.Random, keys: int, poison: float) -> None:
        super().__init__(rng, keys, poison)
        self._mosquitto = mosquitto
        self._app = DistributedApplication(mosquitto.url, name="soaker", instance="0")
        self._contents: defaultdict[str | None, set[str]] = defaultdict(set)
        self._counts: defaultdict[str, list[tuple[int, int]]] = defaultdict(list)
        self._copies: dict[str | None, int] = {}
        self.repeated = 0

        @self._app.application("counts/{key}")
        async def counts(payload: list[int], key: str, message: Message[list[int]]) -> None:
            number, n, pid = payload
            self._contents[message.id].add(f"{key} {number} {n}")
            self._counted.add(number)
            self.takeovers.wrote(0, pid)
            if (number, n) in self._counts[key][-1000:]:
                self.repeated += 1
            else:
                self._counts[key].append((number, n))

        @self._app.application("copies")
        async def copies(payload: int, message: Message[int]) -> None:
            self._contents[message.id].add(f"copy {payload}")
            self._copies[message.id] = payload

        @self._app.application("looks/{key}")
        async def looks(payload: int, key: str) -> None:
            self.looks[key] = payload

    @property
    def server(self) -> str:
        """See `Side.server`."""
        return self._mosquitto.url

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """See `Side.running`."""
        async with self._app:
            yield

    async def _publish(self, messages: Sequence[tuple[str, bytes]]) -> None:
        socket = self._app.socket()
        await asyncio.gather(
            *(
                socket.publish(f"numbers/{key}", payload, content_type=_JSON, timeout=_PATIENCE)
                for key, payload in messages
            )
        )

    def restart_broker(self) -> str:
        """See `Side.restart_broker`; never killed, as it may forget what it has confirmed."""
        how = self._rng.choice(("restarted", "frozen"))
        if how == "frozen":
            self._mosquitto.pause()
            time.sleep(self._rng.uniform(0.5, 4.0))
            self._mosquitto.resume()
        else:
            self._mosquitto.restart()
        return how

    async def wrong(self) -> list[str]:
        """See `Side.wrong`."""
        found = await super().wrong()
        found += _several_contents(self._contents.items())
        return found

    async def _all(self) -> Found:
        letters: Counter[bytes] = Counter()
        host, port = self._mosquitto.host, self._mosquitto.port
        version = aiomqtt.ProtocolVersion.V5
        async with aiomqtt.Client(host, port, protocol=version) as client:
            await client.subscribe(f"_spa/dead-letter/{_APPLICATION}/+", qos=1)
            await client.subscribe("end", qos=1)
            await client.publish("end", b"", qos=1)
            async for message in client.messages:
                if message.topic.value == "end":
                    break
                assert isinstance(message.payload, bytes)
                letters[message.payload] += 1
        return Found(self._counts, Counter(self._copies.values()), letters, None)


def _several_contents(contents: Any) -> Iterator[str]:
    for identifier, texts in contents:
        if len(texts) > 1:
            yield f"id {identifier}: {sorted(texts)}"
