"""Strict type checkers accept right programs that use the wheel, and refuse wrong ones."""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

from support.type_checking import check_types, check_with_pyright, errors

pytestmark = [pytest.mark.repository, pytest.mark.slow, pytest.mark.deadline(600)]

ROOT = Path(__file__).parent.parent.parent
SOURCES = ("actors", "harness", "runtime", "transports", "src")
FILES = ("pyproject.toml", "setup.cfg", "MANIFEST.in", "README.md", "LICENSE")
REFUSED = "# refused"

RIGHT = '''
"""A program with most of what there is."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from spa_dat import (
    Actor,
    ActorRef,
    Codec,
    Context,
    DistributedApplication,
    Durable,
    KafkaConfig,
    LastWill,
    Message,
    MessageBuilder,
    Middleware,
    MqttConfig,
    Outgoing,
    Reject,
    RetryPolicy,
    Socket,
    Topic,
    on,
)
from spa_dat.errors import RequestTimeout, TransportError
from spa_dat.testing import Harness


@dataclass
class Reading:
    celsius: float


@dataclass
class Highest:
    celsius: float = 0.0


class Database:
    async def store(self, reading: Reading) -> int:
        return round(reading.celsius)


@asynccontextmanager
async def open_database() -> AsyncGenerator[Database]:
    yield Database()


class Reversed(Codec):
    content_type = "text/x-reversed"

    def encode(self, value: object) -> bytes:
        return str(value).encode()[::-1]

    def decode(self, payload: bytes, kind: object) -> object:
        return payload[::-1].decode()


class Counting(Middleware):
    def __init__(self) -> None:
        self.published: list[str] = []

    def publish(self, outgoing: Outgoing) -> None:
        self.published.append(outgoing.topic)


readings = Topic[Reading]("plant/{machine}/temperature")
limits = Topic[float, Reading]("plant/limit")
app = DistributedApplication(
    MqttConfig(
        "broker.example",
        username="plant",
        password="secret",
        will=LastWill("plant/gone", payload="away"),
    ),
    name="plant",
)
app.use(Counting())
app.resource("db", open_database)


@app.application(readings, state=Highest, retry=RetryPolicy(attempts=3), window=10)
async def watch(
    reading: Reading, machine: str, state: Highest, socket: Socket, db: Database, context: Context
) -> None:
    if reading.celsius > state.celsius:
        state.celsius = reading.celsius
        await socket.publish("plant/alarms", f"{machine} at {await db.store(reading)}", qos=1)
        socket.post(readings.at(machine="copy"), reading)
        context.later(1.0, print, machine)


@app.application("plant/raw/#", codec=Reversed())
def raw(message: Message[bytes]) -> None:
    text: str = message.topic
    payload: bytes = message.payload
    if not payload:
        raise Reject(text)


@app.application("plant/{machine}/driven", per="machine", durable=Durable(version=2), state=Highest)
async def driven(km: float, state: Highest, message_builder: MessageBuilder) -> None:
    state.celsius += km


@app.producer(every=1.0)
async def asks(socket: Socket) -> None:
    try:
        answer = await socket.request(limits, 1.0, timeout=2)
        degrees: float = answer.celsius
        number: int = await socket.request("plant/number", None, reply=int, timeout=2)
        print(degrees + number)
    except RequestTimeout as error:
        outage: bool | None = error.outage
        print(outage)
    except TransportError:
        return


class Boiler(Actor):
    def __init__(self, limit: float) -> None:
        self.limit = limit

    @on(limits)
    async def change(self, limit: float) -> Reading:
        self.limit = limit
        return Reading(limit)

    async def on_receive(self, degrees: float) -> bool:
        return degrees > self.limit


boiler = app.add(Boiler, 20.0)


async def look(ref: ActorRef[Boiler]) -> None:
    too_hot: bool = await ref.ask(30.0)
    print(too_hot)


async def main() -> None:
    async with app:
        await look(boiler.ref)
        socket = app.socket()
        await socket.publish(readings.at(machine="boiler"), Reading(21.5))
        print(app.health().state)


def test_alarms() -> None:
    with Harness(app, profile="mqtt") as harness:
        harness.publish(readings.at(machine="boiler"), Reading(95.0))
        harness.settle()
        assert len(harness.published("plant/alarms")) == 1


def other() -> KafkaConfig:
    return KafkaConfig("broker.example:9092", prefix="test.")


if __name__ == "__main__":
    asyncio.run(main())
'''

