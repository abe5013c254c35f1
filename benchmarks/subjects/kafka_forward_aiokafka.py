"""Forwards records exactly once with plain aiokafka, in a transaction each 100 ms."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from ._aiokafka_transactions import PartitionProducer, run
from ._child import COPIES_TOPIC, RECEIVE_TOPIC, on_kafka


class _Forwarding:
    """The values of one partition that are to be forwarded."""

    def __init__(self, producer: PartitionProducer) -> None:
        self._producer = producer
        self._values: list[bytes] = []
        self._offset = -1

    def add(self, records: Sequence[Any]) -> None:
        """Take records that are to be forwarded."""
        self._values += [record.value for record in records]
        self._offset = records[-1].offset + 1

    async def commit(self) -> int:
        """Forward them; return how many there were."""
        values, self._values = self._values, []
        if values:
            copies = on_kafka(COPIES_TOPIC), ((None, value) for value in values)
            await self._producer.commit(self._offset, [copies])
        return len(values)


if __name__ == "__main__":
    asyncio.run(run(RECEIVE_TOPIC, _Forwarding))
