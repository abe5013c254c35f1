"""``spa-dat run`` in one process: what it runs, on which bus, and what it says when it cannot."""

from __future__ import annotations

import logging
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

from spa_dat.cli._main import main
from spa_dat.runtime.application._application import runs_of
from support.command import Command

Said = Callable[..., tuple[int, list[str], list[str]]]

APP = """
import os
from spa_dat import DistributedApplication, Socket

app = DistributedApplication("memory://", name="plant")

@app.producer()
async def once(socket: Socket) -> None:
    print("module", __name__, "instance", app.identity.instance)
"""
FACTORY = """
from spa_dat import DistributedApplication

number = 3

def make():
    app = DistributedApplication("memory://", name="made")
    @app.producer()
    async def once() -> None:
        print("made")
    return app

async def later():
    return make()

def needs(name):
    return make()

def fails():
    raise ValueError("no plan")

def nothing():
    return None

def runs():
    make().run()

def in_a_lambda():
    return (lambda: later())()

class Settings:
    @property
    def app(self):
        raise ValueError("no settings")

settings = Settings()
"""


@pytest.fixture
def name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A module's name that nobody else has; the current folder is where it is to be."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for variable in ("SPA_DAT_INSTANCE", "SPA_DAT_URL"):
        # Set first, so that it is put back whatever the command makes of it.
        monkeypatch.setenv(variable, "")
        monkeypatch.delenv(variable)
    level = logging.getLogger().level
    before = set(sys.modules)
    yield f"plant_{uuid.uuid4().hex}"
    logging.getLogger().setLevel(level)
    for new in set(sys.modules) - before:
        if "plant_" in new:
            del sys.modules[new]


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Said:
    """Runs a command in this process; returns exit code, lines of output and of errors."""

    def run(*arguments: str) -> tuple[int, list[str], list[str]]:
        code = main(arguments)
        out, err = capsys.readouterr()
        return code, out.splitlines(), err.splitlines()

    return run


def test_the_only_application_of_a_module_needs_no_name(
    name: str, tmp_path: Path, said: Said
) -> None:
    (tmp_path / f"{name}.py").write_text(APP + "same = app\n")
    expected: tuple[int, list[str], list[str]] = (0, [f"module {name} instance 0"], [])
    assert said("run", name) == expected
    assert said("run", f"{name}:app") == expected
    assert said("run", f"{name}.py") == expected
    assert said("run", f"{tmp_path}/{name}.py:same") == expected


def test_it_answers_probes_where_the_command_says(
    name: str, tmp_path: Path, said: Said, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / f"{name}.py").write_text(APP)
    assert said("run", name, "--admin", "127.0.0.1:0", "--log-level", "info")[0] == 0
    assert "application 'plant' answers probes at http://127.0.0.1:" in caplog.text
    code, _, err = said("run", name, "--admin", "0.0.0.0:8085")
    assert code == 2
    assert err[0].startswith("spa-dat: --admin '0.0.0.0:8085': others can reach that address")


def test_a_file_in_a_package_is_imported_as_part_of_it(
    name: str, tmp_path: Path, said: Said
) -> None:
    package = tmp_path / "src" / name / "inner"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package.parent / "__init__.py").write_text("NAME = 'outer'\n")
    text = (
        APP
        + f"""
import pickle
from .. import NAME

class Reading: ...

assert pickle.loads(pickle.dumps(Reading())).__module__ == "{name}.inner.main"
if __name__ == "__main__":
    raise SystemExit("not as a script")
"""
    )
    (package / "main.py").write_text(text)
    code, out, err = said("run", f"src/{name}/inner/main.py:app")
    assert (code, out, err) == (0, [f"module {name}.inner.main instance 0"], [])


def test_the_arguments_of_the_command_are_not_the_modules(
    name: str, tmp_path: Path, said: Said
) -> None:
    before = list(sys.argv)
    (tmp_path / f"{name}.py").write_text(APP + "    import sys; print(sys.argv)\nimport sys\n")
    expected = [f"module {name} instance 0", f"['{name}.py']"]
    assert said("run", f"{name}.py", "--log-level", "info")[1] == expected
    assert sys.argv == before


