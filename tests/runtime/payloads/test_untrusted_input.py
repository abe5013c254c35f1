"""What comes from a broker is data: nothing in it is run, imported or looked up by name."""

from __future__ import annotations

import ast
import asyncio
import base64
import marshal
import pickle
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pydantic
import pytest

from spa_dat import Message, RetryPolicy
from spa_dat.errors import RemoteError
from spa_dat.testing import Harness
from spa_dat.transports import Envelope
from support.memory import Site
from support.waiting import eventually

ROOT = Path(__file__).parent.parent.parent.parent
SOURCES = ("actors", "runtime", "transports", "src/spa_dat")
# Each can run what it reads.
BANNED_MODULES = frozenset(
    [
        "pickle",
        "_pickle",
        "cPickle",
        "cloudpickle",
        "dill",
        "marshal",
        "shelve",
        "jsonpickle",
        "yaml",
    ]
)
BANNED_CALLS = frozenset(
    ["eval", "exec", "compile", "__import__", "import_module", "importlib.import_module"]
)
ALLOWED = {
    "src/spa_dat/__init__.py: import_module": "of its own parts, by a table",
    "src/spa_dat/cli/_application.py: importlib.import_module": "what the user names in the shell",
    "src/spa_dat/cli/_reload.py: compile": "looks for syntax errors, and does not run it",
    "transports/documents/_formats.py: yaml": "the safe loader, for what the user configures",
    "src/spa_dat/cli/_asyncapi.py: yaml": "only writes",
    "runtime/processes/_code_pickling.py: cloudpickle": "the program's code, for its child",
    "runtime/processes/_code_pickling.py: pickle": "the same, in the child, from its parent",
}


class Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


@dataclass
class Reading:
    celsius: float


class Model(pydantic.BaseModel):
    celsius: float


def hostile(path: Path) -> Iterator[tuple[str, bytes]]:
    """Content types and payloads that would make the file if something ran them."""
    code = f"__import__('pathlib').Path({str(path)!r}).touch()"
    payloads = [
        *(pickle.dumps(Bomb(path), protocol) for protocol in range(pickle.HIGHEST_PROTOCOL + 1)),
        base64.b64encode(pickle.dumps(Bomb(path))),
        marshal.dumps(compile(code, "x", "exec")),
        code.encode(),
        f'!!python/object/apply:os.system ["touch {path}"]'.encode(),
        f'{{"__reduce__": ["os.system", ["touch {path}"]]}}'.encode(),
        f'{{"py/reduce": [{{"py/function": "os.system"}}, ["touch {path}"]]}}'.encode(),
        f'{{"__class__": "pathlib.Path", "__module__": "pathlib", "args": ["{path}"]}}'.encode(),
        f'{{"celsius": "{{{code}}}"}}'.encode(),
        f"${{jndi:file://{path}}} %({path})s {{0.__class__}} {{celsius.__init__}}".encode(),
    ]
    types = [
        None,
        "application/json",
        "text/plain; charset=utf-8",
        "application/octet-stream",
        "application/x-python-serialize",
        "application/python-pickle",
        "application/x-yaml",
        "text/x-python",
        f"text/plain; charset={code}",
        "spa_dat.errors.RemoteError",
    ]
    for payload in payloads:
        for content_type in types:
            yield content_type or "", payload


@pytest.mark.virtual
@pytest.mark.parametrize("where", ["payload", "headers", "reply"])
async def test_nothing_that_a_stranger_sends_is_run(where: str, tmp_path: Path) -> None:
    site = Site()
    app = site.app(dead_letter_limit=100_000)
    mark = tmp_path / "mark"
    once = RetryPolicy(attempts=1)
    handled = 0

    async def take(message: Message[Any]) -> None:
        nonlocal handled
        handled += 1

    for index, kind in enumerate((Any, bytes, str, dict, Reading, Model, Reading | None)):
        take.__annotations__["message"] = Message[kind]  # type: ignore[valid-type]
        app.application("in", name=f"a{index}", retry=once)(take)
    async with app:
        for content_type, payload in hostile(mark):
            text = payload.decode("ascii", "backslashreplace")
            if where == "payload":
                site.publish("in", payload, content_type=content_type or None)
            elif where == "headers":
                headers = dict.fromkeys(
                    ("spa_error", "spa_chain", "spa_reply", "type", "class", "__class__"), text
                )
                site.publish(
                    "in", b"{}", headers=headers, type=text, source=text, key=text, id=text
                )
            else:
                await _answered(site, app, payload, content_type or None, text)
        site.publish("in", b'{"celsius": 1}', content_type="application/json")
        await eventually(lambda: all(site.unsettled(f"app.0.a{n}") == 0 for n in range(7)), 300)
    assert handled > 0
    assert not mark.exists()


async def _answered(site: Site, app: Any, payload: bytes, kind: str | None, text: str) -> None:
    def answer(request: Envelope) -> None:
        assert request.response_topic is not None
        site.publish(
            request.response_topic,
            payload,
            content_type=kind,
            headers={"spa_error": text, "spa_reply": "1"},
        )

    watcher = site.watch("ask", name="responder")
    asked = app.socket().request("ask", b"", reply=Reading, timeout=5)
    task = asyncio.ensure_future(asked)
    (request,) = await watcher.get()
    answer(request)
    with pytest.raises(RemoteError):
        await task
    site.faults.disconnect("responder")


@pytest.mark.repository
def test_no_code_can_run_what_it_reads() -> None:
    found = []
    for folder in SOURCES:
        for path in sorted((ROOT / folder).rglob("*.py")):
            name = path.relative_to(ROOT).as_posix()
            if any(parent.is_symlink() for parent in path.parents if parent != ROOT):
                continue
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                found += [f"{name}: {text}" for text in _dangerous(node)]
    assert sorted(set(found) - set(ALLOWED)) == []
    assert sorted(set(ALLOWED) - set(found)) == []


def _dangerous(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (a.name for a in node.names if a.name.partition(".")[0] in BANNED_MODULES)
    elif (
        isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in BANNED_MODULES
    ):
        yield node.module or ""
    elif isinstance(node, ast.Call) and ast.unparse(node.func) in BANNED_CALLS:
        yield ast.unparse(node.func)


def test_a_recording_is_data_too(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    file = tmp_path / "recording.jsonl"
    app = Site().app()

    @app.application("in")
    async def take(payload: bytes) -> None: ...

    payload = base64.b64encode(pickle.dumps(Bomb(mark))).decode()
    file.write_text(
        f'{{"version":1,"at":1.0,"topic":"in","payload_base64":"{payload}",'
        '"content_type":"application/python-pickle"}\n'
    )
    with Harness(app) as harness:
        assert harness.replay(file) == 1
    assert not mark.exists()
