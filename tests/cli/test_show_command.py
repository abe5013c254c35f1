"""``spa-dat show``: what is registered, and what brokers know it by."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from spa_dat import DistributedApplication
from spa_dat.cli._main import main
from spa_dat.testing import Kafka
from support.kafka_bus import admin, create, new_prefix

SOURCE = """
from dataclasses import dataclass
from spa_dat import (
    Actor, Codec, DistributedApplication, Message, MessageBuilder, Middleware, Overflow,
    RestartPolicy, RetryPolicy, Socket, Topic, on,
)

@dataclass
class Reading:
    celsius: float

readings = Topic[Reading]("plant/{machine}/temperature")
class Topics:
    alarms = Topic[str]("alarm/{machine}")
double = Topic[int, int]("plant-double")
unused = Topic[int]("unused")

app = DistributedApplication(
    "mqtt://ann:hunter2@broker", name="plant", stop_timeout=5, slow_after=None,
    restart=RestartPolicy(intensity=7), reply_topics=["answers/#", "{who}/answers"],
    admin="127.0.0.1:8085", admin_token="hunter2 hunter2 hunter2",
)
app.resource("database", lambda: None)

class Audit(Middleware):
    async def handle(self, call, call_next):
        return await call_next()

class Stamp(Middleware):
    def publish(self, outgoing):
        pass

app.use(Audit())
app.use(Stamp())

def make_state():
    return {"password": "hunter2"}

@app.application(readings, deliver="share", retry=RetryPolicy(attempts=2), state=make_state)
async def watch(reading: Reading, machine: str, state: dict, socket: Socket) -> None:
    def alarm():
        return Topics.alarms.at(machine=machine)
    await socket.publish(alarm(), "hot")
    await socket.request(double, 1)
    await socket.publish("plain", 1)

@app.application([double, "old/#"], name="doubler")
async def handler(message: Message[int]) -> int:
    return 2 * message.payload

class Backwards(Codec):
    content_type = "text/x-backwards"
    def encode(self, value): return str(value).encode()[::-1]
    def decode(self, payload, kind): return int(payload[::-1])

@app.application("odd", codec=Backwards())
async def odd(payload: int) -> None: ...

@app.producer(every=2.5)
async def tick(socket: Socket) -> None:
    await socket.publish("tick", None)

class Store(Actor):
    overflow = Overflow.DROP_OLDEST
    subscription = "storage"

    @on("a/+", "b")
    async def keep(self, payload: bytes) -> None: ...

    @on("c")
    async def ask(self, payload: str, message_builder: MessageBuilder, socket: Socket) -> None:
        await socket.publish(Topics.alarms.at(machine="x"), payload)

app.add(Store)
"""

DOCUMENTED = """
from dataclasses import dataclass
from spa_dat import DistributedApplication, Middleware, Socket, Topic

@dataclass
class Reading: ...
@dataclass
class Alarm: ...
class Audit(Middleware):
    async def handle(self, call, call_next):
        return await call_next()

alarms = Topic[Alarm]("alarm/{machine}")
app = DistributedApplication("mqtt://broker", name="plant", stop_timeout=5)
app.use(Audit())

@app.application("plant/{machine}/temperature", deliver="share")
async def watch(reading: Reading, socket: Socket) -> None:
    await socket.publish(alarms.at(machine="x"), Alarm())
"""

Shown = Callable[..., str]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / f"app_{uuid.uuid4().hex}.py"
    path.write_text(SOURCE)
    return path


@pytest.fixture
def shown(file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Shown:
    monkeypatch.delenv("SPA_DAT_URL", raising=False)
    monkeypatch.delenv("SPA_DAT_INSTANCE", raising=False)

    def run(*options: str) -> str:
        assert main(["show", f"{file}:app", *options]) == 0
        out, errors = capsys.readouterr()
        assert errors == ""
        assert "hunter2" not in out
        return out

    return run


def test_the_text_says_what_is_registered(shown: Shown, file: Path) -> None:
    module = file.stem
    assert (
        shown()
        == f"""\
application plant, instance 0
  setting       stop_timeout=5
  setting       restart=RestartPolicy(intensity=7)
  setting       slow_after=None
  setting       reply_topics=answers/#, {{who}}/answers
  setting       admin='127.0.0.1:8085'
  middleware    {module}:Audit around handlers
  middleware    {module}:Stamp around what is published
  resources     database

bus mqtt://broker:1883 (default)
  client id     plant.0
  replies       _spa/reply/plant/#
  dead letters  _spa/dead-letter/plant/#

actor watch on mqtt://broker:1883
  source        {module}:watch
  handles       plant/{{machine}}/temperature: Reading
  option        state={module}:make_state
  option        retry=RetryPolicy(attempts=2)
  option        deliver='share'
  session       plant.0.watch
  filters       $share/plant.watch/plant/+/temperature
  names         alarm/{{machine}}: str
  names         plant-double: int -> int

