"""Send trucks to service by what they have driven, and call back those that are away for long.

Each truck has a state of its own, which lasts: in a file on memory and MQTT, in a topic on Kafka.
So does the reminder that is set when a truck leaves the region. The application runs twice here,
for two days, and south is called back on the second one::

    python examples/fleet.py
    python examples/fleet.py mqtt://127.0.0.1:1883
    python examples/fleet.py kafka://127.0.0.1:9092?create_topics=all
"""

import sys
import tempfile
from dataclasses import dataclass
from math import hypot
from typing import Any

from spa_dat import Context, DistributedApplication, KafkaTopic, Socket, SocketProviderFactory

URL = sys.argv[1] if len(sys.argv) > 1 else "memory://"
ON_KAFKA = URL.startswith("kafka")
# Three topics for the whole fleet. What one truck sends is in one partition, as is its state.
TOPICS = {
    "fleet/{truck}/driven": KafkaTopic("fleet.driven", key="truck"),
    "fleet/{truck}/service": KafkaTopic("fleet.service", key="truck"),
    "fleet/{truck}/return": KafkaTopic("fleet.return", key="truck"),
}
SERVICE_EVERY = 30_000
# The region: so many km around the depot. Who leaves it has so many seconds to come back.
RADIUS = 300.0
PATIENCE = 0.3


@dataclass
class Report:
    """What a truck says in the evening: how far it has driven, and where it is from the depot."""

    km: int
    east: float = 0.0
    north: float = 0.0


DAYS = {
    "Monday": {
        "north": Report(12_000, north=100.0),
        "south": Report(20_000, north=-420.0),
        "west": Report(500),
    },
    "Tuesday": {
        "north": Report(12_000, north=250.0),
        "south": Report(12_000, north=-350.0),
        "west": Report(700, east=-20.0),
    },
}
# What has to have happened at the end of the day, besides.
MORE: dict[str, list[str]] = {
    "Monday": [],
    "Tuesday": ["service of south", "return of south"],
}


@dataclass
class Truck:
    """What is known of one truck."""

    km: int = 0
    services: int = 0
    away: bool = False


def make_app(day: str, folder: str, done: set[str]) -> DistributedApplication:
    options: dict[str, Any] = {"topics": TOPICS} if ON_KAFKA else {}
    bus = SocketProviderFactory.from_url(URL, **options)
    # Without a folder: where the system keeps the state of programs.
    app = DistributedApplication(bus, name="fleet-example", state_folder=folder)
    left = {*DAYS[day], *MORE[day]} - done

    # What is published, the state and the place in the topic are committed together.
    @app.application(
        "fleet/{truck}/driven", per="truck", state=Truck, durable=True, exactly_once=ON_KAFKA
    )
    async def fleet(
        report: Report, truck: str, state: Truck, socket: Socket, context: Context
    ) -> Truck:
        state.km += report.km
        if state.km >= SERVICE_EVERY * (state.services + 1):
            state.services += 1
            await socket.publish(f"fleet/{truck}/service", state.km)
        was_away, state.away = state.away, hypot(report.east, report.north) > RADIUS
        if state.away and not was_away:
            context.remind("away", after=PATIENCE)
        elif was_away and not state.away:
            context.forget_reminder("away")
        return state

    @app.on_reminder("fleet", "away")
    async def call_back(truck: str, socket: Socket) -> None:
        await socket.publish(f"fleet/{truck}/return")

    @app.application("fleet/{truck}/service")
    async def workshop(km: int, truck: str) -> None:
        print(f"{truck} goes to service after {km} km")
        done_with(f"service of {truck}")

    @app.application("fleet/{truck}/return")
    async def radio(payload: bytes, truck: str) -> None:
        print(f"{truck} is called back")
        done_with(f"return of {truck}")

    @app.producer()
    async def dispatcher(socket: Socket) -> None:
        for truck, report in DAYS[day].items():
            known = await socket.request(f"fleet/{truck}/driven", report, reply=Truck, key=truck)
            print(f"{day}: {truck} has driven {known.km} km")
            done_with(truck)

    def done_with(what: str) -> None:
        done.add(what)
        left.discard(what)
        if not left:
            app.stop()

    return app


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        # A call may also come on the first day, on a slow machine.
        done: set[str] = set()
        for day in DAYS:
            make_app(day, folder, done).run()
            done -= {*DAYS[day]}
