"""Keep state: each actor has its own, and handles one message at a time.

Run it on memory, or on a broker::

    python examples/state.py
    python examples/state.py mqtt://127.0.0.1:1883
"""

import sys
from dataclasses import dataclass, field

from spa_dat import Context, DistributedApplication, Socket

URL = sys.argv[1] if len(sys.argv) > 1 else "memory://"

app = DistributedApplication(URL, name="state-example")


@dataclass
class Highest:
    """The highest value of each machine."""

    celsius: dict[str, float] = field(default_factory=dict[str, float])

    def rises_to(self, machine: str, celsius: float) -> bool:
        if celsius <= self.celsius.get(machine, float("-inf")):
            return False
        self.celsius[machine] = celsius
        return True


@app.application("machines/{machine}/temperature", state=Highest)
async def highest(celsius: float, machine: str, state: Highest, socket: Socket) -> None:
    if state.rises_to(machine, celsius):
        await socket.publish("machines/records", f"{machine} {celsius}")


@app.application("machines/records", state=0)
async def records(text: str, state: int, context: Context) -> None:
    # An immutable value is replaced.
    context.state = state + 1
    print(f"record {context.state}: {text}")
    if context.state == 4:
        app.stop()


@app.producer()
async def thermometers(socket: Socket) -> None:
    for machine, celsius in [("a", 40.0), ("b", 55.0), ("a", 30.0), ("a", 60.0), ("b", 58.0)]:
        await socket.publish(f"machines/{machine}/temperature", celsius)


if __name__ == "__main__":
    app.run()
