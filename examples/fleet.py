"""Send the trucks of a fleet to service by what they have driven, also before the last restart.

Each truck has a state of its own, which lasts: in a file on memory and MQTT, in a topic on Kafka.
The application runs twice here, for two days::

    python examples/fleet.py
    python examples/fleet.py mqtt://127.0.0.1:1883
    python examples/fleet.py kafka://127.0.0.1:9092?create_topics=all
"""

import sys
import tempfile
from dataclasses import dataclass
from typing import Any

from spa_dat import DistributedApplication, KafkaTopic, Socket, SocketProviderFactory

URL = sys.argv[1] if len(sys.argv) > 1 else "memory://"
ON_KAFKA = URL.startswith("kafka")
# Two topics for the whole fleet. What one truck sends is in one partition, as is its state.
TOPICS = {
    "fleet/{truck}/driven": KafkaTopic("fleet.driven", key="truck"),
    "fleet/{truck}/service": KafkaTopic("fleet.service", key="truck"),
}
SERVICE_EVERY = 30_000
DAYS = {
    "Monday": {"north": 12_000, "south": 20_000, "west": 500},
    "Tuesday": {"north": 12_000, "south": 12_000, "west": 700},
}
# What has to have happened at the end of the day, besides.
SERVICES: dict[str, list[str]] = {"Monday": [], "Tuesday": ["service of south"]}


@dataclass
class Truck:
    """What is known of one truck."""

    km: int = 0
    services: int = 0


def make_app(day: str, folder: str) -> DistributedApplication:
    options: dict[str, Any] = {"topics": TOPICS} if ON_KAFKA else {}
    bus = SocketProviderFactory.from_url(URL, **options)
    # Without a folder: where the system keeps the state of programs.
    app = DistributedApplication(bus, name="fleet-example", state_folder=folder)
    left = {*DAYS[day], *SERVICES[day]}

    # What is published, the state and the place in the topic are committed together.
    @app.application(
        "fleet/{truck}/driven", per="truck", state=Truck, durable=True, exactly_once=ON_KAFKA
    )
    async def fleet(km: int, truck: str, state: Truck, socket: Socket) -> Truck:
        state.km += km
        if state.km >= SERVICE_EVERY * (state.services + 1):
            state.services += 1
            await socket.publish(f"fleet/{truck}/service", state.km)
        return state

    @app.application("fleet/{truck}/service")
    async def workshop(km: int, truck: str) -> None:
        print(f"{truck} goes to service after {km} km")
        done_with(f"service of {truck}")

    @app.producer()
    async def dispatcher(socket: Socket) -> None:
        for truck, km in DAYS[day].items():
            known = await socket.request(f"fleet/{truck}/driven", km, reply=Truck, key=truck)
            print(f"{day}: {truck} has driven {known.km} km")
            done_with(truck)

    def done_with(what: str) -> None:
        left.discard(what)
        if not left:
            app.stop()

    return app


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        for day in DAYS:
            make_app(day, folder).run()
