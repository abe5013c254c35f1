"""Counts records by key with an application: exactly once with durable states, or at least once."""

from __future__ import annotations

import asyncio
import os
import tempfile
from dataclasses import dataclass

from spa_dat import DistributedApplication, KafkaConfig, KafkaTopic, Socket

from ._child import COUNTS_TOPIC, KEYED_TOPIC, Meter, arguments, on_kafka, report


@dataclass
class Count:
    """The state of a key."""

    number: int = 0


async def _main(folder: str) -> None:
    order = arguments()
    meter = Meter(order)
    config = KafkaConfig(
        order.server,
        create_topics="all",
        topics={
            f"{name}/{{key}}": KafkaTopic(on_kafka(name), key="key")
            for name in (KEYED_TOPIC, COUNTS_TOPIC)
        },
    )
    # A name of its own: a group that has read nothing yet.
    app = DistributedApplication(config, name=f"benchmark-{os.getpid()}", state_folder=folder)
    once = order.what == "once"

    @app.application(
        f"{KEYED_TOPIC}/{{key}}", per="key", state=Count, durable=once, exactly_once=once
    )
    async def count(payload: bytes, key: str, state: Count, socket: Socket) -> None:
        state.number += 1
        socket.post(f"{COUNTS_TOPIC}/{key}", payload)
        meter.count()

    async with app:
        report("ready")
        report("result", **await meter.finish())


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as states:
        asyncio.run(_main(states))
