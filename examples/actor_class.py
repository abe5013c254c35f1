"""An actor as a class: several handlers, one mailbox, state in attributes.

Run it on memory, or on a broker::

    python examples/actor_class.py
    python examples/actor_class.py mqtt://127.0.0.1:1883
"""

import sys
from dataclasses import dataclass

from spa_dat import Actor, DistributedApplication, RetryPolicy, Socket, on
from spa_dat.errors import RemoteError

URL = sys.argv[1] if len(sys.argv) > 1 else "memory://"

app = DistributedApplication(URL, name="actor-class-example")


@dataclass
class Reading:
    celsius: float


@dataclass
class Limit:
    celsius: float


class Boiler(Actor):
    """Watches one boiler. Its handlers run one at a time, so nothing needs a lock."""

    name = "boiler"
    retry = RetryPolicy(attempts=3)

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self.last = 0.0

    async def on_start(self) -> None:
        print(f"watching, the limit is {self.limit:.0f} °C")

    @on("boiler/temperature")
    async def measured(self, reading: Reading, socket: Socket) -> None:
        self.last = reading.celsius
        if reading.celsius > self.limit:
            await socket.publish("boiler/alarms", f"{reading.celsius:.0f} °C")

    @on("boiler/limit")
    async def change(self, limit: Limit) -> Limit:
        if limit.celsius < self.last:
            raise RemoteError("too-low", f"it has {self.last:.0f} °C now")
        self.limit = limit.celsius
        return Limit(self.limit)

    async def on_receive(self, message: object) -> float:
        """Take messages from the same program, by reference and without the broker."""
        return self.last

    async def on_stop(self) -> None:
        print("no longer watching")


boiler = app.add(Boiler, limit=80.0)


class Horn(Actor):
    """The short form for one handler."""

    topics = "boiler/alarms"

    async def on_message(self, text: str, socket: Socket) -> None:
        print(f"alarm: {text}")
        try:
            await socket.request("boiler/limit", Limit(70), reply=Limit, timeout=5)
        except RemoteError as error:
            print(f"limit not changed, {error}")
        changed = await socket.request("boiler/limit", Limit(95), reply=Limit, timeout=5)
        print(f"the limit is {changed.celsius:.0f} °C; last seen {await boiler.ref.ask('last')} °C")
        app.stop()


app.add(Horn)


@app.producer()
async def thermometer(socket: Socket) -> None:
    for celsius in (75.0, 85.0):
        await socket.publish("boiler/temperature", Reading(celsius))


if __name__ == "__main__":
    app.run()
