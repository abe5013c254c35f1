"""The formats of the log of ``spa-dat run``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from spa_dat.cli._main import main
from spa_dat.cli._worker_output import Lines
from support.command import Command

APP = """
import asyncio, logging, threading
from spa_dat import DistributedApplication, Socket

app = DistributedApplication("memory://", name="shop")
log = logging.getLogger("shop.orders")
handled = asyncio.Event()

@app.application("orders/new")
async def orders(payload: str) -> None:
    log.warning("no price", extra={"order": 5})
    print("printed {not json")
    thread = threading.Thread(target=lambda: 1 / 0, name="divider")
    thread.start()
    thread.join()
    handled.set()

@app.producer()
async def once(socket: Socket) -> None:
    log.warning("beginning")
    await socket.publish("orders/new", "x")
    await handled.wait()
    app.stop()
"""


def json_lines(command: Command) -> list[dict[str, Any]]:
    return [json.loads(line) for line in command.lines]


async def test_every_line_of_several_workers_is_json_and_has_the_name_of_its_worker(
    tmp_path: Path,
) -> None:
    (tmp_path / "main.py").write_text(APP)
    environment = {"SPA_DAT_LOG_FORMAT": "json"}
    with Command(tmp_path, "run", "main.py", "--workers", "1", environment=environment) as command:
        assert await command.end() == 0
    lines = json_lines(command)
    found = {line["message"]: line for line in lines}
    ours = found.pop("worker 0 has nothing left to do")
    assert (ours["level"], ours["logger"]) == ("WARNING", "spa_dat")
    assert {line["worker"] for line in found.values()} == {"worker 0"}
    price = found["no price"]
    assert price.pop("time").endswith("+00:00")
    assert price.pop("message_id")
    assert price == {
        "worker": "worker 0",
        "level": "WARNING",
        "logger": "shop.orders",
        "message": "no price",
        "application": "shop",
        "instance": "0",
        "actor": "orders",
        "topic": "orders/new",
        "attempt": 1,
        "order": 5,
    }
    assert found["beginning"]["actor"] == "once"
    printed = found["printed {not json"]
    assert (printed["logger"], printed["level"]) == ("stdout", "INFO")
    assert "ZeroDivisionError" in found["thread 'divider' has ended with an error"]["exception"]


async def test_lines_of_text_name_the_actor(tmp_path: Path) -> None:
    (tmp_path / "main.py").write_text(APP)
    with Command(tmp_path, "run", "main.py", "--log-format", "text") as command:
        assert await command.end() == 0
    assert command.found(r" WARNING shop\.orders: actor 'orders': no price$")
    assert command.found(r" INFO spa_dat: application 'shop'")


def test_an_unknown_format_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "main.py", "--log-format", "xml"]) == 2
    assert "'--log-format': 'xml' is not one of 'text', 'json'" in capsys.readouterr().err


@pytest.mark.parametrize(
    "stray",
    [
        b"Traceback (most recent call last):",
        b"{not json",
        b"[1, 2]",
        b'{"level": NaN}',
        b'{"a": ' * 30_000,
        b"\xff\xfe{}",
        b'{"a": 1} {"b": 2}',
        b"",
    ],
)
def test_what_is_no_json_object_becomes_the_message_of_one(stray: bytes) -> None:
    lines = Lines("worker 3", 2, as_json=True)
    (line,) = (lines.feed(stray + b"\n") or lines.end()).splitlines()
    found = json.loads(line)
    assert found["message"] == stray.decode(errors="backslashreplace")
    assert (found["worker"], found["logger"]) == ("worker 3", "stderr")


@pytest.mark.parametrize("own", [b'{"a": 1}', b'{"worker": "worker 9", "a": 1}', b"{}"])
def test_no_line_has_the_name_of_another_worker(own: bytes) -> None:
    line = Lines("worker 3", as_json=True).feed(own + b"\n")
    pairs = json.loads(line, object_pairs_hook=list)
    assert [value for name, value in pairs if name == "worker"] == ["worker 3"]
    assert dict(json.loads(own)).keys() <= dict(pairs).keys()
