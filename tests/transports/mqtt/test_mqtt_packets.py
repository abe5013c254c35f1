"""PUBLISH and its acknowledgements, byte by byte, and the stream that splits packets."""

from __future__ import annotations

import asyncio
import socket
from collections import Counter

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from spa_dat.errors import EncodeError
from spa_dat.transports._envelope import Envelope
from spa_dat.transports.mqtt.protocol._packets import (
    QOS2,
    MalformedPacket,
    PublishDecoder,
    PublishPacket,
    encode_acknowledgements,
    variable_integer,
)
from spa_dat.transports.mqtt.protocol._stream import FrameStream
from spa_dat.transports.mqtt.protocol._subscribe import read_properties
from support.machine import examples
from support.waiting import eventually

_RESERVED = {"id", "source", "type", "time", "key", "specversion"}

texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
filled = st.none() | texts.filter(bool)
envelopes = st.builds(
    Envelope,
    topic=texts.filter(bool),
    payload=st.binary(max_size=300),
    content_type=filled,
    id=filled,
    source=filled,
    type=filled,
    time=st.none() | st.integers(0, 4_000_000_000).map(lambda n: n / 4),
    key=filled,
    headers=st.dictionaries(texts.filter(lambda name: name not in _RESERVED), texts, max_size=4),
    response_topic=filled,
    correlation=st.none() | st.binary(max_size=40),
    expiry=st.none() | st.integers(1, 4_294_967_295).map(float),
    qos=st.integers(0, 1),
    retain=st.booleans(),
)


def decode(packet: bytes, stats: Counter[str] | None = None) -> tuple[Envelope, int]:
    """What the decoder makes of one whole packet, with other packets around it."""
    length, start = 0, 1
    for shift in range(0, 28, 7):
        length |= (packet[start] & 127) << shift
        start += 1
        if packet[start - 1] < 128:
            break
    assert start + length == len(packet), "the packet is as long as it says"
    data = b"\xd0\0" + packet + b"\xd0\0"
    decoder = PublishDecoder(Counter() if stats is None else stats)
    envelope, token, _ = decoder.decode(packet[0], data, start + 2, len(data) - 2)
    return envelope, token


@given(envelope=envelopes, packet_id=st.integers(1, 65_535))
def test_every_field_survives_the_wire(envelope: Envelope, packet_id: int) -> None:
    packet = PublishPacket(envelope)
    data = packet.encode(packet_id)
    assert len(data) == packet.size
    got, token = decode(data)
    assert token == (packet_id if envelope.qos else -1)
    assert dict(got.headers) == dict(envelope.headers)
    for field in Envelope.__struct_fields__:
        if field != "headers":
            assert getattr(got, field) == getattr(envelope, field), field


def test_an_expiry_is_rounded_up_to_whole_seconds() -> None:
    packet = PublishPacket(Envelope(topic="a", expiry=0.2))
    assert decode(packet.encode(1))[0].expiry == 1.0


def test_an_expiry_of_0_stands_for_a_rest_of_less_than_a_second() -> None:
    packet = PublishPacket(Envelope(topic="a", expiry=0.0))
    assert decode(packet.encode(1))[0].expiry == 1.0


@pytest.mark.parametrize("qos", [0, 1])
@pytest.mark.parametrize("headers", [{}, {"long": "x" * 200}])
def test_a_message_that_has_waited_is_sent_with_what_is_left(
    qos: int, headers: dict[str, str]
) -> None:
    sent = Envelope(topic="a", payload=b"x", expiry=60.0, headers=headers, id="one", qos=qos)
    packet = PublishPacket(sent)
    size = len(packet.encode(1))
    packet.expires_in(20.5)
    packet.expires_in(10.5)
    got, _ = decode(packet.encode(1))
    assert got == msgspec.structs.replace(sent, expiry=11.0, headers=got.headers)
    assert dict(got.headers) == headers
    assert len(packet.encode(1)) == size == packet.size


def test_a_complete_event_says_which_specification_it_follows() -> None:
    packet = PublishPacket(Envelope(topic="a", id="1", source="s", type="t")).encode(1)
    assert b"\x26\x00\x0bspecversion\x00\x031.0" in packet
    assert dict(decode(packet)[0].headers) == {}


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"headers": {"id": "x"}}, "'id'.*choose another name"),
        ({"headers": {"x": "a\0"}}, "null character"),
        ({"headers": {"\ud800": "x"}}, "UTF-8"),
        ({"content_type": "x" * 65_536}, "65536 bytes"),
        ({"correlation": b"x" * 65_536}, "65536 bytes"),
        ({"time": float("nan")}, "nan"),
        ({"time": 1e18}, "1e\\+18"),
    ],
)
def test_what_can_not_be_written_is_refused(fields: dict[str, object], words: str) -> None:
    with pytest.raises(EncodeError, match=words):
        PublishPacket(Envelope(topic="a", **fields))  # type: ignore[arg-type]


