"""Child processes: ours, and those of the standard library. One measurement for each process."""

from __future__ import annotations

import asyncio
import hashlib
import multiprocessing
import pickle
import socket
import struct
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing.connection import Connection
from typing import Any

from spa_dat import DistributedApplication
from spa_dat.runtime.application._application import runs_of
from spa_dat.transports import Delivery, Envelope, Tracker

from ._child import Order, arguments, report

_KILOBYTE = b"x" * 1024
_UNITS = 4_000
_LENGTH = struct.Struct("!I")


def compute(units: int) -> bytes:
    """Keep a CPU busy for some milliseconds."""
    digest = b""
    for _ in range(units):
        digest = hashlib.sha256(digest + _KILOBYTE[:64]).digest()
    return digest


def nothing(payload: bytes) -> None:
    """Take a payload and do nothing with it."""


def echo(pipe: Connection) -> None:
    """Answer each payload, until None comes."""
    while pipe.recv() is not None:
        pipe.send(None)


def _application(handler: Callable[..., Any], processes: int = 1) -> DistributedApplication:
    app = DistributedApplication("memory://?max_payload=100000000&outbox=1000000", name="bench")
    app.application("in", name="work", placement="process", processes=processes, window=2000)(
        handler
    )
    return app


async def _handled(app: DistributedApplication, count: int) -> None:
    while app.stats["messages.handled"] < count:
        await asyncio.sleep(0.001)


async def _post(app: DistributedApplication, payloads: Iterable[bytes]) -> None:
    socket = app.socket()
    for number, payload in enumerate(payloads):
        socket.post("in", payload)
        if number % 200 == 199:
            await socket.drain()
            await asyncio.sleep(0)


async def cpu(order: Order) -> dict[str, float]:
    """Measure messages that keep a CPU busy, per second."""

    async def work(payload: bytes) -> None:
        compute(int(payload))

    processes = int(order.what.rpartition("_")[2])
    warm = 20 * processes
    async with _application(work, processes) as app:
        text = str(_UNITS).encode()
        await _post(app, [text] * warm)
        await _handled(app, warm)
        began = time.perf_counter()
        await _post(app, [text] * order.messages)
        await _handled(app, warm + order.messages)
        return {"rate": order.messages / (time.perf_counter() - began)}


def pool(order: Order) -> dict[str, float]:
    """Measure the same with a pool of two processes."""
    with multiprocessing.get_context("spawn").Pool(2) as workers:
        list(workers.imap_unordered(compute, [_UNITS] * 40))
        began = time.perf_counter()
        for _ in workers.imap_unordered(compute, [_UNITS] * order.messages):
            pass
        return {"rate": order.messages / (time.perf_counter() - began)}


async def pipelined(order: Order) -> dict[str, float]:
    """Measure messages of 1 KB that do nothing, per second, until the last is settled."""

    async def work(payload: bytes) -> None:
        nothing(payload)

    async with _application(work) as app:
        await _post(app, [_KILOBYTE] * 500)
        await _handled(app, 500)
        began = time.perf_counter()
        await _post(app, [_KILOBYTE] * order.messages)
        await _handled(app, 500 + order.messages)
        return {"rate": order.messages / (time.perf_counter() - began)}