def test_a_function_may_make_the_application(name: str, tmp_path: Path, said: Said) -> None:
    (tmp_path / f"{name}.py").write_text(FACTORY)
    assert said("run", f"{name}:make") == (0, ["made"], [])


@pytest.mark.parametrize(
    ("target", "problem"),
    [
        ("{m}", "module '{m}' has no application; if a function creates it, .*: {m}:make_app"),
        ("{m}:number", "'{m}:number' is of type int, not a DistributedApplication"),
        ("{m}:later", "'{m}:later' is an async function: write `def`.*"),
        ("{m}:needs", "'{m}:needs' needs arguments: .*"),
        (
            "{m}:fails",
            r"'{m}:fails' did not create an application: ValueError: no plan \(.*{m}.py:\d+\)",
        ),
        ("{m}:in_a_lambda", "'{m}:in_a_lambda' is an async function: write `def`.*"),
        ("{m}:nothing", "'{m}:nothing' has returned None: end it with a `return` .*"),
        (
            "{m}:runs",
            r".*create an application: .*: write `if __name__ == .* above it \(.*{m}.py:26\)",
        ),
        (
            "{m}:settings.app",
            r"'{m}:settings.app' cannot be looked up: ValueError: no settings \(.*{m}.py:\d+\)",
        ),
        ("{m}:", "'{m}:' names no application: .*"),
        (":app", "':app' names no application: .*"),
        (".x:app", "'.x:app' names no application: .*"),
        ("no/such.py:app", "there is no file 'no/such.py'"),
        ("./:app", "'./' is a folder: name a Python file in it"),
        ("./notes.txt:app", "'./notes.txt' is not a Python file: .*"),
        ("./json.py:app", "'./json.py' cannot be imported, because .*'json' is .*other name"),
        ("./a.b.py:app", "'./a.b.py' cannot be imported as 'a.b': give the file another name"),
        ("./__main__.py:app", "'./__main__.py' cannot be imported as '__main__': .*"),
        ("mqtt://user:hunter2@host:1883", ".*is the address of a bus: name an application.*"),
        ("two_{m}", "module 'two_{m}' has several applications: .* two_{m}:a; there are: a, b"),
    ],
)
def test_what_cannot_be_run_is_said_in_one_line(
    target: str, problem: str, name: str, tmp_path: Path, said: Said
) -> None:
    (tmp_path / f"{name}.py").write_text(FACTORY)
    two = (
        "from spa_dat import DistributedApplication as D\na = D('memory://')\nb = D('memory://')\n"
    )
    (tmp_path / f"two_{name}.py").write_text(two)
    for file in ("notes.txt", "json.py", "a.b.py", "__main__.py"):
        (tmp_path / file).touch()
    code, out, err = said("run", target.replace("{m}", name))
    assert (code, out, len(err)) == (2, [], 1), err
    assert re.fullmatch("spa-dat: " + problem.replace("{m}", name), err[0]), err
    assert "hunter2" not in err[0]


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ((), "Missing argument 'TARGET...'; see spa-dat run --help"),
        (("--workers", "0"), "Invalid value for '--workers': '0': give a whole number from 1"),
        (("--workers", "many"), "Invalid value for '--workers': 'many': give a whole number"),
        (("--workers", "99999"), "Invalid value for '--workers': '99999': give a whole number"),
        *(
            (("--worker-timeout", text), f"Invalid value for '--worker-timeout': {text!r}: give")
            for text in ("-1", "-0.5", "nan", "inf", "-inf", "1e999", "soon")
        ),
        (("--log-level", "loud"), "Invalid value for '--log-level': 'loud'"),
        (("--reload", "--workers", "2"), "--reload and --workers exclude each other"),
        (("--reload-dir", "."), "--reload-dir is for --reload"),
        (("--reload", "--reload-dir", "no-such"), "--reload-dir: there is no folder 'no-such'"),
        (("--url", "mqtx://host"), "scheme 'mqtx' is not known"),
        (("--url", "mqtt://user:hunter2@host?x=1"), "option 'x' of mqtt://host"),
        (("--instance", "a b"), "--instance 'a b': use 1 to 64 of the characters"),
    ],
)
def test_options_that_make_no_sense_are_said_in_one_line(
    arguments: tuple[str, ...], problem: str, name: str, tmp_path: Path, said: Said
) -> None:
    (tmp_path / f"{name}.py").write_text(APP)
    code, out, err = said("run", *([name] if arguments else []), *arguments)
    assert (code, out, len(err)) == (2, [], 1), err
    assert err[0].startswith(f"spa-dat: {problem}")
    assert "hunter2" not in err[0]


