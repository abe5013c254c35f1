"""Readings for the example deployment, and the ledger that it writes."""

from __future__ import annotations

import asyncio
import random
import threading
from collections import Counter
from pathlib import Path

from spa_dat import DistributedApplication

from .appended import AppendedLines
from .hosts import Host

__all__ = ["Readings", "SharedLedger"]

_TOPIC = "plant/readings"
_STEP = 0.02


class SharedLedger:
    """What the instances have written down, all of them to one file.

    Attributes:
        times: how often each reading is there, by machine and number.
        by: how many lines each instance has written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.times: Counter[tuple[str, int]] = Counter()
        self.by: Counter[str] = Counter()
        self._lines: list[tuple[str, int, str]] = []
        self._appended = AppendedLines(path)

    def read(self) -> None:
        """Take notice of what was written since the last time."""
        for line in self._appended.new():
            machine, number, instance = line.split()
            self._lines.append((machine, int(number), instance))
            self.times[machine, int(number)] += 1
            self.by[instance] += 1

    def handled(self) -> int:
        """Return how many different readings are there by now."""
        self.read()
        return len(self.times)

    def lines_of(self, instance: str) -> int:
        """Return how many lines an instance has written by now."""
        self.read()
        return self.by[instance]

    def of(self, instance: str) -> set[tuple[str, int]]:
        """Return the readings that an instance has handled by now."""
        self.read()
        return {(machine, number) for machine, number, by in self._lines if by == instance}

    @property
    def repeated(self) -> int:
        """How many lines are not the first ones of their readings."""
        return self.times.total() - len(self.times)

    def disorder(self, *, of_each_instance: bool) -> list[str]:
        """Return first copies that came after later ones of their machine.

        Args:
            of_each_instance: look at each instance alone, as what is dealt out in turn has no
                order beyond that.
        """
        wrong = []
        latest: dict[tuple[str, str], int] = {}
        seen: set[tuple[str, int]] = set()
        for machine, number, instance in self._lines:
            if (machine, number) in seen:
                continue
            seen.add((machine, number))
            place = (machine, instance if of_each_instance else "")
            if number < latest.get(place, -1):
                wrong.append(f"{machine} {number} by {instance} after {latest[place]}")
            latest[place] = max(number, latest.get(place, -1))
        return wrong


class Readings:
    """Sends readings, numbered for each machine, from a host; in a thread of its own.

    Use it as an async context manager: it sends until the end of the block.

    Args:
        host: where it runs.
        url: of the broker.
        rng: chooses the machine of each.
        machines: how many there are.
        rate: readings a second.
    """

    def __init__(
        self, host: Host, url: str, rng: random.Random, *, machines: int = 12, rate: float = 150.0
    ) -> None:
        self._host = host
        self._url = url
        self._rng = rng
        self._machines = machines
        self._burst = max(1, round(rate * _STEP))
        self._numbers: Counter[str] = Counter()
        self._confirmed = 0
        self._end = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work)

    @property
    def confirmed(self) -> int:
        """How many the broker has confirmed so far."""
        if self._error is not None:
            raise self._error
        return self._confirmed

    def sent(self) -> set[tuple[str, int]]:
        """Return those that have been sent by now, by machine and number."""
        numbers = self._numbers.copy()
        return {(machine, number) for machine, count in numbers.items() for number in range(count)}

    def _work(self) -> None:
        try:
            self._host.enter()
            asyncio.run(self._send())
        except BaseException as error:
            self._error = error

    async def _send(self) -> None:
        app = DistributedApplication(self._url, name="meters")
        async with app:
            socket = app.socket()
            while not self._end.is_set():
                burst = []
                for _ in range(self._burst):
                    machine = f"m{self._rng.randrange(self._machines)}"
                    reading = {"machine": machine, "number": self._numbers[machine], "celsius": 60}
                    self._numbers[machine] += 1
                    burst.append(socket.publish(_TOPIC, reading, key=machine, timeout=30))
                await asyncio.gather(*burst)
                self._confirmed += len(burst)
                await asyncio.sleep(_STEP)

    async def __aenter__(self) -> Readings:
        self._thread.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._end.set()
        await asyncio.to_thread(self._thread.join)
        if self._error is not None:
            raise self._error
