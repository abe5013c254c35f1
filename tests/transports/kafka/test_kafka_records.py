"""Envelopes as records, and records of anybody as envelopes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec
import pytest
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from hypothesis import example, given, strategies as st

from spa_dat.errors import ConfigurationError
from spa_dat.transports import Envelope, KafkaConfig, KafkaTopic
from spa_dat.transports.kafka._records import Record, RecordCodec, size_of_headers
from spa_dat.transports.kafka._topic_names import Names

NOW = 1_700_000_000.0
_HEADER_OF_A_BATCH = 61

_TEXTS = st.text(min_size=1, max_size=20)
_NAMES = st.text(min_size=1, max_size=10).filter(lambda name: not name.startswith("ce_"))
_ENVELOPES = st.builds(
    Envelope,
    topic=st.sampled_from(["a", "plant/boiler", "fleet/7/position"]),
    payload=st.binary(max_size=50),
    content_type=st.none() | _TEXTS,
    id=st.none() | _TEXTS,
    source=st.none() | _TEXTS,
    type=st.none() | _TEXTS,
    time=st.integers(0, 2_000_000_000_000).map(lambda stamp: stamp / 1_000),
    key=st.text(max_size=10),
    headers=st.dictionaries(_NAMES, st.text(max_size=10), max_size=4).map(
        lambda headers: {
            name: value
            for name, value in headers.items()
            if name not in ("content-type", "correlation_id", "reply_to", "ttl_ms")
        }
    ),
    response_topic=st.none() | st.sampled_from(["answers", "plant/answers", "fleet/8/position"]),
    correlation=st.none() | st.binary(max_size=20),
    expiry=st.none() | st.integers(1, 10_000_000).map(lambda number: number / 1_000),
    tombstone=st.booleans(),
)


@dataclass
class Stored:
    """A record as a broker gives it."""

    topic: str = "a"
    value: bytes | None = b"x"
    key: bytes | None = None
    headers: Sequence[tuple[str, bytes | None]] = ()
    timestamp: int = int(NOW * 1_000)
    partition: int = 3
    offset: int = 77
    stats: Counter[str] = field(default_factory=Counter)

    def decode(self, now: float = NOW) -> Envelope | None:
        return codec(self.stats, now).decode(self)  # type: ignore[arg-type]


def codec(stats: Counter[str] | None = None, now: float = NOW, prefix: str = "") -> RecordCodec:
    topics = {"fleet/{truck}/position": KafkaTopic("fleet.position", key="truck")}
    names = Names(KafkaConfig(prefix=prefix, topics=topics))
    return RecordCodec(names, Counter() if stats is None else stats, lambda: now)


def stored(record: Record) -> Stored:
    timestamp = int(NOW * 1_000) if record.timestamp is None else record.timestamp
    return Stored(record.name, record.value, record.key, record.headers, timestamp)


@example(sent=Envelope(topic="a", key="", time=33_678_981.999, expiry=0.001))
@given(sent=_ENVELOPES)
def test_what_is_encoded_comes_back(sent: Envelope) -> None:
    assert sent.time is not None
    got = codec(now=sent.time).decode(stored(codec().encode(sent)))  # type: ignore[arg-type]
    assert got is not None
    for name in (
        "topic",
        "id",
        "source",
        "type",
        "key",
        "tombstone",
        "correlation",
    ):
        assert getattr(got, name) == getattr(sent, name), name
    assert got.payload == (b"" if sent.tombstone else sent.payload)
    assert got.content_type == (None if sent.tombstone else sent.content_type)
    assert dict(got.headers) == dict(sent.headers)
    assert got.response_topic == sent.response_topic
    assert got.time == pytest.approx(sent.time, abs=0.002)
    if sent.expiry is None:
        assert got.expiry is None
    else:
        assert got.expiry == pytest.approx(sent.expiry, abs=0.003)
    assert (got.partition, got.offset) == (3, 77)


@given(sent=_ENVELOPES)
def test_a_record_takes_at_most_the_size_that_is_counted(sent: Envelope) -> None:
    record = codec().encode(sent)
    taken = DefaultRecordBatchBuilder.estimate_size_in_bytes(
        record.key, record.value, list(record.headers)
    )
    assert record.size >= taken - _HEADER_OF_A_BATCH


def test_headers_have_the_names_that_others_know() -> None:
    record = codec(prefix="p-").encode(
        Envelope(
            topic="plant/a",
            payload=b"1",
            content_type="application/json",
            id="i",
            source="s",
            type="t",
            key="k",
            headers={"traceparent": "00"},
            response_topic="_spa/reply/app/token/0a",
            correlation=b"0a",
            expiry=1.5,
        )
    )
    assert (record.name, record.key, record.value) == ("p-plant.a", b"k", b"1")
    assert list(record.headers) == [
        ("content-type", b"application/json"),
        ("ce_specversion", b"1.0"),
        ("ce_id", b"i"),
        ("ce_source", b"s"),
        ("ce_type", b"t"),
        ("reply_to", b"p-_spa.reply.app"),
        ("correlation_id", b"token/0a"),
        ("ttl_ms", b"1500"),
        ("traceparent", b"00"),
    ]


def test_a_reply_finds_its_way_back() -> None:
    both = codec(prefix="p-")
    request = both.encode(Envelope(topic="double", response_topic="_spa/reply/app/token/0a"))
    got = both.decode(stored(request))  # type: ignore[arg-type]
    assert got is not None
    assert got.response_topic == "_spa/reply/app/token/0a"
    assert got.correlation == b"0a"
    answer = both.encode(Envelope(topic=got.response_topic, correlation=got.correlation))
    assert answer.name == "p-_spa.reply.app"
    assert list(answer.headers) == [("correlation_id", b"token/0a")]


def test_a_reply_topic_of_another_program_is_taken_by_its_full_name() -> None:
    both = codec(prefix="p-")
    known, foreign = (
        Stored(topic="p-a", headers=[("reply_to", name)])
        for name in (b"p-plant.answers", b"plant.answers")
    )
    got = both.decode(known)  # type: ignore[arg-type]
    assert got is not None
    assert got.response_topic == "plant/answers"
    got = both.decode(foreign)  # type: ignore[arg-type]
    assert got is not None
    assert got.response_topic is not None
    with pytest.raises(ConfigurationError, match=r"'plant\.answers' .* prefix 'p-'"):
        both.encode(Envelope(topic=got.response_topic))


def test_a_record_without_headers_is_a_message() -> None:
    assert Stored().decode() == Envelope(topic="a", payload=b"x", time=NOW, partition=3, offset=77)
    got = Stored(key=b"\xffk", value=None).decode()
    assert got is not None
    assert (got.key, got.payload, got.tombstone) == ("\\xffk", b"", True)


@pytest.mark.parametrize(
    "headers",
    [
        [("ttl_ms", b"soon")],
        [("ttl_ms", b"-5")],
        [("ttl_ms", b"9" * 30)],
        [("ttl_ms", "٣".encode())],
        [("ce_time", b"yesterday")],
        [("ce_time", b"9999999-01-01")],
    ],
    ids=repr,
)
def test_malformed_headers_are_counted_and_passed_over(
    headers: list[tuple[str, bytes | None]],
) -> None:
    record = Stored(headers=headers)
    got = record.decode()
    assert got is not None
    assert (got.time, got.expiry, dict(got.headers)) == (NOW, None, {})
    assert record.stats == {"messages.malformed": 1}


@given(
    headers=st.lists(
        st.tuples(
            st.sampled_from(
                ["reply_to", "correlation_id", "ttl_ms", "ce_time", "ce_subject", "ce_id", "x"]
            ),
            st.none() | st.binary(max_size=12),
        ),
        max_size=6,
    ),
    topic=st.sampled_from(["a", "fleet.position", "_spa.dead-letter.app", "_spa.reply.app"]),
    key=st.none() | st.binary(max_size=6),
)
def test_anything_can_be_decoded(
    headers: list[tuple[str, bytes | None]], topic: str, key: bytes | None
) -> None:
    got = Stored(topic=topic, headers=headers, key=key).decode()
    assert got is None or isinstance(got.topic, str)


def test_a_message_that_has_expired_is_none() -> None:
    record = Stored(headers=[("ttl_ms", b"1000")])
    assert record.decode(NOW + 1.0) is None
    left = record.decode(NOW + 0.25)
    assert left is not None
    assert left.expiry == pytest.approx(0.75)


def test_the_time_of_another_sender_counts() -> None:
    got = Stored(headers=[("ce_time", b"2020-01-01T00:00:00Z")]).decode()
    assert got is not None
    assert got.time == 1_577_836_800.0


def test_a_tombstone_needs_a_key() -> None:
    with pytest.raises(ConfigurationError, match=r"'a'.*key"):
        codec().encode(Envelope(topic="a", tombstone=True))


@pytest.mark.parametrize("name", ["reply_to", "ce_id", "content-type", "ttl_ms"])
def test_headers_of_the_runtime_are_refused(name: str) -> None:
    with pytest.raises(ConfigurationError, match=name):
        codec().encode(Envelope(topic="a", headers={name: "x"}))


def test_a_key_of_the_envelope_comes_before_that_of_the_binding() -> None:
    assert codec().encode(Envelope(topic="fleet/7/position")).key == b"7"
    assert codec().encode(Envelope(topic="fleet/7/position", key="x")).key == b"x"


def test_bytes_stay_what_they_were() -> None:
    headers = (
        ("offset", (300).to_bytes(8, "big")),
        ("sig", b"\xff\xfe"),
        ("via", b"a"),
        ("via", b"b"),
        ("nothing", None),
        ("ce_id", b"7"),
    )
    got = Stored(key=b"\xf7\x01", headers=headers).decode()
    assert got is not None
    assert (got.raw_key, got.raw_headers) == (b"\xf7\x01", headers)
    assert (got.key, got.headers["via"], got.headers["nothing"]) == ("\\xf7\x01", "b", "")
    again = codec().encode(got)
    assert again.key == b"\xf7\x01"
    # What stands for a field of the envelope is written from that.
    written = [pair for pair in again.headers if not pair[0].startswith("ce_")]
    assert written == list(headers[:-1])
    assert again.size > 0
    other = Envelope(topic="a", headers={"via": "text", "x": "1"}, raw_headers=(("via", b"\xff"),))
    assert list(codec().encode(other).headers) == [("x", b"1"), ("via", b"\xff")]
    no_key = Envelope(topic="a", raw_key=b"k", tombstone=True)
    assert codec().encode(no_key).key == b"k"


def test_the_subject_of_an_event_does_not_become_the_address_where_records_tell_theirs() -> None:
    got = Stored(headers=[("ce_subject", b"boiler/7"), ("sig", b"\xff")]).decode()
    assert got is not None
    assert got.headers["subject"] == "boiler/7"
    bound = msgspec.structs.replace(got, topic="fleet/7/position")
    there = stored(codec().encode(bound)).decode()
    assert there is not None
    assert (there.topic, there.headers["subject"]) == ("fleet/7/position", "boiler/7")
    back = stored(codec().encode(msgspec.structs.replace(there, topic="a"))).decode()
    assert back is not None
    assert (back.topic, back.headers["subject"]) == ("a", "boiler/7")
    assert ("sig", b"\xff") in back.raw_headers


def test_headers_that_are_repeated_count_for_the_size() -> None:
    many = Stored(headers=[("x", b"1")] * 1_000).decode()
    few = Stored(headers=[("x", b"1")]).decode()
    assert many is not None
    assert few is not None
    assert size_of_headers(many) > 400 * size_of_headers(few)
