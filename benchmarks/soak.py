"""``python -m benchmarks.soak``: kills processes of an application at random while it works.

Messages are numbered for each key. The application writes each one down in a ledger, which tells at
the end whether something was lost, handled out of order, or handled again.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from spa_dat import DistributedApplication
from spa_dat.testing import Kafka, Mosquitto

_SUBJECT = "benchmarks/subjects/soaked.py"
_KEYS = 24
_RATE = 600.0
_STEP = 0.02
_PAUSES = (0.1, 2.0)
# Whatever dies within a second of its start, again and again, is given up on purpose.
_LEAST_AGE = 1.2
_START_TIMEOUT = 60.0
_REST_TIMEOUT = 180.0
_STOP_TIMEOUT = 60.0
# What a broker and dead processes may hold up without the application being at fault.
_MOST_AHEAD = 5_000


@dataclass(frozen=True)
class Mode:
    """How the application runs, and what order it promises.

    Attributes:
        workers: of ``spa-dat run``; 0 for the command's own process.
        processes: of the actor; 0 for none.
        keeps_keys: whether messages with one key are in order on this bus, whoever handles them;
            otherwise they are for each instance alone.
    """

    workers: int
    processes: int
    keeps_keys: bool


_MODES = {
    ("workers", "kafka"): Mode(3, 0, keeps_keys=True),
    # Shared subscriptions deal messages out in turn.
    ("workers", "mqtt"): Mode(3, 0, keeps_keys=False),
    ("processes", "kafka"): Mode(0, 3, keeps_keys=True),
    ("processes", "mqtt"): Mode(0, 3, keeps_keys=True),
}


class Ledger:
    """What the application has written down so far.

    Attributes:
        times: how often each message is there, by key and number.
        writers: when each process was first seen to write, by its id.
        active: those that have written since `forget_active`.
        starts: how often an instance has said that it has started.
    """

    def __init__(self, path: Path) -> None:
        self.times: Counter[tuple[str, int]] = Counter()
        self.writers: dict[int, float] = {}
        self.active: set[int] = set()
        self.starts = 0
        self._path = path
        self._read = 0
        self._latest: dict[tuple[str, str], int] = {}
        self._disorder: Counter[bool] = Counter()
        path.touch()

    def read(self) -> None:
        """Take notice of what was written since the last time."""
        with self._path.open("rb") as file:
            file.seek(self._read)
            data = file.read()
        end = data.rfind(b"\n") + 1
        self._read += end
        now = time.monotonic()
        for line in data[:end].decode().splitlines():
            if line.startswith("started "):
                self.starts += 1
                continue
            key, number, instance, pid = line.split()
            self._note(key, int(number), instance)
            self.writers.setdefault(int(pid), now)
            self.active.add(int(pid))

    def _note(self, key: str, number: int, instance: str) -> None:
        self.times[key, number] += 1
        if self.times[key, number] > 1:
            return
        for of_each_instance in (False, True):
            place = (key, instance if of_each_instance else "")
            latest = self._latest.get(place, -1)
            self._disorder[of_each_instance] += number < latest
            self._latest[place] = max(number, latest)

    def forget_active(self) -> None:
        """Count as active only those that write from now on."""
        self.read()
        self.active.clear()

    def disorder(self, *, of_each_instance: bool) -> int:
        """Return how many messages came for the first time after later ones of their key."""
        return self._disorder[of_each_instance]

    @property
    def repeated(self) -> int:
        """How many lines are not the first ones of their messages."""
        return self.times.total() - len(self.times)


class Numbers:
    """Publishes numbered messages for as long as it is wanted.

    Attributes:
        sent: how many the broker has confirmed, by key.
    """

    def __init__(self, url: str, topic: str, rng: random.Random, ledger: Ledger) -> None:
        self.sent: Counter[str] = Counter()
        self._app = DistributedApplication(url, name=f"{topic.partition('/')[0]}-numbers")
        self._topic = topic
        self._rng = rng
        self._ledger = ledger
        self._end = asyncio.Event()

    async def send(self) -> None:
        """Publish until `end`."""
        async with self._app:
            socket = self._app.socket()
            burst = round(_RATE * _STEP)
            while not self._end.is_set():
                if self.sent.total() - len(self._ledger.times) < _MOST_AHEAD:
                    publishes = []
                    for _ in range(burst):
                        key = f"k{self._rng.randrange(_KEYS)}"
                        number, self.sent[key] = self.sent[key], self.sent[key] + 1
                        text = f"{key} {number}"
                        publishes.append(
                            socket.publish(
                                self._topic, text, key=key, headers={"part": key}, timeout=60
                            )
                        )
                    await asyncio.gather(*publishes)
                await asyncio.sleep(_STEP)

    def end(self) -> None:
        """End it after what is under way."""
        self._end.set()


def _descendants(pid: int) -> set[int]:
    """Return the processes below this one."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                parents[int(entry.name)] = int(fields[1])
    found: set[int] = set()
    grown = {pid}
    while grown:
        grown = {child for child, parent in parents.items() if parent in grown} - found
        found |= grown
    return found


@contextlib.contextmanager
def _broker(bus: str) -> Iterator[str]:
    """Start a broker; gives its address, with options."""
    if bus == "kafka":
        with Kafka() as kafka:
            options = "create_topics=all&partitions=6&session_timeout=6&heartbeat_interval=2"
            yield f"{kafka.url}?{options}"
    else:
        with Mosquitto(durable=True) as mosquitto:
            yield mosquitto.url


