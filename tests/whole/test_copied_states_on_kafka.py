"""``spa-dat states copy``: an application goes on with its states when its topic has grown."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path

import pytest
from aiokafka.admin import NewPartitions

from spa_dat import DistributedApplication, KafkaConfig, KafkaTopic
from spa_dat.cli._main import main
from spa_dat.errors import ConfigurationError
from spa_dat.testing import Kafka
from support.kafka_bus import admin, create, new_prefix, settings
from support.waiting import eventually

BEFORE, AFTER, TRUCKS = 2, 5, 20


@dataclass
class Truck:
    km: int = 0


def fleet(config: KafkaConfig, actor: str, folder: Path) -> DistributedApplication:
    """Return an application that answers with what each truck has driven."""
    app = DistributedApplication(config, name="fleet", state_folder=folder)

    @app.application(
        "fleet/{truck}/km", name=actor, per="truck", state=Truck, durable=True, exactly_once=True
    )
    async def drive(km: int, state: Truck) -> int:
        state.km += km
        return state.km

    return app


async def drive(app: DistributedApplication) -> list[int]:
    """Have each truck drive one kilometre; return what they have driven."""
    requests = (
        app.socket().request(f"fleet/{truck}/km", 1, reply=int, timeout=60)
        for truck in range(TRUCKS)
    )
    return await asyncio.gather(*requests)


@pytest.mark.kafka
async def test_states_go_on_in_more_partitions(
    kafka: Kafka, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prefix = new_prefix()
    topic = f"{prefix}fleet.km"
    await create(kafka.server, topic, BEFORE)
    config = KafkaConfig(
        kafka.server,
        prefix=prefix,
        topics={"fleet/{truck}/km": KafkaTopic("fleet.km", key="truck")},
        topic_refresh=0.1,
        session_timeout=2,
        heartbeat_interval=0.3,
    )
    async with fleet(config, "km", tmp_path) as app:
        assert await drive(app) == [1] * TRUCKS
    async with admin(kafka.server) as client:
        await client.create_partitions({topic: NewPartitions(AFTER)})

    async def has_grown() -> bool:
        return (await settings(kafka.server, topic))[0] == AFTER

    await eventually(has_grown)
    with pytest.raises(ConfigurationError, match="spa-dat states copy"):
        await fleet(config, "km", tmp_path).start()
    names = ("--application", "fleet", "--actor", "km", "--to", "distance", "--topic", topic)
    command = ["states", "copy", f"{kafka.url}?prefix={prefix}", *names]

    async def is_copied() -> bool:
        # Whoever has stopped counts as a member until its session is over.
        return await asyncio.to_thread(main, command) == 0

    await eventually(is_copied)
    written = f"states: {TRUCKS}, {TRUCKS} of them written now, from {BEFORE} partitions of "
    assert written in capsys.readouterr().out
    async with fleet(config, "distance", tmp_path) as app:
        assert await drive(app) == [2] * TRUCKS
        assert await asyncio.to_thread(main, command) == 2
        assert "distance' has members" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["mqtt://localhost", "--to", "new"], "on Kafka only"),
        (["kafka://localhost", "--to", "old"], "--to 'old' is the actor whose states"),
        (["kafka://localhost", "--to", "a.b"], "--to 'a.b': use 1 to 64"),
    ],
)
def test_a_command_that_cannot_be_meant_is_wrong(
    arguments: list[str], problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ["--application", "fleet", "--actor", "old", "--topic", "fleet.km"]
    assert main(["states", "copy", *arguments, *names]) == 2
    assert problem in capsys.readouterr().err