def test_the_last_of_a_repeated_header_counts() -> None:
    pairs = b"\x26\0\x01a\0\x01x\x26\0\x01a\0\x01y"
    packet = b"\x30" + bytes((4 + len(pairs),)) + b"\0\x01t" + bytes((len(pairs),)) + pairs
    assert decode(packet)[0].headers == {"a": "y"}


@pytest.mark.parametrize("pair", [b"\0\x04time\0\x05never", b"\0\x02id\0\0"])
def test_values_that_make_no_sense_are_ignored_and_counted(pair: bytes) -> None:
    stats: Counter[str] = Counter()
    properties = b"\x26" + pair
    body = b"\0\x01t" + bytes((len(properties),)) + properties + b"payload"
    envelope, _ = decode(b"\x30" + bytes((len(body),)) + body, stats)
    assert envelope == Envelope(topic="t", payload=b"payload", qos=0)
    assert stats["messages.malformed"] == 1


def test_an_empty_key_is_one() -> None:
    packet = PublishPacket(Envelope(topic="t", key="", qos=0)).encode(0)
    assert decode(packet)[0].key == ""


def test_the_flags_of_a_packet_are_seen() -> None:
    body = b"\0\x01t\x00\x07\0x"
    envelope, token = decode(bytes((0x3B, len(body))) + body)
    assert (envelope.redelivered, envelope.retain, token) == (True, True, 7)


def test_a_message_that_comes_with_qos_2_is_acknowledged_in_its_own_way() -> None:
    body = b"\0\x01t\x01\x02\0x"
    envelope, token = decode(bytes((0x34, len(body))) + body)
    assert token == QOS2 + 0x0102
    assert envelope.qos == 1
    assert encode_acknowledgements([5, token]) == b"\x40\x02\0\x05\x50\x02\x01\x02"


def test_subscription_identifiers_are_read() -> None:
    body = b"\0\x01t\0\x01\x05\x0b\x05\x0b\xc8\x01x"
    _, _, identifiers = PublishDecoder(Counter()).decode(0x32, body, 0, len(body))
    assert identifiers == (5, 200)


@settings(max_examples=examples(200))
@given(first=st.integers(0x30, 0x3F), data=st.binary(max_size=60))
def test_no_bytes_make_the_decoder_fail_in_another_way(first: int, data: bytes) -> None:
    try:
        PublishDecoder(Counter()).decode(first, data, 0, len(data))
    except MalformedPacket:
        pass


@given(envelope=envelopes, cut=st.integers(1, 400))
def test_a_packet_that_ends_too_early_is_not_taken_for_a_message(
    envelope: Envelope, cut: int
) -> None:
    head = PublishPacket(
        Envelope(topic=envelope.topic, headers=envelope.headers, key=envelope.key)
    ).encode(1)
    start = 2 if head[1] < 128 else 3 if head[2] < 128 else 4
    stop = len(head) - cut
    if stop > start:
        with pytest.raises(MalformedPacket):
            PublishDecoder(Counter()).decode(0x32, head, start, stop)


class Reading:
    """A stream on one end of a socket pair, and what it reported."""

    def __init__(self) -> None:
        ours, self.peer = socket.socketpair()
        ours.setblocking(False)
        self.peer.setblocking(False)
        self.packets: list[tuple[int, bytes]] = []
        self.ends: list[Exception | None] = []
        self.pause_at = -1
        self.stream = FrameStream(ours, self._on_packet, self.ends.append)

    def _on_packet(self, first: int, data: bytes, start: int, stop: int) -> None:
        self.packets.append((first, data[start:stop]))
        if len(self.packets) == self.pause_at:
            self.stream.pause()

    def close(self) -> None:
        self.stream.abort()
        self.peer.close()


def frame(body: bytes, first: int = 0x30) -> bytes:
    return bytes((first,)) + variable_integer(len(body)) + body


