"""``spa-dat``, and what it says when something is wrong."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
import uuid
from collections.abc import Callable, Iterator
from importlib.metadata import entry_points, version
from pathlib import Path
from typing import Any

import aiomqtt
import pytest

from spa_dat import DistributedApplication, Message, MqttConfig
from spa_dat.cli._main import _complain, main
from spa_dat.testing import Kafka, Mosquitto
from support.kafka_bus import bus_client, new_prefix
from support.waiting import eventually

_TIMEOUT = 30.0

PLANT = """
import sys

from spa_dat import DistributedApplication, RetryPolicy, Socket

app = DistributedApplication("memory://", name="plant")
number = 3

@app.application("tank/{name}/users", retry=RetryPolicy(attempts=2, first=0.01))
async def tank(payload: int, name: str, socket: Socket) -> None:
    await socket.publish(f"share/{name}", 100 / payload)

@app.application("share/#")
async def board(payload: float) -> None:
    print("share", payload, flush=True)
"""

PRODUCER = """
@app.producer()
async def users(socket: Socket) -> None:
    for count in (4, 5):
        await socket.publish("tank/a/users", count)
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name of a module in the current folder."""
    name = f"plant_{uuid.uuid4().hex}"
    (tmp_path / f"{name}.py").write_text(PLANT)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield name
    sys.modules.pop(name, None)


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, list[str], list[str]]]:
    """Runs a command; returns exit code and lines on standard output and standard error."""

    def run(*arguments: str) -> tuple[int, list[str], list[str]]:
        try:
            code = main(arguments)
        except SystemExit as end:
            code = int(end.code or 0)
        out, err = capsys.readouterr()
        return code, out.splitlines(), err.splitlines()

    return run


Said = Callable[..., tuple[int, list[str], list[str]]]


def recording(folder: Path, *counts: int) -> str:
    file = folder / "incident.jsonl"
    lines = [
        {
            "version": 1,
            "at": float(number),
            "topic": "tank/a/users",
            "application": "plant",
            "instance": "0",
            "actor": "tank",
            "payload": str(count),
            "content_type": "application/json",
            "id": f"m{number}",
        }
        for number, count in enumerate(counts)
    ]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file.name


def records(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_it_can_be_started_in_two_ways() -> None:
    (script,) = entry_points(group="console_scripts", name="spa-dat")
    assert script.load() is main
    done = subprocess.run(
        [sys.executable, "-m", "spa_dat", "--version"],
        capture_output=True,
        text=True,
        timeout=_TIMEOUT,
        check=True,
    )
    assert done.stdout == f"spa-dat {version('spa-dat')}\n"


def test_the_help_names_commands_and_options(said: Said) -> None:
    code, out, err = said("--help")
    assert (code, err) == (0, [])
    commands = itertools.takewhile(bool, out[out.index("Commands:") + 1 :])
    names = [line.split()[0] for line in commands]
    assert names == [
        "acl",
        "asyncapi",
        "config",
        "dlq",
        "health",
        "listen",
        "publish",
        "record",
        "replay",
        "request",
        "run",
        "show",
        "states",
        "top",
    ]
    for command in names:
        code, out, err = said(command, "--help")
        assert (code, err) == (0, [])
        assert out[0].startswith(f"Usage: spa-dat {command} ")


class Program:
    """The command in a process of its own."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-W", "error", "-m", "spa_dat", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=folder,
            env={k: v for k, v in os.environ.items() if k != "SPA_DAT_INSTANCE"},
        )

    def read_until(self, line: str) -> None:
        assert self._process.stdout is not None
        for text in self._process.stdout:
            if text.strip() == line:
                return
        raise AssertionError(f"it ended without {line!r}: {self.end()}")

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def end(self) -> tuple[int, str]:
        """Exit code and standard error."""
        try:
            _, err = self._process.communicate(timeout=_TIMEOUT)
        finally:
            self._process.kill()
        return self._process.returncode, err


