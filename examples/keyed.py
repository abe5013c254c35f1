"""Keep a state for each truck of a fleet: each in order, and no truck waits for another.

Run it on memory, or on a broker::

    python examples/keyed.py
    python examples/keyed.py mqtt://127.0.0.1:1883
"""

import sys
from dataclasses import dataclass

from spa_dat import Actor, Context, DistributedApplication, RetryPolicy, Socket, on

URL = sys.argv[1] if len(sys.argv) > 1 else "memory://"

app = DistributedApplication(URL, name="keyed-example")


@dataclass
class Truck:
    """What is known of one truck."""

    km: int = 0


class Fleet(Actor):
    """One instance for each truck."""

    per = "truck"
    state = Truck
    hot = 10_000
    retry = RetryPolicy(first=0.2, jitter=0)

    async def on_activate(self, truck: str) -> None:
        print(f"{truck}: first message")

    @on("fleet/{truck}/drive")
    async def drive(self, km: int, truck: str, context: Context) -> int:
        if truck == "old" and self.state.km == 0 and context.attempt == 1:
            raise OSError("the battery is flat")
        self.state.km += km
        if km:
            print(f"{truck}: {self.state.km} km")
        return self.state.km


app.add(Fleet)


@app.producer()
async def dispatcher(socket: Socket) -> None:
    for truck, km in [("old", 1), ("new", 30), ("old", 2), ("new", 40), ("new", 5)]:
        await socket.publish(f"fleet/{truck}/drive", km, key=truck)
    for truck in ("new", "old"):
        # Behind everything that was sent to this truck before.
        km = await socket.request(f"fleet/{truck}/drive", 0, reply=int, key=truck)
        print(f"{truck} has driven {km} km")
    app.stop()


if __name__ == "__main__":
    app.run()
