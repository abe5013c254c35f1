"""A Kafka broker that slows clients down because of a quota, and offsets that are gone."""

from __future__ import annotations

import asyncio
import struct
from collections import Counter
from pathlib import Path

import pytest

from spa_dat import DistributedApplication, KafkaConfig, KafkaTopic
from spa_dat.testing import Kafka
from spa_dat.transports.kafka._throttling import Throttling
from support.kafka_bus import bus_client, new_prefix
from support.waiting import eventually

pytestmark = pytest.mark.kafka
_DELETE_GROUPS, _ALTER_QUOTAS = 42, 49


def text(value: str) -> bytes:
    return struct.pack(">h", len(value)) + value.encode()


def limit(broker: Kafka, client_id: str, key: str, rate: float) -> None:
    """Give a client id a quota."""
    entity = struct.pack(">i", 1) + text("client-id") + text(client_id)
    change = struct.pack(">i", 1) + text(key) + struct.pack(">db", rate, 0)
    answer = broker._ask(_ALTER_QUOTAS, 0, struct.pack(">i", 1) + entity + change + b"\0")
    assert struct.unpack_from(">iiih", answer)[-1] == 0


async def test_a_quota_that_slows_us_down_is_named(
    kafka: Kafka, caplog: pytest.LogCaptureFixture
) -> None:
    name = f"app{new_prefix()[:8]}"
    limit(kafka, f"{name}.0", "producer_byte_rate", 200.0)
    async with bus_client(kafka.server, name=name) as client:
        for _ in range(3):
            await client.publish("a", b"x" * 1_000)
            if client.stats["kafka.throttled"]:
                break
        assert client.stats["kafka.throttled"] == 1
    assert "more than its quota allows" in caplog.text


async def test_a_long_wait_is_said_once_a_minute(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now, stats = 100.0, Counter[str]()
    monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: now)
    throttling = Throttling("it", stats)
    for milliseconds in (10, 2_000, 3_000):
        throttling.hear(milliseconds)
    assert (stats["kafka.throttled"], len(caplog.records)) == (2, 1)
    now += 60.0
    throttling.hear(4_000)
    # The one that was left out is told of with how many there were.
    told = [record.args for record in caplog.records]
    assert told == [("it", 2.0), ("it", 3.0), ("it", 4.0)]


async def test_states_whose_offsets_are_gone_are_named(
    kafka: Kafka, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    prefix = new_prefix()
    config = KafkaConfig(
        kafka.server,
        prefix=prefix,
        create_topics="all",
        topics={"work/{key}": KafkaTopic("work", key="key")},
        session_timeout=0.6,
        heartbeat_interval=0.1,
    )
    handled: list[bytes] = []

    def keeping() -> DistributedApplication:
        app = DistributedApplication(config, name="app", state_folder=tmp_path)

        @app.application("work/{key}", per="key", state=dict[str, int], durable=True)
        async def keep(payload: bytes, state: dict[str, int]) -> None:
            state["n"] = state.get("n", 0) + 1
            handled.append(payload)

        return app

    async with keeping() as app:
        await app.socket().publish("work/a", b"1")
        await eventually(lambda: app.stats["kafka.transactions"] == 1)
    async with keeping() as app:
        await eventually(lambda: app.healthy)
    assert "no offset is committed" not in caplog.text

    def deleted() -> bool:
        wanted = struct.pack(">i", 1) + text(f"{prefix}app.keep")
        code: int = struct.unpack(">h", kafka._ask(_DELETE_GROUPS, 0, wanted)[-2:])[0]
        return code == 0

    # As long as the member may come back it is not empty.
    await eventually(deleted)
    async with keeping() as app:
        await eventually(lambda: handled == [b"1", b"1"])
        await eventually(lambda: "has states of keys, and no offset is committed" in caplog.text)
