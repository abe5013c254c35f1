"""Counts records by key exactly once with plain aiokafka, in a transaction each 100 ms."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import Any

from ._aiokafka_transactions import PartitionProducer, run
from ._child import COUNTS_TOPIC, KEYED_TOPIC, arguments, on_kafka


class _Counting:
    """The counts of one partition."""

    def __init__(self, changelog: str, producer: PartitionProducer) -> None:
        self._changelog = changelog
        self._producer = producer
        self._counts: Counter[bytes] = Counter()
        self._outputs: list[tuple[bytes, bytes]] = []
        self._offset = -1

    def add(self, records: Sequence[Any]) -> None:
        """Count records."""
        for record in records:
            self._counts[record.key] += 1
            self._outputs.append((record.key, record.value))
        self._offset = records[-1].offset + 1

    async def commit(self) -> int:
        """Publish what was counted, and the counts that have changed; return how much it was."""
        outputs, self._outputs = self._outputs, []
        if outputs:
            counts = [(key, b'{"number":%d}' % self._counts[key]) for key in dict(outputs)]
            both = [(on_kafka(COUNTS_TOPIC), outputs), (self._changelog, counts)]
            await self._producer.commit(self._offset, both)
        return len(outputs)


if __name__ == "__main__":
    asyncio.run(run(KEYED_TOPIC, partial(_Counting, arguments().topic)))
