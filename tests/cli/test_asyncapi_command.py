"""``spa-dat asyncapi``."""

from __future__ import annotations

import json
import re
import sys
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from spa_dat.cli._main import main

PAGE = Path(__file__).parent.parent.parent / "docs" / "asyncapi.md"
SOURCE = '''
from spa_dat import DistributedApplication

app = DistributedApplication("mqtt://ann:hunter2@broker", name="plant")

@app.application("plant/{machine}/temperature")
async def watch(celsius: float, machine: str) -> None:
    """Watch %s.

    Two paragraphs.
    """
'''

Run = Callable[..., str]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / f"app_{uuid.uuid4().hex}.py"
    path.write_text(SOURCE % "it", encoding="utf-8")
    return path


@pytest.fixture
def shown(file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.delenv("SPA_DAT_URL", raising=False)
    monkeypatch.delenv("SPA_DAT_INSTANCE", raising=False)

    def run(*options: str, code: int = 0) -> str:
        assert main(["asyncapi", f"{file}:app", *options]) == code
        out, errors = capsys.readouterr()
        assert (errors == "") == (code == 0)
        return out if code == 0 else errors

    return run


def test_yaml_and_json_say_what_the_application_says(shown: Run, file: Path) -> None:
    text = shown("--version", "1.2", "--title", "Plant", "--description", "All of it.")
    assert text.startswith("asyncapi: 3.0.0\ninfo:\n  title: Plant\n  version: '1.2'\n")
    assert "    description: |-\n      Watch it.\n\n      Two paragraphs.\n" in text
    assert "hunter2" not in text
    as_json = shown(
        *("--format", "json", "--version", "1.2", "--title", "Plant"),
        *("--description", "All of it."),
    )
    app = vars(sys.modules[file.stem])["app"]
    expected = app.asyncapi(version="1.2", title="Plant", description="All of it.")
    assert yaml.safe_load(text) == json.loads(as_json) == expected


def test_another_bus_takes_the_place_of_the_default_one(shown: Run) -> None:
    document = yaml.safe_load(shown("--url", "kafka://k?prefix=p."))
    (channel,) = document["channels"].values()
    assert channel["address"] == "p.plant.{machine}.temperature"


@pytest.mark.parametrize("form", ["yaml", "json"])
def test_texts_reach_a_terminal_as_letters_only(form: str, shown: Run, file: Path) -> None:
    text = "Öl \u202e \x9b2J \x1b]0;x\x07 \ud800 &a *b {c: d}"
    file.write_text(SOURCE % ascii(text)[1:-1], encoding="utf-8")
    written = shown("--format", form)
    assert written.isascii()
    assert written.replace("\n", "").isprintable()
    if form == "json":
        (operation,) = json.loads(written)["operations"].values()
        assert operation["summary"] == f"Watch {text}."


def test_letters_of_other_languages_stay_readable_in_yaml(shown: Run, file: Path) -> None:
    file.write_text(SOURCE % "Öl in 東京", encoding="utf-8")
    assert "summary: Watch Öl in 東京." in shown()


def test_without_a_library_for_yaml_there_is_json(
    shown: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "yaml", None)
    assert "install spa-dat[yaml], or give --format json" in shown(code=2)
    assert json.loads(shown("--format", "json"))["asyncapi"] == "3.0.0"


@pytest.mark.repository
def test_the_page_shows_what_the_command_writes(shown: Run, file: Path) -> None:
    page = PAGE.read_text(encoding="utf-8")
    code = re.search(r"```python\n(.*?)```", page, re.DOTALL)
    example = re.search(r"```yaml\n(.*?)```", page, re.DOTALL)
    assert code is not None
    assert example is not None
    file.write_text(code[1], encoding="utf-8")
    assert f"\n{example[1]}components:\n" in shown()