actor doubler on mqtt://broker:1883
  source        {module}:handler
  handles       plant-double: int -> int
  handles       old/#: int -> int
  session       plant.0.doubler
  filters       plant-double
  filters       old/#

actor odd on mqtt://broker:1883
  source        {module}:odd
  handles       odd: int
  option        codec=Backwards
  session       plant.0.odd
  filters       odd

producer tick on mqtt://broker:1883
  source        {module}:tick
  is called     every 2.5 s

actor Store on mqtt://broker:1883
  source        {module}:Store
  handles       a/+: bytes (keep)
  handles       b: bytes (keep)
  handles       c: str -> of any type (ask)
  option        overflow=Overflow.DROP_OLDEST
  option        subscription='storage'
  session       plant.0.storage
  filters       a/+
  filters       b
  filters       c
  names         alarm/{{machine}}: str

What handlers publish, request and subscribe to cannot be seen from here, apart from the Topic \
objects that their code names.
"""
    )


@pytest.mark.repository
def test_the_page_shows_what_the_command_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("SPA_DAT_URL", raising=False)
    monkeypatch.delenv("SPA_DAT_INSTANCE", raising=False)
    (tmp_path / "plant").mkdir()
    file = tmp_path / "plant" / "main.py"
    file.with_name("__init__.py").touch()
    file.write_text(DOCUMENTED)
    try:
        assert main(["show", f"{file}:app"]) == 0
    finally:
        for name in ("plant", "plant.main"):
            sys.modules.pop(name, None)
    page = Path(__file__).parent.parent.parent / "docs" / "command-line.md"
    example = re.search(r"```\n(application plant.*?)```", page.read_text("utf-8"), re.DOTALL)
    assert example is not None
    assert capsys.readouterr().out.startswith(example[1])


def test_programs_get_the_same_as_json(shown: Shown) -> None:
    url = "kafka://k1,k2?prefix=p."
    facts = json.loads(shown("--json", "--url", url))
    assert (facts["application"], facts["instance"]) == ("plant", "0")
    assert facts["settings"]["stop_timeout"] == "5"
    assert [(one["handles"], one["publishes"]) for one in facts["middleware"]] == [
        (True, False),
        (False, True),
    ]
    (bus,) = facts["buses"]
    assert bus["address"] == "kafka://k1:9092,k2:9092?prefix=p."
    assert bus["names"]["replies"] == ["p._spa.reply.plant"]
    assert bus["names"]["dead letters"] == ["p._spa.dead-letter.plant"]
    actors = {actor["name"]: actor for actor in facts["actors"]}
    assert actors["watch"]["names"] == {
        "group": ["p.plant.watch"],
        "member": ["p.plant.0.watch"],
        "topics": ["p.plant.+.temperature"],
    }
    assert actors["doubler"]["names"]["topics"] == ["p.plant-double", "p.old.#"]
    assert actors["tick"]["names"] == {}
    assert actors["tick"]["every"] == 2.5
    assert actors["watch"]["handlers"] == [
        {
            "name": "watch",
            "topics": ["plant/{machine}/temperature"],
            "payload": "Reading",
            "reply": None,
        }
    ]
    assert actors["Store"]["topics_named"] == [
        {"topic": "alarm/{machine}", "payload": "str", "reply": None}
    ]


def test_the_picture_says_who_gets_what(shown: Shown) -> None:
    lines = [line.strip() for line in shown("--mermaid").splitlines()]
    assert lines[0] == "flowchart LR"
    assert lines[1].startswith("%% What handlers publish")
    nodes = {
        found[2]: found[1]
        for line in lines
        if (found := re.fullmatch(r'(\w+)(?:\[/|\(\[|\[)"(.*)"(?:/\]|\]\)|\])', line))
    }
    assert {*nodes} == {
        *("watch", "doubler", "odd", "tick", "Store", "plant/{machine}/temperature", "old/#35;"),
        *("plant-double", "alarm/{machine}", "a/+", "b", "c"),
    }
    readings, watch = nodes["plant/{machine}/temperature"], nodes["watch"]
    assert f'{readings} -->|"Reading"| {watch}' in lines
    assert f'{nodes["plant-double"]} -->|"int -#gt; int"| {nodes["doubler"]}' in lines
    assert f'{watch} -.->|"str"| {nodes["alarm/{machine}"]}' in lines
    assert f'{watch} -.->|"int -#gt; int"| {nodes["plant-double"]}' in lines


CHAIN = """
from typing import Annotated
from spa_dat import Codec, DistributedApplication, Socket, Topic

class Backwards(Codec):
    content_type = "text/x-backwards"
    def encode(self, value): return str(value).encode()[::-1]
    def decode(self, payload, kind): return int(payload[::-1])

