"""Record in a file what is published, so that it survives the program while the broker is away.

Stop the broker while it runs, kill the program, and start both again: what the program has said
that it recorded is sent first::

    python examples/durable_outbox.py
    python examples/durable_outbox.py mqtt://127.0.0.1:1883
"""

import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from spa_dat import DistributedApplication, Message, OutboxFile, Socket

URL = sys.argv[1] if len(sys.argv) > 1 else "memory://"
READINGS = 100

# Without a folder: where the system keeps the state of programs.
folder = Path(tempfile.gettempdir()) / "spa-dat-durable-outbox-example"
app = DistributedApplication(URL, name="meter-example", outbox=OutboxFile(folder=folder))


@dataclass
class Seen:
    """What has arrived; a message that comes twice has the same id."""

    ids: set[str | None] = field(default_factory=set[str | None])


@app.producer()
async def meter(socket: Socket) -> None:
    # Returns when the reading is in the file, with or without a broker.
    for number in range(READINGS):
        await socket.publish("meter/readings", 20.0 + number / 10)
    print(f"recorded {READINGS} readings")


@app.application("meter/readings", state=Seen)
async def office(celsius: float, message: Message[float], state: Seen) -> None:
    state.ids.add(message.id)
    if len(state.ids) == READINGS:
        print(f"{READINGS} readings have arrived, the last with {celsius} °C")
        app.stop()


if __name__ == "__main__":
    app.run()
