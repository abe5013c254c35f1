"""The report: from the results to what is stored and printed of them."""

from __future__ import annotations

import datetime
import os
import platform
import statistics
import subprocess
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

from ._broker import broker_version
from ._cluster import cluster_version
from ._measure import Column, Results, Target
from ._page import cells_of, goal_cells
from ._stored import Figure, Goal, Row, Run, StoredColumn, Table

__all__ = ["as_run", "as_text"]

_OWN = ("spa-dat", "pykka", "aiomqtt", "paho-mqtt", "aiokafka", "msgspec")
_PEERS = ("faststream", "quixstreams", "zmqtt", "aiomqtt", "paho-mqtt", "aiokafka")
_VERSIONS = (
    "from importlib import metadata\n"
    "for name in {names!r}:\n"
    "    try: print(name, metadata.version(name))\n"
    "    except metadata.PackageNotFoundError: pass\n"
)


def as_run(all_results: Sequence[Results], *, command: str, peers: str) -> Run:
    """Return what is stored of all results."""
    return Run(
        command,
        _circumstances(peers),
        [
            _goal(target, target.value(results))
            for results in all_results
            for target in results.suite.targets
        ],
        [_table(results) for results in all_results],
    )


def as_text(run: Run) -> str:
    """Return tables for a terminal."""
    blocks = []
    for table in run.tables:
        rows = cells_of(table)
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        lines = ["  ".join(map(str.rjust, row, widths)) for row in rows]
        blocks.append("\n".join((table.title, *lines, *table.failures)))
    goals = [goal_cells(goal) for goal in run.goals]
    width = max((len(row[0]) for row in goals), default=0)
    lines = [f"{row[0]:<{width}}  {'  '.join(row[1:])}" for row in goals]
    return "\n\n".join((*blocks, "\n".join(("What is aimed at", *lines))))


def _table(results: Results) -> Table:
    suite = results.suite
    peers = len(suite.contenders) > 1
    return Table(
        suite.title,
        suite.about,
        [StoredColumn(one.title, one.form, one.ratio and peers) for one in suite.columns],
        [
            Row(one.name, [_figure(results, one.name, column) for column in suite.columns])
            for one in suite.contenders
        ],
        _failures(results),
    )


def _figure(results: Results, name: str, column: Column) -> Figure | None:
    values = results.values(name, column.key)
    if not values:
        return None
    ours = results.suite.contenders[0].name
    ratio = None
    if column.ratio and name != ours:
        ratio = results.ratio(ours, name, column.key)
    return Figure(statistics.median(values), min(values), max(values), ratio)


def _failures(results: Results) -> list[str]:
    return [
        f"{name}: {sum(figures is None for figures in results.rounds[name])} of"
        f" {len(results.rounds[name])} rounds not measured: {reason.splitlines()[-1]}"
        for name, reason in results.failures.items()
    ]


def _goal(target: Target, value: float | None) -> Goal:
    return Goal(target.text, target.wanted, target.at_least, target.form, value)


def _circumstances(peers: str) -> list[str]:
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    own = ", ".join(f"{name} {metadata.version(name)}" for name in _OWN)
    told = subprocess.run(
        [peers, "-c", _VERSIONS.format(names=_PEERS)], capture_output=True, text=True, check=False
    )
    return [
        f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}",
        f"{_processor()}, {os.cpu_count()} CPUs, {platform.system()} {platform.release()}",
        f"{platform.python_implementation()} {platform.python_version()}: {own}",
        f"beside it: {', '.join(told.stdout.splitlines()) or 'nothing'}",
        broker_version(),
        cluster_version(),
        f"load over the last 1, 5 and 15 minutes of the run: {load}",
    ]


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(models, platform.machine())