readings = Topic[Annotated[int, Backwards()]]("plant/{machine}/temperature")
boiler = Topic[int]("plant/boiler/#")
app = DistributedApplication("mqtt://broker", name="plant")

@app.producer()
async def sensor(socket: Socket) -> None:
    await socket.publish(readings.at(machine="boiler"), 1)
    await socket.subscribe(boiler)

@app.application("plant/{other}/temperature")
async def same(payload: int) -> None: ...

@app.application("plant/#")
async def wider(payload: int) -> None: ...

@app.application("plant/oven/+")
async def partly(payload: int) -> None: ...

@app.application("plant/{machine}/temperature", socket_provider="mqtt://elsewhere")
async def elsewhere(payload: int) -> None: ...
"""


def test_the_picture_says_who_publishes_to_whom(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / f"chain_{uuid.uuid4().hex}.py"
    file.write_text(CHAIN)
    assert main(["show", f"{file}:app", "--mermaid"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[2:] == [
        '    a0(["sensor"])',
        '    a1["same"]',
        '    a2["wider"]',
        '    a3["partly"]',
        '    a4["elsewhere"]',
        # A topic on another bus is another topic.
        '    subgraph b0["mqtt://broker:1883"]',
        '        t0[/"plant/boiler/#35;"/]',
        '        t1[/"plant/{machine}/temperature"/]',
        '        t2[/"plant/#35;"/]',
        '        t3[/"plant/oven/+"/]',
        "    end",
        '    subgraph b1["mqtt://elsewhere:1883"]',
        '        t4[/"plant/{machine}/temperature"/]',
        "    end",
        # Nobody can publish to a wildcard: it gets from there.
        '    t0 -.->|"int"| a0',
        # Without the codec, whose address is never the same.
        '    a0 -.->|"int"| t1',
        '    t1 -->|"int"| a1',
        '    t2 -->|"int"| a2',
        '    t3 -->|"int"| a3',
        '    t4 -->|"int"| a4',
        '    t1 -.->|"some"| t0',
        "    t1 --> t2",
        '    t1 -.->|"some"| t3',
    ]


def test_nothing_is_kept_for_an_application_without_a_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / f"nameless_{uuid.uuid4().hex}.py"
    file.write_text(SOURCE.replace(', name="plant"', ""))
    assert main(["show", f"{file}:app"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("application without a name, so nothing is kept for it")
    assert "session" not in text
    assert main(["show", f"{file}:app", "--url", "kafka://k"]) == 0
    text = capsys.readouterr().out
    assert "_spa.reply.ephemeral" in text
    assert "group" not in text


@pytest.mark.parametrize(
    ("target", "problem"),
    [
        ("no.such.one:app", "there is no module 'no' in the current folder or .*"),
        ("{file}:nope", "module '.*' has no 'nope'; its applications: app"),
        ("{file}:broken", "'.*:broken' .*RuntimeError: worn out .*"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(
    target: str, problem: str, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file.write_text(SOURCE + "\ndef broken():\n    raise RuntimeError('worn out')\n")
    assert main(["show", target.replace("{file}", str(file))]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert re.fullmatch(f"spa-dat: {problem}", err.strip()), err


def test_whoever_has_read_enough_sees_no_traceback(file: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "spa_dat", "show", f"{file}:app"],
            stdout=writer,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
            check=False,
        )
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")


RUNNING = """
from spa_dat import DistributedApplication

app = DistributedApplication("memory://", name="{name}")

@app.application("{topic}", deliver="share")
async def shared(payload: int) -> None: ...

@app.application("{topic}", deliver="all")
async def copied(payload: int) -> None: ...
"""


@pytest.mark.kafka
async def test_the_names_are_those_that_a_cluster_has(
    kafka: Kafka, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prefix = new_prefix()
    await create(kafka.server, f"{prefix}x")
    url = f"{kafka.url}?prefix={prefix}"
    file = tmp_path / f"app_{uuid.uuid4().hex}.py"
    file.write_text(RUNNING.format(name="plant", topic="x"))
    assert main(["show", f"{file}:app", "--json", "--url", url]) == 0
    facts = json.loads(capsys.readouterr().out)
    groups = {name for actor in facts["actors"] for name in actor["names"]["group"]}
    topics = {name for actor in facts["actors"] for name in actor["names"]["topics"]}
    for kind in ("replies", "dead letters"):
        topics |= {*facts["buses"][0]["names"][kind]}
    # The command has given it the bus.
    app: DistributedApplication = vars(sys.modules[file.stem])["app"]
    async with app, admin(kafka.server) as client:
        there: list[Any] = await client.list_consumer_groups()
        assert {name for name, *_ in there if name.startswith(prefix)} == groups
        assert {name for name in await client.list_topics() if name.startswith(prefix)} == topics
