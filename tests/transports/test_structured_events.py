"""CloudEvents in structured mode: what is read, and what a stranger's document cannot do."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from cloudevents.core.bindings import kafka as kafka_binding
from cloudevents.core.formats.json import JSONFormat
from cloudevents.core.v1.event import CloudEvent
from hypothesis import given, strategies as st

from spa_dat.transports import Envelope, opened, without_payload
from spa_dat.transports._structured_events import is_structured

TYPE = "application/cloudevents+json"
_CONTENT = json.loads((Path(__file__).parent / "vectors" / "structured.json").read_text("utf-8"))
_VECTORS = [pytest.param(vector, id=vector["name"]) for vector in _CONTENT["vectors"]]
_GOOD = [
    pytest.param(vector, id=vector["name"]) for vector in _CONTENT["vectors"] if "message" in vector
]

_scalars = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)
_json = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | _scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_scalars, inner, max_size=3),
    max_leaves=10,
)


def read(document: str | bytes, content_type: str = TYPE, **fields: Any) -> Envelope:
    payload = document if isinstance(document, bytes) else document.encode()
    return opened(Envelope(topic="a", payload=payload, content_type=content_type, **fields))


def event(**members: Any) -> str:
    return json.dumps({"specversion": "1.0", "id": "1", "source": "s", "type": "t"} | members)


def ended(end: bytes) -> bytes:
    """An event with this in place of its last brace."""
    return event()[:-1].encode() + end


_MANY = {f"a{number}": 1 for number in range(1_000)}
_LONG = {f"a{number}": "x" * 10_000 for number in range(20)}
_HOSTILE: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "not a JSON object"),
    "utf-16": (b"\xff\xfe", "not a JSON object"),
    "name-of-bytes": (b'{"\xff": 1}', "not a JSON object"),
    "deep-list": (b'{"id": ' + b"[" * 1_000_000, "nested too deeply"),
    "deep-object": (
        event(data=1)[:-1].encode() + b', "deep": ' + b'{"a":' * 500_000,
        "nested too deeply",
    ),
    "many-attributes": (
        event(**_MANY).encode(),
        "1004 attributes; 200 are allowed",
    ),
    "long-attributes": (event(**_LONG).encode(), "characters"),
    "long-name": (event(**{"a" * 101: 1}).encode(), "is not the name of an attribute"),
    "line-break": (event(**{"a\n": 1}).encode(), r"'a\\n' is not the name"),
    "text-of-bytes": (ended(b', "x": "\xff"}'), "text of 'x' cannot be read"),
    "half-a-pair": (
        event()[:-1].encode() + b', "x": "\\ud800"}',
        "cannot be read|not a JSON object",
    ),
    "long-number": (ended(b', "x": ' + b"9" * 100_000 + b"}"), "neither a string"),
    "data-of-bytes": (
        event(datacontenttype="text/plain")[:-1].encode() + b', "data": "\xff"}',
        "of 'data'",
    ),
    "number-in-base64": (event(data_base64=5).encode(), "not in base64"),
    "letter-in-base64": (event(data_base64="ä").encode(), "not in base64"),
    "number-as-type": (event(datacontenttype=5, data={}).encode(), "'data' must be a string"),
}


@pytest.mark.parametrize("vector", _VECTORS)
def test_a_document_is_read_as_its_vector_says(vector: dict[str, Any]) -> None:
    received = Envelope(topic="a", payload=vector["document"].encode(), content_type=TYPE)
    got = opened(received)
    if "flaw" in vector:
        assert vector["flaw"] in (got.flaw or "")
        # It is kept as it came.
        assert (got.payload, got.content_type, got.original) == (received.payload, TYPE, None)
        return
    message = vector["message"]
    assert got.flaw is None
    assert got.original == received
    payload = message.get("payload", "").encode() or bytes.fromhex(message.get("payload_hex", ""))
    assert got.payload == payload
    for name in ("content_type", "id", "source", "type", "time", "key"):
        assert getattr(got, name) == message.get(name), name
    assert dict(got.headers) == message["headers"]


@pytest.mark.parametrize("vector", _GOOD)
def test_the_package_cloudevents_reads_the_same(vector: dict[str, Any]) -> None:
    theirs = JSONFormat().read(None, vector["document"])
    message = vector["message"]
    assert theirs.get_id() == message["id"]
    assert theirs.get_source() == message["source"]
    assert theirs.get_type() == message["type"]
    # Theirs leaves it open what data without a type is.
    assert theirs.get_datacontenttype() in (message.get("content_type"), None)
    for name, text in message["headers"].items():
        value = theirs.get_attributes()[name]
        assert (str(value).lower() if isinstance(value, bool) else str(value)) == text
    data = theirs.get_data()
    ours = read(vector["document"])
    if isinstance(data, bytes):
        assert ours.payload == data
    elif ours.content_type is not None and "json" in ours.content_type.lower():
        assert json.loads(ours.payload) == data
    else:
        assert ours.payload.decode() == (data or "")


@given(data=_json.filter(lambda value: value is not None), binary=st.binary(min_size=1))
def test_what_the_package_cloudevents_writes_is_read(data: Any, binary: bytes) -> None:
    attributes = {"id": "1", "source": "s", "type": "t", "partitionkey": "k"}
    message = kafka_binding.to_structured(CloudEvent({**attributes}, data), JSONFormat())
    got = read(message.value, message.headers["content-type"].decode())
    assert got.flaw is None
    assert json.loads(got.payload) == data
    assert (got.id, got.key, got.content_type) == ("1", "k", "application/json")
    attributes["datacontenttype"] = "application/octet-stream"
    message = kafka_binding.to_structured(CloudEvent({**attributes}, binary), JSONFormat())
    assert read(message.value).payload == binary


@pytest.mark.parametrize(
    ("content_type", "structured"),
    [
        (TYPE, True),
        ("Application/CloudEvents+JSON; charset=utf-8", True),
        (f"{TYPE} ;x=y", True),
        (None, False),
        ("application/json", False),
        ("application/octet-stream; charset=binary", False),
        # Other formats, and several events in one document: whoever asks for bytes gets them.
        ("application/cloudevents+avro", False),
        ("application/cloudevents-batch+json", False),
        ("application/cloudevents+jsonl", False),
    ],
)
def test_the_content_type_tells_structured_mode(content_type: str | None, structured: bool) -> None:
    assert is_structured(content_type) is structured
    received = Envelope(topic="a", payload=event(data=1).encode(), content_type=content_type)
    assert (opened(received) is not received) is structured


def test_the_event_counts_and_the_rest_stays_as_the_bus_says() -> None:
    got = read(
        event(data=1, time="yesterday", key="k", customer="c"),
        id="other",
        source="other",
        time=5.0,
        headers={"customer": "other", "x": "y"},
        response_topic="answers",
        correlation=b"7",
        expiry=3.0,
        retain=True,
    )
    assert (got.id, got.source, got.type, got.key) == ("1", "s", "t", "k")
    # What the sender says of its time cannot be read, so the bus's stays.
    assert got.time == 5.0
    assert dict(got.headers) == {"customer": "c", "x": "y"}
    assert (got.response_topic, got.correlation, got.expiry, got.retain) == (
        "answers",
        b"7",
        3.0,
        True,
    )
    # The key of the bus decides on order there.
    assert read(event(key="k"), key="bus").key == "bus"


@pytest.mark.parametrize("name", _HOSTILE)
def test_a_hostile_document_is_a_flaw_and_nothing_else(name: str) -> None:
    document, words = _HOSTILE[name]
    got = read(document)
    assert got.flaw is not None
    assert re.search(words, got.flaw), got.flaw
    assert len(got.flaw) < 300
    assert got.flaw.isprintable()
    assert got.payload == document


@given(st.binary(max_size=200) | _json.map(json.dumps).map(str.encode))
def test_any_document_is_read_or_has_a_flaw(document: bytes) -> None:
    got = read(document)
    assert (got.flaw is None) is (got.original is not None)


def test_what_was_too_large_to_be_received_stays_closed() -> None:
    received = without_payload(Envelope(topic="a", payload=event().encode(), content_type=TYPE))
    assert opened(received) is received
