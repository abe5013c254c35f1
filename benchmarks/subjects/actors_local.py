"""Actors in one process: ours, and threads of pykka. One measurement for each process."""

from __future__ import annotations

import asyncio
import resource
import time
import tracemalloc
from collections.abc import Awaitable, Callable

import pykka

from spa_dat.actors import Actor, ActorSystem, Mailbox

from ._child import Order, arguments, report

_IDLE = 5_000
_STOP_TIMEOUT = 60.0


class Counter(Actor):
    """Counts messages, and answers with the count."""

    def __init__(self) -> None:
        self.count = 0

    async def on_receive(self, message: object) -> int:
        self.count += 1
        return self.count


class ThreadCounter(pykka.ThreadingActor):
    """The same as a thread of pykka."""

    use_daemon_thread = True

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def on_receive(self, message: object) -> int:
        self.count += 1
        return self.count


async def tell(order: Order) -> dict[str, float]:
    """Measure messages told and handled per second."""
    system = ActorSystem()
    ref = system.spawn(Counter, mailbox=Mailbox(order.messages + 1))
    await ref.ask(None)
    began, cpu_began = time.perf_counter(), time.process_time()
    for _ in range(order.messages):
        ref.tell(None)
    await ref.ask(None)
    figures = _rate(order, began, cpu_began)
    await system.stop_all(timeout=_STOP_TIMEOUT)
    return figures


async def ask(order: Order) -> dict[str, float]:
    """Measure round trips per second, one at a time."""
    system = ActorSystem()
    ref = system.spawn(Counter)
    await ref.ask(None)
    began, cpu_began = time.perf_counter(), time.process_time()
    for _ in range(order.messages):
        await ref.ask(None)
    figures = _rate(order, began, cpu_began)
    await system.stop_all(timeout=_STOP_TIMEOUT)
    return figures


async def pykka_tell(order: Order) -> dict[str, float]:
    """Measure the same as `tell`, to a thread of pykka."""
    ref = ThreadCounter.start()
    ref.ask(None)
    began, cpu_began = time.perf_counter(), time.process_time()
    for _ in range(order.messages):
        ref.tell(None)
    ref.ask(None)
    figures = _rate(order, began, cpu_began)
    ref.stop()
    return figures


async def pykka_ask(order: Order) -> dict[str, float]:
    """Measure the same as `ask`, of a thread of pykka."""
    ref = ThreadCounter.start()
    ref.ask(None)
    began, cpu_began = time.perf_counter(), time.process_time()
    for _ in range(order.messages):
        ref.ask(None)
    figures = _rate(order, began, cpu_began)
    ref.stop()
    return figures


async def idle(order: Order) -> dict[str, float]:
    """Measure what Python allocates for an idle actor, including its task and its mailbox."""
    system = ActorSystem()
    await system.spawn(Counter).ask(None)
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    refs = [system.spawn(Counter) for _ in range(_IDLE)]
    for ref in refs:
        await system.started(ref)
    await asyncio.sleep(0)
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    await system.stop_all(timeout=_STOP_TIMEOUT)
    return {"bytes": (after - before) / _IDLE}


async def many(order: Order) -> dict[str, float]:
    """Measure the seconds to start and to stop all actors, and the growth of the process."""
    system = ActorSystem()
    await system.spawn(Counter).ask(None)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.perf_counter()
    refs = [system.spawn(Counter) for _ in range(order.messages)]
    for ref in refs:
        await system.started(ref)
    started = time.perf_counter()
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    await system.stop_all(timeout=_STOP_TIMEOUT)
    return {
        "start": started - began,
        "stop": time.perf_counter() - started,
        "resident": grown * 1024 / order.messages,
    }


def _rate(order: Order, began: float, cpu_began: float) -> dict[str, float]:
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu_began
    return {"rate": order.messages / seconds, "cpu_us": cpu / order.messages * 1e6}


_WHAT: dict[str, Callable[[Order], Awaitable[dict[str, float]]]] = {
    measure.__name__: measure for measure in (tell, ask, pykka_tell, pykka_ask, idle, many)
}


async def _main() -> None:
    order = arguments()
    report("result", **await _WHAT[order.what](order))


if __name__ == "__main__":
    asyncio.run(_main())
