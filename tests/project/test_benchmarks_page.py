"""The page of the benchmarks and its plots are those of the run that is stored."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from support.benchmark_modules import benchmark

pytestmark = pytest.mark.repository

ROOT = Path(__file__).parent.parent.parent
DOCS = ROOT / "docs"


def made_up(name: str = "spa_dat") -> Any:
    """Return a table of two contenders, the second of which was not measured once."""
    stored = benchmark("_stored")
    column = stored.StoredColumn("messages/s", ",.0f", ratio=True)
    cost = stored.StoredColumn("CPU µs", ".1f", ratio=False)
    figure = stored.Figure(1500.0, 1000.0, 2000.0)
    return stored.Table(
        "A <suite> & more",
        "How it is measured.",
        [column, cost],
        [stored.Row(name, [figure, figure]), stored.Row("other", [None, None])],
        ["other: 2 of 2 rounds not measured: gone"],
    )


def test_the_page_is_that_of_the_stored_run() -> None:
    files = benchmark("_page").page_of(benchmark("_stored").read_run())
    for path, text in files.items():
        assert (DOCS / path).read_text(encoding="utf-8") == text, (
            f"{path} is not that of benchmarks/results.json: scripts/bench --redraw"
        )
    plots = {path.relative_to(DOCS) for path in (DOCS / "plots").iterdir()}
    assert plots == {path for path in files if path.suffix == ".svg"}
    assert len(plots) >= 10


def test_each_plot_is_on_the_page_and_says_when_it_was_measured() -> None:
    run = benchmark("_stored").read_run()
    page = (DOCS / "benchmarks.md").read_text(encoding="utf-8")
    for path in (DOCS / "plots").iterdir():
        assert f"](plots/{path.name})" in page
        texts = [one.text for one in ElementTree.parse(path).iter() if one.tag.endswith("text")]
        assert run.circumstances[0] in texts


def test_a_run_is_read_as_it_was_written(tmp_path: Path) -> None:
    stored = benchmark("_stored")
    goal = stored.Goal("fast", 2.0, True, ".2f", None)
    run = stored.Run("scripts/bench", ["2026-01-02"], [goal], [made_up()])
    stored.write_run(run, tmp_path / "results.json")
    assert stored.read_run(tmp_path / "results.json") == run


def test_a_plot_has_names_figures_and_colours_for_light_and_dark() -> None:
    text = benchmark("_plots").plot(made_up("spa_dat <1>"), "2026-01-02")
    tree = ElementTree.fromstring(text)
    shown = [one.text for one in tree.iter() if one.tag.endswith("text")]
    assert shown == [
        "A <suite> & more",
        "2026-01-02",
        "messages/s",
        "spa_dat <1>",
        "1,500",
        "other",
        "not measured",
    ]
    assert "@media(prefers-color-scheme:dark)" in text
    # The ground goes with the colours of the text, whatever is around the picture.
    assert 'class="ground"' in text


def test_a_table_without_comparison_or_figures_has_no_plot() -> None:
    stored, plot = benchmark("_stored"), benchmark("_plots").plot
    table = made_up()
    alone = [stored.StoredColumn(one.title, one.form, ratio=False) for one in table.columns]
    assert plot(stored.Table("t", "", alone, table.rows, []), "") is None
    assert plot(stored.Table("t", "", table.columns, table.rows[1:], []), "") is None


def test_plots_that_the_page_has_no_more_are_removed(tmp_path: Path) -> None:
    stored, page = benchmark("_stored"), benchmark("_page")
    (tmp_path / "plots").mkdir()
    (tmp_path / "plots" / "of-old.svg").write_text("")
    goals = [
        stored.Goal("fast", 2.0, True, ".2f", 1.99),
        stored.Goal("small", 2.0, False, ".2f", 1.99),
        stored.Goal("short", 2.0, False, ".2f", None),
    ]
    page.write_page(stored.Run("scripts/bench", ["2026-01-02"], goals, [made_up()]), tmp_path)
    assert [path.name for path in (tmp_path / "plots").iterdir()] == ["a-suite-more.svg"]
    text = (tmp_path / "benchmarks.md").read_text(encoding="utf-8")
    assert "| fast | at least 2.00 | 1.99 | missed |" in text
    assert "| small | at most 2.00 | 1.99 | met |" in text
    assert "| short | at most 2.00 | not measured |  |" in text
    assert "| spa_dat | 1,500 (1,000 to 2,000) |  | 1500.0 (1000.0 to 2000.0) |" in text
    assert "- other: 2 of 2 rounds not measured: gone" in text
