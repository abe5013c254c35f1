"""Counts the bytecode instructions of the package in a fixed loop. One loop for each process.

What is counted is what CPython executes of this package, without its harness: neither libraries nor
the machine make a difference, and the same code has the same count whenever it is run, if hash
values are the same (``PYTHONHASHSEED``). What C code does for an instruction is not seen.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import os
from collections import Counter as Stats
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import CodeType, FrameType
from typing import Any, Literal

import msgspec

import spa_dat
from spa_dat import Actor, DistributedApplication, KafkaConfig, KafkaTopic, Socket, on
from spa_dat.actors import ActorSystem, Mailbox
from spa_dat.testing import Harness
from spa_dat.transports import Envelope
from spa_dat.transports.mqtt.protocol._packets import PublishDecoder, PublishPacket

from ._child import JSON_PAYLOAD, PAYLOAD, Order, Reading, arguments, report
from .actors_local import Counter

_CALL, _OPCODE = 0, 7
# Whatever the folders above are called.
_PACKAGE = os.path.dirname(spa_dat.__file__) + os.sep
_HARNESS = os.path.join(_PACKAGE, "harness") + os.sep
_Traced = ctypes.PYFUNCTYPE(
    ctypes.c_int, ctypes.py_object, ctypes.py_object, ctypes.c_int, ctypes.c_void_p
)
_NOTHING = _Traced()
# Not sys.settrace: that fills in the locals of each frame, whose references the package counts.
_set_trace = ctypes.pythonapi.PyEval_SetTrace
_set_trace.argtypes = (_Traced, ctypes.py_object)
_set_trace.restype = None

Profile = Literal["mqtt", "kafka"]


class Instructions:
    """Counts instructions while it is told to.

    Attributes:
        count: so far.
    """

    def __init__(self) -> None:
        self.count = 0
        self._ours: dict[CodeType, bool] = {}
        self._callback = _Traced(self._traced)

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Count until the context is left."""
        gc.collect()
        gc.disable()
        _set_trace(self._callback, None)
        try:
            yield
        finally:
            _set_trace(_NOTHING, None)
            gc.enable()

    def _traced(self, nothing: None, frame: FrameType, what: int, argument: int | None) -> int:
        if what == _OPCODE:
            self.count += 1
        elif what == _CALL:
            code = frame.f_code
            ours = self._ours.get(code)
            if ours is None:
                ours = self._ours[code] = _is_counted(code)
            frame.f_trace_lines = False
            frame.f_trace_opcodes = ours
        return 0


def _is_counted(code: CodeType) -> bool:
    return code.co_filename.startswith(_PACKAGE) and not code.co_filename.startswith(_HARNESS)


@dataclass
class Truck:
    """The state of a key."""

    count: int = 0


async def tell(order: Order, seen: Instructions) -> None:
    system = ActorSystem()
    ref = system.spawn(Counter, mailbox=Mailbox(order.messages + 1))
    await ref.ask(None)
    with seen.counted():
        for _ in range(order.messages):
            ref.tell(None)
        await ref.ask(None)
    await system.stop_all(timeout=60.0)


async def ask(order: Order, seen: Instructions) -> None:
    system = ActorSystem()
    ref = system.spawn(Counter)
    await ref.ask(None)
    with seen.counted():
        for _ in range(order.messages):
            await ref.ask(None)
    await system.stop_all(timeout=60.0)


def packets(order: Order, seen: Instructions) -> None:
    decode = PublishDecoder(Stats()).decode
    envelope = Envelope(topic="plant/boiler", payload=PAYLOAD, qos=1, headers={"trace": "17"})
    with seen.counted():
        for number in range(1, order.messages + 1):
            data = PublishPacket(envelope).encode(number)
            decode(data[0], data, 3, len(data))


def _app() -> DistributedApplication:
    return DistributedApplication("mqtt://broker.example", name="counted")


def _published(
    app: DistributedApplication,
    profile: Profile,
    topics: Callable[[int], str],
    payload: object,
    order: Order,
    seen: Instructions,
) -> None:
    """Count from publishing many messages until all of them are settled."""
    with Harness(app, profile=profile) as harness:

        def publish(count: int) -> None:
            for number in range(count):
                harness.publish(topics(number), payload)
            harness.settle()

        publish(50)
        with seen.counted():
            publish(order.messages)


def receive(order: Order, seen: Instructions, profile: Profile) -> None:
    app = _app()

    @app.application("in")
    async def take(payload: bytes) -> None:
        """Do nothing."""

    _published(app, profile, lambda number: "in", PAYLOAD, order, seen)


def typed(order: Order, seen: Instructions, profile: Profile) -> None:
    app = _app()

    @app.application("in")
    async def take(reading: Reading) -> None:
        """Do nothing."""

    reading = msgspec.json.decode(JSON_PAYLOAD, type=Reading)
    _published(app, profile, lambda number: "in", reading, order, seen)


def forward(order: Order, seen: Instructions, profile: Profile) -> None:
    app = _app()

    @app.application("in")
    async def take(payload: bytes, socket: Socket) -> None:
        socket.post("out", payload)

    _published(app, profile, lambda number: "in", PAYLOAD, order, seen)


def keyed(order: Order, seen: Instructions, profile: Profile) -> None:
    app = _app()

    @app.application("fleet/{truck}/position", per="truck", state=Truck)
    async def take(payload: bytes, truck: str, state: Truck) -> None:
        state.count += 1

    _published(app, profile, lambda number: f"fleet/{number % 40}/position", PAYLOAD, order, seen)


def exactly_once(order: Order, seen: Instructions, profile: Profile) -> None:
    names = ("positions", "totals")
    topics = {f"{name}/{{truck}}": KafkaTopic(name, key="truck") for name in names}
    config = KafkaConfig("broker.example", topics=topics)
    app = DistributedApplication(config, name="counted", instance="0")

    # A class, whose handlers are bound for each key.
    class Fleet(Actor):
        per, state, durable, exactly_once = "truck", Truck, True, True

        @on("positions/{truck}")
        async def take(self, payload: bytes, truck: str, socket: Socket) -> None:
            self.state.count += 1
            await socket.publish(f"totals/{truck}", payload)

    app.add(Fleet)
    _published(app, profile, lambda number: f"positions/{number % 40}", PAYLOAD, order, seen)


def request(order: Order, seen: Instructions, profile: Profile) -> None:
    app = _app()

    @app.application("ask")
    async def answer(payload: bytes) -> bytes:
        return payload

    with Harness(app, profile=profile) as harness:
        harness.request("ask", PAYLOAD)
        with seen.counted():
            for _ in range(order.messages):
                harness.request("ask", PAYLOAD)


_LOCAL: dict[str, Callable[[Order, Instructions], Any]] = {"tell": tell, "ask": ask}
_ON_BUSES: dict[str, Callable[[Order, Instructions, Profile], None]] = {
    one.__name__: one for one in (receive, typed, forward, keyed, exactly_once, request)
}


def main() -> None:
    """Count what is asked for, and report the instructions of a message."""
    order = arguments()
    what, _, profile = order.what.partition(":")
    seen = Instructions()
    if what == "packets":
        packets(order, seen)
    elif what in _LOCAL:
        asyncio.run(_LOCAL[what](order, seen))
    else:
        _ON_BUSES[what](order, seen, "kafka" if profile == "kafka" else "mqtt")
    report("result", instructions=seen.count / order.messages)


if __name__ == "__main__":
    main()
