"""A small plant: boilers, thermometers, limits, alarms, an archive and a dashboard.

Runs for some seconds and prints what happens, then a summary. ``scripts/demo`` runs it too::

    python examples/plant.py
    python examples/plant.py mqtt://127.0.0.1:1883

The command runs it until Ctrl-C, here with a page that shows it at http://127.0.0.1:8085::

    spa-dat run examples/plant.py --admin 127.0.0.1:8085
"""

import asyncio
import logging
import sqlite3
import sys
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass

from spa_dat import (
    Actor,
    Context,
    DistributedApplication,
    RetryPolicy,
    Socket,
    SocketProviderFactory,
    on,
)
from spa_dat.errors import RemoteError

URL = sys.argv[1] if len(sys.argv) > 1 else "memory://"
BOILERS = ("north", "south", "west")

bus = SocketProviderFactory.from_url(URL)
app = DistributedApplication(bus, name="plant-example")


def show(who: str, what: str) -> None:
    print(f"  {who:<10} {what}", flush=True)


# What travels over the bus.


@dataclass
class Reading:
    celsius: float


@dataclass
class Limit:
    celsius: float


@dataclass
class Vibration:
    amplitude: float
    frequency: float


@dataclass
class Summary:
    machine: str
    readings: int
    lowest: float
    highest: float


# The machines: an actor for each boiler, and a producer that reads its thermometer.


def add_boiler(machine: str) -> None:
    class Boiler(Actor):
        name = machine

        def __init__(self) -> None:
            self.celsius = 60.0
            self.burning = True

        @on(f"plant/{machine}/burner")
        async def burner(self, burning: bool) -> None:
            self.burning = burning
            show(machine, f"burner {'on' if burning else 'off'}")

        @on("plant/roll-call")
        async def roll_call(self) -> str:
            return machine

        async def on_receive(self, change: float) -> float:
            self.celsius += change if self.burning else -change
            return round(self.celsius, 1)

    boiler = app.add(Boiler)

    @app.producer(name=f"{machine}-thermometer", every=0.2)
    async def thermometer(socket: Socket, context: Context) -> None:
        celsius = await boiler.ref.ask(context.random.uniform(1.0, 3.0))
        await socket.publish(f"plant/{machine}/temperature", Reading(celsius))


for boiler in BOILERS:
    add_boiler(boiler)


class Control(Actor):
    """Keeps every boiler below its limit; limits are changed by request."""

    def __init__(self, limit: float) -> None:
        self.limits: dict[str, float] = dict.fromkeys(BOILERS, limit)
        self.too_hot: set[str] = set()

    @on("plant/{machine}/temperature")
    async def measured(self, reading: Reading, machine: str, socket: Socket) -> None:
        if reading.celsius > self.limits[machine] and machine not in self.too_hot:
            self.too_hot.add(machine)
            socket.post(f"plant/{machine}/alarm", f"{reading.celsius:.1f} °C")
            socket.post(f"plant/{machine}/burner", False)
        elif reading.celsius < self.limits[machine] - 5 and machine in self.too_hot:
            self.too_hot.remove(machine)
            socket.post(f"plant/{machine}/burner", True)

    @on("plant/{machine}/limit")
    async def change(self, limit: Limit, machine: str) -> Limit:
        if limit.celsius > 100:
            raise RemoteError("refused", f"{limit.celsius:.0f} °C is not safe")
        self.limits[machine] = limit.celsius
        return limit


class Archive(Actor):
    """Blocking code: ``def`` handlers run in a thread, so SQLite does not hold up other actors."""

    @on("plant/{machine}/temperature")
    def store(self, reading: Reading, machine: str, db: sqlite3.Connection) -> None:
        with db:
            db.execute("INSERT INTO readings VALUES (?, ?)", (machine, reading.celsius))

    @on("plant/archive/summary")
    def summary(self, db: sqlite3.Connection) -> list[Summary]:
        query = (
            "SELECT machine, count(*), min(celsius), max(celsius) FROM readings"
            " GROUP BY machine ORDER BY machine"
        )
        return [Summary(*row) for row in db.execute(query)]


