"""Start messages: once, at a fixed rate, one by one and many at a time.

Without the thermometer, which goes on for ever, the program would end by itself as soon as the
broker has confirmed everything::

    python examples/producer.py
    python examples/producer.py mqtt://127.0.0.1:1883
"""

import sys
from dataclasses import dataclass

from spa_dat import Context, DistributedApplication, Socket

URL = sys.argv[1] if len(sys.argv) > 1 else "memory://"

app = DistributedApplication(URL, name="producer-example")


@dataclass
class Reading:
    sensor: str
    celsius: float


@dataclass
class Progress:
    ticks: int = 0


@app.producer()
async def history(socket: Socket, context: Context) -> None:
    # post() does not wait, so the confirmations overlap; publish() returns with its own.
    for hour in range(500):
        socket.post("roof/history", Reading("roof", 10 + hour % 24))
    await socket.publish("roof/status", "history sent", retain=True)
    context.stats["history.sent"] += 1
    print("history sent")


@app.producer(every=0.1, state=Progress)
async def thermometer(socket: Socket, state: Progress, context: Context) -> None:
    state.ticks += 1
    reading = Reading("roof", round(context.random.uniform(15, 25), 1))
    await socket.publish("roof/temperature", reading, expiry=60)
    print(f"reading {state.ticks} confirmed: {reading}")
    if state.ticks >= 5 and context.stats["history.sent"]:
        app.stop()


if __name__ == "__main__":
    app.run()
    print(f"calls: {app.stats['producers.called']}")
