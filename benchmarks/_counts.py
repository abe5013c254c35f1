"""Instruction counts of fixed loops next to those that are stored: what has become slower.

Unlike times they are the same on every machine, however busy it is.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

import msgspec

from ._children import Child

__all__ = ["Baseline", "compare", "count", "print_counts", "this_python"]

_FILE = Path(__file__).parent / "counts.json"
_SECONDS = 300.0
_MOST = 0.02
"""The share that a loop may take more than what is stored."""
_LOOPS = {
    "local tell": ("tell", 1_000),
    "local ask": ("ask", 500),
    "MQTT packet, encode and decode": ("packets", 500),
    "MQTT receive": ("receive:mqtt", 300),
    "MQTT receive, typed JSON": ("typed:mqtt", 300),
    "MQTT receive, per=": ("keyed:mqtt", 300),
    "MQTT receive and post": ("forward:mqtt", 300),
    "MQTT request": ("request:mqtt", 100),
    "Kafka receive": ("receive:kafka", 300),
    "Kafka receive, typed JSON": ("typed:kafka", 300),
    "Kafka receive and post": ("forward:kafka", 300),
    "Kafka receive and publish, per=, exactly once": ("exactly_once:kafka", 300),
    "Kafka request": ("request:kafka", 100),
}


class Baseline(msgspec.Struct, frozen=True):
    """Counts of an earlier state of the code.

    Attributes:
        python: the interpreter whose instructions were counted; others have others.
        loops: instructions of a message, by loop.
    """

    python: str
    loops: dict[str, float]


def this_python() -> str:
    """Return the name of the instruction set that this interpreter has."""
    return f"{sys.implementation.name} {sys.version_info.major}.{sys.version_info.minor}"


def count(what: str, messages: int) -> float:
    """Return the instructions of a message in a loop of `benchmarks.subjects.counted`."""
    # The child's: sets of texts are in another order otherwise.
    os.environ["PYTHONHASHSEED"] = "0"
    order = {"what": what, "messages": messages}
    with Child(sys.executable, "counted", order, seconds=_SECONDS) as child:
        return child.expect("result")["instructions"]


def compare(counted: Mapping[str, float], before: Mapping[str, float]) -> tuple[list[str], bool]:
    """Return a line for each loop, and whether one takes more than it may.

    A loop without a stored count, and a stored count without a loop, are mistakes, too.
    """
    width = max(map(len, (*counted, *before)), default=0)
    lines, failed = [], False
    for name, now in counted.items():
        if name not in before:
            failed = True
            lines.append(f"{name:<{width}}  {now:>9,.1f}  not stored")
            continue
        change = now / before[name] - 1
        verdict = ""
        if not now:
            failed, verdict = True, "  nothing was counted"
        elif change > _MOST:
            failed, verdict = True, f"  more than {_MOST:.0%} more"
        elif change < -_MOST:
            verdict = "  store it"
        stored = f"{before[name]:>9,.1f}"
        lines.append(f"{name:<{width}}  {now:>9,.1f}  {stored}  {change:>+7.2%}{verdict}")
    for name in before:
        if name not in counted:
            failed = True
            lines.append(f"{name:<{width}}  is stored, but there is no such loop")
    return lines, failed


def print_counts(*, store: bool) -> int:
    """Count all loops and print the differences to what is stored; return the exit code.

    Args:
        store: keep the counts as what later ones are compared with.
    """
    before = msgspec.json.decode(_FILE.read_bytes(), type=Baseline)
    if not store and before.python != this_python():
        print(f"nothing is counted: what is stored is of {before.python}, not of {this_python()}")
        return 0
    counted = {name: round(count(*loop), 1) for name, loop in _LOOPS.items()}
    if store:
        text = msgspec.json.encode(Baseline(this_python(), counted))
        _FILE.write_bytes(msgspec.json.format(text, indent=1) + b"\n")
        print(f"stored in {_FILE}")
        return 0
    lines, failed = compare(counted, before.loops)
    print("instructions of this package for a message: now, stored, difference", *lines, sep="\n")
    if failed:
        print(
            "If that is meant, scripts/bench --counts --store keeps the counts; commit them.",
            file=sys.stderr,
        )
    return int(failed)
