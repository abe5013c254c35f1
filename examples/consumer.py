"""React to messages: typed payloads, and parts of the topic as arguments.

Run it on memory, or on a broker::

    python examples/consumer.py
    python examples/consumer.py mqtt://127.0.0.1:1883
"""

import sys
from dataclasses import dataclass

from spa_dat import DistributedApplication, Message, Socket

URL = sys.argv[1] if len(sys.argv) > 1 else "memory://"

app = DistributedApplication(URL, name="consumer-example")


@dataclass
class Reading:
    celsius: float
    sensor: str = "unknown"


@app.application("house/{room}/temperature")
async def temperature(reading: Reading, room: str) -> None:
    print(f"{room}: {reading.celsius:.1f} °C from sensor {reading.sensor}")


@app.application(["house/{room}/notes", "house/notes"])
async def notes(text: str, room: str = "the whole house") -> None:
    print(f"note on {room}: {text}")


@app.application("house/#", name="log")
async def everything(message: Message[bytes]) -> None:
    print(f"{message.topic}: {len(message.payload)} bytes of {message.content_type}")


@app.producer()
async def sensors(socket: Socket) -> None:
    """Stands for other programs."""
    await socket.publish("house/kitchen/temperature", Reading(21.5, "T1"))
    await socket.publish("house/cellar/temperature", {"celsius": 12})
    await socket.publish("house/kitchen/notes", "window replaced")
    await socket.publish("house/notes", "chimney sweep on Monday")


@app.producer(every=0.1)
async def end() -> None:
    # An application with handlers runs until it is stopped; this one stops when all is done.
    if app.stats["messages.handled"] >= 8:
        app.stop()


if __name__ == "__main__":
    app.run()
