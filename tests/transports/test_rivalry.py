"""Two programs with one name: which of them gives way."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest
from hypothesis import given, strategies as st

from spa_dat._environment import Environment
from spa_dat.errors import ConfigurationError
from spa_dat.transports import Identity, Subscription, Surroundings
from spa_dat.transports._rivalry import Rivalry
from spa_dat.transports.kafka._bus import KafkaBus
from spa_dat.transports.kafka._takeovers import Contest
from spa_dat.transports.memory import MemoryProvider
from support.kafka_bus import bus_client, create
from support.kafka_consuming import QUICK, Taker, taker
from support.simulated import SERVER, world
from support.waiting import eventually


def rivalry() -> Rivalry:
    return Rivalry(settled_after=2.0, lasting=30.0, newcomer=3, settled=10)


def push_out(rival: Rivalry, seconds: float) -> None:
    rival.held(seconds)
    rival.pushed_out()


def test_a_newcomer_has_less_patience_than_who_was_there_first() -> None:
    newcomer, first = rivalry(), rivalry()
    push_out(first, 2.0)
    for _ in range(2):
        push_out(newcomer, 1.9)
        push_out(first, 1.9)
    assert not newcomer.gives_way
    push_out(newcomer, 1.9)
    assert newcomer.gives_way
    assert not first.gives_way


def test_who_holds_its_place_for_long_or_is_alone_counts_anew() -> None:
    one = rivalry()
    for _ in range(9):
        push_out(one, 5.0)
    push_out(one, 30.0)
    assert one.count == 1
    one.over()
    assert one.count == 0
    assert not one.is_newcomer


@given(
    st.floats(2.0, 1e6),
    st.floats(0, 1.9),
    st.lists(st.tuples(st.floats(0, 29), st.floats(0, 29)), min_size=12),
)
def test_of_two_that_take_turns_the_one_that_came_second_ends(
    before: float, at_first: float, turns: list[tuple[float, float]]
) -> None:
    """The first one comes back at once at first, and then after pauses that grow."""
    first, second = rivalry(), rivalry()
    push_out(first, before)
    push_out(second, at_first)
    for of_first, of_second in turns:
        push_out(first, of_first)
        assert not first.gives_way
        push_out(second, of_second)
        if second.gives_way:
            break
    assert second.gives_way


@pytest.mark.virtual
async def test_in_memory_the_client_that_was_there_first_stays() -> None:
    provider = MemoryProvider()
    fatal: dict[str, list[BaseException]] = {"first": [], "second": []}
    buses = {
        name: provider.open(Surroundings(Identity("app"), fatal=found.append))
        for name, found in fatal.items()
    }
    try:
        await buses["first"].start(lambda correlation, reply: None)
        await asyncio.sleep(3)
        await buses["second"].start(lambda correlation, reply: None)
        await eventually(lambda: fatal["first"] or fatal["second"], 60)
        assert fatal["first"] == []
        assert "'app.0'" in str(fatal["second"][0])
        await eventually(lambda: buses["first"].connected)
    finally:
        for bus in buses.values():
            await bus.close()


@pytest.mark.virtual
async def test_on_kafka_the_member_that_was_there_first_stays() -> None:
    with world():
        await create(SERVER, "x-a", 1)
        async with taker(SERVER, "a", prefix="x-") as first:
            # What makes it the first.
            await asyncio.sleep(15)
            async with taker(SERVER, "a", prefix="x-") as second:
                await eventually(lambda: first.client.fatal or second.client.fatal, 120)
                assert first.client.fatal == []
                assert isinstance(second.client.fatal[0], ConfigurationError)
                assert "another program runs as 'app.0' too" in str(second.client.fatal[0])
                lost = second.stats["kafka.memberships_lost"]
                assert 6 <= lost < 10
                assert first.stats["kafka.memberships_lost"] in (lost, lost + 1)


@pytest.mark.virtual
@pytest.mark.parametrize("patience", [(6, 9), (9, 6)])
async def test_on_kafka_one_of_two_that_start_together_stays(patience: tuple[int, int]) -> None:
    with world():
        for topic in ("x-a", "x-b"):
            await create(SERVER, topic, 1)
        async with contextlib.AsyncExitStack() as stack:
            copies = [await stack.enter_async_context(two_places(one)) for one in patience]
            consumers = [inbox.consumer for inboxes in copies for inbox in inboxes]
            await asyncio.gather(*(consumer.start() for consumer in consumers))
            stays, ends = sorted(copies, key=lambda copy: patience[copies.index(copy)])[::-1]
            await eventually(lambda: stays[0].client.fatal or ends[0].client.fatal, 120)
            # Who gives way may have handlers at work that it waits for.
            await asyncio.sleep(60)
            assert stays[0].client.fatal == []
            assert len(ends[0].client.fatal) == 1
            assert [inbox.partitions for inbox in stays] == [[0], [0]]
            assert all(inbox.consumer.trouble is None for inbox in stays)


@contextlib.asynccontextmanager
async def two_places(patience: int) -> AsyncIterator[list[Taker]]:
    """Make one application with two actors, which takes places at ``x-a`` and ``x-b``."""
    async with bus_client(SERVER, start=False, prefix="x-", **QUICK) as client:
        assert isinstance(client.bus, KafkaBus)
        client.bus._context.contest.patience = patience
        inboxes = [Taker(), Taker()]
        for inbox, topic in zip(inboxes, ("a", "b"), strict=True):
            inbox.client = client
            inbox.consumer = client.bus.consumer(
                Subscription(filters=(topic,), name=topic, share=True), inbox
            )
        try:
            yield inboxes
        finally:
            for inbox in inboxes:
                await inbox.consumer.close()


@pytest.mark.virtual
async def test_patience_is_chosen_for_each_program() -> None:
    chosen = {Contest(Environment(seed), least=6, most=10).patience for seed in range(50)}
    assert chosen == {6, 7, 8, 9}
