"""What strangers send, in bytes: what is taken of it, and what is made of what is too large."""

from __future__ import annotations

import asyncio
import gc
import hashlib
import socket
import tracemalloc
from collections import Counter
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from aiokafka.structs import ConsumerRecord, TopicPartition
from hypothesis import HealthCheck, given, settings, strategies as st

from spa_dat import DistributedApplication, Message, Socket
from spa_dat._environment import Environment
from spa_dat.errors import ConfigurationError, DecodeError, OutboxFull, RemoteError
from spa_dat.runtime.dead_letters._writing import dead_letter
from spa_dat.runtime.messaging._requests import ERROR_HEADER, remote_error
from spa_dat.testing import Harness
from spa_dat.transports import (
    Delivery,
    Envelope,
    KafkaConfig,
    KafkaTopic,
    LeftOut,
    MemoryConfig,
    MqttConfig,
    Outbox,
    OutboxEntry,
    TopicTrie,
    Tracker,
    opened,
    without_payload,
)
from spa_dat.transports.kafka._records import RecordCodec, size_of_headers
from spa_dat.transports.kafka._topic_names import Names
from spa_dat.transports.kafka.consuming._assignment import Assignment
from spa_dat.transports.kafka.consuming._committable_offsets import PartitionTracker
from spa_dat.transports.kafka.consuming._redelivery import EarlierDeliveries
from spa_dat.transports.mqtt._connection_events import Loss
from spa_dat.transports.mqtt._message_checks import check_topic as check_mqtt_topic
from spa_dat.transports.mqtt._overlapping_filters import CopyGuard
from spa_dat.transports.mqtt.protocol._packets import (
    MalformedPacket,
    PublishPacket,
    variable_integer,
)
from spa_dat.transports.mqtt.protocol._publish_and_puback import MessageFlow
from spa_dat.transports.mqtt.protocol._stream import FrameStream
from support.machine import examples
from support.waiting import eventually

LARGEST = 1_000


class Taking:
    """Takes messages off a stream, the payload of each up to `LARGEST` bytes."""

    def __init__(self) -> None:
        ours, self.peer = socket.socketpair()
        ours.setblocking(False)
        self.peer.setblocking(False)
        self.messages: list[tuple[Envelope, int, int]] = []
        self.ends: list[Exception | None] = []
        self.flow = MessageFlow(self, Counter(), LARGEST, lambda: 1, lambda *packet: None)
        self.stream = FrameStream(ours, self.flow.on_packet, self.ends.append, self.flow.divert)
        self.most_kept = 0
        self.pauses = False

    def on_message(
        self, envelope: Envelope, token: int, identifiers: tuple[int, ...], size: int
    ) -> None:
        self.messages.append((envelope, token, size))
        if self.pauses:
            self.stream.pause()

    def on_connected(self, session_present: bool) -> None: ...

    def on_lost(self, loss: Loss) -> None: ...

    def on_confirmed(self, note: object, code: int) -> None: ...

    async def send(self, data: bytes, cuts: list[int]) -> None:
        """Let the bytes arrive in pieces of these lengths."""
        loop = asyncio.get_running_loop()
        position = 0
        for cut in [*cuts, len(data)]:
            await loop.sock_sendall(self.peer, data[position : position + cut])
            position += cut
            await asyncio.sleep(0)
            self.most_kept = max(self.most_kept, len(self.stream._rest))

    def close(self) -> None:
        self.stream.abort()
        self.peer.close()


def publish(payload: bytes, packet_id: int, headers: dict[str, str] | None = None) -> bytes:
    envelope = Envelope(topic="t", payload=payload, headers=headers or {}, id=f"m{packet_id}")
    return PublishPacket(envelope).encode(packet_id)


