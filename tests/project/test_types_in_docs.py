"""The programs in README and docs have no faults that a strict type checker would find."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from support.type_checking import check_types, check_with_pyright

pytestmark = [pytest.mark.repository, pytest.mark.deadline(600)]

ROOT = Path(__file__).parent.parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
NOT_TYPED = {"migrating.md"}
"""It shows programs of 0.4.0, which have no types, as they may stay."""
BLOCK = re.compile(
    r"(?P<skip><!-- not run -->\n)?^```python\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL
)
BEGINS = re.compile(r"^app = DistributedApplication\(", re.MULTILINE)


def programs(page: Path) -> list[str]:
    """Return the programs of a page: one begins where a block is whole, and the next blocks go on.

    Their lines have the numbers that they have on the page.
    """
    text = page.read_text(encoding="utf-8")
    found: list[str] = []
    for block in BLOCK.finditer(text):
        if block["skip"]:
            continue
        whole = BEGINS.search(block["code"]) and "DistributedApplication, " in block["code"]
        if whole or not found:
            found.append("")
        line = text.count("\n", 0, block.start("code"))
        found[-1] += "\n" * (line - found[-1].count("\n")) + block["code"]
    return found


@pytest.fixture(scope="module")
def of_pages() -> dict[str, str]:
    """All programs, by the page and a number."""
    return {
        f"{page.name} {number}": program
        for page in PAGES
        if page.name not in NOT_TYPED
        for number, program in enumerate(programs(page), 1)
    }


def test_mypy_finds_nothing(of_pages: dict[str, str], tmp_path: Path) -> None:
    # What a page shows twice, it shows in two versions.
    said = check_types(tmp_path, *of_pages.values(), options=["--disable-error-code=no-redef"])
    assert {name: lines for name, lines in zip(of_pages, said, strict=True) if lines} == {}


def test_pyright_finds_nothing(of_pages: dict[str, str], tmp_path: Path) -> None:
    said = check_with_pyright(
        tmp_path,
        *of_pages.values(),
        options={"reportRedeclaration": False, "reportDuplicateImport": False},
    )
    assert {name: lines for name, lines in zip(of_pages, said, strict=True) if lines} == {}