@settings(max_examples=examples(15), deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    sizes=st.lists(st.sampled_from([0, 1, 5, 127, 128, 300, 20_000]), min_size=1, max_size=8),
    cuts=st.lists(st.integers(1, 30_000), max_size=6),
    pause_at=st.integers(-1, 8),
)
async def test_packets_are_found_however_the_bytes_arrive(
    sizes: list[int], cuts: list[int], pause_at: int
) -> None:
    reading = Reading()
    reading.pause_at = pause_at
    bodies = [bytes([index]) * size for index, size in enumerate(sizes)]
    data = b"".join(map(frame, bodies))
    loop = asyncio.get_running_loop()
    try:
        position = 0
        for cut in [*cuts, len(data)]:
            await loop.sock_sendall(reading.peer, data[position : position + cut])
            position += cut
            await asyncio.sleep(0)
            if reading.stream.paused:
                assert len(reading.packets) == pause_at, "a paused stream hands nothing over"
                reading.stream.resume()
        await eventually(lambda: len(reading.packets) == len(bodies) or reading.stream.paused)
        reading.stream.resume()
        await eventually(lambda: len(reading.packets) == len(bodies))
        assert [body for _, body in reading.packets] == bodies
    finally:
        reading.close()


async def test_a_length_of_five_bytes_ends_the_connection() -> None:
    reading = Reading()
    reading.peer.send(b"\x30\xff\xff\xff\xff\x01")
    await eventually(lambda: reading.ends)
    assert isinstance(reading.ends[0], MalformedPacket)
    reading.close()


async def test_what_one_turn_writes_leaves_in_one_piece_and_in_order() -> None:
    reading = Reading()
    for index in range(100):
        reading.stream.write(bytes([index]))
    loop = asyncio.get_running_loop()
    assert await loop.sock_recv(reading.peer, 1_000) == bytes(range(100))
    reading.close()


async def test_more_than_the_system_takes_is_sent_as_it_takes_it() -> None:
    reading = Reading()
    done: list[bool] = []
    size = 4_000_000
    reading.stream.write(b"x" * size)
    reading.stream.after_flush(lambda: done.append(True))
    await asyncio.sleep(0)
    assert not done
    got = 0
    loop = asyncio.get_running_loop()
    while got < size:
        got += len(await loop.sock_recv(reading.peer, 1_000_000))
    await eventually(lambda: done)
    reading.close()


async def test_finishing_delivers_the_last_bytes_although_more_comes_in() -> None:
    reading = Reading()
    reading.stream.pause()
    reading.peer.send(frame(b"unread") * 100)
    reading.stream.write(b"goodbye")
    finishing = asyncio.create_task(reading.stream.finish(5.0))
    loop = asyncio.get_running_loop()
    assert await loop.sock_recv(reading.peer, 100) == b"goodbye"
    reading.peer.close()
    await finishing
    assert reading.packets == []


async def test_an_end_is_reported_once_and_with_its_reason() -> None:
    reading = Reading()
    reading.peer.close()
    await eventually(lambda: reading.ends)
    assert reading.ends == [None]
    reading.stream.write(b"too late")
    reading.close()
    assert reading.ends == [None]


@pytest.mark.parametrize(
    ("properties", "found"),
    [
        (b"\x1f\0\x02no", {0x1F: "no"}),
        (b"\x26\0\x01a\0\x01b\x1f\0\x02no", {0x1F: "no"}),
        (b"\x26\0\x01a\0\x01b", {}),
        (b"", {}),
        (b"\x21\x01\x02\x27\0\0\x01\0\x24\x01", {0x21: 258, 0x27: 256, 0x24: 1}),
        (b"\x21\0\x05\x21\0\x06", {0x21: 5}),
        (b"\x16\0\x02\xff\xff\x13\0\x09", {0x13: 9}),
        (b"\x1f\0\x02\xff\xfe\x13\0\x09", {0x1F: "\ufffd\ufffd", 0x13: 9}),
        (b"\x13\0\x09\x1f\0\x09no", {0x13: 9}),
        (b"\x13\0\x09\x21\0", {0x13: 9}),
        (b"\x13\0\x09\x1f\0", {0x13: 9}),
        (b"\x13\0\x09\x21", {0x13: 9}),
        (b"\x13\0\x09\x99\0\x02no", {0x13: 9}),
    ],
)
def test_properties_are_read_as_far_as_they_can_be(
    properties: bytes, found: dict[int, int | str]
) -> None:
    packet = bytes((len(properties),)) + properties
    end = 2 + len(packet)
    following = b"\0\x20" * 20
    assert read_properties(b"xx" + packet + following, 2, end + 1) == (found, end)


@given(st.binary(max_size=40))
def test_no_properties_end_a_connection_or_reach_behind_their_packet(data: bytes) -> None:
    found, end = read_properties(data + b"\x1f\0\x03not", 0, len(data))
    assert end <= len(data)
    assert "not" not in found.values()
