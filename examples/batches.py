"""Store messages in batches: one transaction for many readings.

Run it on memory, or on a broker::

    python examples/batches.py
    python examples/batches.py mqtt://127.0.0.1:1883
"""

import sqlite3
import sys
from contextlib import closing
from dataclasses import dataclass

from spa_dat import DistributedApplication, Message, Socket

URL = sys.argv[1] if len(sys.argv) > 1 else "memory://"
READINGS = 1000

app = DistributedApplication(URL, name="batches-example")


@dataclass
class Reading:
    celsius: float


def open_database() -> closing[sqlite3.Connection]:
    db = sqlite3.connect(":memory:", check_same_thread=False)
    # A message may come twice; its id tells.
    db.execute("CREATE TABLE readings (id TEXT PRIMARY KEY, topic TEXT, celsius REAL)")
    return closing(db)


# Called with 200 readings, or after 0.2 seconds with those that have arrived by then.
@app.application("plant/+/temperature", batch=(200, 0.2), ressources={"db": open_database})
def store(readings: list[Message[Reading]], db: sqlite3.Connection) -> None:
    rows = [(reading.id, reading.topic, reading.payload.celsius) for reading in readings]
    with db:  # one transaction; the messages are acknowledged after it
        db.executemany("INSERT OR IGNORE INTO readings VALUES (?, ?, ?)", rows)
    print(f"stored {len(rows)} at once")
    (count,) = db.execute("SELECT count(*) FROM readings").fetchone()
    if count == READINGS:
        print(f"all {count} readings are stored")
        app.stop()


@app.producer()
async def machines(socket: Socket) -> None:
    for number in range(READINGS):
        socket.post(f"plant/m{number % 4}/temperature", Reading(20 + number % 7))


if __name__ == "__main__":
    app.run()
