"""The page docs/benchmarks.md and its plots, written from what is stored of a run."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from ._plots import plot
from ._stored import Figure, Goal, Run, StoredColumn, Table

__all__ = ["cells_of", "goal_cells", "page_of", "write_page"]

_DOCS = Path(__file__).parent.parent / "docs"
_PAGE = Path("benchmarks.md")
_PLOTS = Path("plots")
_INTRODUCTION = (
    "Written by the command below; everything on this page comes from one run. Contenders are"
    " measured in turns, each in a process of its own, and each figure is the median of the"
    " rounds, with the smallest and the largest in brackets; in the plots a line goes from the"
    " smallest to the largest. Ratios are ours by theirs: the median of the rounds' ratios."
)
_GOALS = "What is aimed at"
_OTHERS = "What is not compared"
_NOT_COMPARED = (
    "spa-dat 0.4.0 needs aiomqtt before 2.0 and cannot be installed beside the others. FastStream"
    " offers no requests on Kafka."
)


def page_of(run: Run) -> dict[Path, str]:
    """Return the texts of the page and of its plots, by their paths below docs/."""
    files: dict[Path, str] = {}
    titles = [_GOALS, *(table.title for table in run.tables), _OTHERS]
    blocks = [
        "# Benchmarks",
        _INTRODUCTION,
        f"```\n{run.command}\n```",
        _bullets(run.circumstances),
        "On this page:",
        _bullets(f"[{title}](#{_name_of(title)})" for title in titles),
        f"## {_GOALS}",
        _rows([("", "wanted", "measured", ""), *map(goal_cells, run.goals)]),
    ]
    date = run.circumstances[0]
    for table in run.tables:
        blocks += [f"## {table.title}", table.about]
        picture = plot(table, date)
        if picture is not None:
            path = _PLOTS / f"{_name_of(table.title)}.svg"
            files[path] = picture
            blocks.append(
                f"![The figures of the table below that are compared, as bars]({path.as_posix()})"
            )
        blocks.append(_rows(cells_of(table)))
        if table.failures:
            blocks.append(_bullets(table.failures))
    blocks += [f"## {_OTHERS}", _NOT_COMPARED]
    files[_PAGE] = "\n\n".join(blocks) + "\n"
    return files


def write_page(run: Run, docs: Path = _DOCS) -> None:
    """Write the page and its plots, and remove plots that it has no more."""
    files = page_of(run)
    (docs / _PLOTS).mkdir(exist_ok=True)
    for old in (docs / _PLOTS).glob("*.svg"):
        if old.relative_to(docs) not in files:
            old.unlink()
    for path, text in files.items():
        (docs / path).write_text(text, encoding="utf-8")


def cells_of(table: Table) -> list[tuple[str, ...]]:
    """Return the rows of a table as texts, the first of which is its head."""
    head = [""]
    for column in table.columns:
        head += [column.title, "ours by it"] if column.ratio else [column.title]
    rows = [tuple(head)]
    for row in table.rows:
        cells = [row.name]
        for column, figure in zip(table.columns, row.figures, strict=True):
            cells.append(_cell(figure, column))
            if column.ratio:
                ratio = None if figure is None else figure.ratio
                cells.append("" if ratio is None else f"{ratio:.2f}")
        rows.append(tuple(cells))
    return rows


def goal_cells(goal: Goal) -> tuple[str, ...]:
    """Return the row of a goal as texts."""
    wanted = f"{'at least' if goal.at_least else 'at most'} {goal.wanted:{goal.form}}"
    value = goal.measured
    if value is None:
        return goal.text, wanted, "not measured", ""
    met = value >= goal.wanted if goal.at_least else value <= goal.wanted
    return goal.text, wanted, format(value, goal.form), "met" if met else "missed"


def _cell(figure: Figure | None, column: StoredColumn) -> str:
    if figure is None:
        return "not measured"
    low, high = format(figure.low, column.form), format(figure.high, column.form)
    text = format(figure.median, column.form)
    return text if low == high else f"{text} ({low} to {high})"


def _name_of(title: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")


def _rows(rows: Sequence[tuple[str, ...]]) -> str:
    head, *body = rows
    rule = ("---", *("--:" for _ in head[1:]))
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, rule, *body))


def _bullets(lines: Iterable[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)