@settings(max_examples=examples(15), deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    sizes=st.lists(
        st.sampled_from([0, LARGEST, LARGEST + 1, 130_000, 200_000, 900_000]),
        min_size=1,
        max_size=5,
    ),
    cuts=st.lists(st.integers(1, 300_000), max_size=8),
    pauses=st.booleans(),
)
async def test_a_payload_that_is_too_large_is_never_kept_and_its_size_and_digest_are_right(
    sizes: list[int], cuts: list[int], pauses: bool
) -> None:
    taking = Taking()
    taking.pauses = pauses
    payloads = [bytes([number + 65]) * size for number, size in enumerate(sizes)]
    data = b"".join(publish(payload, number) for number, payload in enumerate(payloads, 1))
    sending = asyncio.ensure_future(taking.send(data, cuts))
    try:

        def all_there() -> bool:
            taking.stream.resume()
            return len(taking.messages) == len(payloads)

        await eventually(all_there)
        await sending
        for number, (payload, (envelope, token, size)) in enumerate(
            zip(payloads, taking.messages, strict=True), 1
        ):
            assert (token, envelope.id, envelope.qos) == (number, f"m{number}", 1)
            assert size < LARGEST + 100
            if len(payload) <= LARGEST:
                assert (envelope.payload, envelope.left_out) == (payload, None)
            else:
                left_out = envelope.left_out
                assert left_out is not None
                assert envelope.payload == b""
                assert left_out.size == len(payload)
                assert left_out.sha256 == hashlib.sha256(payload).hexdigest()
        assert taking.most_kept < 300_000
        assert taking.ends == []
    finally:
        taking.close()
        await asyncio.gather(sending, return_exceptions=True)