@contextmanager
def open_archive() -> Generator[sqlite3.Connection]:
    db = sqlite3.connect("", check_same_thread=False)  # a temporary file
    db.execute("CREATE TABLE readings (machine TEXT, celsius REAL)")
    try:
        yield db
    finally:
        db.close()
        show("archive", "closed")


class Dashboard(Actor):
    """Shows alarms at once, and on request the latest temperature of each boiler."""

    def __init__(self) -> None:
        self.latest: dict[str, float] = {}

    @on("plant/{machine}/temperature")
    async def measured(self, reading: Reading, machine: str) -> None:
        self.latest[machine] = reading.celsius

    @on("plant/{machine}/alarm")
    async def alarm(self, text: str, machine: str, context: Context) -> None:
        context.stats["plant.alarms"] += 1
        show(machine, f"ALARM at {text}")

    async def on_receive(self, message: object) -> dict[str, float]:
        return dict(sorted(self.latest.items()))


app.resource("db", open_archive)
app.add(Control, limit=72.0)
app.add(Archive)
dashboard = app.add(Dashboard)


@app.producer(every=0.5)
async def screen() -> None:
    for machine, celsius in (await dashboard.ref.ask("latest")).items():
        bar = "#" * round(celsius - 50)
        show(machine, f"{celsius:6.1f} °C  {bar}")


@app.application("plant/{machine}/vibration", retry=RetryPolicy(attempts=3, first=0.2, factor=2))
async def vibration(measured: Vibration, machine: str) -> None:
    # A frequency of 0 makes it fail: it is tried three times, then stored as a dead letter.
    show(machine, f"vibration {measured.amplitude / measured.frequency:.3f}")


@app.producer()
async def operator(socket: Socket) -> None:
    """Do what people do meanwhile; then the program ends, unless a command runs it."""
    await work(socket)
    while __name__ != "__main__":
        await asyncio.sleep(10)
        await work(socket)
    app.stop()


async def work(socket: Socket) -> None:
    await asyncio.sleep(1.5)
    names = await socket.request_many("plant/roll-call", reply=str, count=len(BOILERS), timeout=20)
    show("operator", f"present: {', '.join(sorted(map(str, names)))}")

    for celsius in (80, 130):
        show("operator", f"north may have {celsius} °C?")
        try:
            limit = await socket.request(
                "plant/north/limit", Limit(celsius), reply=Limit, timeout=20
            )
            show("control", f"the limit is {limit.celsius:.0f} °C")
        except RemoteError as error:
            show("control", str(error))
        await asyncio.sleep(0.5)

    letters = app.stats["dead_letters.stored"]
    await socket.publish("plant/south/vibration", Vibration(0.2, 50.0))
    await socket.publish("plant/west/vibration", Vibration(0.3, 0.0))
    await asyncio.sleep(3)
    # On a busy machine three attempts take longer.
    for _ in range(600):
        if app.stats["dead_letters.stored"] > letters:
            break
        await asyncio.sleep(0.1)

    summary = await socket.request("plant/archive/summary", reply=list[Summary], timeout=20)
    print("\nThe archive:")
    for row in summary:
        show(row.machine, f"{row.readings} readings, {row.lowest} to {row.highest} °C")


class RuntimeLog(logging.Handler):
    """What the runtime has to say, as lines among the others."""

    def emit(self, record: logging.LogRecord) -> None:
        show("runtime", record.getMessage())


if __name__ == "__main__":
    logging.basicConfig(level="WARNING", handlers=[RuntimeLog()])
    print(f"A plant with {len(BOILERS)} boilers on {bus.address}:")
    app.run()
    print("\nWhat the runtime counted:")
    for counter in (
        "messages.handled",
        "messages.failed",
        "dead_letters.stored",
        "requests.failed",
        "plant.alarms",
    ):
        print(f"  {counter:<20} {app.stats[counter]}")
