"""The child's side of a measurement: its instructions, and its report."""

from __future__ import annotations

import asyncio
import json
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

__all__ = [
    "ASK_TOPIC",
    "COPIES_TOPIC",
    "COUNTS_TOPIC",
    "JSON_PAYLOAD",
    "JSON_TOPIC",
    "KEYED_TOPIC",
    "PAYLOAD",
    "PUBLISH_TOPIC",
    "RECEIVE_TOPIC",
    "Meter",
    "Order",
    "Reading",
    "arguments",
    "measure_latency",
    "measure_rate",
    "measure_requests",
    "metrics_for",
    "on_kafka",
    "report",
]

RECEIVE_TOPIC = "benchmark/receive"
ASK_TOPIC = "benchmark/ask"
JSON_TOPIC = "benchmark/json"
PUBLISH_TOPIC = "benchmark/publish"
COPIES_TOPIC = "benchmark/copies"
KEYED_TOPIC = "benchmark/keyed"
COUNTS_TOPIC = "benchmark/counts"
PAYLOAD = bytes(100)
JSON_PAYLOAD = (
    b'{"sensor":"boiler-17","celsius":81.25,"taken_at":1789459200.125,'
    b'"line":"north-hall4","number":47113}'
)

_STEP = 500
_CHECK = 0.1
_SILENCE = 1.5
_LATENCY_SECONDS = 5.0


@dataclass
class Reading:
    """The value of `JSON_PAYLOAD`."""

    sensor: str
    celsius: float
    taken_at: float
    line: str
    number: int


def on_kafka(topic: str) -> str:
    """Return the name of an address on a Kafka cluster."""
    return topic.replace("/", ".")


@dataclass(frozen=True)
class Order:
    """The instructions to a child; which fields are used depends on the child."""

    port: int = 0
    server: str = ""
    url: str = ""
    topic: str = ASK_TOPIC
    qos: int = 1
    messages: int = 0
    warm_up: int = 0
    at_once: int = 0
    what: str = ""


def arguments() -> Order:
    """Return the order on the command line."""
    return Order(**json.loads(sys.argv[1]))


def report(event: str, **figures: float) -> None:
    """Report an event and figures to the parent."""
    print(json.dumps({"event": event, **figures}), flush=True)


def metrics_for(what: str) -> dict[str, Any]:
    """Return the options of an application with what is to be measured of these."""
    endpoint = {"admin": "127.0.0.1:0"}
    if what == "admin":
        return endpoint
    if what == "prometheus":
        return endpoint | {"metrics": "prometheus"}
    if what == "opentelemetry":
        from opentelemetry.metrics import set_meter_provider
        from opentelemetry.sdk.metrics import MeterProvider
        from opentelemetry.sdk.metrics.export import InMemoryMetricReader

        set_meter_provider(MeterProvider([InMemoryMetricReader()]))
        return endpoint | {"metrics": "opentelemetry"}
    return {}


class Meter:
    """Counts what is received, and measures from the end of the warm-up to the last message.

    Time is looked at once in 500 messages: give multiples of it.

    Args:
        order: how many messages come.
    """

    def __init__(self, order: Order) -> None:
        self._warm_up = order.warm_up
        self._total = order.warm_up + order.messages
        self._seen = 0
        self._next = _STEP
        self._marks: list[tuple[int, float, float]] = []

    def count(self) -> None:
        """Count a message that was handled."""
        self._seen += 1
        if self._seen == self._next:
            self._next += _STEP
            if self._seen >= self._warm_up:
                self._marks.append((self._seen, time.perf_counter(), time.process_time()))

    async def finish(self) -> dict[str, float]:
        """Wait until all messages have come, or no more come; return what was measured."""
        silent_since, seen = time.monotonic(), 0
        while self._seen < self._total:
            await asyncio.sleep(_CHECK)
            if self._seen != seen or not seen:
                silent_since, seen = time.monotonic(), self._seen
            elif time.monotonic() - silent_since > _SILENCE:
                break
        if len(self._marks) < 2:
            raise SystemExit(f"only {self._seen} of {self._total} messages came")
        (first, began, cpu_began), (last, ended, cpu_ended) = self._marks[0], self._marks[-1]
        return {
            "rate": (last - first) / (ended - began),
            "cpu_us": (cpu_ended - cpu_began) / (last - first) * 1e6,
            "lost": float(max(0, self._total - self._seen)),
        }


async def measure_latency(call: Callable[[], Awaitable[object]], order: Order) -> dict[str, float]:
    """Make calls one at a time, as many as ordered after the warm-up, for at most five seconds."""
    for _ in range(order.warm_up):
        await call()
    latencies: list[float] = []
    give_up = time.perf_counter() + _LATENCY_SECONDS
    while len(latencies) < order.messages and time.perf_counter() < give_up:
        began = time.perf_counter()
        await call()
        latencies.append(time.perf_counter() - began)
    return {
        "latency_us": statistics.median(latencies) * 1e6,
        "slow_us": statistics.quantiles(latencies, n=100)[-1] * 1e6,
    }


def measure_rate() -> Callable[[int], dict[str, float]]:
    """Start measuring; return a function from how much was done to the figures."""
    began, cpu_began = time.perf_counter(), time.process_time()

    def figures(done: int) -> dict[str, float]:
        seconds, cpu = time.perf_counter() - began, time.process_time() - cpu_began
        return {"rate": done / seconds, "cpu_us": cpu / done * 1e6}

    return figures


async def measure_requests(ask: Callable[[bytes], Awaitable[bytes]], order: Order) -> None:
    """Measure requests, one at a time and then many at once, and report the result.

    Args:
        ask: sends a request, and returns the reply.
        order: how many requests, and how many at once.
    """

    async def checked() -> None:
        reply: Any = await ask(PAYLOAD)
        if reply != PAYLOAD:
            raise SystemExit(f"the reply is not the request: {reply!r}")

    latency = await measure_latency(checked, order)
    left = 5 * order.messages
    latest = time.perf_counter() + 2 * _LATENCY_SECONDS

    async def worker() -> int:
        nonlocal left
        done = 0
        while left > 0 and time.perf_counter() < latest:
            left -= 1
            await checked()
            done += 1
        return done

    figures = measure_rate()
    done = sum(await asyncio.gather(*(worker() for _ in range(order.at_once))))
    report("result", **latency, **figures(done))