def executor(order: Order) -> dict[str, float]:
    """Measure the same with one future for each message."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context) as workers:
        workers.submit(nothing, _KILOBYTE).result()
        began = time.perf_counter()
        left: list[Future[None]] = [
            workers.submit(nothing, _KILOBYTE) for _ in range(order.messages)
        ]
        for future in left:
            future.result()
        return {"rate": order.messages / (time.perf_counter() - began)}


class _Lane:
    """Gives messages right to the actor that runs in a process, each when the last is settled."""

    def __init__(self, app: DistributedApplication, payload: bytes) -> None:
        run = runs_of(app).current
        assert run is not None
        (actor,) = run.actors
        (self._lane,) = actor.lanes
        (self._route,) = run.routes_to(actor)
        self._envelope = Envelope(topic="in", payload=payload)
        self._loop = asyncio.get_running_loop()
        self._over = self._loop.create_future()
        self._tracker = Tracker(self._settled)
        self._left = 0

    async def trips(self, count: int) -> None:
        """Have so many messages handled."""
        self._left = count
        self._over = self._loop.create_future()
        self._give()
        await self._over

    def _settled(self, released: list[Delivery]) -> None:
        self._left -= 1
        if self._left:
            self._give()
        else:
            self._over.set_result(None)

    def _give(self) -> None:
        envelope = self._envelope
        delivery: Any = self._tracker.register(envelope, self._left, len(envelope.payload))
        delivery.route = self._route
        self._lane.mailbox.force(delivery)


async def trips(order: Order, size: int = 1024) -> dict[str, float]:
    """Measure the microseconds of a round trip, one message at a time."""

    async def work(payload: bytes) -> None:
        nothing(payload)

    payload = b"x" * size
    began = time.perf_counter()
    async with _application(work) as app:
        started = time.perf_counter() - began
        lane = _Lane(app, payload)
        await lane.trips(min(200, order.messages))
        began = time.perf_counter()
        await lane.trips(order.messages)
        took = time.perf_counter() - began
    return {"us": took / order.messages * 1e6, "start": started}


def bare(order: Order, size: int = 1024) -> dict[str, float]:
    """Measure the same over a bare pipe, with pickling."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    began = time.perf_counter()
    child = context.Process(target=echo, args=(theirs,))
    child.start()
    payload = b"x" * size
    ours.send(payload)
    ours.recv()
    started = time.perf_counter() - began
    for _ in range(min(200, order.messages)):
        ours.send(payload)
        ours.recv()
    began = time.perf_counter()
    for _ in range(order.messages):
        ours.send(payload)
        ours.recv()
    took = time.perf_counter() - began
    ours.send(None)
    child.join()
    return {"us": took / order.messages * 1e6, "start": started}


class _Pickles(asyncio.Protocol):
    """Sends and receives pickled objects, each after its length."""

    def __init__(self) -> None:
        self.received: Callable[[object], None] = lambda one: None
        self._in = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        got = self._in
        got += data
        while len(got) >= _LENGTH.size:
            end = _LENGTH.size + _LENGTH.unpack_from(got)[0]
            if len(got) < end:
                return
            one = pickle.loads(got[_LENGTH.size : end])
            del got[:end]
            self.received(one)

    def send(self, one: object) -> None:
        """Send an object."""
        data = pickle.dumps(one)
        self._transport.write(_LENGTH.pack(len(data)) + data)


async def _open(end: socket.socket) -> _Pickles:
    _, opened = await asyncio.get_running_loop().create_connection(_Pickles, sock=end)
    return opened


def echo_on_loop(end: socket.socket) -> None:
    """Answer each payload on an event loop, until None comes."""

    async def answer() -> None:
        over = asyncio.get_running_loop().create_future()
        pipe = await _open(end)
        pipe.received = lambda one: over.set_result(None) if one is None else pipe.send(None)
        await over

    asyncio.run(answer())


async def loops(order: Order, size: int = 1024) -> dict[str, float]:
    """Measure the same between two event loops, with pickling."""
    ours, theirs = socket.socketpair()
    began = time.perf_counter()
    child = multiprocessing.get_context("spawn").Process(target=echo_on_loop, args=(theirs,))
    child.start()
    theirs.close()
    payload = b"x" * size
    pipe = await _open(ours)

    async def have_answered(count: int) -> None:
        over = asyncio.get_running_loop().create_future()
        left = count

        def next_one(answer: object) -> None:
            nonlocal left
            left -= 1
            if left:
                pipe.send(payload)
            else:
                over.set_result(None)

        pipe.received = next_one
        pipe.send(payload)
        await over

    await have_answered(1)
    started = time.perf_counter() - began
    await have_answered(min(200, order.messages))
    began = time.perf_counter()
    await have_answered(order.messages)
    took = time.perf_counter() - began
    pipe.send(None)
    await asyncio.to_thread(child.join)
    return {"us": took / order.messages * 1e6, "start": started}


def main() -> None:
    """Measure what is asked for, and report it."""
    order = arguments()
    what, _, size = order.what.partition(":")
    if what.startswith("cpu_"):
        figures = asyncio.run(cpu(order))
    elif what == "pipelined":
        figures = asyncio.run(pipelined(order))
    elif what == "trips":
        figures = asyncio.run(trips(order, int(size or 1024)))
    elif what == "bare":
        figures = bare(order, int(size or 1024))
    elif what == "loops":
        figures = asyncio.run(loops(order, int(size or 1024)))
    else:
        figures = {"pool": pool, "executor": executor}[what](order)
    report("result", **figures)


if __name__ == "__main__":
    main()
