"""The code in README and docs runs, and the links between the pages lead somewhere."""

from __future__ import annotations

import ast
import asyncio
import enum
import inspect
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from spa_dat import (
    DistributedApplication,
    Socket,
)
from spa_dat.actors import _actor_cell
from spa_dat.actors._actor_cell import ActorCellState
from spa_dat.errors import NotAuthorised
from spa_dat.runtime.hosting import _process_worker
from spa_dat.runtime.hosting._process_worker import ProcessState
from spa_dat.testing import HarnessFactory, Mosquitto
from spa_dat.transports import DeliveryState
from spa_dat.transports.mqtt import _consumer
from spa_dat.transports.mqtt._consumer import ConsumerState
from spa_dat.transports.mqtt._reply_inbox import InboxState
from spa_dat.transports.mqtt.protocol._stream import ReadingState, WritingState
from support.waiting import eventually

pytestmark = pytest.mark.repository

ROOT = Path(__file__).parent.parent.parent
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
NOT_RUN = "<!-- not run -->"
BLOCK = re.compile(
    rf"(?P<skip>{re.escape(NOT_RUN)}\n)?^```python\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL
)
REPOSITORY = re.compile(
    r"https://github\.com/prescriptiveanalytics/spa-distributed-application-tools/(?:blob|tree)/main/"
    r"(?P<file>[^)#\s]+)(?:#(?P<anchor>[^)\s]+))?"
)
LINK = re.compile(r"\]\((?!https?://)(?P<file>[^)#\s]*)(?:#(?P<anchor>[^)\s]+))?\)")


@dataclass
class Block:
    """One block of Python code on a page, not run when it is marked so."""

    page: Path
    line: int
    code: str
    skipped: bool

    def compiled(self) -> types.CodeType:
        """Its code; what would run an application until it is stopped is left out."""
        tree = ast.parse("\n" * (self.line - 1) + self.code, filename=str(self.page))
        tree.body = [node for node in tree.body if not _runs_for_ever(node)]
        # That of notebooks is only looked at.
        flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT if self.skipped else 0
        code: types.CodeType = compile(tree, str(self.page), "exec", flags)
        return code


