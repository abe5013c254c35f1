"""``python -m benchmarks.soak_keys``: kills processes whose keys have states that last.

Messages are numbered for each key, and the application counts them. At the end the counts that it
has published, its states and its dead letters are compared with what was sent.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator, Sequence
from pathlib import Path
from typing import Any

from spa_dat.testing import Kafka, Mosquitto

from ._numbered_keys import KafkaSide, MosquittoSide, Side

_SUBJECT = Path(__file__).parent / "subjects" / "soaked_keys.py"
_PATIENCE = 180.0
_START_TIMEOUT = 300.0
_STOP_TIMEOUT = 90.0
_PAUSE = 0.02
# Between two strikes.
_PAUSES = (0.1, 1.5)
_MEMBERS = 3
_SESSION = 4.0
# How far what comes out may be behind before the next strike waits, in shares.
_BEHIND = 4
# How often other things happen, for each kill.
_FREEZES, _STOPS, _JOINS, _BROKER = 0.3, 0.25, 0.2, 0.05
# How often dead letters are replayed, and members are killed meanwhile.
_MOST_REPLAYS, _KILLS_IN_REPLAYS = 20, 3
# How many of those that are killed begin on a new disk.
_DISKS = 0.2
# What the subject can leave out, so that it is seen that a run finds that.
_BREAKABLE = ("dedupe", "exactly-once", "expiry", "early-expiry", "late-expiry")
_PROPERTIES = {
    # So that the changelog is compacted while it is used.
    "log.cleaner.backoff.ms": "500",
    "log.cleaner.min.cleanable.ratio": "0.01",
    "log.roll.ms": "5000",
}


class _Wrong(SystemExit):
    """Something has come out that must not."""


class Member:
    """An instance of the application, in a process that is killed and started again.

    Attributes:
        number: of the instance.
        pid: of its process; 0 if there is none.
        busy: whether something is being done to it.

    Args:
        number: of the instance.
        side: the broker.
        folder: where it keeps states, and says what it does.
        broken: what it leaves out on purpose; nothing if it is empty.
    """

    def __init__(self, number: int, side: Side, folder: Path, broken: str) -> None:
        self.number = number
        self.pid = 0
        self.busy = False
        self._side = side
        self._folder = folder
        self._broken = broken
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it; it is not waited for."""
        environment = {
            **os.environ,
            "SOAK_BUS": self._side.bus,
            "SOAK_SERVER": self._side.server,
            "SOAK_FOLDER": str(self._folder),
            "SOAK_BROKEN": self._broken,
            "SPA_DAT_INSTANCE": str(self.number),
        }
        with (self._folder / f"log-{self.number}").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-W", "error", str(_SUBJECT)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
            )
        self.pid = self._process.pid
        self._side.takeovers.began(self.pid, self.number)

    @property
    def runs(self) -> bool:
        """Whether it has a process."""
        return self._process is not None

    @property
    def has_started(self) -> bool:
        """Whether it has said so, so that it hears signals."""
        return f"{self.pid} started" in (self._folder / "told").read_text().splitlines()

    def check(self) -> None:
        """Raise SystemExit if it has ended by itself."""
        if self._process is not None and self._process.poll() is not None:
            raise SystemExit(
                f"soak: instance {self.number} has ended with {self._process.returncode}"
            )

    def send(self, number: signal.Signals) -> None:
        """Send it a signal."""
        assert self._process is not None
        self._process.send_signal(number)

    async def end(self, how: signal.Signals) -> int:
        """End it and wait for that; returns the exit code."""
        self.check()
        assert self._process is not None
        process, self._process = self._process, None
        process.send_signal(how)
        try:
            code = await asyncio.to_thread(process.wait, _STOP_TIMEOUT)
        except BaseException as error:
            self._process = process
            if isinstance(error, subprocess.TimeoutExpired):
                raise SystemExit(f"soak: instance {self.number} goes on after {how.name}") from None
            raise
        self.pid = 0
        return code

    def lose_snapshot(self) -> None:
        """Remove what it has of states that are also elsewhere, as on a new disk."""
        for file in (self._folder / "states").glob(f"soak.{self.number}.*.snapshot*"):
            file.unlink()

    def tell_where(self) -> None:
        """Have it write where it is at the moment, if it runs."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGCONT)
            self._process.send_signal(signal.SIGUSR1)

    def close(self) -> None:
        """Kill what is left."""
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()


class Strikes:
    """What is done to members and to the broker, at random.

    Args:
        side: the broker, and what comes of the messages.
        members: the instances; the last one only joins now and then if there are several.
        rng: the random choices.
        kills: how many.
    """

    def __init__(
        self, side: Side, members: Sequence[Member], rng: random.Random, kills: int
    ) -> None:
        self.done: Counter[str] = Counter()
        self._side = side
        self._members = members
        self._lasting = members[:-1] if len(members) > 1 else members
        self._rng = rng
        plan = ["kill"] * kills
        for what, share in (("freeze", _FREEZES), ("stop", _STOPS), ("broker", _BROKER)):
            plan += [what] * round(kills * share)
        if len(members) > 1:
            plan += ["join"] * round(kills * _JOINS)
        rng.shuffle(plan)
        self.plan = plan
        self._tasks: set[asyncio.Task[None]] = set()

    async def until(self, what: str, reached: Callable[[], bool], timeout: float) -> None:
        """Wait for something, as long as all members run.

        Raises:
            SystemExit: it takes too long, or a member has ended.
        """
        end = time.monotonic() + timeout
        while not reached():
            for member in self._members:
                member.check()
            for task in [*self._tasks]:
                if task.done():
                    self._tasks.discard(task)
                    task.result()
            if time.monotonic() > end:
                raise SystemExit(f"soak: {what}: not within {timeout:g} s")
            await asyncio.sleep(_PAUSE)

    async def strike(self, what: str) -> None:
        """Let one thing happen; what follows from it goes on in the background."""
        if what == "broker":
            how = await asyncio.to_thread(self._side.restart_broker)
            self.done[f"broker {how}"] += 1
            return
        if what == "join":
            self._later(self._members[-1], self._come_and_go(self._members[-1]))
            return
        free: list[Member] = []

        def some_are_free() -> bool:
            free[:] = [member for member in self._lasting if member.runs and not member.busy]
            return bool(free)

        await self.until("a member that can be struck", some_are_free, _PATIENCE)
        member = self._rng.choice(free)
        match what:
            case "kill":
                await self._kill(member)
            case "freeze":
                self._later(member, self._freeze(member))
            case "stop":
                self._later(member, self._stop(member))

    def _later(self, member: Member, what: Coroutine[Any, Any, None]) -> None:
        if member.busy:
            what.close()
            return
        member.busy = True

        async def do() -> None:
            try:
                await what
            finally:
                member.busy = False

        self._tasks.add(asyncio.create_task(do()))

    async def _kill(self, member: Member) -> None:
        self._side.takeovers.killed(member.pid)
        code = await member.end(signal.SIGKILL)
        if code != -signal.SIGKILL:
            raise SystemExit(f"soak: instance {member.number} had ended with {code}")
        self.done["kills"] += 1
        if self.done["kills"] % 10 == 0:
            print(
                f"{self.done['kills']} killed; of {self._side.number} messages"
                f" {self._side.counted} counted",
                flush=True,
            )
        if self._side.bus == "kafka" and self._rng.random() < _DISKS:
            member.lose_snapshot()
            self.done["snapshots lost"] += 1
        away = self._rng.choice((0.0, self._rng.uniform(0.0, 2 * _SESSION)))
        self._later(member, self._start(member, away))

    async def _start(self, member: Member, away: float) -> None:
        await asyncio.sleep(away)
        member.start()

    async def _freeze(self, member: Member) -> None:
        member.send(signal.SIGSTOP)
        await asyncio.sleep(self._rng.uniform(0.2, 2 * _SESSION))
        member.send(signal.SIGCONT)
        self.done["freezes"] += 1

    async def _stop(self, member: Member) -> None:
        await self.until("a start", lambda: member.has_started, _START_TIMEOUT)
        await self._end(member)
        self.done["stops"] += 1
        await self._start(member, self._rng.uniform(0.0, 2.0))

    async def _end(self, member: Member) -> None:
        code = await member.end(signal.SIGTERM)
        if code:
            raise SystemExit(f"soak: instance {member.number} stopped with {code}")

    async def _come_and_go(self, member: Member) -> None:
        member.start()
        await self.until("a start", lambda: member.has_started, _START_TIMEOUT)
        await asyncio.sleep(self._rng.uniform(0.0, _SESSION))
        await self._end(member)
        self.done["joins"] += 1

    async def rest(self) -> None:
        """Wait until nothing is done to any member."""
        await self.until("the last strikes", lambda: not self._tasks, _PATIENCE)

    async def stop_all(self) -> None:
        """Stop all members."""
        for member in self._members:
            if member.runs:
                await self.until("a start", lambda m=member: m.has_started, _START_TIMEOUT)  # type: ignore[misc]
                await self._end(member)

    def cancel(self) -> None:
        """End what goes on in the background."""
        for task in self._tasks:
            task.cancel()


async def _soak(
    side: Side, messages: int, kills: int, rng: random.Random, folder: Path, broken: str
) -> bool:
    (folder / "told").touch()
    count = _MEMBERS + 1 if side.bus == "kafka" else 1
    members = [Member(number, side, folder, broken) for number in range(count)]
    strikes = Strikes(side, members, rng, kills)
    share = messages // (len(strikes.plan) + 1)
    began = time.monotonic()
    good = False
    async with side.running():
        try:
            for member in members[:_MEMBERS]:
                member.start()
            if side.bus == "mqtt":
                # Nothing waits for a subscription that is not there yet.
                await strikes.until("a start", lambda: members[0].has_started, _START_TIMEOUT)
            for number, what in enumerate(strikes.plan):
                sending = asyncio.create_task(side.send(share))
                before = side.counted
                allowed = max(0, (number + 1) * share - _BEHIND * share - len(side.poison))
                await strikes.until(
                    "messages are counted",
                    lambda b=before, a=allowed: side.counted > b and side.counted >= a,  # type: ignore[misc]
                    _PATIENCE,
                )
                await asyncio.sleep(rng.uniform(*_PAUSES))
                await strikes.strike(what)
                await sending
            await side.send(messages - side.number)
            await strikes.rest()
            try:
                await strikes.until("the rest is counted", lambda: not side.open, _PATIENCE)
            except SystemExit:
                print(await side.missing())
                if not broken:
                    raise
                # What is left out may cost outputs, too; the comparison tells what is wrong.
            if isinstance(side, KafkaSide):
                await _replay(side, strikes, rng, folder)
            seconds = time.monotonic() - began
            await strikes.stop_all()
            # What is asked for is what is read anew.
            members[0].start()
            await strikes.until("a start", lambda: members[0].has_started, _START_TIMEOUT)
            await side.look()
            await strikes.stop_all()
            wrong = await side.wrong()
            good = not wrong
        finally:
            strikes.cancel()
            if not good:
                for member in members:
                    member.tell_where()
                await asyncio.sleep(1.0)
            for member in members:
                member.close()
    done = ", ".join(f"{count} {what}" for what, count in sorted(strikes.done.items()))
    print(
        f"{side.number} messages of {len(side.sent)} keys, {len(side.poison)} of them poison, in"
        f" {seconds:.0f} s; {done}"
    )
    _tell_times("outputs again after a kill, by the same instance", side.takeovers.by_itself)
    _tell_times("outputs again after a kill, by others", side.takeovers.by_others)
    lines = (folder / "told").read_text().splitlines()
    restored = [line.split() for line in lines if " restored " in line]
    _tell_times("states read anew", [float(words[2]) for words in restored])
    if isinstance(side, KafkaSide):
        print(side.tell())
    if isinstance(side, MosquittoSide):
        print(f"{side.repeated} outputs came again with their ids")
    print(f"{len(wrong)} wrong" if wrong else "nothing is wrong")
    for text in wrong[:40]:
        print(f"  {text}")
    return good


async def _replay(side: KafkaSide, strikes: Strikes, rng: random.Random, folder: Path) -> None:
    """Have all dead letters replayed, while members are killed, until only the unreadable stay."""
    stored = await side.letters()
    if stored != Counter(side.poison):
        raise _Wrong(f"soak: dead letters {stored} instead of {Counter(side.poison)}")
    (folder / "mended").touch()
    unreadable = side.mend()
    for number in range(_MOST_REPLAYS):
        replaying = asyncio.create_task(
            _command("replay", f"kafka://{side.server}", "--all", "--timeout", "30")
        )
        if number < _KILLS_IN_REPLAYS:
            await asyncio.sleep(rng.uniform(*_PAUSES))
            await strikes.strike("kill")
        print((await replaying).strip().rpartition("\n")[2], flush=True)
        await strikes.rest()
        left = (await _command("list", f"kafka://{side.server}", "--json")).count("\n")
        if left <= unreadable and number >= _KILLS_IN_REPLAYS:
            break
    if left != unreadable:
        raise _Wrong(f"soak: {left} dead letters are left instead of {unreadable}")
    # What is left after that is found to be wrong.
    with contextlib.suppress(SystemExit):
        await strikes.until("all states have expired", lambda: side.expired, _PATIENCE)


async def _command(what: str, *arguments: str) -> str:
    """Return what a command about the dead letters has said; that of a failed replay is no news."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "spa_dat", "dlq", what, *arguments, "--application", "soak"),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT if what == "replay" else subprocess.DEVNULL,
    )
    said, _ = await process.communicate()
    return said.decode()


