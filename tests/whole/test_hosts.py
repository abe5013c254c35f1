"""The example deployment on two hosts with a broker between them: it grows, parts and rolls."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from spa_dat import DistributedApplication
from spa_dat._pytest import require
from spa_dat.testing import Kafka, Mosquitto
from support.command import Command
from support.hosts import KafkaOnHost, MosquittoOnHost, Network
from support.kafka_ledger import seeded
from support.readings import Readings, SharedLedger
from support.waiting import eventually

pytestmark = [pytest.mark.slow, pytest.mark.repository, pytest.mark.deadline(400)]

APPLICATION = Path(__file__).parent.parent.parent / "examples" / "deployment" / "ledger.py"
STARTED = r"application 'ledger' instance '(\S+)' has started"


@dataclass
class Deployment:
    """The application, on the hosts of a network."""

    network: Network
    url: str
    shares_by_turn: bool
    folder: Path
    ledger: SharedLedger
    commands: contextlib.ExitStack

    async def run(
        self, host: str, *, workers: int | None = None, instance: str | None = None
    ) -> Command:
        """Run the application by the command; returns when all its processes have started."""
        arguments = ["run", str(APPLICATION)]
        if workers is not None:
            arguments += ["--workers", str(workers)]
        if instance is not None:
            arguments += ["--instance", instance]
        command = self._command(host, *arguments)
        await command.says(STARTED, times=workers or 1)
        return command

    async def run_program(self, host: str) -> Command:
        """Run the file itself."""
        command = self._command(host, program=APPLICATION)
        await command.says(STARTED)
        return command

    def _command(self, host: str, *arguments: str, program: Path | None = None) -> Command:
        return self.commands.enter_context(
            Command(
                self.folder,
                *arguments,
                before=self.network.hosts[host].prefix,
                program=program,
                environment={"SPA_DAT_URL": self.url, "LEDGER_FILE": str(self.ledger.path)},
            )
        )

    def readings(self) -> Readings:
        return Readings(self.network.broker, self.url, seeded())

    async def handles(self, more: int) -> None:
        """Wait until so many more readings are handled."""
        count = self.ledger.handled() + more
        await eventually(lambda: self.ledger.handled() >= count, 100.0)

    async def all_have_handled(self, *instances: str) -> None:
        """Wait until each of the instances has handled something from now on."""
        before = {instance: self.ledger.lines_of(instance) for instance in instances}
        for instance, lines in before.items():
            await eventually(partial(self._has_more, instance, lines), 100.0)

    def _has_more(self, instance: str, lines: int) -> bool:
        return self.ledger.lines_of(instance) > lines

    async def goes_on_with_all(self, readings: Readings) -> None:
        """Wait until everything is handled that was sent by a time from now on."""
        confirmed = readings.confirmed
        await eventually(lambda: readings.confirmed >= confirmed + 200, 100.0)
        sent = readings.sent()
        await eventually(lambda: self.ledger.handled() and sent <= set(self.ledger.times), 100.0)

    async def has_its_share(self, instance: str, readings: Readings) -> None:
        """Wait until an instance has handled something that is sent from now on."""
        sent = readings.sent()
        await eventually(lambda: self.ledger.of(instance) - sent, 100.0)

    async def lost_nothing(self, readings: Readings) -> None:
        """Wait until all is handled, and look at the order."""
        sent = readings.sent()
        await eventually(lambda: self.ledger.handled() >= len(sent), 100.0)
        assert set(self.ledger.times) == sent
        assert self.ledger.disorder(of_each_instance=self.shares_by_turn) == []
        print(f"{len(sent)} readings, {self.ledger.repeated} handled again, {self.ledger.by}")

    async def asks(self) -> object:
        """Send one more reading as a request; returns the reply."""
        return await asyncio.to_thread(self.network.broker.call, partial(asyncio.run, self._ask()))

    async def _ask(self) -> object:
        reading = {"machine": "asked", "number": 0, "celsius": 60}
        async with DistributedApplication(self.url, name="asking") as app:
            return await app.socket().request(
                "plant/readings", reading, key="asked", reply=dict[str, object], timeout=20
            )


def require_network() -> None:
    problem = Network.missing()
    if problem is None:
        return
    if os.environ.get("CI") == "true" and os.geteuid() == 0:
        pytest.fail(problem)
    pytest.skip(problem)


@pytest.fixture(
    params=[
        pytest.param("mqtt", marks=pytest.mark.mosquitto),
        pytest.param("kafka", marks=pytest.mark.kafka),
    ]
)
def deployment(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Deployment]:
    on_kafka = request.param == "kafka"
    require(Kafka if on_kafka else Mosquitto)
    require_network()
    with contextlib.ExitStack() as stack:
        network = stack.enter_context(Network("east", "west"))
        broker: Kafka | Mosquitto
        if on_kafka:
            broker = KafkaOnHost(network.broker)
            options = "create_topics=all&partitions=6&session_timeout=3&heartbeat_interval=0.5"
        else:
            broker = MosquittoOnHost(network.broker, durable=True)
            options = "keepalive=2"
        stack.enter_context(broker)
        url = f"{broker.url}?{options}&backoff_max=0.5"
        ledger = SharedLedger(tmp_path / "ledger")
        commands = stack.enter_context(contextlib.ExitStack())
        yield Deployment(network, url, not on_kafka, tmp_path, ledger, commands)


async def test_the_same_file_grows_from_one_process_to_two_hosts_and_rolls(
    deployment: Deployment,
) -> None:
    program = await deployment.run_program("east")
    async with deployment.readings() as readings:
        await deployment.handles(100)
        await stop(program)
        # One process, and the two that take its place: instance 0 goes on where it was.
        east = await deployment.run("east", workers=2)
        await deployment.handles(100)
        west = await deployment.run("west", workers=2, instance="west")
        await deployment.all_have_handled("0", "1", "west-0", "west-1")

        await stop(west)
        west = await deployment.run("west", workers=2, instance="west")
        await deployment.handles(100)
        await stop(east)
        east = await deployment.run("east", workers=2)
        await deployment.all_have_handled("0", "1", "west-0", "west-1")
    await deployment.lost_nothing(readings)
    reply = await deployment.asks()
    assert isinstance(reply, dict)
    assert (reply["machine"], reply["number"]) == ("asked", 0)
    await stop(west)
    await stop(east)


async def test_a_host_that_is_cut_off_holds_up_nobody_and_loses_nothing(
    deployment: Deployment,
) -> None:
    east = await deployment.run("east", instance="east")
    west = await deployment.run("west", instance="west")
    async with deployment.readings() as readings:
        await deployment.all_have_handled("east", "west")
        deployment.network.hosts["west"].unplug()
        if deployment.shares_by_turn:
            # What is dealt out to the one that is away waits for it; the other goes on.
            handled = deployment.ledger.lines_of("east") + 500
            await eventually(lambda: deployment.ledger.lines_of("east") >= handled)
        else:
            # Of all partitions, and the cable is not back yet.
            await deployment.goes_on_with_all(readings)
        deployment.network.hosts["west"].plug()
        await deployment.has_its_share("west", readings)
        await deployment.has_its_share("east", readings)
    await deployment.lost_nothing(readings)
    await stop(west)
    await stop(east)


async def stop(command: Command) -> None:
    command.signal(signal.SIGTERM)
    assert await command.end() == 0, command.lines[-50:]