def _runs_for_ever(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and ast.unparse(node).endswith(".run()")


def blocks(page: Path) -> Iterator[Block]:
    text = page.read_text(encoding="utf-8")
    for found in BLOCK.finditer(text):
        line = text.count("\n", 0, found.start("code")) + 1
        yield Block(page, line, found["code"], bool(found["skip"]))


def identifier(page: Path) -> str:
    return page.name


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> types.ModuleType:
    """Where the code of a page runs, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SPA_DAT_INSTANCE", raising=False)
    monkeypatch.delenv("STATE_DIRECTORY", raising=False)
    # Not where another version of this package, or another run of this test, has left states.
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("PLANT_PASSWORD", "secret")
    page = types.ModuleType("page")
    monkeypatch.setitem(sys.modules, "page", page)
    return page


@pytest.mark.parametrize("page", PAGES, ids=identifier)
def test_code_runs(page: Path, module: types.ModuleType, request: pytest.FixtureRequest) -> None:
    on_memory: dict[int, tuple[DistributedApplication, bool]] = {}
    for block in blocks(page):
        code = block.compiled()
        if block.skipped:
            continue
        exec(code, vars(module))
        # What it has for fixtures.
        request.session._fixturemanager.parsefactories(holder=module, node=request.node)
        for name, value in list(vars(module).items()):
            if isinstance(value, DistributedApplication):
                on_memory.setdefault(id(value), (value, "memory://" in block.code))
            elif name.startswith("test_"):
                run_test(value, request)
                del vars(module)[name]

    async def start_and_stop(application: DistributedApplication) -> None:
        async with application:
            assert application.healthy

    for application, startable in on_memory.values():
        if startable:
            asyncio.run(start_and_stop(application))


def run_test(test: Callable[..., object], request: pytest.FixtureRequest) -> None:
    """Run what pytest would run, once for each set of parameters."""
    marks: list[pytest.Mark] = getattr(test, "pytestmark", [])
    given: list[dict[str, object]] = [{}]
    for mark in marks:
        if mark.name == "parametrize":
            name, values = mark.args
            given = [{name: value} for value in values]
    for arguments in given:
        harness = HarnessFactory({}, asynchronous=inspect.iscoroutinefunction(test))
        for name in inspect.signature(test).parameters:
            if name == "harness":
                arguments[name] = harness
            elif name not in arguments:
                arguments[name] = request.getfixturevalue(name)
        outcome = test(**arguments)
        if inspect.iscoroutine(outcome):
            asyncio.run(outcome)
        harness.finish()


def test_the_first_example_of_the_readme_prints_alarms_until_it_is_stopped(tmp_path: Path) -> None:
    first = next(blocks(ROOT / "README.md"))
    script = tmp_path / "first.py"
    script.write_text(first.code, encoding="utf-8")
    with subprocess.Popen(
        [sys.executable, "-W", "error", "-u", script],
        env={**os.environ, "PYTHONIOENCODING": "utf-8"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
    ) as process:
        watchdog = threading.Timer(30, process.kill)
        watchdog.start()
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "boiler has 93.5 °C\n"
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate()
        finally:
            watchdog.cancel()
            process.kill()

    assert process.returncode == 0
    assert errors == ""


@pytest.mark.mosquitto
async def test_the_access_rules_are_enough(own_mosquitto: Callable[..., Mosquitto]) -> None:
    page = (ROOT / "docs" / "mqtt.md").read_text(encoding="utf-8")
    rules = re.search(r"^```acl\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    assert rules is not None
    broker = own_mosquitto(users={"plant": "secret"}, acl=rules[1])
    await may_do_its_work(f"mqtt://plant:secret@{broker.host}:{broker.port}")


async def may_do_its_work(url: str) -> None:
    """Use all rights that the application plant needs, and some that it does not have."""
    app = DistributedApplication(url, name="plant")
    tester = DistributedApplication(url, name="plant", instance="tester")

    @app.application("plant/double", replies=True, deliver="share")
    async def double(number: int) -> int:
        return 2 * number

    @tester.producer()
    async def check(socket: Socket) -> None:
        assert await socket.request("plant/double", 21, reply=int, timeout=10) == 42
        await socket.publish("plant/double", "not a number")
        with pytest.raises(NotAuthorised):
            await socket.publish("elsewhere", 1)
        with pytest.raises(NotAuthorised):
            await socket.request("elsewhere", 1, timeout=10)

    async with app, tester:
        await tester.wait()
        await eventually(lambda: app.stats["dead_letters.stored"] == 1)


@pytest.mark.mosquitto
@pytest.mark.parametrize("rule", ["", "topic deny plant/secret", "topic write plant/#"])
async def test_an_access_file_of_mosquitto_grants_subscriptions_that_it_denies(
    own_mosquitto: Callable[..., Mosquitto], rule: str
) -> None:
    rules = f"user plant\n{rule}\ntopic readwrite _spa/#\nuser other\ntopic readwrite #\n"
    broker = own_mosquitto(users={"plant": "secret", "other": "secret"}, acl=rules)
    address = f"{broker.host}:{broker.port}"
    app = DistributedApplication(f"mqtt://plant:secret@{address}", name="plant")
    other = DistributedApplication(f"mqtt://other:secret@{address}", name="other")

    @app.application("plant/secret")
    async def deaf(payload: int) -> None: ...

    @other.application("plant/secret")
    async def hears(payload: int) -> None: ...

    async with app, other:
        await other.socket().publish("plant/secret", 1)
        await eventually(lambda: other.stats["messages.handled"] == 1)
        # As the page says; if this fails, Mosquitto has learned it.
        assert app.healthy
        assert app.stats["messages.handled"] == 0


@pytest.mark.mosquitto
async def test_dynamic_security_of_mosquitto_refuses_what_it_denies(
    own_mosquitto: Callable[..., Mosquitto], tmp_path: Path
) -> None:
    page = (ROOT / "docs" / "mqtt.md").read_text(encoding="utf-8")
    config = re.search(r"^```\nallow_anonymous false\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    commands = page.partition("<!-- dynamic security -->\n```sh\n")[2].partition("```")[0]
    assert config is not None
    plugin = config[1].split()[1]
    if not (Path(plugin).exists() and shutil.which("mosquitto_ctrl")):
        pytest.skip("this Mosquitto comes without its plugin for dynamic security")
    file = str(tmp_path / "dynamic-security.json")
    broker: Mosquitto | None = None
    for command in commands.splitlines():
        if command.startswith("alias"):
            given = config[1].replace("/var/lib/mosquitto/dynamic-security.json", file)
            # Mosquitto takes the last line that says so.
            broker = own_mosquitto(extra=["allow_anonymous false", *given.splitlines()])
            continue
        words = shlex.split(command, comments=True)
        if broker is not None:
            where = ["-h", broker.host, "-p", str(broker.port)]
            words[:1] = ["mosquitto_ctrl", *where, "-u", "admin", "-P", "SECRET", "dynsec"]
        words = [file if word.startswith("/var/lib") else word for word in words]
        await asyncio.to_thread(subprocess.run, words, check=True, timeout=30, capture_output=True)
    assert broker is not None
    url = f"mqtt://plant:PASSWORD@{broker.host}:{broker.port}"
    await may_do_its_work(url)
    app = DistributedApplication(url, name="plant")

    @app.application("elsewhere", deliver="share")
    async def denied(payload: int) -> None: ...

    with pytest.raises(
        NotAuthorised, match=r"'\$share/plant.denied/elsewhere': not authorised \(0x87\)"
    ):
        await app.__aenter__()


@pytest.mark.parametrize("page", PAGES, ids=identifier)
def test_links_lead_somewhere(page: Path) -> None:
    broken = []
    # Code may look like a link: names[Type]("text").
    prose = re.sub(r"```.*?```|`[^`\n]*`", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    found: re.Match[str]
    links = [(found, page.parent, page) for found in LINK.finditer(prose)]
    links += [(found, ROOT, ROOT) for found in REPOSITORY.finditer(prose)]
    for found, folder, itself in links:
        target = folder / found["file"] if found["file"] else itself
        if not target.exists() or (found["anchor"] and found["anchor"] not in anchors(target)):
            broken.append(found[0])
    assert broken == []


@pytest.mark.parametrize(
    "page",
    [ROOT / "README.md", *(page for page in PAGES if page.parent != ROOT)],
    ids=lambda page: page.name,
)
def test_what_is_shown_elsewhere_links_by_complete_addresses(page: Path) -> None:
    """The package index shows the README, and the site shows only what is in docs/."""
    files = {found["file"] for found in LINK.finditer(page.read_text(encoding="utf-8"))} - {""}
    if page.parent == ROOT:
        assert files == set()
    assert not [file for file in files if file.startswith("../") and page.parent == ROOT / "docs"]


INSTALLING = re.compile(
    r"^```\w+\n(?:\$ )?pip install '?(?:spa-dat[^[]|\.).*?^```.*?[a-z]\.", re.MULTILINE | re.DOTALL
)
"""Lines that install the package itself, and the sentence that follows."""


def test_whoever_installs_the_package_is_told_the_same_everywhere() -> None:
    told = {
        page.relative_to(ROOT).as_posix(): found
        for page in PAGES
        if (found := INSTALLING.findall(page.read_text(encoding="utf-8")))
    }
    assert told.keys() == {"README.md", "docs/index.md"}
    assert told["README.md"] == told["docs/index.md"]


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {
        re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings
    }


LONG = 400
"""Lines of a page from which on it begins with a list of its sections."""


@pytest.mark.parametrize(
    "page",
    [
        page
        for page in PAGES
        if page.parent == ROOT / "docs" and page.read_text(encoding="utf-8").count("\n") > LONG
    ],
    ids=lambda page: page.name,
)
def test_a_long_page_begins_with_a_list_of_its_sections(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    text = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    beginning, *sections = re.split(r"^## ", text, flags=re.MULTILINE)
    assert re.findall(r"^- \[(.*?)\]\(#", beginning, re.MULTILINE) == [
        section.partition("\n")[0] for section in sections
    ]


DIAGRAM = re.compile(
    r"^(?P<before>[A-Z_]+(?:, [A-Z_]+)*|any) +-> (?P<after>[A-Z_]+)\b", re.MULTILINE
)


@pytest.mark.parametrize(
    ("states", "allowed"),
    [
        (ActorCellState, _actor_cell._NEXT),
        (ConsumerState, _consumer._NEXT),
        (ProcessState, _process_worker._NEXT),
    ],
    ids=["an actor", "a consumer on MQTT", "a worker"],
)
def test_diagrams_of_states_show_what_the_code_allows(
    states: type[enum.Enum], allowed: Mapping[enum.Enum, Sequence[enum.Enum]]
) -> None:
    page = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
    diagram = page.partition(f"(`{states.__name__}` in")[2].split("```")[1]
    shown = set()
    for arrow in DIAGRAM.finditer(diagram):
        after = states[arrow["after"]]
        if arrow["before"] == "any":
            shown |= {(before, after) for before in states if before is not after}
        else:
            shown |= {(states[before], after) for before in arrow["before"].split(", ")}
    assert shown == {(before, after) for before in states for after in allowed[before]}


@pytest.mark.parametrize(
    "states",
    [
        DeliveryState,
        ActorCellState,
        ConsumerState,
        ReadingState,
        WritingState,
        InboxState,
        ProcessState,
    ],
)
def test_diagrams_of_states_show_all_of_them(states: type[enum.Enum]) -> None:
    page = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
    section = page.partition("\n## States\n")[2].partition("\n## ")[0]
    assert [state.name for state in states if not re.search(rf"\b{state.name}\b", section)] == []
