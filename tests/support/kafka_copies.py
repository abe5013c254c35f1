"""What a reader of committed records finds in a topic."""

from __future__ import annotations

from aiokafka import AIOKafkaConsumer

__all__ = ["Copies"]


class Copies:
    """What a reader of committed records finds in a topic, by the keys of the records.

    Args:
        server: the broker's address.
        topic: the topic.

    Attributes:
        values: in the order in which they were read; None for what deletes.
        count: how many there are.
    """

    def __init__(self, server: str, topic: str) -> None:
        self.values: dict[str, list[bytes | None]] = {}
        self.count = 0
        self._consumer = AIOKafkaConsumer(
            topic,
            bootstrap_servers=server,
            auto_offset_reset="earliest",
            enable_auto_commit=False,
            isolation_level="read_committed",
        )

    @property
    def different(self) -> int:
        """How many there are, without those that are there more than once."""
        return sum(len(set(values)) for values in self.values.values())

    async def read(self) -> None:
        """Take notice of everything that comes, until cancelled."""
        await self._consumer.start()
        try:
            while True:
                for records in (await self._consumer.getmany(timeout_ms=100)).values():
                    for record in records:
                        self.values.setdefault(record.key.decode(), []).append(record.value)
                        self.count += 1
        finally:
            await self._consumer.stop()