def test_an_application_is_recorded_until_a_signal(module: str, tmp_path: Path) -> None:
    (tmp_path / f"{module}.py").write_text(PLANT + PRODUCER)
    program = Program(tmp_path, "record", f"{module}:app", "-o", "out.jsonl", "--actor", "tank")
    program.read_until("share 20.0")
    program.signal(signal.SIGTERM)
    assert program.end() == (0, "spa-dat: messages in out.jsonl: 2\n")
    assert [line["payload"] for line in records(tmp_path / "out.jsonl")] == ["4", "5"]


def test_an_application_that_fails_is_recorded_all_the_same(module: str, tmp_path: Path) -> None:
    text = """
        import asyncio
        @app.producer()
        async def users(socket: Socket) -> None:
            await socket.publish("tank/a/users", 4)
            while not app.stats["messages.handled"] == 2:
                await asyncio.sleep(0.01)
            raise RuntimeError("worn out")
    """
    (tmp_path / f"{module}.py").write_text(PLANT + textwrap.dedent(text))
    code, err = Program(tmp_path, "record", f"{module}:app", "-o", "out.jsonl").end()
    assert code == 1
    assert "worn out" in err
    assert err.endswith("spa-dat: messages in out.jsonl: 2\n")
    assert len(records(tmp_path / "out.jsonl")) == 2


def test_a_file_that_is_there_is_kept_without_force(
    module: str, tmp_path: Path, said: Said
) -> None:
    (tmp_path / f"{module}.py").write_text(
        'from spa_dat import DistributedApplication\napp = DistributedApplication("memory://")\n'
        "@app.producer()\nasync def end() -> None: ...\n"
    )
    file = tmp_path / "out.jsonl"
    file.write_text("precious\n")
    command = ("record", f"{module}:app", "-o", "out.jsonl")
    code, _, err = said(*command)
    assert (code, err) == (
        2,
        ["spa-dat: 'out.jsonl' already exists; name another file, or remove it"],
    )
    assert file.read_text() == "precious\n"
    assert said(*command, "--force") == (0, [], ["spa-dat: messages in out.jsonl: 0"])
    assert file.read_text() == ""


