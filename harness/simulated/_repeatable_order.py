"""The same order in every process, for a client library that shuffles and uses sets."""

from __future__ import annotations

import asyncio
import contextlib
import random
import types
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any, Self
from weakref import WeakKeyDictionary

import aiokafka.client
import aiokafka.cluster
import aiokafka.consumer.consumer
import aiokafka.consumer.fetcher
import aiokafka.consumer.group_coordinator
import aiokafka.consumer.subscription_state
import aiokafka.coordinator.assignors.range
import aiokafka.coordinator.assignors.roundrobin
import aiokafka.partitioner
import aiokafka.producer.message_accumulator
import aiokafka.producer.producer
import aiokafka.producer.sender
import aiokafka.producer.transaction_manager

from ...errors import ConfigurationError

__all__ = ["repeatable_order"]

_DRAWING: tuple[types.ModuleType, ...] = (
    aiokafka.client,
    aiokafka.consumer.fetcher,
    aiokafka.partitioner,
)
_KEEPING_SETS: tuple[types.ModuleType, ...] = (
    aiokafka.client,
    aiokafka.cluster,
    aiokafka.consumer.consumer,
    aiokafka.consumer.fetcher,
    aiokafka.consumer.group_coordinator,
    aiokafka.consumer.subscription_state,
    aiokafka.coordinator.assignors.range,
    aiokafka.coordinator.assignors.roundrobin,
    aiokafka.producer.message_accumulator,
    aiokafka.producer.producer,
    aiokafka.producer.sender,
    aiokafka.producer.transaction_manager,
)


class _MatchesPlainSets(type):
    """Makes ``isinstance`` accept any built-in set of the kind."""

    _plain: type = object

    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, cls._plain)


class _OrderedSet(set[Any], metaclass=_MatchesPlainSets):
    """A set that keeps the order in which items were added.

    The order of others depends on the hashes of strings, and on the addresses of objects.
    """

    _plain = set

    def __init__(self, items: Iterable[Any] = ()) -> None:
        self._order = dict.fromkeys(items)
        super().__init__(self._order)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._order)

    def _keep(self, items: Iterable[Any]) -> Self:
        self._order = dict.fromkeys(items)
        super().clear()
        super().update(self._order)
        return self

    def add(self, item: Any) -> None:
        self._order[item] = None
        super().add(item)

    def discard(self, item: Any) -> None:
        self._order.pop(item, None)
        super().discard(item)

    def remove(self, item: Any) -> None:
        super().remove(item)
        del self._order[item]

    def pop(self) -> Any:
        for item in self._order:
            self.remove(item)
            return item
        raise KeyError("pop from an empty set")

    def clear(self) -> None:
        self._keep(())

    def copy(self) -> Self:
        return type(self)(self)

    def update(self, *others: Iterable[Any]) -> None:
        self._keep(chain(self, *others))

    def difference(self, *others: Iterable[Any]) -> Self:
        left_out = set().union(*others)
        return type(self)(item for item in self if item not in left_out)

    def difference_update(self, *others: Iterable[Any]) -> None:
        self._keep(list(self.difference(*others)))

    def intersection(self, *others: Iterable[Any]) -> Self:
        wanted = set(self).intersection(*others)
        return type(self)(item for item in self if item in wanted)

    def intersection_update(self, *others: Iterable[Any]) -> None:
        self._keep(list(self.intersection(*others)))

    def symmetric_difference(self, other: Iterable[Any]) -> Self:
        others = dict.fromkeys(other)
        mine = (item for item in self if item not in others)
        return type(self)(chain(mine, (item for item in others if item not in self)))

    def union(self, *others: Iterable[Any]) -> Self:
        return type(self)(chain(self, *others))

    __and__ = intersection
    __or__ = union
    __sub__ = difference
    __xor__ = symmetric_difference

    def __iand__(self, other: Iterable[Any]) -> Self:  # type: ignore[misc]
        return self._keep(list(self.intersection(other)))

    def __ior__(self, other: Iterable[Any]) -> Self:  # type: ignore[misc]
        return self._keep(list(self.union(other)))

    def __isub__(self, other: Iterable[Any]) -> Self:  # type: ignore[misc]
        return self._keep(list(self.difference(other)))

    def __ixor__(self, other: Iterable[Any]) -> Self:  # type: ignore[misc]
        return self._keep(list(self.symmetric_difference(other)))


class _OrderedFrozenSet(frozenset[Any], metaclass=_MatchesPlainSets):
    """A frozenset that keeps the order of the items that it was made from."""

    _plain = frozenset

    def __new__(cls, items: Iterable[Any] = ()) -> Self:
        order = dict.fromkeys(items)
        made = super().__new__(cls, order)
        made._order = order
        return made

    _order: dict[Any, None]

    def __iter__(self) -> Iterator[Any]:
        return iter(self._order)

    def difference(self, *others: Iterable[Any]) -> Self:
        left_out = set().union(*others)
        return type(self)(item for item in self if item not in left_out)

    def intersection(self, *others: Iterable[Any]) -> Self:
        wanted = set(self).intersection(*others)
        return type(self)(item for item in self if item in wanted)

    def union(self, *others: Iterable[Any]) -> Self:
        return type(self)(chain(self, *others))

    __and__ = intersection
    __or__ = union
    __sub__ = difference


class _RepeatableRandom:
    """Stands in for the module `random`: repeatable in registered event loops, else unchanged."""

    def __init__(self) -> None:
        self.loops: WeakKeyDictionary[asyncio.AbstractEventLoop, random.Random] = (
            WeakKeyDictionary()
        )

    def shuffle(self, items: list[Any]) -> None:
        """Shuffle; in a registered loop the result does not depend on the order before."""
        own = self._of_loop()
        if own is None:
            random.shuffle(items)
        else:
            # It may come from a built-in set that the library was given.
            items.sort()
            own.shuffle(items)

    def choice(self, items: Any) -> Any:
        """Return one of the items."""
        own = self._of_loop()
        return random.choice(items) if own is None else own.choice(sorted(items))

    def _of_loop(self) -> random.Random | None:
        loop = asyncio._get_running_loop()
        return None if loop is None else self.loops.get(loop)

    def __getattr__(self, name: str) -> Any:
        return getattr(random, name)


_random = _RepeatableRandom()


@contextlib.contextmanager
def repeatable_order(loop: asyncio.AbstractEventLoop) -> Iterator[None]:
    """Make repeatable what the Kafka client library chooses at random or takes out of a set.

    Args:
        loop: the event loop in which that holds.

    Raises:
        ConfigurationError: the installed library does not use `random` as expected.
    """
    strange = [
        module.__name__
        for module in _DRAWING
        if vars(module).get("random") not in (random, _random)
    ]
    if strange:
        raise ConfigurationError(
            f"{', '.join(strange)} cannot be made repeatable: install aiokafka>=0.14,<0.15"
        )
    _random.loops[loop] = random.Random(0)
    for module in _DRAWING:
        vars(module)["random"] = _random
    for module in _KEEPING_SETS:
        vars(module).update(set=_OrderedSet, frozenset=_OrderedFrozenSet)
    try:
        yield
    finally:
        del _random.loops[loop]
        if not _random.loops:
            for module in _DRAWING:
                vars(module)["random"] = random
            for module in _KEEPING_SETS:
                del vars(module)["set"], vars(module)["frozenset"]
