"""Members of a group that are killed, and the ledger that tells what they have handled."""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Self

from aiokafka import AIOKafkaProducer

from support.appended import AppendedLines
from support.waiting import eventually

__all__ = ["Ledger", "Member", "Numbers", "Process", "seeded"]

_HERE = Path(__file__).parent
_READY = "ready"
_START = 40.0


def seeded() -> random.Random:
    """Random choices of a test, whose seed is printed so that they can be had again."""
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    return random.Random(seed)


class Ledger:
    """The file that all members write to: a line with key and number for each message.

    Attributes:
        times: how often each line was written.
        lives: how often each member has said that it is ready.
        disorder: lines that came for the first time before others of their key that should have
            come first.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.times: Counter[str] = Counter()
        self.lives: Counter[str] = Counter()
        self.disorder: list[str] = []
        self._next: Counter[str] = Counter()
        self._appended = AppendedLines(path)

    def __len__(self) -> int:
        """How many different messages have been handled so far."""
        self.read()
        return len(self.times)

    @property
    def repeated(self) -> int:
        """How often something was handled again."""
        return self.total() - len(self.times)

    def read(self) -> None:
        """Take notice of what was written since the last time."""
        for line in self._appended.new():
            self.note(line)

    def note(self, line: str) -> None:
        """Take notice of one line."""
        key, number = line.split()
        if key == _READY:
            self.lives[number] += 1
            return
        if line not in self.times:
            if int(number) != self._next[key]:
                self.disorder.append(line)
            self._next[key] = max(self._next[key], int(number) + 1)
        self.times[line] += 1

    async def has(self, count: int, timeout: float = 60.0) -> None:
        """Wait until so many different messages are handled."""
        await eventually(lambda: len(self) >= count, timeout, 0.005)

    def total(self) -> int:
        """How many lines have been written so far, the repeated ones too."""
        self.read()
        return self.times.total()

    async def reaches(self, total: int, timeout: float = 60.0) -> None:
        """Wait until so many lines are written."""
        await eventually(lambda: self.total() >= total, timeout, 0.002)


class Numbers:
    """What is handed to the members: keys, and numbers that go up for each key.

    Args:
        server: the broker.
        topic: where to.
        keys: how many.
        rng: chooses the key of each.
        more: further topics, whose numbers go up for themselves: those of key ``k`` in the first of
            them are called those of ``k.1``.
    """

    def __init__(
        self, server: str, topic: str, keys: int, rng: random.Random, more: Sequence[str] = ()
    ) -> None:
        self._topics = [topic, *more]
        self._keys = keys
        self._rng = rng
        self._next: Counter[str] = Counter()
        self._producer = AIOKafkaProducer(
            bootstrap_servers=server, enable_idempotence=True, acks="all"
        )

    @property
    def count(self) -> int:
        """How many there are so far."""
        return self._next.total()

    @property
    def sent(self) -> Counter[str]:
        """How many there are of each key."""
        return +self._next

    async def produce(self, count: int) -> None:
        """So many more; returns when the broker has them."""
        sent: list[asyncio.Future[Any]] = []
        for _ in range(count):
            key = f"k{self._rng.randrange(self._keys)}"
            at = self._rng.randrange(len(self._topics)) if len(self._topics) > 1 else 0
            name = f"{key}.{at}" if at else key
            line = f"{name} {self._next[name]}\n"
            self._next[name] += 1
            sent.append(await self._producer.send(self._topics[at], line.encode(), key.encode()))
        await asyncio.gather(*sent)

    @contextlib.asynccontextmanager
    async def flow(self, count: int, ledger: Ledger, handled: int) -> AsyncIterator[None]:
        """While so many are on their way, after so many lines were written."""
        total = ledger.total() + handled
        producing = asyncio.create_task(self.produce(count))
        try:
            await ledger.reaches(total)
            yield
        finally:
            await producing

    async def __aenter__(self) -> Self:
        await self._producer.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._producer.stop()


class Process:
    """A program of ours that can be ended and started again.

    Args:
        program: its file among these.
        arguments: of its command line.
    """

    def __init__(self, program: str, arguments: Sequence[str]) -> None:
        self._command = [sys.executable, "-W", "error", str(_HERE / program), *arguments]
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def running(self) -> bool:
        """Whether it runs."""
        return self._process is not None and self._process.poll() is None

    def launch(self) -> None:
        """Start it; it is not waited for."""
        assert not self.running
        self._process = subprocess.Popen(self._command)

    def check(self) -> None:
        """Raise AssertionError when it has ended by itself."""
        code = self._process and self._process.poll()
        assert code is None, f"{self._command[4:]} has ended with {code}"

    async def comes(self, ready: Callable[[], bool]) -> None:
        """Wait until it is ready."""

        def looked() -> bool:
            self.check()
            return ready()

        await eventually(looked, _START)

    def send(self, how: signal.Signals) -> None:
        """Send it a signal."""
        assert self._process is not None
        self._process.send_signal(how)

    async def end(self, how: signal.Signals) -> int:
        """Send it a signal and wait for its end; returns the exit code."""
        self.check()
        self.send(how)
        assert self._process is not None
        return await asyncio.to_thread(self._process.wait, 30.0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._process is None or self._process.poll() is not None:
            return
        if kind is not None:
            # It may hang: where, it writes to the captured output, and ends.
            self._process.send_signal(signal.SIGUSR1)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(2.0)
        self._process.kill()
        self._process.wait()


class Member(Process):
    """One member of the group.

    Args:
        url: of the cluster, with options.
        ledger: what it writes to.
        instance: which one it is.
        rate: messages a second that it handles at the most; with concurrency more.
        concurrency: of its handler.
    """

    def __init__(
        self,
        url: str,
        ledger: Ledger,
        instance: int,
        rate: float,
        concurrency: int,
    ) -> None:
        arguments = [url, str(ledger.path), str(instance), str(rate), str(concurrency)]
        super().__init__("kafka_member.py", arguments)
        self.instance = str(instance)
        self._ledger = ledger

    async def start(self) -> None:
        """Start it and wait until it has partitions."""
        self._ledger.read()
        before = self._ledger.lives[self.instance]
        self.launch()
        await self.comes(partial(self._has_lived, before + 1))

    def _has_lived(self, times: int) -> bool:
        self._ledger.read()
        return self._ledger.lives[self.instance] >= times
