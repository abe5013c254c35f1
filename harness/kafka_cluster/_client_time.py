"""Virtual time for the Kafka client library, which asks the system's clock."""

from __future__ import annotations

import asyncio
import contextlib
import time
import types
from collections.abc import Callable, Iterator
from typing import Any
from weakref import WeakKeyDictionary

import aiokafka.client
import aiokafka.cluster
import aiokafka.conn
import aiokafka.consumer.fetcher
import aiokafka.consumer.group_coordinator
import aiokafka.consumer.subscription_state
import aiokafka.producer.message_accumulator as accumulator
from aiokafka.record.default_records import DefaultRecordBatchBuilder

from ...errors import ConfigurationError

__all__ = ["virtual_time"]

_MODULES: tuple[types.ModuleType, ...] = (
    aiokafka.client,
    aiokafka.cluster,
    aiokafka.conn,
    aiokafka.consumer.fetcher,
    aiokafka.consumer.group_coordinator,
    aiokafka.consumer.subscription_state,
    accumulator,
)
_BUILDER = "DefaultRecordBatchBuilder"


class _LoopClock:
    """Stands in for the module `time`: gives the time of the running loop, if it is registered."""

    def __init__(self) -> None:
        self.loops: WeakKeyDictionary[asyncio.AbstractEventLoop, Callable[[], float]] = (
            WeakKeyDictionary()
        )

    def monotonic(self) -> float:
        """Return the time of the running loop, or the system's."""
        loop = asyncio._get_running_loop()
        return time.monotonic() if loop is None or loop not in self.loops else loop.time()

    def time(self) -> float:
        """Return the wall time of the running loop, or the system's."""
        loop = asyncio._get_running_loop()
        now = None if loop is None else self.loops.get(loop)
        return time.time() if now is None else now()

    def __getattr__(self, name: str) -> Any:
        return getattr(time, name)


class _TimedBatchBuilder(DefaultRecordBatchBuilder):  # type: ignore[misc]
    """Builds batches; records without a timestamp get the time of the loop, not the system's."""

    def append(self, offset: int, timestamp: int | None, key: Any, value: Any, headers: Any) -> Any:
        moment = int(_clock.time() * 1000) if timestamp is None else timestamp
        return super().append(offset, moment, key, value, headers)


_clock = _LoopClock()
_users = 0


@contextlib.contextmanager
def virtual_time(loop: asyncio.AbstractEventLoop, now: Callable[[], float]) -> Iterator[None]:
    """Make the Kafka client library take its time from a loop, wherever that loop runs.

    In other loops and threads nothing changes. Several can be in use at once, and end in any order.

    Args:
        loop: the loop.
        now: returns the wall time, in seconds since 1970.

    Raises:
        ConfigurationError: the installed library does not use `time` as expected.
    """
    global _users
    strange = [module.__name__ for module in _MODULES if not _asks_module_time(module)]
    if vars(accumulator).get(_BUILDER) not in (DefaultRecordBatchBuilder, _TimedBatchBuilder):
        strange.append(f"{accumulator.__name__}.{_BUILDER}")
    if strange:
        raise ConfigurationError(
            f"{', '.join(strange)} cannot be put on virtual time: install aiokafka>=0.14,<0.15"
        )
    _clock.loops[loop] = now
    _users += 1
    for module in _MODULES:
        vars(module)["time"] = _clock
    vars(accumulator)[_BUILDER] = _TimedBatchBuilder
    try:
        yield
    finally:
        del _clock.loops[loop]
        _users -= 1
        if not _users:
            for module in _MODULES:
                vars(module)["time"] = time
            vars(accumulator)[_BUILDER] = DefaultRecordBatchBuilder


def _asks_module_time(module: types.ModuleType) -> bool:
    return vars(module).get("time") in (time, _clock)
