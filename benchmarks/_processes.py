"""Actors in child processes next to the pools of the standard library."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from ._children import Child
from ._measure import Column, Contender, Suite, Target

__all__ = ["suites"]

_ONE = "spa_dat, processes=1"
_TWO = "spa_dat, processes=2"
_POOL = "Pool(2).imap_unordered"
_OURS = "spa_dat"
_EXECUTOR = "ProcessPoolExecutor.submit"
_PIPE = "multiprocessing.Pipe"
_LOOPS = "asyncio, pickle"
_SECONDS = 180.0


def _contender(name: str, what: str, messages: int) -> Contender:
    def run() -> dict[str, float]:
        order = {"what": what, "messages": messages}
        with Child(sys.executable, "processes", order, seconds=_SECONDS) as child:
            return child.expect("result")

    return Contender(name, run)


def _trips(title: str, size: int, messages: int, targets: Sequence[Target] = ()) -> Suite:
    return Suite(
        title,
        f"{messages:,} messages of {size:,} bytes, one at a time, from the actor's mailbox until"
        " they are settled. Beside it a process that answers, payload and answer pickled: over a"
        " bare pipe, both sides blocked until something comes, and over a socket pair with an"
        " event loop at each end; ours has two pipes, and shared memory for large payloads."
        " The start is that of the interpreter, the package and the actor.",
        (
            _contender(_OURS, f"trips:{size}", messages),
            _contender(_PIPE, f"bare:{size}", messages),
            _contender(_LOOPS, f"loops:{size}", messages),
        ),
        (
            Column("us", "µs a message", ".1f", ratio=True),
            Column("start", "seconds to start", ".2f"),
        ),
        targets,
    )


def suites(*, quick: bool) -> Sequence[Suite]:
    """Return the suites of handlers that compute, and of messages; of large ones unless quick."""
    scale = 4 if quick else 1
    computed, small, trips = 800 // scale, 40_000 // scale, 4_000 // scale
    those_of_small_ones = (
        Suite(
            "Processes: handlers that compute",
            f"{computed:,} messages, each of which keeps a CPU busy for some milliseconds.",
            (
                _contender(_TWO, "cpu_2", computed),
                _contender(_ONE, "cpu_1", computed),
                _contender(_POOL, "pool", computed),
            ),
            (Column("rate", "messages/s", ratio=True),),
            (
                Target("two processes by one", 1.8, lambda got: got.ratio(_TWO, _ONE, "rate")),
                Target("two processes by Pool(2)", 0.9, lambda got: got.ratio(_TWO, _POOL, "rate")),
            ),
        ),
        Suite(
            "Processes: small messages",
            f"{small:,} messages of 1 KB to a handler that does nothing, published on memory://,"
            " until the last is settled. The executor gets a call for each message.",
            (
                _contender(_OURS, "pipelined", small),
                _contender(_EXECUTOR, "executor", small),
            ),
            (Column("rate", "messages/s", ratio=True),),
            (
                Target(
                    "messages of 1 KB to a process a second",
                    20_000,
                    lambda got: got.median(_OURS, "rate"),
                    form=",.0f",
                ),
                Target(
                    "the same, by ProcessPoolExecutor",
                    2.0,
                    lambda got: got.ratio(_OURS, _EXECUTOR, "rate"),
                ),
            ),
        ),
        _trips(
            "Processes: one message at a time",
            1024,
            trips,
            (
                Target(
                    "round trip to a process, by a bare pipe's",
                    1.5,
                    lambda got: got.ratio(_OURS, _PIPE, "us"),
                    at_least=False,
                ),
            ),
        ),
    )
    if quick:
        return those_of_small_ones
    return (
        *those_of_small_ones,
        _trips("Processes: 1 MB", 1_000_000, trips // 10),
        _trips("Processes: 10 MB", 10_000_000, trips // 40),
    )
