"""``spa-dat publish``, ``request`` and ``listen``, on real brokers."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient

from spa_dat import DistributedApplication, Message, RemoteError
from spa_dat.cli._main import _complain, main
from spa_dat.cli._message_output import envelope_as_json, envelope_as_text, payload_as_text
from spa_dat.errors import (
    ConnectFailed,
    PublishNotSent,
    PublishRefused,
    PublishUnknown,
    RequestTimeout,
    SpaDatError,
)
from spa_dat.testing import Kafka, Mosquitto
from spa_dat.transports import Envelope, LeftOut
from support.command import Command
from support.kafka_bus import admin, create, new_prefix

_TIMEOUT = 60.0
ON_BOTH = [
    pytest.param("mosquitto", marks=pytest.mark.mosquitto),
    pytest.param("kafka", marks=pytest.mark.kafka),
]


@dataclass
class Place:
    """A broker, and topics on it that no other test uses.

    Attributes:
        url: of the broker.
        topic: an address without others below it.
        create: makes sure that an address is there.
    """

    url: str
    topic: str
    create: Callable[[str], Any]


@pytest.fixture(params=ON_BOTH)
def place(request: pytest.FixtureRequest) -> Place:
    broker: Mosquitto | Kafka = request.getfixturevalue(request.param)
    if isinstance(broker, Kafka):
        prefix = new_prefix()

        async def create_topic(topic: str) -> None:
            await create(broker.server, prefix + topic.replace("/", "."))

        return Place(f"{broker.url}?prefix={prefix}&topic_refresh=0.1", "plant", create_topic)

    async def nothing(topic: str) -> None:
        """Do nothing: topics need not exist."""

    return Place(broker.url, uuid.uuid4().hex, nothing)


async def ran(folder: Path, *arguments: str, given: bytes = b"") -> tuple[int, str, str]:
    """Run the command to its end; returns exit code, standard output and standard error."""
    unset = ("SPA_DAT_INSTANCE", "SPA_DAT_URL")
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-W", "error", "-m", "spa_dat", *arguments],
        input=given,
        capture_output=True,
        cwd=folder,
        timeout=_TIMEOUT,
        check=False,
        env={name: value for name, value in os.environ.items() if name not in unset},
    )
    return done.returncode, done.stdout.decode(), done.stderr.decode()


async def published(*arguments: str) -> None:
    """Run ``spa-dat publish`` in this process, which takes less time."""
    assert await asyncio.to_thread(main, ["publish", *arguments]) == 0


@contextlib.asynccontextmanager
async def producer(server: str) -> AsyncIterator[AIOKafkaProducer]:
    """Start a plain producer, and stop it at the end."""
    client = AIOKafkaProducer(bootstrap_servers=server)
    await client.start()
    try:
        yield client
    finally:
        await client.stop()


def objects(listener: Command) -> list[dict[str, Any]]:
    return [json.loads(line) for line in listener.lines if line not in listener.errors]


async def test_what_is_published_is_heard(place: Place, tmp_path: Path) -> None:
    topic = place.topic
    await place.create(topic)
    (tmp_path / "photo").write_bytes(b"\x89PNG\xff")
    with Command(tmp_path, "listen", place.url, topic, "--json", "--count", "5") as listener:
        await listener.says("listening: ")
        options = ("--header", "site=b=c", "--header", "empty=", "--key", "k", "--expiry", "60")
        await published(place.url, topic, '{"celsius": 21.5}', *options)
        await published(place.url, topic, "hot")
        await published(place.url, topic, f"@{tmp_path / 'photo'}")
        publish = ("publish", place.url, topic)
        own = ("-", "--content-type", "application/x-own", "--qos", "0")
        assert await ran(tmp_path, *publish, *own, given=b"from\nhere\n") == (0, "", "")
        assert await ran(tmp_path, *publish, given=b"[1]") == (0, "", "")
        assert await listener.end() == 0
    first, text, photo, other, piped = objects(listener)
    assert first["topic"] == topic
    assert first["payload"] == {"celsius": 21.5}
    assert (first["format"], first["content_type"]) == ("JSON", "application/json")
    assert first["key"] == "k"
    assert (first["headers"]["site"], first["headers"]["empty"]) == ("b=c", "")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", first["time"])
    assert re.fullmatch(r"[0-9a-f-]{36}", first["id"])
    assert (text["payload"], text["content_type"]) == ("hot", "text/plain")
    assert base64.b64decode(photo["payload_base64"]) == b"\x89PNG\xff"
    assert (photo["format"], photo["content_type"]) == ("bytes", "application/octet-stream")
    assert (other["content_type"], other["size"]) == ("application/x-own", 10)
    assert piped["payload"] == [1]


async def test_each_line_is_a_message_and_they_stay_in_order(place: Place, tmp_path: Path) -> None:
    topic = place.topic
    await place.create(topic)
    lines = ['{"a": 2}', "", *map(str, range(500)), "three"]
    with Command(tmp_path, "listen", place.url, topic, "--json", "--count", "502") as listener:
        await listener.says("listening: ")
        given = ("\r\n".join(lines)).encode()
        done = await ran(tmp_path, "publish", place.url, topic, "--lines", given=given)
        assert done == (0, "", "spa-dat: messages published: 502\n")
        assert await listener.end() == 0
    got = [one["payload"] for one in objects(listener)]
    assert got == [{"a": 2}, *range(500), "three"]


async def test_a_line_is_published_before_the_next_one_comes(place: Place, tmp_path: Path) -> None:
    topic = place.topic
    await place.create(topic)
    with Command(tmp_path, "listen", place.url, topic, "--json", "--count", "1") as listener:
        await listener.says("listening: ")
        reader, writer = os.pipe()
        publishing = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "spa_dat", "publish", place.url, topic, "--lines", stdin=reader
        )
        os.close(reader)
        os.write(writer, b"first\nsec")
        assert await listener.end() == 0
        os.close(writer)
        assert await publishing.wait() == 0
    assert [one["payload"] for one in objects(listener)] == ["first"]


@contextlib.asynccontextmanager
async def responder(place: Place) -> Any:
    app = DistributedApplication(place.url, name=f"r{uuid.uuid4().hex}")
    topic = place.topic

    @app.application(f"{topic}/double")
    async def double(message: Message[int]) -> int:
        assert message.headers["site"] == "berlin"
        return 2 * message.payload

    @app.application(f"{topic}/refuse")
    async def refuse(payload: Any) -> int:
        raise RemoteError("out-of-stock", "none \x1b[31mleft")

    @app.application(f"{topic}/silent")
    async def silent(payload: Any) -> None: ...

    for name in ("double", "refuse", "silent"):
        await place.create(f"{topic}/{name}")
    async with app:
        yield


async def test_a_request_prints_the_reply(place: Place, tmp_path: Path) -> None:
    async with responder(place):
        request = ("request", place.url, f"{place.topic}/double", "21", "--header", "site=berlin")
        assert await ran(tmp_path, *request) == (0, "42\n", "")
        code, out, err = await ran(tmp_path, *request, "--json")
        assert (code, err) == (0, "")
        reply = json.loads(out)
        assert (reply["payload"], reply["format"]) == (42, "JSON")


async def test_a_request_without_a_good_reply_fails(place: Place, tmp_path: Path) -> None:
    async with responder(place):
        code, out, err = await ran(tmp_path, "request", place.url, f"{place.topic}/refuse", "1")
        assert (code, out) == (1, "")
        answer = r"an error, out-of-stock: none \x1b[31mleft"
        assert err == f"spa-dat: the responder answered with {answer}\n"
        silent = ("request", place.url, f"{place.topic}/silent", "1", "--timeout", "0.3")
        code, out, err = await ran(tmp_path, *silent)
        assert (code, out) == (1, "")
        assert re.match("spa-dat: .*no reply.* 0.3 s", err), err


async def test_it_ends_after_a_time_and_says_what_it_has_missed(
    place: Place, tmp_path: Path
) -> None:
    await place.create(place.topic)
    listen = ("listen", place.url, place.topic, "--for", "0.1")
    code, out, err = await ran(tmp_path, *listen)
    assert (code, out) == (0, "")
    assert re.fullmatch(r"spa-dat: listening: \S+, '\w+'\n", err)
    code, out, err = await ran(tmp_path, *listen, "--count", "2")
    assert (code, out) == (1, "")
    assert err.endswith("spa-dat: messages in 0.1 s: 0, wanted: 2\n")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.mosquitto
async def test_a_signal_ends_it_well(
    number: signal.Signals, mosquitto: Mosquitto, tmp_path: Path
) -> None:
    with Command(tmp_path, "listen", mosquitto.url, uuid.uuid4().hex) as listener:
        await listener.says("listening: ")
        listener.signal(number)
        assert await listener.end() == 0
    assert len(listener.lines) == 1


@pytest.mark.kafka
async def test_listening_leaves_nothing_on_a_cluster(kafka: Kafka, tmp_path: Path) -> None:
    prefix = new_prefix()
    await create(kafka.server, f"{prefix}plant")
    url = f"{kafka.url}?prefix={prefix}"
    client: AIOKafkaAdminClient
    async with admin(kafka.server) as client:
        for pattern in ("plant", "#"):
            assert (await ran(tmp_path, "listen", url, pattern, "--for", "0.1"))[0] == 0
        own = ("listen", f"{url}&start_timeout=0.5", "_spa/dead-letter/plant/#", "--for", "1")
        code, _, err = await ran(tmp_path, *own)
        assert (code, err.startswith("spa-dat: there is no topic ")) == (2, True), err
        topics = [name for name in await client.list_topics() if name.startswith(prefix)]
        assert topics == [f"{prefix}plant"]
        # Names of groups begin with the prefix, and other tests have groups, too.
        groups = [group[0] for group in await client.list_consumer_groups()]
        assert [name for name in groups if name.startswith(prefix)] == []


@pytest.mark.kafka
async def test_listening_begins_where_it_is_told(kafka: Kafka, tmp_path: Path) -> None:
    prefix = new_prefix()
    await create(kafka.server, f"{prefix}plant", 2)
    url = f"{kafka.url}?prefix={prefix}"
    hour = 3_600
    async with producer(kafka.server) as client:
        for place, age in enumerate((7 * hour, 2 * hour, 0)):
            sent = int((time.time() - age) * 1000)
            await client.send_and_wait(
                f"{prefix}plant", b"%d" % age, partition=place % 2, timestamp_ms=sent
            )
    listen = ("listen", url, "plant", "--json", "--for", "60")
    for since, ages in (("3h", [2 * hour, 0]), ("earliest", [7 * hour, 2 * hour, 0])):
        code, out, _ = await ran(tmp_path, *listen, "--count", str(len(ages)), "--since", since)
        assert code == 0
        heard = [json.loads(line)["payload"] for line in out.splitlines()]
        assert sorted(heard, reverse=True) == ages


@pytest.mark.mosquitto
async def test_what_a_document_says_of_an_application_is_not_said_of_the_command(
    mosquitto: Mosquitto, tmp_path: Path
) -> None:
    topic = uuid.uuid4().hex
    document = tmp_path / "plant.toml"
    document.write_text(
        f'[providers.plant]\nurl = "{mosquitto.url}"\n'
        f'[providers.plant.will]\ntopic = "{topic}/state"\npayload = "off"\nbirth = "on"\n'
        '[providers.other]\nurl = "memory://"\n'
    )
    url, options = document.as_uri(), ("--name", "plant")
    listen = ("listen", url, f"{topic}/#", "--json", "--count", "1", *options)
    with Command(tmp_path, *listen) as listener:
        await listener.says("listening: ")
        await published(url, f"{topic}/x", "1", *options)
        assert await listener.end() == 0
    assert [one["topic"] for one in objects(listener)] == [f"{topic}/x"]


@pytest.mark.mosquitto
async def test_retained_messages_are_heard(mosquitto: Mosquitto, tmp_path: Path) -> None:
    topic = uuid.uuid4().hex
    await published(mosquitto.url, topic, "--retain", "--", "-5")
    code, out, _ = await ran(tmp_path, "listen", mosquitto.url, topic, "--count", "1")
    assert code == 0
    head, marks, *details = out.splitlines()
    assert head.endswith(f"Z  {topic}")
    assert marks == "    JSON (application/json), 2 bytes, retained"
    assert details[-1] == "    -5"
    assert details[0].startswith("    id: ")


@pytest.mark.mosquitto
async def test_whoever_has_read_enough_ends_it(mosquitto: Mosquitto, tmp_path: Path) -> None:
    topic = uuid.uuid4().hex
    reader, writer = os.pipe()
    listening = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "spa_dat", "listen", mosquitto.url, topic, "--json"),
        stdout=writer,
        stderr=asyncio.subprocess.PIPE,
    )
    os.close(writer)
    assert listening.stderr is not None
    said = await listening.stderr.readline()
    with open(reader, "rb") as file:
        await published(mosquitto.url, topic, "1")
        assert json.loads(await asyncio.to_thread(file.readline))["payload"] == 1
    # Nothing more is published.
    rest = await listening.stderr.read()
    assert (await listening.wait(), rest) == (0, b""), said


@pytest.mark.mosquitto
async def test_it_can_be_ended_while_nobody_reads(mosquitto: Mosquitto, tmp_path: Path) -> None:
    topic = uuid.uuid4().hex
    reader, writer = os.pipe()
    listening = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "spa_dat", "listen", mosquitto.url, topic, "--json"),
        stdout=writer,
        stderr=asyncio.subprocess.PIPE,
    )
    os.close(writer)
    assert listening.stderr is not None
    await listening.stderr.readline()
    # More than there is room for in a pipe.
    (tmp_path / "large").write_text("x" * 500_000)
    await published(mosquitto.url, topic, f"@{tmp_path / 'large'}")
    # It has begun to write.
    await asyncio.to_thread(os.read, reader, 1)
    listening.send_signal(signal.SIGINT)
    assert (await listening.wait(), await listening.stderr.read()) == (0, b"")
    os.close(reader)


SECRET = "mqtt://user:hunter2@127.0.0.1:1"


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["publish", "memory://", "a", "1"], "memory:// is inside one process.*"),
        (["request", "memory://", "a", "1"], "memory:// is inside one process.*"),
        (["listen", "memory://", "a"], "memory:// is inside one process.*"),
        (["publish", SECRET], "Missing argument 'TOPIC'; see spa-dat publish --help"),
        (["publish", SECRET, "a", "-5"], "No such option.*-5.*; see spa-dat publish --help"),
        (["publish", SECRET, "a", "b", "c"], ".*extra argument .*"),
        (["publish", SECRET, "a", "b", "--header", "x"], ".*--header': 'x': give NAME=VALUE.*"),
        (["publish", SECRET, "a", "b", "--header", "=x"], ".*--header': '=x': give NAME=VALUE.*"),
        (
            ["publish", SECRET, "a", "b", "--header", "x=1", "--header", "x=2"],
            ".*'x' is given twice.*",
        ),
        (["publish", SECRET, "a", "b", "--qos", "2"], ".*--qos.*"),
        (["publish", SECRET, "a", "b", "--expiry", "soon"], ".*'soon': give seconds.*"),
        (["publish", SECRET, "a", "b", "--lines"], "--lines reads .*, not from 'b': give @FILE.*"),
        (["publish", SECRET, "a", "@no/such"], "'no/such' cannot be read: No such file.*"),
        (["publish", SECRET, "a", "@."], "'.' cannot be read: Is a directory"),
        (
            ["publish", f"{SECRET}?max_payload=3", "a", "1234"],
            "the payload has more than 3 bytes: send less, or raise the option 'max_payload'.*",
        ),
        (
            ["publish", f"{SECRET}?max_payload=3", "a", "@/dev/zero"],
            "the file '/dev/zero' has more than 3 bytes.*",
        ),
        (["publish", "kafka://h", "a", "b", "--retain"], "--retain is for MQTT: .*"),
        (["publish", f"{SECRET}?x=1", "a", "b"], "option 'x' of mqtt://127.*"),
        (["publish", f"{SECRET}?start_timeout=0.1", "a", "b"], "no connection to the broker at.*"),
        (["listen", f"{SECRET}?start_timeout=0.1", "a"], "no connection to the broker at.*"),
        (["listen", SECRET, "a/#/b"], ".*filter 'a/#/b'.*"),
        (["listen", "kafka://h", "a b"], ".*Kafka cannot carry the level 'a b'.*"),
        (["listen", SECRET, "a", "--count", "0"], ".*'0': give a whole number, 1 or more.*"),
        (["listen", SECRET, "a", "--for", "nan"], ".*'nan': give seconds.*"),
        (["request", SECRET, "a", "1", "--qos", "1"], "No such option.*"),
        (["listen", SECRET, "a", "--since", "1h"], "--since is for Kafka: all that mqtt.*"),
        *(
            (["listen", "kafka://h", "a", "--since", wrong], f".*'--since': '{wrong}'{problem}.*")
            for wrong, problem in (
                ("latest", ": give a time .*, or 'earliest' for all there is"),
                ("1w", ": give a time"),
                ("9999-12-31T23:59:59.9999Z", " is in the future"),
            )
        ),
    ],
)
def test_what_is_wrong_is_said_in_one_line(
    arguments: list[str], problem: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    out, err = capfd.readouterr()
    assert (out, err.count("\n")) == ("", 1), err
    assert re.fullmatch(f"spa-dat: {problem}", err.strip()), err
    assert "hunter2" not in err


@pytest.mark.parametrize("command", ["listen", "request", "config"])
def test_a_closed_output_is_said_before_anything_is_sent(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    topic = () if command == "config" else ("a",)
    assert main([command, SECRET, *topic]) == 2
    _, err = capsys.readouterr()
    assert err == "spa-dat: standard output is closed: send it to /dev/null to discard it\n"


@pytest.fixture(params=["closed", "full"])
def without_errors(
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> Iterator[pytest.CaptureFixture[str]]:
    with open("/dev/full", "w", encoding="utf-8") as full:
        monkeypatch.setattr(sys, "stderr", full if request.param == "full" else None)
        yield capfd


@pytest.mark.mosquitto
def test_a_command_does_its_work_when_nobody_can_be_told(
    mosquitto: Mosquitto, without_errors: pytest.CaptureFixture[str]
) -> None:
    topic = uuid.uuid4().hex
    assert main(["publish", mosquitto.url, topic, "1", "--retain"]) == 0
    assert main(["listen", mosquitto.url, topic, "--json", "--count", "1"]) == 0
    assert main(["listen", mosquitto.url, "a/#/b"]) == 2
    out, _ = without_errors.readouterr()
    assert [json.loads(line)["payload"] for line in out.splitlines()] == [1]


def test_no_payload_at_a_terminal_is_said(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    try:
        done = subprocess.run(
            [sys.executable, "-m", "spa_dat", "publish", SECRET, "a"],
            stdin=theirs,
            capture_output=True,
            text=True,
            timeout=_TIMEOUT,
            check=False,
        )
    finally:
        os.close(ours)
        os.close(theirs)
    assert done.returncode == 2
    assert done.stderr.startswith("spa-dat: there is no payload: give it, '' for an empty one")


@pytest.mark.mosquitto
async def test_a_line_that_is_too_long_is_named(mosquitto: Mosquitto, tmp_path: Path) -> None:
    url = f"{mosquitto.url}?max_payload=5"
    publish = ("publish", url, uuid.uuid4().hex, "--lines")
    given = b"12345\n" + b"x" * 200_000 + b"\n1\n"
    code, out, err = await ran(tmp_path, *publish, given=given)
    assert (code, out) == (2, "")
    assert err.startswith("spa-dat: line 2 of standard input has more than 5 bytes")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConnectFailed(), 2),
        (PublishNotSent(), 1),
        (PublishRefused(), 1),
        (PublishUnknown(), 1),
        (RequestTimeout(), 1),
    ],
)
def test_what_comes_of_a_good_command_is_told_from_a_wrong_one(
    error: SpaDatError, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _complain("x", error) == code


HOSTILE = "\x1b]0;owned\x07\r\n\u202e\x9b\u2028"
JSON = "application/json"
MESSAGEPACK = "application/msgpack"


@pytest.mark.parametrize(
    "envelope",
    [
        Envelope(topic="a", payload=HOSTILE.encode(), content_type="text/plain"),
        Envelope(topic="a", payload=json.dumps(HOSTILE, ensure_ascii=False).encode()),
        Envelope(topic="a", payload=b'"\xc2\x9b"', content_type=JSON),
        Envelope(topic="a", payload=HOSTILE.encode(), content_type=JSON),
        Envelope(topic="a", payload=msgspec.msgpack.encode({HOSTILE: 1}), content_type=MESSAGEPACK),
        Envelope(topic="a", payload=HOSTILE.encode() * 20_000),
        Envelope(topic=HOSTILE, id=HOSTILE, key=HOSTILE, content_type=HOSTILE, source=HOSTILE),
        Envelope(topic="a", response_topic=HOSTILE, headers={HOSTILE: HOSTILE}, flaw=HOSTILE),
        Envelope(topic="a", time=float("nan")),
        Envelope(topic="a", time=1e300),
        Envelope(topic="a", left_out=LeftOut(10**9, "0")),
        Envelope(topic="a", payload=b'{"a":' * 100_000),
        Envelope(topic="a", payload=b"[" * 50_000 + b"]" * 50_000, content_type=JSON),
        Envelope(topic="a", payload=b"9" * 60_000, content_type=JSON),
        Envelope(topic="a", payload=b"\xcb\x7f\xf0" + bytes(6), content_type=MESSAGEPACK),
        Envelope(topic="a", payload=b"\x81\x90\x01", content_type=MESSAGEPACK),
        Envelope(topic="a", payload=b"\xc7\x01\x05\x00", content_type=MESSAGEPACK),
        Envelope(topic="a", payload=b'{"a": [1, 2]}' + b" " * 1_000_000),
        Envelope(topic="a", headers={f"h{number}": "x" * 999 for number in range(9_999)}),
        Envelope(topic="a", payload=b"\n" * 60_000, content_type="text/plain"),
        Envelope(topic="a", payload=b"\t" * 60_000, content_type="text/plain"),
        Envelope(topic="a", payload=b"\xff" * 60_000),
    ],
)
def test_no_message_can_control_a_terminal_or_forge_another(envelope: Envelope) -> None:
    text = envelope_as_text(envelope)
    head, *details = text.removesuffix("\n").split("\n")
    assert head[0] != " "
    assert details
    assert all(line.startswith("    ") for line in details)
    assert all(line.isprintable() for line in (head, *details))
    assert len(text) < 30_000
    line = envelope_as_json(envelope)
    assert line.isascii()
    assert line.count("\n") == 1
    shown = json.loads(line)
    assert shown["topic"] == envelope.topic
    assert ("payload" in shown) != ("payload_base64" in shown)
    reply = payload_as_text(Message.of(envelope, envelope.payload))
    assert all(letter == "\n" or letter.isprintable() for letter in reply)


@pytest.mark.parametrize(
    ("payload", "content_type", "form", "shown"),
    [
        (b'{"b":[1,null],"a":"\xc3\xa4"}', JSON, "JSON", None),
        (b"21.5", None, "JSON", "21.5\n"),
        (b"warm\n", None, "text", "warm\n"),
        (b"two\r\nlines\tx", "text/plain", "text", "two\nlines   x\n"),
        (b"21.5", "text/plain", "text", "21.5\n"),
        (b"{nope", JSON, "text", "{nope\n"),
        (b"\x00\x01", None, "bytes", "00 01\n"),
        (b"\x00\x01", "image/png", "bytes", "00 01\n"),
        (b"plain", "application/octet-stream", "bytes", "70 6c 61 69 6e\n"),
        (b"\x82\xa1a\x01\x02\xc4\x01\x00", MESSAGEPACK, "MessagePack", None),
        (b"", None, "empty", ""),
    ],
)
def test_a_payload_is_shown_as_what_it_is(
    payload: bytes, content_type: str | None, form: str, shown: str | None
) -> None:
    envelope = Envelope(topic="a", payload=payload, content_type=content_type)
    entries = json.loads(envelope_as_json(envelope))
    assert (entries["format"], entries["size"]) == (form, len(payload))
    text = payload_as_text(Message.of(envelope, payload))
    if shown is None:
        # Laid out, and nothing lost.
        assert text.count("\n") > 3
        assert json.loads(text) == entries["payload"]
    else:
        assert text == shown
    assert f"    {form} (" in envelope_as_text(envelope)


def test_a_header_without_a_value_is_null_for_programs() -> None:
    raw = (("none", None), ("empty", b""), ("full", b"x"))
    headers = {"none": "", "empty": "", "full": "x"}
    envelope = Envelope(topic="a", payload=b"1", headers=headers, raw_headers=raw)
    assert json.loads(envelope_as_json(envelope))["headers"] == {
        "none": None,
        "empty": "",
        "full": "x",
    }


@pytest.mark.parametrize(("begun", "offered"), [("li", "listen"), ("listen --co", "--count")])
def test_a_shell_can_complete_commands_and_options(begun: str, offered: str) -> None:
    words = f"spa-dat {begun}"
    done = subprocess.run(
        [sys.executable, "-m", "spa_dat"],
        env={
            **os.environ,
            "_SPA_DAT_COMPLETE": "bash_complete",
            "COMP_WORDS": words,
            "COMP_CWORD": str(len(words.split()) - 1),
        },
        capture_output=True,
        text=True,
        timeout=_TIMEOUT,
        check=True,
    )
    assert done.stdout == f"plain,{offered}\n"


def test_commands_import_what_they_need_when_they_run() -> None:
    program = (
        "import sys; from spa_dat.cli._main import main; main(['--help'])\n"
        "print([name for name in sys.modules if name.startswith('spa_dat.runtime')])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=_TIMEOUT,
        check=True,
    )
    assert done.stdout.splitlines()[-1] == "[]"
