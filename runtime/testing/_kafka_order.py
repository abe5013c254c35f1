"""The same order in every process, for a client library that shuffles."""

from __future__ import annotations

import asyncio
import contextlib
import random
import types
from collections.abc import Iterator
from typing import Any
from weakref import WeakKeyDictionary

import aiokafka.client
import aiokafka.consumer.fetcher

from ...errors import ConfigurationError

__all__ = ["repeatable_order"]

_MODULES: tuple[types.ModuleType, ...] = (aiokafka.client, aiokafka.consumer.fetcher)


class _Random:
    """In place of the module `random`: repeatable in some event loops, as usual elsewhere."""

    def __init__(self) -> None:
        self.loops: WeakKeyDictionary[asyncio.AbstractEventLoop, random.Random] = (
            WeakKeyDictionary()
        )

    def shuffle(self, items: list[Any]) -> None:
        """Bring into any order; one that does not depend on the order before where it repeats."""
        own = self._of_loop()
        if own is None:
            random.shuffle(items)
        else:
            # It may have come out of a set.
            items.sort()
            own.shuffle(items)

    def choice(self, items: Any) -> Any:
        """One of them."""
        own = self._of_loop()
        return random.choice(items) if own is None else own.choice(sorted(items))

    def _of_loop(self) -> random.Random | None:
        loop = asyncio._get_running_loop()
        return None if loop is None else self.loops.get(loop)

    def __getattr__(self, name: str) -> Any:
        return getattr(random, name)


_random = _Random()


@contextlib.contextmanager
def repeatable_order(loop: asyncio.AbstractEventLoop) -> Iterator[None]:
    """Have what the Kafka client library draws by lot be the same in each process.

    Args:
        loop: the event loop for which that is so.

    Raises:
        ConfigurationError: the installed library does not draw as it is known to.
    """
    strange = [
        module.__name__
        for module in _MODULES
        if vars(module).get("random") not in (random, _random)
    ]
    if strange:
        raise ConfigurationError(
            f"{', '.join(strange)} can not be made repeatable: install aiokafka>=0.14,<0.15"
        )
    _random.loops[loop] = random.Random(0)
    for module in _MODULES:
        vars(module)["random"] = _random
    try:
        yield
    finally:
        del _random.loops[loop]
        if not _random.loops:
            for module in _MODULES:
                vars(module)["random"] = random