async def _until(
    what: str,
    reached: Callable[[], bool],
    timeout: float,
    command: subprocess.Popen[bytes],
    ledger: Ledger,
) -> None:
    """Wait for something as long as the application runs, and read the ledger meanwhile.

    Raises:
        SystemExit: it has ended, or it takes too long.
    """
    deadline = time.monotonic() + timeout
    while not reached():
        if command.poll() is not None:
            raise SystemExit(f"soak: the application has ended with {command.returncode}")
        if time.monotonic() > deadline:
            raise SystemExit(f"soak: {what}: not within {timeout:g} s")
        await asyncio.sleep(_STEP)
        ledger.read()


async def _rest(seconds: float, ledger: Ledger) -> None:
    """Wait, and read the ledger meanwhile."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        await asyncio.sleep(_STEP)
        ledger.read()


async def _kill(
    count: int, command: subprocess.Popen[bytes], ledger: Ledger, rng: random.Random
) -> None:
    """Kill processes that have just handled messages, one after the other."""

    def victims() -> list[int]:
        grown_up = time.monotonic() - _LEAST_AGE
        active = {pid for pid in ledger.active if ledger.writers[pid] < grown_up}
        return sorted(active & _descendants(command.pid))

    killed = 0
    while killed < count:
        await _rest(rng.uniform(*_PAUSES), ledger)
        ledger.forget_active()
        await _until(
            "a message is handled", lambda: bool(victims()), _REST_TIMEOUT, command, ledger
        )
        found = victims()
        if not found:
            continue
        os.kill(rng.choice(found), signal.SIGKILL)
        killed += 1
        if killed % 10 == 0:
            print(f"{killed} killed, {len(ledger.times)} messages handled", flush=True)


async def _soak(
    url: str, mode: Mode, kills: int, rng: random.Random, folder: Path, log: int
) -> bool:
    name = f"soak-{uuid.uuid4().hex[:8]}"
    ledger = Ledger(folder / "ledger")
    numbers = Numbers(url, f"{name}/numbers", rng, ledger)
    arguments = ["run", _SUBJECT, "--log-level", "warning"]
    if mode.workers:
        arguments += ["--workers", str(mode.workers)]
    command = subprocess.Popen(
        [sys.executable, "-m", "spa_dat", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        env={
            **os.environ,
            "SPA_DAT_URL": url,
            "SOAK_NAME": name,
            "SOAK_PROCESSES": str(mode.processes),
            "SOAK_LEDGER": str(folder / "ledger"),
        },
    )
    sending: asyncio.Task[None] | None = None

    def all_started() -> bool:
        ledger.read()
        return ledger.starts >= max(1, mode.workers)

    def all_handled() -> bool:
        ledger.read()
        return len(ledger.times) >= numbers.sent.total()

    began = time.monotonic()
    try:
        # On MQTT nothing waits for a subscription that is not there yet.
        await _until("a start", all_started, _START_TIMEOUT, command, ledger)
        sending = asyncio.create_task(numbers.send())
        killing = asyncio.create_task(_kill(kills, command, ledger, rng))
        # Whatever fails, sending does not end by itself.
        await asyncio.wait((sending, killing), return_when=asyncio.FIRST_COMPLETED)
        if sending.done():
            killing.cancel()
        else:
            numbers.end()
        await asyncio.gather(sending, killing)

        with contextlib.suppress(SystemExit):
            await _until("the rest is handled", all_handled, _REST_TIMEOUT, command, ledger)
        command.send_signal(signal.SIGTERM)
        code = await asyncio.to_thread(command.wait, _STOP_TIMEOUT)
    finally:
        if sending is not None:
            sending.cancel()
        if command.poll() is None:
            command.kill()
            command.wait()
    ledger.read()
    lost = numbers.sent.total() - len(ledger.times)
    disorder = ledger.disorder(of_each_instance=not mode.keeps_keys)
    print(
        f"{kills} killed in {time.monotonic() - began:.0f} s; {numbers.sent.total()} messages sent,"
        f" {lost} lost, {disorder} out of order"
        f" ({'by key' if mode.keeps_keys else 'by key and instance'}),"
        f" {ledger.repeated} handled again; exit code {code}"
    )
    return not lost and not disorder and code == 0


def main() -> None:
    """Read the command line, and soak one mode after the other; exits with 1 for a failure."""
    modes = sorted({mode for mode, _ in _MODES})
    parser = argparse.ArgumentParser(
        prog="scripts/soak", description="Kills processes of an application at random."
    )
    parser.add_argument("--mode", choices=modes, help="what is killed; all, one after the other")
    parser.add_argument("--bus", choices=("kafka", "mqtt"), help="both, one after the other")
    parser.add_argument("--kills", type=int, default=100, help="how many; 100")
    parser.add_argument("--seed", type=int, help="of the random choices; a new one")
    told = parser.parse_args()
    if told.kills < 1:
        parser.error(f"--kills {told.kills}: give 1 or more")
    # Leaves the contexts that end the brokers and the application.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    seed = told.seed if told.seed is not None else random.SystemRandom().randrange(2**32)
    done = True
    for (name, bus), mode in _MODES.items():
        if told.mode not in (None, name) or told.bus not in (None, bus):
            continue
        print(f"{name} on {bus}, seed {seed}", flush=True)
        with tempfile.TemporaryDirectory(prefix="soak-") as made, _broker(bus) as url:
            folder = Path(made)
            log = folder / "log"
            with log.open("wb") as output:
                good = False
                try:
                    rng = random.Random(seed)
                    good = asyncio.run(_soak(url, mode, told.kills, rng, folder, output.fileno()))
                finally:
                    if not good:
                        print(log.read_text(errors="replace")[-20_000:])
            done = done and good
    if not done:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
