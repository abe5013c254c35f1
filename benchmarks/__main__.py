"""``python -m benchmarks``: measures, prints tables, and writes the page of the documentation.

The interpreter that has the packages to compare with is named in ``SPA_DAT_PEERS_PYTHON``.
"""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import sys
from collections.abc import Sequence

from . import _harness, _kafka, _keyed, _local, _metrics, _processes, _receive, _request, _scale
from ._counts import print_counts
from ._measure import Suite, measure
from ._page import write_page
from ._report import as_run, as_text
from ._stored import read_run, write_run

_KAFKA = {
    "kafka-receive": _kafka.receive,
    "kafka-publish": _kafka.publish,
    "kafka-forward": _kafka.forward,
    "kafka-keyed": _kafka.keyed,
    "kafka-request": _kafka.request,
}
_NAMES = (
    "local",
    "processes",
    "scale",
    "keyed",
    "harness",
    "receive",
    "request",
    *_KAFKA,
    "metrics",
)
_QUICK = (
    "local",
    "processes",
    "receive",
    "request",
    "kafka-receive",
    "kafka-publish",
    "kafka-request",
)


def _suites(names: Sequence[str], *, quick: bool, peers: str) -> list[Suite]:
    suites: list[Suite] = []
    if "local" in names:
        suites += _local.suites(quick=quick)
    if "processes" in names:
        suites += _processes.suites(quick=quick)
    if "scale" in names:
        suites += _scale.suites(quick=quick)
    if "keyed" in names:
        suites += _keyed.suites(quick=quick)
    if "harness" in names:
        suites += _harness.suites(quick=quick, peers=peers)
    if "receive" in names:
        suites += _receive.suites(quick=quick, peers=peers)
    if "request" in names:
        suites += _request.suites(quick=quick, peers=peers)
    suites += [make(quick=quick, peers=peers) for name, make in _KAFKA.items() if name in names]
    if "metrics" in names:
        suites += _metrics.suites(quick=quick)
    return suites


def main() -> None:
    """Read the command line, measure and print."""
    parser = argparse.ArgumentParser(prog="scripts/bench", description="Measures the project.")
    parser.add_argument("names", nargs="*", metavar="name", help=f"of {', '.join(_NAMES)}; all")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="fewer messages, two rounds, and if nothing is named only what users notice most",
    )
    parser.add_argument("--rounds", type=int, help="how often each is measured; 5")
    written = parser.add_mutually_exclusive_group()
    written.add_argument(
        "--page",
        action="store_true",
        help="write docs/benchmarks.md, its plots, and benchmarks/results.json, which has the run",
    )
    written.add_argument(
        "--redraw", action="store_true", help="write the page of that run again; measure nothing"
    )
    written.add_argument(
        "--counts",
        action="store_true",
        help="count the instructions of fixed loops instead, and compare them with those stored in"
        " benchmarks/counts.json; exits with 1 if one takes 2 %% more",
    )
    parser.add_argument("--store", action="store_true", help="with --counts: store them")
    told = parser.parse_args()
    if told.store and not told.counts:
        parser.error("--store is about --counts: give both")
    if told.counts:
        if told.names or told.quick or told.rounds is not None:
            parser.error("--counts is about all its loops, once: give nothing but --store with it")
        sys.exit(print_counts(store=told.store))
    if told.redraw:
        write_page(read_run())
        return
    unknown = [name for name in told.names if name not in _NAMES]
    if unknown:
        parser.error(f"there is no {', '.join(unknown)}: give some of {', '.join(_NAMES)}")
    rounds = told.rounds if told.rounds is not None else 2 if told.quick else 5
    if told.page and (told.quick or told.names):
        parser.error("--page is about all of them, at full length: leave out names and --quick")
    if rounds < 1:
        parser.error(f"--rounds {rounds}: give 1 or more")
    # Leaves the contexts that end the children.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    peers = os.environ.get("SPA_DAT_PEERS_PYTHON", sys.executable)
    suites = _suites(
        told.names or (_QUICK if told.quick else _NAMES), quick=told.quick, peers=peers
    )
    results = [measure(suite, rounds) for suite in suites]
    command = shlex.join(("scripts/bench", *sys.argv[1:]))
    run = as_run(results, command=command, peers=peers)
    print(as_text(run))
    if told.page:
        write_run(run)
        write_page(run)


if __name__ == "__main__":
    main()
