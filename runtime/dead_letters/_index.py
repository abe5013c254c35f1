"""Where the dead letters of an application are in their topic, so that each is found at once."""

from __future__ import annotations

import asyncio
import contextlib

from ...errors import UnknownTopic
from ...transports import KafkaConfig, dead_letter_filter, named_topic
from ._reading import no_letters
from ._stored_letter import StoredLetter

__all__ = ["LetterIndex"]

# Seconds after which it is forgotten if nobody has looked for a letter.
_KEPT = 60.0
# In milliseconds, as logs have times. Whoever asks for a letter may say any.
_LATEST = 1e15


class LetterIndex:
    """Where the letters are that are still there, on Kafka, where they are records of a topic.

    The topic is read once. After that only what was stored meanwhile is read for each letter that
    is looked for, and the record of the letter itself.

    Args:
        config: the cluster.
        application: whose letters.
    """

    def __init__(self, config: KafkaConfig, application: str) -> None:
        self._config = config
        self._application = application
        self._filter = dead_letter_filter(application)
        self._one_at_a_time = asyncio.Lock()
        self._since = 0
        # Next offsets, by partition.
        self._read: dict[int, int] = {}
        # By a hash of the topic of each letter: where its latest version is. A stranger who finds
        # two with one hash hides a letter of somebody who let them write there.
        self._places: dict[int, tuple[int, int]] = {}
        self._forgetting: asyncio.TimerHandle | None = None

    async def find(self, name: str, since: float | None = None) -> StoredLetter | None:
        """Return the letter of this name; None if there is none.

        Args:
            name: of the letter.
            since: when it was stored, in seconds since 1970 (UTC), if that is known.

        Raises:
            TransportError: the bus cannot be used.
            UnknownTopic: there is no topic for them, so there never was such an application.
        """
        # The client library takes time to import.
        from ...transports.kafka.consuming._history import read_record

        topic = named_topic(self._application, name)
        async with self._one_at_a_time:
            self._stay()
            try:
                await self._update(
                    0 if since is None else int(max(0.0, min(since * 1000, _LATEST)))
                )
                place = self._places.get(hash(topic))
                found = None
                if place is not None:
                    found = await read_record(self._config, self._filter, *place)
            except UnknownTopic as error:
                raise no_letters(self._application, self._config.address) from error
            finally:
                self._forgetting = asyncio.get_running_loop().call_later(_KEPT, self.forget)
        if found is None or found.topic != topic:
            return None
        return StoredLetter.of(self._application, found)

    async def _update(self, since: int) -> None:
        if since < self._since or not self._read:
            self._begin(since)
        before = dict(self._read)
        await self._read_on()
        if any(self._read[partition] < offset for partition, offset in before.items()):
            # The topic was recreated.
            self._begin(self._since)
            await self._read_on()

    def _begin(self, since: int) -> None:
        self._since = since
        self._read.clear()
        self._places.clear()

    async def _read_on(self) -> None:
        from ...transports.kafka.consuming._history import read_on

        history = read_on(self._config, self._filter, since=self._since, read=self._read)
        async with contextlib.aclosing(history):
            async for envelope in history:
                if envelope.tombstone:
                    self._places.pop(hash(envelope.topic), None)
                elif envelope.partition is not None and envelope.offset is not None:
                    self._places[hash(envelope.topic)] = envelope.partition, envelope.offset

    def _stay(self) -> None:
        if self._forgetting is not None:
            self._forgetting.cancel()
            self._forgetting = None

    def forget(self) -> None:
        """Have the topic read from the beginning the next time."""
        self._stay()
        self._begin(self._since)