@pytest.mark.parametrize("size", [140_000, 3_000_000])
async def test_headers_that_are_too_large_are_left_out_like_the_payload(size: int) -> None:
    taking = Taking()
    try:
        headers = {f"h{number}": "x" * 60_000 for number in range(size // 60_000 + 1)}
        await taking.send(publish(b"small", 7, headers) + publish(b"next", 8), [1, 2, 3])
        await eventually(lambda: len(taking.messages) == 2)
        (first, token, taken), (second, _, _) = taking.messages
        assert (first.topic, token, dict(first.headers)) == ("t", 7, {})
        assert taken < 1_000
        assert first.left_out is not None
        assert first.left_out.size == 5
        assert second.payload == b"next"
    finally:
        taking.close()


@pytest.mark.parametrize(
    "body",
    [
        b"\0\x01t\0\x01" + b"\xff\xff\xff\x7f",
        b"\0\x01t\0\x01" + b"\xff\xff\xff\xff\xff",
        b"\xff\xff",
    ],
)
async def test_a_large_packet_that_is_none_ends_the_connection(body: bytes) -> None:
    taking = Taking()
    try:
        length = 200_000
        await taking.send(b"\x32" + variable_integer(length) + body.ljust(length, b"\xff"), [])
        await eventually(lambda: taking.ends)
        assert isinstance(taking.ends[0], MalformedPacket)
        assert taking.messages == []
    finally:
        taking.close()


async def test_closing_in_the_middle_of_a_large_packet_takes_no_longer() -> None:
    taking = Taking()
    packet = publish(b"x" * 2_000_000, 1)
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(taking.peer, packet[:200_000])
    finishing = asyncio.ensure_future(taking.stream.finish(30.0))
    await loop.sock_sendall(taking.peer, packet[200_000:] + publish(b"y" * 2_000_000, 2))
    taking.peer.close()
    await finishing
    assert taking.messages == []


# Deliveries that are not settled.


def test_the_tracker_counts_what_is_not_released() -> None:
    rooms: list[int] = []
    tracker = Tracker(lambda free: None, lambda: rooms.append(tracker.size))
    first, second = (tracker.register(Envelope(topic="t"), n, 10 * n) for n in (1, 2))
    loose = tracker.count(Envelope(topic="t"), 5)
    assert tracker.size == 35
    second.settle()
    assert tracker.size == 35, "it cannot be acknowledged yet"
    loose.settle()
    loose.settle()
    assert (tracker.size, rooms) == (30, [30])
    first.settle()
    assert tracker.size == 0
    late = tracker.register(Envelope(topic="t"), 3, 7)
    tracker.begin()
    assert tracker.size == 0
    tracker.register(Envelope(topic="t"), 4, 1)
    late.settle()
    assert tracker.size == 1, "what came with an earlier connection does not count"


@pytest.mark.virtual
def test_no_more_bytes_are_handed_out_than_the_window_says_and_a_larger_message_passes_alone() -> (
    None
):
    app = DistributedApplication("memory://", name="app")
    handled: list[int] = []

    @app.application("n", window_bytes=1_000, batch=(50, 1.0), window=50)
    async def handle(parts: list[bytes]) -> None:
        handled.append(sum(map(len, parts)))

    with Harness(app) as harness:
        for size in [300] * 9 + [5_000] + [300] * 9:
            harness.publish("n", b"x" * size)
        harness.settle()
    assert sum(handled) == 18 * 300 + 5_000
    # The one that goes beyond is still taken: nothing ever waits for room that cannot be.
    assert max(handled) <= 1_000 + 5_000
    assert all(size <= 1_200 for size in handled if size < 5_000)


@pytest.mark.virtual
@pytest.mark.parametrize(("profile", "concurrency"), [("mqtt", 1), ("kafka", 1), ("kafka", 3)])
def test_a_batch_does_not_wait_for_what_the_window_has_no_room_for(
    profile: str, concurrency: int
) -> None:
    app = DistributedApplication("memory://?window_bytes=3000", name="app")
    handled: list[int] = []

    @app.application("n", batch=(50, 3_600.0), concurrency=concurrency)
    async def handle(parts: list[bytes]) -> None:
        handled.extend(map(len, parts))

    with Harness(app, profile=profile) as harness:  # type: ignore[arg-type]
        for number in range(60):
            harness.publish("n", b"x" * 300, key=f"{number}")
        harness.advance(60.0)
        # The last ones wait for more.
        assert len(handled) >= 60 - 10 * concurrency


@pytest.mark.virtual
@pytest.mark.parametrize("options", [{"window_bytes": 3_000}, {"window": 20}], ids=str)
def test_a_batch_does_not_wait_while_its_first_message_holds_other_lanes_up(
    options: dict[str, int],
) -> None:
    limits = "&".join(f"{name}={value}" for name, value in options.items())
    app = DistributedApplication(f"memory://?{limits}", name="app")
    handled: list[int] = []

    @app.application("n", batch=(10, 3_600.0), concurrency=3, window=options.get("window", 200))
    async def handle(parts: list[bytes]) -> None:
        handled.append(len(parts))

    with Harness(app, profile="mqtt") as harness:
        for number in range(300):
            # One lane has one of thirty, at the front, and the next thirty are another one's.
            key = "a" if number % 30 == 0 else "bc"[number // 30 % 2]
            harness.publish("n", b"x" * 300, key=key)
        harness.advance(60.0)
        # What is left in each lane waits for more.
        assert sum(handled) > 300 - 3 * 10
        # And the other batches are as large as they can be.
        assert len(handled) < 60


@pytest.mark.virtual
@pytest.mark.parametrize("profile", ["mqtt", "kafka"])
def test_a_message_over_the_limit_is_a_dead_letter_that_says_what_it_was(profile: str) -> None:
    app = DistributedApplication("memory://?max_received=1000", name="app")
    seen: list[int] = []

    @app.application("n")
    async def handle(payload: bytes) -> None:
        seen.append(len(payload))

    with Harness(app, profile=profile) as harness:  # type: ignore[arg-type]
        harness.expect_failure(DecodeError)
        harness.publish("n", b"x" * 1_001, headers={"origin": "somewhere"})
        harness.publish("n", b"y" * 1_000)
        harness.settle()
        (letter,) = harness.dead_letters()
        assert seen == [1_000]
        assert (letter.payload, letter.size) == (b"", 1_001)
        assert letter.headers == {"origin": "somewhere"}
        assert "max_received" in letter.text


@pytest.mark.virtual
@pytest.mark.parametrize("profile", ["mqtt", "kafka"])
def test_more_may_be_received_than_published(profile: str) -> None:
    app = DistributedApplication("memory://?max_payload=100&max_received=1000", name="app")
    seen: list[int] = []

    @app.application("n")
    async def handle(payload: bytes) -> None:
        seen.append(len(payload))

    with Harness(app, profile=profile) as harness:  # type: ignore[arg-type]
        harness.publish("n", b"y" * 1_000)
        harness.settle()
        assert harness.dead_letters() == []
    assert seen == [1_000]


# Publishes that wait.


def outbox(**limits: Any) -> tuple[Outbox, list[OutboxEntry]]:
    written: list[OutboxEntry] = []
    return Outbox(written.append, **limits), written


def close(box: Outbox, *left: OutboxEntry) -> None:
    """Give up what is left, and look at how it ended."""
    box.close()
    for entry in left:
        entry.exception()


def of(size: int, qos: int = 1) -> Envelope:
    return Envelope(topic="t", payload=b"x" * size, qos=qos)


async def test_the_outbox_takes_so_many_bytes_and_says_which_option_it_is() -> None:
    box, _ = outbox(capacity_bytes=1_000)
    first = box.submit(of(600))
    waiting = box.submit(of(400))
    with pytest.raises(OutboxFull, match=r"1000 bytes.*'outbox_bytes'"):
        box.submit(of(1))
    waiting.cancel()
    assert box.size == 600
    again = box.submit(of(400))
    close(box, first, again)
    assert box.size == 0


@pytest.mark.parametrize(
    "long",
    [
        {"topic": "t" * 50_000},
        {"key": "k" * 50_000},
        {"content_type": "c" * 50_000},
        {"headers": {"name": "v" * 50_000}},
        {"headers": {"n" * 50_000: "value"}},
    ],
    ids=["topic", "key", "content type", "value of a header", "name of a header"],
)
async def test_long_texts_of_a_publish_count_like_its_payload(long: dict[str, Any]) -> None:
    box, _ = outbox(capacity_bytes=120_000)
    envelope = Envelope(**{"topic": "t", **long})
    entries = [box.submit(envelope) for _ in range(2)]
    with pytest.raises(OutboxFull, match="'outbox_bytes'"):
        box.submit(envelope)
    assert 100_000 <= box.size < 101_000
    entries[0].cancel()
    close(box, entries[1])
    assert box.size == 0


async def test_a_publish_that_is_larger_than_the_outbox_waits_alone() -> None:
    box, written = outbox(capacity_bytes=10, window_bytes=10)
    box.connected()
    alone = box.submit(of(100))
    with pytest.raises(OutboxFull):
        box.submit(of(1))
    box.confirm(alone)
    assert alone.done()
    after = box.submit(of(1))
    assert [len(entry.envelope.payload) for entry in written] == [100, 1]
    close(box, after)


async def test_no_more_bytes_are_written_than_the_window_says() -> None:
    box, written = outbox(window_bytes=1_000)
    box.connected()
    entries = [box.submit(of(400, qos)) for qos in (0, 1, 1, 1)]
    assert written == entries[:2]
    entries[1].cancel()
    assert written == entries[:2], "the broker has not answered yet"
    assert box.size == 1_600
    box.confirm(entries[1])
    assert written == entries[:3]
    box.fail(entries[0], ValueError())
    entries[0].exception()
    assert written == entries
    assert box.size == 800
    box.disconnected()
    box.connected()
    assert written == entries + entries[2:]
    assert box.size == 800
    for entry in entries[2:]:
        box.confirm(entry)
    assert box.size == 0


async def test_what_was_given_up_or_lost_takes_no_bytes_any_more() -> None:
    box, _ = outbox(capacity_bytes=1_000)
    box.connected()
    entries = [box.submit(of(100, qos)) for qos in (0, 1)]
    entries[1].cancel()
    assert box.size == 200
    box.disconnected()
    assert box.size == 0
    assert entries[0].done()


@pytest.mark.parametrize("option", ["window_bytes", "outbox_bytes", "max_received"])
@pytest.mark.parametrize("kind", [MqttConfig, MemoryConfig, KafkaConfig])
def test_limits_in_bytes_are_whole_numbers_above_zero(kind: type, option: str) -> None:
    for value in (0, -1, 1.5, True, "1"):
        with pytest.raises(ConfigurationError, match=option):
            kind(**{option: value})


@pytest.mark.parametrize("value", [0, True, "1", 2**41])
def test_a_window_in_bytes_is_a_whole_number(value: object) -> None:
    app = DistributedApplication("memory://", name="app")

    with pytest.raises(ConfigurationError, match="window_bytes"):

        @app.application("n", window_bytes=value)  # type: ignore[call-overload, untyped-decorator]
        async def handle() -> None: ...


def test_what_is_received_is_limited_by_what_may_be_published_unless_something_else_is_said() -> (
    None
):
    assert MqttConfig(max_payload=5).largest_received == 5
    assert MqttConfig(max_payload=5, max_received=9).largest_received == 9
    # What a broker with default settings takes is received.
    assert KafkaConfig().largest_received > 1_048_588
    assert KafkaConfig(max_payload=10_000_000).largest_received == 10_000_000


def test_a_delivery_without_a_size_takes_nothing() -> None:
    assert Delivery(Envelope(topic="t")).size == 0


def letter_of(envelope: Envelope) -> Envelope:
    return dead_letter(
        envelope, actor="a/0/x", attempts=1, error=ValueError(), environment=Environment(1)
    )


def test_a_dead_letter_says_where_the_original_still_is() -> None:
    record = Envelope(topic="orders/eu", payload=b"x", partition=3, offset=41)
    for envelope in (record, without_payload(record)):
        headers = letter_of(envelope).headers
        assert headers["spa_dead_topic"] == "orders/eu"
        assert (headers["spa_dead_partition"], headers["spa_dead_offset"]) == ("3", "41")
    assert "spa_dead_offset" not in letter_of(Envelope(topic="t")).headers


def test_a_dead_letter_of_what_was_left_out_has_size_and_digest_and_an_id_of_its_own() -> None:
    letters = [
        letter_of(without_payload(Envelope(topic="t", payload=payload, id="same")))
        for payload in (b"one", b"three", b"three")
    ]
    assert [letter.headers["spa_dead_size"] for letter in letters] == ["3", "5", "5"]
    assert letters[0].headers["spa_dead_sha256"] == hashlib.sha256(b"one").hexdigest()
    assert letters[0].id != letters[1].id == letters[2].id


async def test_there_is_room_again_when_half_of_the_bytes_have_left() -> None:
    box, _ = outbox(capacity_bytes=1_000)
    box.connected()
    entries = [box.submit(of(300)) for _ in range(3)]
    waiting = asyncio.ensure_future(box.room())
    box.confirm(entries[0])
    await asyncio.sleep(0)
    assert not waiting.done()
    box.confirm(entries[1])
    await waiting
    box.confirm(entries[2])


# Replies.


def asking(url: str) -> DistributedApplication:
    """An application that answers with as many replies of such a size as it is told."""
    app = DistributedApplication(url, name="app")

    @app.application("svc", replies=True)
    async def svc(message: Message[tuple[int, int]], socket: Socket) -> None:
        count, size = message.payload
        assert message.response_topic is not None
        for _ in range(count):
            socket.post(message.response_topic, b"x" * size)

    return app


async def replies_of(
    url: str, number: int, size: int, **options: Any
) -> tuple[list[bytes | RemoteError], float]:
    app = asking(url)
    async with app:
        loop = asyncio.get_running_loop()
        began = loop.time()
        replies = await app.socket().request_many("svc", [number, size], timeout=9.0, **options)
        return replies, loop.time() - began


@pytest.mark.virtual
async def test_replies_beyond_the_limit_end_the_waiting_and_the_last_one_says_so() -> None:
    replies, waited = await replies_of("memory://", 2_000, 1)
    assert replies[:-1] == [b"x"] * 1_000
    last = replies[-1]
    assert isinstance(last, RemoteError)
    assert last.code == "too-many-replies"
    assert "more than 1000 replies" in last.text
    assert waited < 1.0
    replies, waited = await replies_of("memory://", 5, 1, limit=5)
    assert (replies, waited) == ([b"x"] * 5, 9.0)


@pytest.mark.virtual
async def test_who_says_how_many_replies_are_wanted_gets_them() -> None:
    replies, _ = await replies_of("memory://", 2_000, 1, count=1_500)
    assert replies == [b"x"] * 1_500


@pytest.mark.virtual
@pytest.mark.parametrize("count", [None, 30])
async def test_replies_have_a_limit_in_bytes(count: int | None) -> None:
    replies, waited = await replies_of("memory://", 40, 1_000_000, count=count)
    last = replies[-1]
    assert isinstance(last, RemoteError)
    assert last.code == "too-many-replies"
    assert "16777216 bytes" in last.text
    assert len(replies) == 17
    assert waited < 1.0


@pytest.mark.virtual
async def test_all_requests_together_have_a_limit_in_bytes_that_is_given_back() -> None:
    app = asking("memory://?outbox_bytes=1000000000")
    async with app:
        for _ in range(2):
            answers = await asyncio.gather(
                *(app.socket().request_many("svc", [15, 1_000_000], timeout=9.0) for _ in range(6))
            )
            complete = [replies for replies in answers if replies == [b"x" * 1_000_000] * 15]
            assert len(complete) == 4
            for replies in answers:
                if replies not in complete:
                    assert isinstance(replies[-1], RemoteError)


@pytest.mark.virtual
async def test_a_reply_over_the_limit_is_an_error_that_says_so() -> None:
    url = "memory://?max_payload=1000000&max_received=1000"
    app = asking(url)
    async with app:
        socket = app.socket()
        assert await socket.request("svc", [1, 1_000]) == b"x" * 1_000
        with pytest.raises(RemoteError, match=r"1001 bytes.*'max_received'") as raised:
            await socket.request("svc", [1, 1_001])
        assert raised.value.code == "reply-too-large"
    (answer, *_), _ = await replies_of(url, 1, 1_001)
    assert isinstance(answer, RemoteError)
    assert answer.code == "reply-too-large"


def test_the_text_and_the_code_of_a_received_error_are_shortened() -> None:
    def error_of(code: str, text: bytes) -> RemoteError:
        error = remote_error(Envelope(topic="t", headers={ERROR_HEADER: code}, payload=text))
        assert error is not None
        return error

    assert error_of("c", b"x" * 1_000).text == "x" * 1_000
    long = error_of("c" * 60_000, b"x" * 5_000_000)
    assert long.code == "c" * 100
    assert long.text == "x" * 1_000 + "... (5000000 bytes)"
    wide = error_of("c", "\N{PILE OF POO}".encode() * 1_001)
    assert wide.text == "\N{PILE OF POO}" * 1_000 + "... (4004 bytes)"
    left = remote_error(
        without_payload(Envelope(topic="t", headers={ERROR_HEADER: "c"}, payload=b"x" * 9))
    )
    assert left is not None
    assert (left.code, left.text) == ("c", "(a text of 9 bytes)")


@pytest.mark.virtual
@pytest.mark.parametrize("limit", [0, True, 1.5, "1", None])
async def test_a_limit_of_replies_is_a_whole_number(limit: Any) -> None:
    with pytest.raises(ConfigurationError, match="limit="):
        await replies_of("memory://", 1, 1, limit=limit)


# What is remembered of what strangers write.


@pytest.mark.parametrize("length", [100, 60_000])
def test_topics_that_strangers_invent_are_not_remembered_if_they_are_long(length: int) -> None:
    trie: TopicTrie[int] = TopicTrie()
    trie.add("in/+", 1)
    topics = [f"in/{number:0>{length}}" for number in range(50)]
    for _ in range(2):
        assert [trie.match(topic) for topic in topics] == [(1,)] * 50
    remembered = sum(map(len, trie._recent))
    assert remembered == (sum(map(len, topics)) if length == 100 else 0)


def kept_by(step: Callable[[int], object]) -> int:
    """Bytes that are still in use after the step was taken 100 times."""
    step(-1)
    gc.collect()
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for number in range(100):
            step(number)
        gc.collect()
        return tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()


def test_what_is_remembered_of_long_texts_takes_little() -> None:
    def text(number: int) -> str:
        return f"{number:0>50000}"

    guard = CopyGuard()
    guard.watch(["a/#", "a/+"])
    names = Names(KafkaConfig(topics={"t/{key}": KafkaTopic("t")}))

    def copy(number: int) -> None:
        guard.is_copy(Envelope(topic=f"a/{text(number)}", headers={"h": text(number)}), (1,))

    assert kept_by(copy) < 500_000

    def take_for_0_4_0(number: int) -> None:
        packed = "application/vnd.spa-dat+json"
        assert opened(Envelope(topic=f"a/{text(number)}", content_type=packed)).flaw

    assert kept_by(take_for_0_4_0) < 500_000
    assert kept_by(lambda number: check_mqtt_topic(f"a/{text(number)}")) < 500_000
    assert kept_by(lambda number: names.destination(f"t/{text(number)}")) < 500_000
    codec = RecordCodec(names, Counter(), lambda: 0.0)

    def ask(number: int) -> None:
        headers = (("reply_to", text(number).encode()),)
        record = ConsumerRecord("t", 0, 0, 0, 0, None, b"", None, 0, 0, headers)
        assert codec.decode(record) is not None

    assert kept_by(ask) < 500_000


def test_of_a_settled_record_that_is_not_committed_little_is_kept() -> None:
    assignment = Assignment(1)
    place = TopicPartition("t", 0)
    tracker = PartitionTracker(assignment, place)
    deliveries = []
    for offset in range(3):
        envelope = Envelope(
            topic="t",
            payload=b"x" * 1_000,
            time=float(offset),
            offset=offset,
            headers={"h": "x" * 1_000},
            raw_headers=(("h", b"x" * 1_000),),
        )
        delivery = Delivery(envelope, epoch=1, token=offset, tracker=tracker, size=3_000)
        tracker.slots.append(delivery)
        assignment.unsettled += 1
        assignment.size += 3_000
        deliveries.append(delivery)
    deliveries[2].settle()
    kept = deliveries[2].envelope
    assert (kept.payload, dict(kept.headers), kept.raw_headers) == (b"", {}, ())
    assert (kept.time, kept.offset, kept.left_out) == (2.0, 2, LeftOut(1_000, ""))
    assert assignment.size == 6_000
    again = msgspec.structs.replace(kept, payload=b"x" * 1_000, left_out=None)
    past = EarlierDeliveries(tracker, None)
    assert past.resolve(Delivery(again, epoch=2, token=2))
    other = msgspec.structs.replace(again, time=9.0)
    past = EarlierDeliveries(tracker, None)
    assert not past.resolve(Delivery(other, epoch=2, token=2))


def test_headers_of_a_record_count_with_what_they_take() -> None:
    assert size_of_headers(Envelope(topic="t")) == 0
    large = Envelope(topic="t", id="x" * 1_000, raw_headers=(("ce_id", b"x" * 1_000),))
    assert size_of_headers(large) > 2_000
    many = Envelope(topic="t", raw_headers=(("", None),) * 1_000)
    assert size_of_headers(many) > 100_000
