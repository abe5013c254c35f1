"""A run repeats exactly: in each process, whatever hash values texts have and objects lie where."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest

from spa_dat import Context, DistributedApplication, Socket, SyncSocket
from spa_dat.testing import Faults, Harness
from support.hash_seeds import output_with_hash_seed

_PROGRAM = """
import logging, sys
from test_harness_repeats import trace
logging.disable()
for seed in map(int, sys.argv[1:]):
    print(f"seed {seed}")
    print(trace(seed))
"""


def workers(instance: int) -> DistributedApplication:
    """One of two instances that share work, fail, draw by lot, ask each other and use threads."""
    app = DistributedApplication("mqtt://broker", name="workers", instance=str(instance))

    @app.application("job/{kind}", name="work", deliver="share", state=Counter)
    async def work(job: int, kind: str, state: Counter[str], socket: Socket) -> None:
        state[kind] += 1
        await socket.publish(f"done/{kind}", job)
        if job % 7 == 0 and state[kind] % 3 == 1:
            raise ValueError(job)

    @app.application("done/{kind}", name="collect", deliver="share", concurrency=3)
    async def collect(job: int, kind: str, context: Context, socket: Socket) -> None:
        await asyncio.sleep(context.random.random())
        for part in range(3):
            await socket.publish("parts", f"{kind}{job}{part}")

    @app.application("part/#", name="all", deliver="all")
    def everything(payload: int, socket: SyncSocket) -> None:
        socket.publish("parts", "seen")

    if instance == 0:

        @app.application("ask")
        async def answer(question: int) -> int:
            return question

        @app.producer(every=2)
        async def ask(socket: Socket) -> None:
            await socket.request("ask", 1, reply=int)

    return app


def trace(seed: int) -> str:
    """Return the trace of a run on Kafka with everything that can go wrong."""
    with Harness(
        workers(0),
        workers(1),
        profile="kafka",
        seed=seed,
        faults=Faults.all(),
        allow_failures=Exception,
    ) as harness:
        for number in range(12):
            harness.publish(f"job/{'abc'[number % 3]}", number)
            harness.publish(f"part/{'xyz'[number % 3]}", number)
        harness.advance(5)
        harness.publish("job/z", 3)
        harness.settle()
        return harness.trace


def in_a_process(hash_seed: int, seeds: list[int]) -> str:
    return output_with_hash_seed(str(hash_seed), _PROGRAM, *map(str, seeds)).decode()


@pytest.mark.deadline(300)
def test_the_trace_does_not_depend_on_hash_values() -> None:
    seeds = [14, 18]
    hash_seeds = [0, 1, random.SystemRandom().randrange(1, 2**32)]
    with ThreadPoolExecutor() as threads:
        first, *others = threads.map(in_a_process, hash_seeds, [seeds] * 3)
    assert first.count("\n") > 100 * len(seeds)
    for hash_seed, other in zip(hash_seeds[1:], others, strict=True):
        assert other == first, f"PYTHONHASHSEED={hash_seed}"