def buses(module: ModuleType) -> list[str]:
    return [provider.address for provider in runs_of(module.app).providers]


def test_the_url_is_the_bus_of_actors_that_name_none(
    name: str, tmp_path: Path, said: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = """
from spa_dat import DistributedApplication, Socket, Actor, on

app = DistributedApplication("kafka://127.0.0.1:1?start_timeout=0.1", name="plant")

@app.producer(every=60)
async def beat(socket: Socket) -> None:
    await socket.publish("beats", 1)

@app.application("beats")
async def count(payload: int, socket: Socket) -> None:
    app.stop()

@app.application("other", socket_provider="memory://other")
async def other(payload: int) -> None: ...
"""
    (tmp_path / f"{name}.py").write_text(text)
    code, _, err = said("run", name)
    assert code == 1
    assert "ConnectFailed" in err[-1]
    del sys.modules[name]
    assert said("run", name, "--url", "memory://here")[0] == 0
    assert buses(sys.modules.pop(name)) == ["memory://here"] * 3 + ["memory://other"]
    monkeypatch.setenv("SPA_DAT_URL", "memory://there")
    assert said("run", name)[0] == 0
    assert buses(sys.modules.pop(name)) == ["memory://there"] * 3 + ["memory://other"]
    monkeypatch.delenv("SPA_DAT_URL")
    (tmp_path / f"own_{name}.py").write_text(
        text.replace('"beats")', '"beats", socket_provider="memory://other")').replace(
            "every=60", 'every=60, socket_provider="memory://other"'
        )
    )
    code, _, err = said("run", f"own_{name}", "--url", "memory://here")
    assert code == 2
    assert "all actors of application 'plant' name their own" in err[0]


@pytest.mark.parametrize(
    ("variable", "code", "arguments", "expected"),
    [
        (None, "", (), "0"),
        (None, "", ("--instance", "east"), "east"),
        (None, ', instance="own"', (), "own"),
        (None, ', instance="own"', ("--instance", "east"), "east"),
        ("west", "", (), "west"),
        ("west", "", ("--instance", "east"), "east"),
        ("west", ', instance="own"', (), "own"),
    ],
)
def test_the_instance_is_that_of_the_command_then_the_programs_then_the_environments(
    variable: str | None,
    code: str,
    arguments: tuple[str, ...],
    expected: str,
    name: str,
    tmp_path: Path,
    said: Said,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if variable is not None:
        monkeypatch.setenv("SPA_DAT_INSTANCE", variable)
    (tmp_path / f"{name}.py").write_text(APP.replace('name="plant"', f'name="plant"{code}'))
    assert said("run", name, *arguments)[1] == [f"module {name} instance {expected}"]


# Several applications.

OTHER = APP.replace('"plant"', '"other"').replace("once", "another")
FOREVER = """
from spa_dat import DistributedApplication

app = DistributedApplication("memory://", name="forever")

@app.application("never")
async def never(payload: int) -> None: ...
"""


@pytest.fixture
def two(name: str, tmp_path: Path) -> tuple[str, str]:
    (tmp_path / f"{name}.py").write_text(APP)
    (tmp_path / f"{name}_other.py").write_text(OTHER)
    return name, f"{name}_other"


def test_several_run_until_none_has_anything_left_to_do(
    two: tuple[str, str], said: Said, caplog: pytest.LogCaptureFixture
) -> None:
    code, out, err = said("run", *two, "--instance", "east", "--log-level", "info")
    assert (code, err) == (0, [])
    assert sorted(out) == [f"module {name} instance east" for name in two]
    for name in ("plant", "other"):
        assert f"application {name!r} instance 'east' has started" in caplog.text
        assert f"application {name!r} instance 'east' has stopped" in caplog.text


def test_one_that_fails_stops_all_with_its_exit_code(
    name: str, tmp_path: Path, said: Said, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / f"{name}.py").write_text(FOREVER)
    text = APP.replace("print(", "raise SystemExit(7)\n    print(")
    (tmp_path / f"{name}_fails.py").write_text(text)
    assert said("run", name, f"{name}_fails", "--log-level", "info")[0] == 7
    assert "application 'forever' instance '0' has stopped" in caplog.text


def test_one_that_cannot_be_found_or_start_stops_all(
    two: tuple[str, str], said: Said, caplog: pytest.LogCaptureFixture
) -> None:
    code, out, err = said("run", two[0], "no_such_module")
    assert (code, out) == (2, [])
    assert err[0].startswith("spa-dat: there is no module 'no_such_module'")
    assert "has started" not in caplog.text
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, out, err = said("run", *two, "--admin", f"127.0.0.1:{port}")
    assert (code, out) == (1, [])
    assert "the port is in use by another program or application" in err[0]


def test_equal_names_are_refused(name: str, tmp_path: Path, said: Said) -> None:
    (tmp_path / f"{name}.py").write_text(APP + "same = app\n")
    (tmp_path / f"{name}_b.py").write_text(APP)
    who = "application 'plant' instance '0'"
    for targets in ((name, name), (f"{name}:app", f"{name}:same")):
        code, out, err = said("run", *targets)
        assert (code, out) == (2, [])
        assert err == [f"spa-dat: {targets[1]!r}: {who} is named twice: leave one out"]
    code, out, err = said("run", name, f"{name}_b")
    assert (code, out) == (2, [])
    assert err[0].startswith(f"spa-dat: {name!r} and '{name}_b' are both {who}: ")


def test_the_url_is_the_bus_of_all(two: tuple[str, str], said: Said) -> None:
    assert said("run", *two, "--url", "memory://elsewhere")[0] == 0
    for name in two:
        assert buses(sys.modules[name])[0] == "memory://elsewhere"


@pytest.mark.parametrize("given_by", ["--admin", "SPA_DAT_ADMIN"])
def test_each_has_a_port_for_probes_of_its_own(
    given_by: str,
    two: tuple[str, str],
    said: Said,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    port = two_free_ports()
    address = f"127.0.0.1:{port}"
    if given_by == "--admin":
        arguments = ["--admin", address]
    else:
        monkeypatch.setenv("SPA_DAT_ADMIN", address)
        arguments = []
    assert said("run", *two, *arguments, "--log-level", "info")[0] == 0
    assert f"application 'plant' answers probes at http://{address}" in caplog.text
    assert f"application 'other' answers probes at http://127.0.0.1:{port + 1}" in caplog.text


def two_free_ports() -> int:
    """Return a port that is free, as is the next one."""
    while True:
        with socket.create_server(("127.0.0.1", 0)) as first:
            port: int = first.getsockname()[1]
            try:
                socket.create_server(("127.0.0.1", port + 1)).close()
            except OSError:
                continue
            return port


def test_an_application_that_runs_already_is_refused(name: str, tmp_path: Path, said: Said) -> None:
    text = """
from spa_dat import DistributedApplication
import asyncio, threading

app = DistributedApplication("memory://", name="plant")

@app.application("x")
async def x(payload: int) -> None: ...

up = threading.Event()

async def serve() -> None:
    async with app:
        up.set()
        await app.wait()

thread = threading.Thread(target=asyncio.run, args=(serve(),))
thread.start()
up.wait()
"""
    (tmp_path / f"{name}.py").write_text(text)
    code, _, err = said("run", name)
    sys.modules[name].app.stop()
    sys.modules[name].thread.join()
    assert code == 2
    assert "is already running, because its module runs it when it is imported" in err[0]


async def test_a_signal_ends_it_in_good_order_and_the_log_is_set_up(tmp_path: Path) -> None:
    (tmp_path / "main.py").write_text(APP.replace("producer()", "producer(every=60)"))
    with Command(tmp_path, "run", "main.py") as command:
        await command.says("instance 0")
        command.signal(signal.SIGTERM)
        assert await command.end() == 0
        assert command.found(r"^\d{4}-.* INFO spa_dat: application 'plant' is connected")
        assert command.found("INFO spa_dat: SIGTERM: stopping")
    with Command(tmp_path, "run", "main", "--log-level", "error") as command:
        await command.says("instance 0")
        command.signal(signal.SIGINT)
        assert await command.end() == 0
        assert command.errors == []


def test_exit_codes_are_those_of_the_application(name: str, tmp_path: Path, said: Said) -> None:
    text = APP.replace("print(", "raise SystemExit(7)\n    print(")
    (tmp_path / f"{name}.py").write_text(text)
    assert said("run", name)[0] == 7
    (tmp_path / f"bad_{name}.py").write_text(text.replace("SystemExit(7)", "ValueError('bad')"))
    assert said("run", f"bad_{name}")[0] == 1
    (tmp_path / f"none_{name}.py").write_text(text[: text.index("@app")])
    code, _, err = said("run", f"none_{name}")
    assert code == 1
    assert "nothing is registered" in err[0]


def _can_unshare() -> bool:
    if shutil.which("unshare") is None:
        return False
    return subprocess.run(["unshare", "-p", "-f", "true"], capture_output=True).returncode == 0


@pytest.mark.skipif(not _can_unshare(), reason="needs the right to make a PID namespace")
async def test_as_first_process_it_waits_for_orphans_and_hears_signals(tmp_path: Path) -> None:
    text = """
import os, pathlib, signal, subprocess, sys
from spa_dat import DistributedApplication

app = DistributedApplication("memory://", name="plant")

@app.producer(every=0.1)
async def look() -> None:
    if not hasattr(app, "orphan"):
        shell = subprocess.run(["sh", "-c", "sleep 0 & echo $!"], capture_output=True)
        app.orphan = int(shell.stdout)
        print("parent", os.getppid(), "own", subprocess.run(["true"]).returncode, flush=True)
    elif app.orphan:
        try:
            os.kill(app.orphan, 0)
        except ProcessLookupError:
            app.orphan = 0
            print("reaped", flush=True)
"""
    (tmp_path / "main.py").write_text(text)
    before = ("unshare", "-p", "-f", "--kill-child")
    with Command(tmp_path, "run", "main", before=before) as command:
        await command.says("^parent 1 own 0$")
        await command.says("^reaped$")
        first = subprocess.run(
            ["pgrep", "-P", str(command.pid)], capture_output=True, text=True, check=True
        )
        os.kill(int(first.stdout), signal.SIGTERM)
        assert await command.end() == 0
        assert command.found("spa-dat: SIGTERM: stopping")


LINGERS = """
import threading
from spa_dat import DistributedApplication

app = DistributedApplication("memory://", name="plant")
over = threading.Event()

@app.producer()
async def once() -> None:
    threading.Thread(target=over.wait, name="poller").start()
    raise ValueError("it has failed")
"""


@pytest.mark.slow
async def test_a_thread_of_the_program_does_not_keep_a_failed_application_alive(
    tmp_path: Path,
) -> None:
    (tmp_path / "main.py").write_text(LINGERS)
    with Command(tmp_path, "run", "main.py") as command:
        await command.says("the program has ended, but its thread 'poller' keeps the process alive")
        await command.says(
            "ERROR spa_dat: the process is ended while some of its threads or children are"
        )
        assert await command.end() == 1
