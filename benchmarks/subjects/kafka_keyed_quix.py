"""Counts records by key exactly once with Quix Streams."""

from __future__ import annotations

import asyncio
import os
import tempfile

from quixstreams import Application, State

from ._child import COUNTS_TOPIC, KEYED_TOPIC, Meter, arguments, on_kafka, report

_INTERVAL = 0.1


def _main() -> None:
    order = arguments()
    meter = Meter(order)
    with tempfile.TemporaryDirectory() as folder:
        app = Application(
            broker_address=order.server,
            # A name of its own: a group that has read nothing yet.
            consumer_group=f"benchmark-{os.getpid()}",
            auto_offset_reset="earliest",
            processing_guarantee="exactly-once",
            commit_interval=_INTERVAL,
            state_dir=folder,
            loglevel="ERROR",
        )
        source = app.topic(
            on_kafka(KEYED_TOPIC), key_deserializer="bytes", value_deserializer="bytes"
        )
        target = app.topic(on_kafka(COUNTS_TOPIC), key_serializer="bytes", value_serializer="bytes")

        def count(value: bytes, state: State) -> bytes:
            state.set("number", state.get("number", 0) + 1)
            meter.count()
            return value

        app.dataframe(source).apply(count, stateful=True).to_topic(target)
        report("ready")
        app.run(count=order.warm_up + order.messages)
    report("result", **asyncio.run(meter.finish()))


if __name__ == "__main__":
    _main()
