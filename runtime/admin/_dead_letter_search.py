"""Looking for the dead letters of a running application on its buses."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Iterator
from typing import TYPE_CHECKING

from ..._texts import quoted
from ...errors import ConfigurationError, SpaDatError
from ...transports import KafkaConfig
from ..dead_letters._index import LetterIndex
from ..dead_letters._reading import stored_letters
from ..dead_letters._stored_letter import LetterFilter, StoredLetter
from ..messaging._bus_connection import BusConnection

if TYPE_CHECKING:
    from ._administered_run import AdministeredRun

__all__ = ["DeadLetterSearch", "TooManyReaders"]

_ALL = LetterFilter()
# Reading letters may take a connection of its own.
_MOST_READERS = 4


class TooManyReaders(SpaDatError):
    """Dead letters are being looked for too often at a time."""


class DeadLetterSearch:
    """Finds dead letters, on all buses of a running application.

    Args:
        run: the run of the application.
    """

    def __init__(self, run: AdministeredRun) -> None:
        self._run = run
        self._readers = 0
        # Of clusters, by their addresses.
        self._indexes: dict[str, LetterIndex] = {}

    async def stored(
        self, wanted: LetterFilter = _ALL, *, bus: str | None = None
    ) -> AsyncGenerator[tuple[str, StoredLetter], None]:
        """Yield dead letters, each with the address of its bus; few are in memory at a time.

        Args:
            wanted: which of them.
            bus: the address of the only bus to look at; None for all.

        Raises:
            ConfigurationError: the application does not use this bus.
            TransportError: a bus cannot be used.
            TooManyReaders: ask again later.
        """
        with self._reading():
            for connection in self.connections(bus):
                found = stored_letters(connection.provider, self._owner)
                async with contextlib.aclosing(found):
                    async for letter in found:
                        if wanted.wants(letter):
                            yield connection.provider.address, letter

    async def show(
        self, name: str, *, bus: str | None = None, since: float | None = None
    ) -> tuple[str, StoredLetter] | None:
        """Return the dead letter of this name and the address of its bus; None without one.

        Args:
            name: of the letter.
            bus: as for `stored`.
            since: when it was stored, if that is known: nothing older is read.

        Raises:
            ConfigurationError, TransportError, TooManyReaders: as for `stored`.
        """
        with self._reading():
            for connection in self.connections(bus):
                found = await self.find_on(connection, name, since)
                if found is not None:
                    return connection.provider.address, found
        return None

    async def find_on(
        self, connection: BusConnection, name: str, since: float | None
    ) -> StoredLetter | None:
        """Return the dead letter of this name on one bus; None without one."""
        config, address = connection.provider.config, connection.provider.address
        if isinstance(config, KafkaConfig):
            if address not in self._indexes:
                self._indexes[address] = LetterIndex(config, self._owner)
            return await self._indexes[address].find(name, since)
        letters = stored_letters(connection.provider, self._owner, name)
        async with contextlib.aclosing(letters):
            async for letter in letters:
                return letter
        return None

    @property
    def _owner(self) -> str:
        return self._run.settings.identity.application

    def connections(self, bus: str | None) -> list[BusConnection]:
        """Return the buses of the application: the one with this address, or all.

        Raises:
            ConfigurationError: it does not use this bus.
        """
        found = [
            connection
            for connection in self._run.connections
            if bus in (None, connection.provider.address)
        ]
        if bus is not None and not found:
            raise ConfigurationError(f"the application uses no bus {quoted(bus, 200)}")
        return found

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        if self._readers >= _MOST_READERS:
            raise TooManyReaders(
                f"{self._readers} clients are looking for dead letters already: try again later"
            )
        self._readers += 1
        try:
            yield
        finally:
            self._readers -= 1

    def close(self) -> None:
        """Forget where the letters are."""
        for index in self._indexes.values():
            index.forget()
