"""``spa-dat asyncapi``."""

from __future__ import annotations

import json
import re
import sys
import uuid
from collections.abc import Callable
from html.parser import HTMLParser
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
    # Assigned: from Python 3.13 on no docstring in a source may have a surrogate.
    head, tail = SOURCE.split("@app.application(")
    address = tail.partition(")")[0]
    file.write_text(
        f"{head}async def watch(celsius: float, machine: str) -> None: ...\n"
        f"watch.__doc__ = {f'Watch {text}.'!a}\n"
        f"app.application({address})(watch)\n",
        encoding="utf-8",
    )
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


class Page(HTMLParser):
    """What is on a page: its marks with their attributes, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.marks: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.marks.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, attribute: str) -> list[str]:
        found = (attributes.get(attribute) for _, attributes in self.marks)
        return [value for value in found if value is not None]


def test_the_page_for_browsers_is_complete_in_itself(shown: Run, tmp_path: Path) -> None:
    target = tmp_path / "page.html"
    for url in ("mqtt://broker", "kafka://k1,k2"):
        assert shown("--html", str(target), "--url", url) == ""
        page = Page(target.read_text(encoding="utf-8"))
        identifiers = page.all("id")
        assert len({*identifiers}) == len(identifiers)
        assert {"operations-watch", "channels-plant.machine.temperature"} <= {*identifiers}
        # Nothing is fetched or run, and every link leads somewhere.
        assert not page.all("src")
        assert {link for link in page.all("href") if link[1:] not in identifiers} == set()
        assert not {"script", "iframe", "link", "base", "object"} & {tag for tag, _ in page.marks}
        assert "default-src 'none'" in page.all("content")[0]
        assert "Watch it." in page.text


def test_texts_are_no_marks_on_the_page(shown: Run, file: Path, tmp_path: Path) -> None:
    target = tmp_path / "page.html"
    file.write_text(SOURCE % "<script>alert(1)</script>&lt;\\u202e\\x07", encoding="utf-8")
    title = "</title><img src=x onerror='alert(1)'>\""
    shown("--html", str(target), "--title", title, "--description", "a\nb")
    page = Page(target.read_text(encoding="utf-8"))
    assert "<script>alert(1)</script>&lt;\\u202e\\x07" in page.text
    assert title in page.text
    assert "a\nb" in page.text
    assert not {"script", "img"} & {tag for tag, _ in page.marks}


def test_page_and_document_may_be_written_at_once(shown: Run, tmp_path: Path) -> None:
    target = tmp_path / "page.html"
    assert json.loads(shown("--html", str(target), "--format", "json"))["asyncapi"] == "3.0.0"
    assert target.exists()
    line = shown("--html", str(tmp_path / "no" / "page.html"), code=2)
    assert "page.html' cannot be written: No such file or directory" in line


@pytest.mark.repository
def test_the_page_shows_what_the_command_writes(shown: Run, file: Path) -> None:
    page = PAGE.read_text(encoding="utf-8")
    code = re.search(r"```python\n(.*?)```", page, re.DOTALL)
    example = re.search(r"```yaml\n(.*?)```", page, re.DOTALL)
    assert code is not None
    assert example is not None
    file.write_text(code[1], encoding="utf-8")
    assert f"\n{example[1]}components:\n" in shown()
