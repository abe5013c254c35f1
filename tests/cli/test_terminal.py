"""What commands show on a terminal, and that nothing else gets any of it."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from spa_dat.cli import _terminal
from spa_dat.cli._commands import commands
from spa_dat.cli._dlq_show import letter_as_text
from spa_dat.cli._main import main
from spa_dat.cli._message_output import envelope_as_text
from spa_dat.runtime.dead_letters._stored_letter import StoredLetter
from spa_dat.transports import Envelope

_ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
HOSTILE = "[red]x[/red] [link=http://a]y[/link] \x1b]0;owned\x07 \u202eabc \x1b[2J :smile:"
APPLICATION = """
from spa_dat import DistributedApplication

app = DistributedApplication("memory://", name="plant")

@app.application("machine/{machine}/" + "a-long-level/" * 12 + "[red]")
async def handler(payload: bytes, machine: str) -> None: ...
"""


def on_terminal(*arguments: str, columns: int = 80, **environment: str) -> tuple[int, str]:
    """Return the exit code of a command, and all it writes to its terminal."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    plain = {name: text for name, text in os.environ.items() if name not in ("NO_COLOR", "COLUMNS")}
    process = subprocess.Popen(
        [sys.executable, "-m", "spa_dat", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=theirs,
        stderr=theirs,
        env=plain | {"TERM": "xterm-256color"} | environment,
    )
    os.close(theirs)
    shown = b""
    try:
        while True:
            try:
                part = os.read(ours, 65_536)
            except OSError:
                # The other end is closed.
                break
            if not part:
                break
            shown += part
    finally:
        os.close(ours)
    return process.wait(60), shown.decode().replace("\r\n", "\n")


def without_styles(text: str) -> str:
    return _ESCAPE.sub("", text)


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_terminal, "is_terminal", lambda stream: True)
    monkeypatch.setenv("TERM", "xterm-256color")


def test_help_is_a_table_on_a_terminal() -> None:
    code, shown = on_terminal("--help")
    assert code == 0
    assert "\x1b[1;36mCommands\x1b[0m" in shown
    words = " ".join(without_styles(shown).split())
    assert words.startswith("Usage: spa-dat [OPTIONS] [COMMAND] [ARGS]...")
    for name in commands.commands:
        assert f" {name} " in words
    assert "Exit code: 0 when all went well" in words


@pytest.mark.parametrize("environment", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_help_is_plain_where_it_is_wanted_so(
    environment: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["dlq", "--help"]) == 0
    plain = capsys.readouterr().out
    code, shown = on_terminal("dlq", "--help", columns=104, **environment)
    assert (code, "\x1b" in shown) == (0, False)
    assert shown.split() == plain.split()


def test_all_help_says_the_same_on_a_terminal(
    terminal: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    dlq = commands.commands["dlq"]
    assert isinstance(dlq, _terminal.Group)
    names = [[name] for name in commands.commands] + [["dlq", name] for name in dlq.commands]
    for name in names:
        assert main([*name, "--help"]) == 0
        rich = without_styles(capsys.readouterr().out)
        with monkeypatch.context() as patch:
            patch.setattr(_terminal, "is_terminal", lambda stream: False)
            assert main([*name, "--help"]) == 0
        plain = capsys.readouterr().out
        # Only what stands between the parts differs.
        for word in plain.replace("Options:", "Options").replace("Commands:", "Commands").split():
            assert word in rich, (name, word)


def test_a_narrow_terminal_gets_everything(tmp_path: Path) -> None:
    (tmp_path / "plant.py").write_text(APPLICATION)
    for arguments in (("run", "--help"), ("show", str(tmp_path / "plant.py"))):
        code, shown = on_terminal(*arguments, columns=20)
        assert code == 0
        assert max(map(len, without_styles(shown).splitlines())) <= 20


def test_show_is_a_table_and_takes_nothing_for_markup(tmp_path: Path) -> None:
    (tmp_path / "plant.py").write_text(APPLICATION)
    code, shown = on_terminal("show", str(tmp_path / "plant.py"))
    assert code == 0
    assert "\x1b[1;36mactor handler on memory://~1\x1b[0m" in shown
    assert "a-long-level/[red]" in "".join(without_styles(shown).split())


def test_an_error_is_one_line() -> None:
    code, shown = on_terminal("publish", "mqtt://[red]", "a", "1")
    assert code == 2
    assert shown.startswith("\x1b[1;31mspa-dat:\x1b[0m ")
    assert shown.count("\n") == 1


def test_nothing_of_others_reaches_the_terminal_as_a_command(terminal: None) -> None:
    envelope = Envelope(
        topic=HOSTILE,
        payload=HOSTILE.encode(),
        headers={"a": HOSTILE},
        key=HOSTILE,
        id=HOSTILE,
        content_type="text/plain",
    )
    letter = StoredLetter.of("plant", envelope)
    for shown in (envelope_as_text(envelope), letter_as_text(letter)):
        assert "\x1b[" in shown
        rest = without_styles(shown)
        assert all(line.isprintable() for line in rest.split("\n")), rest
    assert "[red]x[/red] [link=http://a]y[/link]" in envelope_as_text(envelope)
    assert ":smile:" in envelope_as_text(envelope)


def test_no_command_imports_rich_where_there_is_no_terminal(tmp_path: Path) -> None:
    (tmp_path / "plant.py").write_text(APPLICATION)
    code = (
        "import sys; from spa_dat.cli._main import main;"
        "main(['--help']); main(['nonsense']); main(['show', sys.argv[1]]);"
        "sys.exit('rich' in sys.modules)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "plant.py")]
    subprocess.run(command, check=True, timeout=60, capture_output=True)
