"""Define each topic once, with its types: publishers, handlers and tests are compared with it.

Run it on memory, or on a broker::

    python examples/typed_topics.py
    python examples/typed_topics.py mqtt://127.0.0.1:1883

Then run mypy over it, change a type, and run mypy again.
"""

import asyncio
import sys
from dataclasses import dataclass

from spa_dat import Actor, DistributedApplication, Socket, Topic, on

URL = sys.argv[1] if len(sys.argv) > 1 else "memory://"

ABSOLUTE_ZERO = -273.15

app = DistributedApplication(URL, name="typed-topics-example")


@dataclass
class Reading:
    celsius: float


@dataclass
class Question:
    machine: str


@dataclass
class Answer:
    hottest: float


readings = Topic[Reading]("plant/{machine}/temperature")
questions = Topic[Question, Answer]("plant/hottest")


class Memory(Actor):
    def __init__(self) -> None:
        self.hottest: dict[str, float] = {}

    @on(readings)
    async def keep(self, reading: Reading, machine: str) -> None:
        self.hottest[machine] = max(reading.celsius, self.hottest.get(machine, ABSOLUTE_ZERO))

    @on(questions)
    async def answer(self, question: Question) -> Answer:
        return Answer(self.hottest.get(question.machine, ABSOLUTE_ZERO))


app.add(Memory)


@app.producer()
async def ask(socket: Socket) -> None:
    for celsius in (80.0, 95.5, 90.0):
        await socket.publish(readings.at(machine="boiler"), Reading(celsius))
    # Between two topics there is no order.
    while True:
        answer = await socket.request(questions, Question("boiler"), timeout=20)
        if answer.hottest > 95:
            break
        await asyncio.sleep(0.1)
    print(f"the boiler was at {answer.hottest} °C")
    app.stop()


if __name__ == "__main__":
    app.run()
