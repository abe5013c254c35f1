"""The documentation site has every public name, and what it says is proven is a test."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path

import pytest

pytestmark = pytest.mark.repository

ROOT = Path(__file__).parent.parent.parent
DOCS = ROOT / "docs"
MODULES = (
    "spa_dat",
    "spa_dat.errors",
    "spa_dat.recording",
    "spa_dat.states",
    "spa_dat.testing",
    "spa_dat.tracing",
    "spa_dat.transports",
)


def test_the_reference_has_every_public_name_once() -> None:
    entries = [
        entry
        for page in (DOCS / "reference").glob("*.md")
        for entry in re.findall(r"^::: (\S+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    ]
    assert len(entries) == len(set(entries))
    listed = [entry.rpartition(".")[2] for entry in entries]
    assert len(listed) == len(set(listed))
    public = {name for module in MODULES for name in import_module(module).__all__}
    assert set(listed) == public
    for entry in entries:
        module, _, name = entry.rpartition(".")
        assert hasattr(import_module(module), name)


def test_every_page_is_in_the_navigation() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:\n")[2]
    listed = re.findall(r"\S+\.md", navigation)
    pages = {page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md")}
    assert sorted(listed) == sorted(pages)


def test_each_promise_names_a_test_that_is_there() -> None:
    promises = (DOCS / "guarantees.md").read_text(encoding="utf-8").partition("\n## Promises\n")[2]
    proofs = re.findall(r"`(\S+\.py)::(\w+)`", promises)
    rows = [line for line in promises.partition("\n## ")[0].splitlines() if line.startswith("| ")]
    assert len(rows) > 10
    assert all("::" in row for row in rows[2:])
    for file, name in proofs:
        text = (ROOT / "tests" / file).read_text(encoding="utf-8")
        assert re.search(rf"def {name}\(", text), name
