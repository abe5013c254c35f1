"""What is kept of durable keys on a simulated Kafka cluster, and in the snapshots of tests."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from spa_dat.runtime.application import _buses
from spa_dat.testing import Harness
from spa_dat.transports import Surroundings
from spa_dat.transports.kafka._topic_facts import TopicFacts
from spa_dat.transports.kafka.consuming import _units

__all__ = ["cluster_of", "in_changelog", "in_snapshot", "snapshots_in"]


def cluster_of(harness: Harness) -> Any:
    """Return the simulated cluster of a harness with only one bus."""
    bus: Any
    (bus,) = harness._core.world.buses.values()
    return bus.cluster


def in_changelog(harness: Harness, actor: str = "work") -> list[str]:
    """Return the keys of which something is committed."""
    found: dict[str, bytes] = {}
    for partition in cluster_of(harness).topics[f"_spa.state.app.{actor}"].partitions:
        for record in partition.readable():
            found[record.key.decode()] = record.value
    return sorted(key for key, value in found.items() if value is not None)


def in_snapshot(folder: Path, instance: int = 0) -> dict[bytes, int]:
    """Return the counts that are in the file of an application that is not running."""
    with contextlib.closing(sqlite3.connect(folder / f"app.{instance}.work.snapshot")) as database:
        rows = database.execute("SELECT key, value FROM state").fetchall()
    return {key: json.loads(value.partition(b"\n")[2])["n"] for key, value in rows}


def snapshots_in(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let applications have snapshots in a folder, which they have not in tests."""

    def surroundings(*given: Any) -> Surroundings:
        return replace(Surroundings(*given), folder=lambda: folder)

    async def facts(client: Any, names: list[str]) -> dict[str, TopicFacts]:
        # The simulated cluster has no ids.
        leaders = dict.fromkeys(range(3), 0)
        return {name: TopicFacts(f"id of {name}", True, leaders, {}) for name in names}

    monkeypatch.setattr(_buses, "Surroundings", surroundings)
    monkeypatch.setattr(_units, "topic_facts", facts)
