"""The report: the results as text, or as the page docs/benchmarks.md."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
from collections.abc import Iterable, Sequence
from importlib import metadata
from pathlib import Path

from ._broker import broker_version
from ._cluster import cluster_version
from ._measure import Column, Results, Target

__all__ = ["as_markdown", "as_text"]

_OWN = ("spa-dat", "pykka", "aiomqtt", "paho-mqtt", "aiokafka", "msgspec")
_PEERS = ("faststream", "zmqtt", "aiomqtt", "paho-mqtt", "aiokafka")
_VERSIONS = (
    "from importlib import metadata\n"
    "for name in {names!r}:\n"
    "    try: print(name, metadata.version(name))\n"
    "    except metadata.PackageNotFoundError: pass\n"
)
_INTRODUCTION = (
    "Written by the command below; everything on this page comes from one run. Contenders are"
    " measured in turns, each in a process of its own, and each figure is the median of the"
    " rounds, with the smallest and the largest in brackets. Ratios are ours by theirs: the"
    " median of the rounds' ratios."
)
_NOT_COMPARED = (
    "spa-dat 0.4.0 needs aiomqtt before 2.0 and cannot be installed beside the others. FastStream"
    " offers no requests on Kafka."
)


def as_text(all_results: Sequence[Results]) -> str:
    """Return tables for a terminal."""
    blocks = []
    for results in all_results:
        rows = _rows(results)
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        lines = ["  ".join(map(str.rjust, row, widths)) for row in rows]
        blocks.append("\n".join((results.suite.title, *lines, *_failures(results))))
    targets = _target_rows(all_results)
    width = max((len(row[0]) for row in targets), default=0)
    goals = [f"{row[0]:<{width}}  {'  '.join(row[1:])}" for row in targets]
    return "\n\n".join((*blocks, "\n".join(("What is aimed at", *goals))))


def as_markdown(all_results: Sequence[Results], *, command: str, peers: str) -> str:
    """Return the whole page."""
    blocks = [
        "# Benchmarks",
        _INTRODUCTION,
        f"```\n{command}\n```",
        _bullets(_circumstances(peers)),
        "## What is aimed at",
        _table([("", "wanted", "measured", ""), *_target_rows(all_results)]),
    ]
    for results in all_results:
        blocks += [f"## {results.suite.title}", results.suite.about, _table(_rows(results))]
        if results.failures:
            blocks.append(_bullets(_failures(results)))
    blocks += ["## What is not compared", _NOT_COMPARED]
    return "\n\n".join(blocks) + "\n"


def _rows(results: Results) -> list[tuple[str, ...]]:
    suite = results.suite
    ours = suite.contenders[0].name
    peers = len(suite.contenders) > 1
    head = [""]
    for column in suite.columns:
        head += [column.title, "ours by it"] if column.ratio and peers else [column.title]
    rows = [tuple(head)]
    for contender in suite.contenders:
        row = [contender.name]
        for column in suite.columns:
            row.append(_cell(results.values(contender.name, column.key), column))
            if column.ratio and peers:
                ratio = results.ratio(ours, contender.name, column.key)
                row.append("" if contender.name == ours or ratio is None else f"{ratio:.2f}")
        rows.append(tuple(row))
    return rows


def _cell(values: list[float], column: Column) -> str:
    if not values:
        return "not measured"
    ordered = sorted(values)
    middle = len(ordered) // 2
    median = ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2
    low, high = format(ordered[0], column.form), format(ordered[-1], column.form)
    text = format(median, column.form)
    return text if low == high else f"{text} ({low} to {high})"


def _failures(results: Results) -> list[str]:
    return [
        f"{name}: {sum(figures is None for figures in results.rounds[name])} of"
        f" {len(results.rounds[name])} rounds not measured: {reason.splitlines()[-1]}"
        for name, reason in results.failures.items()
    ]


def _target_rows(all_results: Sequence[Results]) -> list[tuple[str, ...]]:
    return [
        _target_row(target, target.value(results))
        for results in all_results
        for target in results.suite.targets
    ]


def _target_row(target: Target, value: float | None) -> tuple[str, ...]:
    wanted = f"{'at least' if target.at_least else 'at most'} {target.wanted:{target.form}}"
    if value is None:
        return target.text, wanted, "not measured", ""
    met = value >= target.wanted if target.at_least else value <= target.wanted
    return target.text, wanted, format(value, target.form), "met" if met else "missed"


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


def _table(rows: Sequence[tuple[str, ...]]) -> str:
    head, *body = rows
    rule = ("---", *("--:" for _ in head[1:]))
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, rule, *body))


def _bullets(lines: Iterable[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)