WRONG = """
from dataclasses import dataclass

from spa_dat import (
    Actor,
    Context,
    DistributedApplication,
    Middleware,
    MqttConfig,
    Outgoing,
    RetryPolicy,
    Socket,
    Topic,
    on,
)
from spa_dat.testing import Harness


@dataclass
class Reading:
    celsius: float


readings = Topic[Reading]("plant/temperature")
limits = Topic[float, Reading]("plant/limit")

DistributedApplication(42)  # refused
MqttConfig("broker.example", prot=1883)  # refused
MqttConfig("broker.example", port="1883")  # refused
RetryPolicy(attempts="3")  # refused
app = DistributedApplication("memory://", nam="plant")  # refused


@app.application("plant/a", concurency=2)  # refused
async def misspelt(payload: int) -> None: ...


@app.application("plant/a", retry=3)  # refused
async def no_policy(payload: int) -> None: ...


@app.application("plant/a", window="10")  # refused
async def no_number(payload: int) -> None: ...


@app.application("plant/a", placement="thread")  # refused
async def no_placement(payload: int) -> None: ...


@app.application(readings)  # refused
async def other_payload(payload: int) -> None: ...


@app.application(limits)  # refused
async def other_reply(payload: float) -> str:
    return str(payload)


@app.producer(every="1s")  # refused
async def no_seconds(socket: Socket) -> None: ...


class Boiler(Actor):
    @on(readings)  # refused
    async def measured(self, payload: int) -> None: ...


class Watching(Middleware):
    def publish(self, outgoing: str) -> None: ...  # refused


async def sends(socket: Socket, context: Context) -> None:
    await socket.publish("plant/a", 1, qos="1")  # refused
    await socket.publish("plant/a", 1, retian=True)  # refused
    await socket.publish(readings, 1)  # refused
    socket.post(b"plant/a", 1)  # refused
    number: int = await socket.request("plant/a", 1, reply=str, timeout=1)  # refused
    answer: str = await socket.request(limits, 1.0, timeout=1)  # refused
    socket.publish("plant/a", 1)  # refused
    context.later("1s", print)  # refused
    print(number, answer, context.atempt)  # refused


def looks(outgoing: Outgoing) -> int:
    return outgoing.topic  # refused


def tests() -> None:
    Harness(app, profile="amqp")  # refused
    Harness("plant:app")  # refused
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an interpreter with the wheel, and of all else what this one has."""
    folder = tmp_path_factory.mktemp("wheel")
    # In a copy: building leaves files behind, which others in this folder would find.
    sources = folder / "sources"
    for name in SOURCES:
        ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
        shutil.copytree(ROOT / name, sources / name, symlinks=True, ignore=ignored)
    for name in FILES:
        shutil.copy(ROOT / name, sources / name)
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder)]
    built = subprocess.run([*build, str(sources)], capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    (wheel,) = folder.glob("*.whl")
    venv.create(folder / "venv")
    interpreter = folder / "venv" / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(interpreter), "install", "-qq"]
    subprocess.run([*pip, "--no-deps", "--no-index", str(wheel)], check=True)
    # What the package needs; this environment's own spa_dat comes after the wheel's.
    (packages,) = (folder / "venv").glob("lib/python*/site-packages")
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    return interpreter


def refused(program: str) -> list[int]:
    lines = program.splitlines()
    return [number for number, line in enumerate(lines, 1) if line.endswith(REFUSED)]


def test_mypy_accepts_and_refuses(python: Path, tmp_path: Path) -> None:
    right, wrong = check_types(tmp_path, RIGHT, WRONG, python=python)
    assert right == []
    assert sorted(errors(wrong)) == refused(WRONG), wrong


def test_pyright_accepts_and_refuses(python: Path, tmp_path: Path) -> None:
    right, wrong = check_with_pyright(tmp_path, RIGHT, WRONG, python=python)
    assert right == []
    assert sorted(errors(wrong)) == refused(WRONG), wrong