SECRET = "mqtt://user:hunter2@host.invalid"


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ([], "Missing command: one of run, publish, .*; see spa-dat --help"),
        (["rekord"], "No such command 'rekord'.*; see spa-dat --help"),
        (["record", "{m}:app"], "Missing option '-o' / '--output'; see spa-dat record --help"),
        (
            ["record", "{m}:app", "-o", "f", "--limit", "0"],
            "Invalid value for '--limit': '0': give a whole .*",
        ),
        (
            ["record", "{m}:app", "-o", "f", "--limit", "x"],
            "Invalid value for '--limit': 'x': give a whole .*",
        ),
        (["record", SECRET, "-o", "f"], "listening on a bus needs topics: .*"),
        (["record", SECRET, SECRET, "-o", "f"], r".*extra argument \(mqtt://\*\*\*@host.*"),
        (["record", SECRET, "-o", "f", "--topic", "a", "--actor", "b"], "--actor is for appl.*"),
        (["record", f"{SECRET}?x=1", "-o", "f", "--topic", "a"], "option 'x' of mqtt://host.*"),
        (["record", SECRET, "-o", "f", "--topic", "a/#/b"], ".*filter 'a/#/b'.*"),
        (["record", SECRET, "-o", "no/such/f", "--topic", "a"], "'no/such/f' cannot be written.*"),
        (
            ["record", "memory://", "-o", "f", "--topic", "a"],
            "memory:// is inside one process.*",
        ),
        (["record", "{m}:app", "-o", "f", "--topic", "a"], "--topic is for listening .*"),
        (
            ["record", "{m}:app", "-o", "f", "--since", "1h"],
            "--since and --until are for topics of a cluster: .*",
        ),
        (
            ["record", "kafka://h", "-o", "f", "--topic", "a", "--until", "1h"],
            "--until needs --since: .*",
        ),
        (["record", "kafka://h", "-o", "f", "--since", "1h"], "reading again needs topics: .*"),
        (
            ["record", SECRET, "-o", "f", "--topic", "a", "--since", "1h"],
            "mqtt://host.invalid.* keeps no messages that could be read again: .*",
        ),
        (
            ["record", "kafka://h", "-o", "f", "--topic", "a", "--since", "yesterday"],
            "Invalid value for '--since': 'yesterday': give a time such as .*",
        ),
        (
            ["record", "kafka://h", "-o", "f", "--topic", "a", "--since", "2026-11-27"],
            "Invalid value for '--since': '2026-11-27': give a time such as .*",
        ),
        (
            ["record", "kafka://h", "-o", "f", "--topic", "a", "--since", "2999-01-01T00:00Z"],
            "Invalid value for '--since': '2999-01-01T00:00Z' is in the future; .*",
        ),
        (
            ["record", "kafka://h", "-o", "f", "--topic", "a", "--since", "1969-01-01T00:00Z"],
            ".*: no message is older than 1970; .*",
        ),
        (
            [
                *("record", "kafka://h", "-o", "f", "--topic", "a"),
                *("--since", "2023-11-15T00:00+01:00", "--until", "2023-11-14T23:00Z"),
            ],
            "--until 2023-11-14T23:00:00Z is not after --since 2023-11-14T23:00:00Z: .*",
        ),
        (["replay", "kafka://h", "--to", "{m}:app"], "replaying topics of a cluster needs .*"),
        (
            ["replay", "f", "--to", "{m}:app", "--since", "1h"],
            "--topic, --since and --until are for topics of a cluster: .*",
        ),
        (
            ["record", "{m}:app", "-o", "f", "--actor", "x"],
            ".*no actor 'x' .*; there are: tank, .*",
        ),
        (["record", "{m}:", "-o", "f"], "'{m}:' names no application: write module:application.*"),
        (["record", "{m}:nope", "-o", "f"], "module '{m}' has no 'nope'; its applications: app"),
        (["record", "{m}:number", "-o", "f"], "'{m}:number' is of type int, not a Distributed.*"),
        (["record", "no.such.one:app", "-o", "f"], "there is no module 'no' in the current .*"),
        (["replay", "f", "--to", "{m}:app"], "recording 'f' cannot be read: No such file .*"),
        (["replay", "{m}.py", "--to", "{m}:app"], "recording '{m}.py', line 2: JSON is malf.*"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(
    arguments: list[str], problem: str, module: str, tmp_path: Path, said: Said
) -> None:
    code, out, err = said(*(argument.replace("{m}", module) for argument in arguments))
    assert (code, out, len(err)) == (2, [], 1), err
    assert re.fullmatch("spa-dat: " + problem.replace("{m}", module), err[0]), err
    assert "hunter2" not in err[0]
    assert not (tmp_path / "f").exists()


def test_a_module_that_fails_is_named(module: str, tmp_path: Path, said: Said) -> None:
    path = tmp_path / f"{module}.py"
    path.write_text("import this_is_not_there\n")
    code, _, err = said("record", f"{module}:app", "-o", "f")
    assert code == 2
    problem = "ModuleNotFoundError: No module named 'this_is_not_there'"
    assert err == [f"spa-dat: module {module!r} cannot be imported: {problem} ({path}:1)"]


@pytest.mark.parametrize("end", ["0", "'give me a file'"])
def test_a_module_that_ends_the_program_is_named(
    end: str, module: str, tmp_path: Path, said: Said
) -> None:
    (tmp_path / f"{module}.py").write_text(f"raise SystemExit({end})\n")
    code, _, err = said("record", f"{module}:app", "-o", "f")
    assert code == 2
    assert f"cannot be imported: SystemExit: {end.strip(chr(39))} (" in err[0]


@pytest.mark.parametrize("call", ["app.run()", "from spa_dat import run; run(app)"])
def test_a_module_that_runs_the_application_when_it_is_imported_is_told(
    module: str, tmp_path: Path, said: Said, call: str
) -> None:
    Path(f"{module}.py").write_text(f"{PLANT}\n{call}\n")
    code, _, err = said("record", f"{module}:app", "-o", str(tmp_path / "out.jsonl"))
    assert code == 2
    assert len(err) == 1
    assert 'write `if __name__ == "__main__":` above it' in err[0]


def test_an_application_that_can_not_start_has_failed(
    module: str, tmp_path: Path, said: Said
) -> None:
    text = """
        from spa_dat import Actor, RestartPolicy, on
        class Worn(Actor):
            restart = RestartPolicy(intensity=0)
            async def on_start(self) -> None:
                raise ValueError("worn out")
            @on("tank/#")
            async def used(self, payload: int) -> None: ...
        app.add(Worn)
    """
    (tmp_path / f"{module}.py").write_text(PLANT + textwrap.dedent(text))
    file = recording(tmp_path, 4)
    for command in (
        ("record", f"{module}:app", "-o", "f"),
        ("replay", file, "--to", f"{module}:app"),
    ):
        code, _, err = said(*command)
        assert code == 1
        assert "worn out" in err[-1]
    assert not (tmp_path / "f").exists()


def test_what_can_not_be_reached_is_said(tmp_path: Path, said: Said) -> None:
    file = tmp_path / "f"
    address = "mqtt://user:hunter2@127.0.0.1:1?start_timeout=0.1"
    code, _, err = said("record", address, "-o", str(file), "--topic", "a")
    assert code == 2
    assert err[-1].startswith("spa-dat: ConnectFailed: no connection to the broker at mqtt://127")
    assert "hunter2" not in "".join(err)
    assert not file.exists()


def test_a_recording_is_replayed(module: str, tmp_path: Path, said: Said) -> None:
    code, out, _ = said("replay", recording(tmp_path, 4, 0, 5), "--to", f"{module}:app")
    assert code == 1
    problem = "ZeroDivisionError: division by zero"
    assert [line for line in out if not line.startswith("share ")] == [
        "published    share/a: 25.0",
        "published    share/a: 20.0",
        f"failed       2 times: handler of plant/0/tank on 'tank/a/users': {problem}",
        f"dead letter  tank/a/users of plant/0/tank after 2 attempts: {problem}",
        "replayed     messages: 3, failures: 2, dead letters: 1",
    ]


def test_a_recording_without_failures_ends_well(module: str, tmp_path: Path, said: Said) -> None:
    options = ("--actor", "tank", "--keep-times", "--seed", "3")
    code, out, err = said("replay", recording(tmp_path, 4), "--to", f"{module}:app", *options)
    assert (code, err) == (0, [])
    assert out[-1] == "replayed     messages: 1, failures: 0, dead letters: 0"


def test_what_a_terminal_would_obey_or_nobody_can_read_is_told_all_the_same(
    module: str, tmp_path: Path, said: Said
) -> None:
    text = """
        @app.application("tank/#")
        async def strange(payload: int, socket: Socket) -> None:
            await socket.publish("odd/\\u202ered", b"{nope", content_type="application/json")
            await socket.publish("odd/text", b"\\xff", content_type="text/plain")
            raise ValueError("\\x07bell")
    """
    (tmp_path / f"{module}.py").write_text(PLANT + textwrap.dedent(text))
    code, out, _ = said("replay", recording(tmp_path, 4), "--to", f"{module}:app")
    assert code == 1
    assert r"published    odd/\u202ered: b'{nope'" in out
    assert r"published    odd/text: b'\xff'" in out
    assert sum(r"ValueError: \x07bell" in line for line in out) == 2
    assert not any("\x1b" in line or "\x07" in line for line in out)


def test_a_recording_of_any_length_is_refused_in_one_line(
    module: str, tmp_path: Path, said: Said
) -> None:
    line = {"version": 1, "at": 0, "topic": "?" + "key" * 700_000, "actor": "x" * 700_000}
    (tmp_path / "long.jsonl").write_text(json.dumps(line))
    code, _, (error,) = said("replay", "long.jsonl", "--to", f"{module}:app")
    assert code == 2
    assert "there is no actor" in error
    assert len(error) < 1_000


@pytest.mark.parametrize("start", ["?", "://", "mqtt://user:secret@host?password=secret&"])
def test_no_complaint_takes_long_or_shows_a_secret(
    start: str, capsys: pytest.CaptureFixture[str]
) -> None:
    # The square of this would be hours.
    assert _complain(start + "key" * 1_000_000, None) == 1
    error = capsys.readouterr().err
    assert "secret" not in error
    assert len(error) < 5_000


@pytest.mark.parametrize("command", [None, ("--version",), ("--help",), ("replay", "--help")])
@pytest.mark.parametrize(("into", "problem"), [("full", "No space left on device"), ("pipe", "")])
def test_an_output_that_can_not_be_written_is_said(
    into: str, problem: str, command: tuple[str, ...] | None, module: str, tmp_path: Path
) -> None:
    if into == "full":
        output = os.open("/dev/full", os.O_WRONLY)
    else:
        reader, output = os.pipe()
        os.close(reader)
    (tmp_path / f"{module}.py").write_text(
        PLANT.replace('print("share", payload, flush=True)', "pass")
    )
    if command is None:
        command = ("replay", recording(tmp_path, 4), "--to", f"{module}:app")
    try:
        done = subprocess.run(
            [sys.executable, "-m", "spa_dat", *command],
            stdout=output,
            stderr=subprocess.PIPE,
            text=True,
            cwd=tmp_path,
            timeout=_TIMEOUT,
            check=False,
        )
    finally:
        os.close(output)
    expected = f"spa-dat: standard output cannot be written: {problem}\n" if problem else ""
    assert (done.returncode, done.stderr) == (2 if problem else 0, expected)


def test_an_application_that_does_not_come_to_rest_is_said(
    module: str, tmp_path: Path, said: Said
) -> None:
    text = """
        import asyncio
        @app.application("tank/#")
        async def stuck(payload: int) -> None:
            await asyncio.Event().wait()
    """
    (tmp_path / f"{module}.py").write_text(PLANT + textwrap.dedent(text))
    code, out, _ = said("replay", recording(tmp_path, 4), "--to", f"{module}:app")
    assert code == 1
    assert out[-1].startswith("not settled  the application does not come to rest: ")


@pytest.mark.mosquitto
async def test_listening_takes_no_message_from_anybody(
    mosquitto: Mosquitto, tmp_path: Path
) -> None:
    prefix = uuid.uuid4().hex
    got: list[int] = []

    def make() -> DistributedApplication:
        app = DistributedApplication(mosquitto.url, name=f"a{prefix}")

        @app.application(f"{prefix}/#", deliver="share")
        async def handler(message: Message[int]) -> None:
            got.append(message.payload)

        return app

    async with make():
        pass
    sender = DistributedApplication(mosquitto.url)
    async with sender:
        for number in range(3):
            await sender.socket().publish(f"{prefix}/{number}", number, retain=True, key="k")
    command = ("record", mosquitto.url, "--topic", f"{prefix}/+", "-o", "out.jsonl", "--limit", "3")
    assert Program(tmp_path, *command).end() == (0, "spa-dat: messages in out.jsonl: 3\n")
    lines = records(tmp_path / "out.jsonl")
    assert sorted((line["topic"], line["payload"]) for line in lines) == [
        (f"{prefix}/{number}", str(number)) for number in range(3)
    ]
    assert all(line["bus"] == mosquitto.url and "actor" not in line for line in lines)
    assert all(line["key"] == "k" and line["retain"] for line in lines)
    assert got == []
    async with make():
        await eventually(lambda: sorted(got) == [0, 1, 2])


@pytest.mark.mosquitto
async def test_listening_writes_nothing_to_the_bus(mosquitto: Mosquitto, tmp_path: Path) -> None:
    prefix = uuid.uuid4().hex
    config = MqttConfig(mosquitto.host, port=mosquitto.port, max_payload=2**21)
    sender = DistributedApplication(config)
    async with sender:
        await sender.socket().publish(f"{prefix}/1", b"l" * 1_100_000, retain=True)
        await sender.socket().publish(f"{prefix}/2", b"small", retain=True)
    command = ("record", mosquitto.url, "--topic", f"{prefix}/+", "-o", "out.jsonl", "--limit", "1")
    code, error = Program(tmp_path, *command).end()
    assert (code, error.splitlines()[-1]) == (
        0,
        "spa-dat: messages in out.jsonl: 1, 1 are missing",
    )
    assert [line["payload"] for line in records(tmp_path / "out.jsonl")] == ["small"]
    async with aiomqtt.Client(
        mosquitto.host, mosquitto.port, protocol=aiomqtt.ProtocolVersion.V5
    ) as client:
        await client.subscribe("_spa/dead-letter/#")
        await client.subscribe(f"{prefix}/2")
        async for message in client.messages:
            if message.topic.matches(f"{prefix}/2"):
                break
            assert prefix not in str(message.properties), "a dead letter of who only listens"


@pytest.mark.mosquitto
async def test_what_was_heard_on_a_bus_is_replayed(
    mosquitto: Mosquitto, module: str, tmp_path: Path, said: Said
) -> None:
    topic = f"tank/{uuid.uuid4().hex}/users"
    sender = DistributedApplication(mosquitto.url)
    async with sender:
        await sender.socket().publish(topic, 0, retain=True)
    command = ("record", mosquitto.url, "--topic", topic, "-o", "out.jsonl", "--limit", "1")
    assert Program(tmp_path, *command).end()[0] == 0
    for options in ((), ("--actor", "tank")):
        code, out, _ = said("replay", "out.jsonl", "--to", f"{module}:app", *options)
        assert (code, out[-1]) == (1, "replayed     messages: 1, failures: 2, dead letters: 1")


@pytest.mark.kafka
def test_what_a_cluster_holds_is_recorded_and_replayed(
    kafka: Kafka, module: str, tmp_path: Path, said: Said
) -> None:
    prefix = new_prefix()
    hour = 3600

    async def publish() -> None:
        async with bus_client(kafka.server, prefix=prefix) as client:
            for count, ago in ((4, 2 * hour), (0, hour / 2), (5, 60)):
                await client.publish(
                    "tank/a/users",
                    b"%d" % count,
                    content_type="application/json",
                    time=time.time() - ago,
                )

    asyncio.run(publish())
    cluster = (f"{kafka.url}?prefix={prefix}", "--topic", "tank/+/users")
    code, _, err = said("record", *cluster, "--since", "1h", "-o", "out.jsonl")
    assert (code, err) == (0, ["spa-dat: messages in out.jsonl: 2"])
    lines = records(tmp_path / "out.jsonl")
    assert [(line["topic"], line["payload"]) for line in lines] == [
        ("tank/a/users", "0"),
        ("tank/a/users", "5"),
    ]
    assert {line["bus"] for line in lines} == {cluster[0]}
    assert [line["at"] for line in lines] == [line["time"] for line in lines]
    code, _, err = said("record", *cluster, "--since", "1h", "-o", "one.jsonl", "--limit", "1")
    assert (code, err) == (0, ["spa-dat: messages in one.jsonl: 1"])
    code, out, _ = said("replay", *cluster, "--since", "1h", "--to", f"{module}:app")
    assert (code, out[-1]) == (1, "replayed     messages: 2, failures: 2, dead letters: 1")
    until = ("--since", "1d", "--until", "1h")
    code, out, _ = said("replay", *cluster, *until, "--to", f"{module}:app", "--actor", "tank")
    assert (code, out[-1]) == (0, "replayed     messages: 1, failures: 0, dead letters: 0")
    # Nothing of it is on the cluster.
    code, _, err = said("record", cluster[0], "--topic", "share/a", "--since", "1d", "-o", "f")
    assert (code, err) == (2, [f"spa-dat: there is no topic '{prefix}share.a' at {cluster[0]}"])
    code, _, (error,) = said("record", *cluster, "--since", "10s", "-o", "f")
    assert code == 2
    assert error.startswith(
        f"spa-dat: there are no messages on 'tank/+/users' at {cluster[0]} since"
    )
    assert not (tmp_path / "f").exists()
    printed = subprocess.run(
        [
            *(sys.executable, "-m", "spa_dat", "record", *cluster, "--since", "1h"),
            *("-o", "/dev/stdout", "--force"),
        ],
        capture_output=True,
        text=True,
        timeout=_TIMEOUT,
        check=True,
    )
    assert [json.loads(line)["payload"] for line in printed.stdout.splitlines()] == ["0", "5"]