def _tell_times(what: str, seconds: Sequence[float]) -> None:
    if len(seconds) > 1:
        shares = statistics.quantiles(seconds, n=20, method="inclusive")
        print(
            f"{what}: {len(seconds)} times, median {statistics.median(seconds):.2f} s,"
            f" 95 % {shares[18]:.2f} s, longest {max(seconds):.2f} s"
        )


@contextlib.contextmanager
def _side(bus: str, rng: random.Random, keys: int, poison: float) -> Iterator[Side]:
    if bus == "kafka":
        with Kafka(properties=_PROPERTIES) as kafka:
            yield KafkaSide(kafka, rng, keys, poison)
    else:
        with Mosquitto(durable=True) as mosquitto:
            yield MosquittoSide(mosquitto, rng, keys, poison)


def main() -> None:
    """Read the command line, and soak one bus after the other; exits with 1 for a failure."""
    parser = argparse.ArgumentParser(
        prog="scripts/soak-keys",
        description="Kills processes at random whose keys have states that last.",
    )
    parser.add_argument("--bus", choices=("kafka", "mqtt"), help="both, one after the other")
    parser.add_argument("--messages", type=int, default=20_000, help="how many; 20000")
    parser.add_argument("--keys", type=int, default=1_000, help="how many; 1000")
    parser.add_argument("--kills", type=int, default=40, help="how many; 40")
    parser.add_argument("--poison", type=float, default=0.005, help="which part; 0.005")
    parser.add_argument("--seed", type=int, help="of the random choices; a new one")
    parser.add_argument("--keep", type=Path, help="where logs and states are left; a new folder")
    parser.add_argument(
        "--break",
        dest="broken",
        choices=_BREAKABLE,
        default="",
        help="what is left out on purpose, on Kafka; a run that does not find it has failed",
    )
    told = parser.parse_args()
    if told.kills < 1 or told.keys < 1 or told.messages < told.kills * 4:
        parser.error("give 1 key and 1 kill at least, and 4 messages for each kill")
    if told.broken and told.bus != "kafka":
        parser.error("--break goes with --bus kafka")
    # Leaves the contexts that end the brokers and the application.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    # Brokers that are away are part of it.
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
    seed = told.seed if told.seed is not None else random.SystemRandom().randrange(2**32)
    done = True
    for bus in (told.bus,) if told.bus else ("kafka", "mqtt"):
        version = f" {Kafka.version()}" if bus == "kafka" else ""
        print(f"{bus}{version}, seed {seed}", flush=True)
        rng = random.Random(seed)
        with tempfile.TemporaryDirectory(prefix="soak-") as made:
            folder = Path(made)
            # None if it has not come to a verdict.
            good: bool | None = None
            with _side(bus, rng, told.keys, told.poison) as side:
                try:
                    good = asyncio.run(
                        _soak(side, told.messages, told.kills, rng, folder, told.broken)
                    )
                except SystemExit as error:
                    print(error)
                    good = False if isinstance(error, _Wrong) else None
                finally:
                    if told.keep is not None:
                        shutil.copytree(folder, told.keep / f"{bus}-{seed}", dirs_exist_ok=True)
                    if not good and (good is None or not told.broken):
                        for log in sorted(folder.glob("log-*")):
                            print(f"{log.name}:\n{log.read_text(errors='replace')[-5_000:]}")
            if told.broken:
                print({False: "found", True: "not found", None: "no verdict"}[good])
            done = done and good is not bool(told.broken) and good is not None
    if not done:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
