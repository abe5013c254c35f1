"""A run as it is stored: its figures, from which the page and its plots are written."""

from __future__ import annotations

from pathlib import Path

import msgspec

__all__ = ["Figure", "Goal", "Row", "Run", "StoredColumn", "Table", "read_run", "write_run"]

_FILE = Path(__file__).parent / "results.json"


class Figure(msgspec.Struct, frozen=True):
    """What the rounds have come to.

    Attributes:
        median: over all rounds.
        low: the smallest.
        high: the largest.
        ratio: ours by it, where that is told.
    """

    median: float
    low: float
    high: float
    ratio: float | None = None


class StoredColumn(msgspec.Struct, frozen=True):
    """As `Column`, without where its figures came from."""

    title: str
    form: str
    ratio: bool


class Row(msgspec.Struct, frozen=True):
    """One contender with a figure for each column; None for what was not measured."""

    name: str
    figures: list[Figure | None]


class Table(msgspec.Struct, frozen=True):
    """The results of a suite; what is ours comes first."""

    title: str
    about: str
    columns: list[StoredColumn]
    rows: list[Row]
    failures: list[str]


class Goal(msgspec.Struct, frozen=True):
    """As `Target`, with what was measured; None for what was not."""

    text: str
    wanted: float
    at_least: bool
    form: str
    measured: float | None


class Run(msgspec.Struct, frozen=True):
    """One run.

    Attributes:
        command: what was called.
        circumstances: when and where it was, and with what.
        goals: of all suites.
        tables: one for each suite.
    """

    command: str
    circumstances: list[str]
    goals: list[Goal]
    tables: list[Table]


def read_run(path: Path = _FILE) -> Run:
    """Return what `write_run` has written."""
    return msgspec.json.decode(path.read_bytes(), type=Run)


def write_run(run: Run, path: Path = _FILE) -> None:
    """Write a run where the page is written from."""
    path.write_bytes(msgspec.json.format(msgspec.json.encode(run), indent=1) + b"\n")
