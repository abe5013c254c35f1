"""Use a resource: a database that is open as long as the application runs.

Needs ``pip install aiosqlite``. Run it on memory, or on a broker::

    python examples/resources.py
    python examples/resources.py mqtt://127.0.0.1:1883
"""

import sys
import tempfile
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from spa_dat import DistributedApplication, Socket

try:
    import aiosqlite
except ImportError:
    sys.exit("this example needs aiosqlite: pip install aiosqlite")

URL = sys.argv[1] if len(sys.argv) > 1 else "memory://"

app = DistributedApplication(URL, name="resources-example")


@dataclass
class Reading:
    celsius: float


@dataclass
class Report:
    readings: int
    mean: float


@asynccontextmanager
async def open_database() -> AsyncGenerator[aiosqlite.Connection]:
    with tempfile.TemporaryDirectory() as folder:
        async with aiosqlite.connect(Path(folder) / "readings.sqlite") as db:
            await db.execute("CREATE TABLE readings (room TEXT, celsius REAL)")
            print("database open")
            yield db
        print("database closed")


# Both actors get the same connection; ressources={"db": ...} gives an actor one of its own.
app.resource("db", open_database)


@app.application("cellar/{room}/temperature", replies=True)
async def store(reading: Reading, room: str, db: aiosqlite.Connection) -> None:
    await db.execute("INSERT INTO readings (room, celsius) VALUES (?, ?)", (room, reading.celsius))
    await db.commit()


@app.application("cellar/{room}/report")
async def report(room: str, db: aiosqlite.Connection) -> Report:
    query = "SELECT count(*), avg(celsius) FROM readings WHERE room = ?"
    async with db.execute(query, (room,)) as cursor:
        row = await cursor.fetchone()
    return Report(readings=row[0], mean=row[1] or 0.0) if row else Report(0, 0.0)


@app.producer()
async def thermometer(socket: Socket) -> None:
    for celsius in (12.0, 13.0, 14.0):
        # A request, so that it is stored when we go on.
        await socket.request("cellar/wine/temperature", Reading(celsius))
    result = await socket.request("cellar/wine/report", reply=Report)
    print(f"wine: {result.readings} readings, {result.mean:.1f} °C on average")
    app.stop()


if __name__ == "__main__":
    app.run()
