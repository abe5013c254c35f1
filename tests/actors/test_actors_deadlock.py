"""Asks that could never be answered are refused at once, and no others are."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import pytest

from spa_dat.actors import (
    Actor,
    ActorRef,
    ActorSystem,
    Mailbox,
    chain_names,
    current_actor,
    enter_chain,
    refuse_cycle,
)
from spa_dat.errors import DeadlockDetected, RequestTimeout
from support.waiting import eventually


class Caller(Actor):
    """Runs what it is sent, as one of its own handlers."""

    async def on_receive(self, message: Callable[[], Awaitable[Any]]) -> Any:
        return await message()


@contextlib.asynccontextmanager
async def callers(*names: str, system_name: str = "") -> AsyncIterator[list[ActorRef[Caller]]]:
    system = ActorSystem(name=system_name)
    try:
        yield [system.spawn(Caller, name=name) for name in names]
    finally:
        await system.stop_all(timeout=10)


Call = Callable[[], Awaitable[Any]]


def asking(*refs: ActorRef[Any], then: Call) -> Call:
    """A call that asks the first to ask the second, and so on; the last does ``then``."""
    for ref in reversed(refs):
        then = _ask(ref, then)
    return then


def _ask(ref: ActorRef[Any], what: Call) -> Call:
    return lambda: ref.ask(what)


async def names() -> tuple[str, ...]:
    return chain_names()


async def test_asking_oneself_is_refused() -> None:
    async with callers("a") as [a]:
        with pytest.raises(DeadlockDetected, match=r"^a -> a: "):
            await asking(a, a, then=names)()


async def test_a_cycle_of_two_is_refused_and_named() -> None:
    async with callers("a", "b") as [a, b]:
        with pytest.raises(DeadlockDetected, match=r"^a -> b -> a: "):
            await asking(a, b, a, then=names)()
        assert await a.ask(names) == ("a",), "both go on"
        assert await b.ask(names) == ("b",)


async def test_a_cycle_of_three_is_refused_and_named() -> None:
    async with callers("a", "b", "c", system_name="plant") as [a, b, c]:
        with pytest.raises(DeadlockDetected, match=r"^plant/a -> plant/b -> plant/c -> plant/a: "):
            await asking(a, b, c, a, then=names)()
        with pytest.raises(DeadlockDetected, match=r"^plant/b -> plant/c -> plant/b: "):
            await asking(a, b, c, b, then=names)()


async def test_a_cycle_through_gathered_tasks_is_refused() -> None:
    async with callers("a", "b", "c") as [a, b, c]:

        async def gathered() -> Sequence[Any]:
            return await asyncio.gather(
                asking(c, then=names)(), asking(b, a, then=names)(), return_exceptions=True
            )

        chain, error = await a.ask(gathered)
        assert chain == ("a", "c")
        assert isinstance(error, DeadlockDetected)


async def test_a_chain_without_a_cycle_is_not_refused() -> None:
    async with callers("a", "b", "c") as [a, b, c]:
        assert await asking(a, b, c, then=names)() == ("a", "b", "c")
        assert await asking(c, b, a, then=names)() == ("c", "b", "a")


async def test_a_task_that_outlives_its_handler_may_ask_the_same_actor() -> None:
    async with callers("a", "b") as [a, b]:
        tasks: list[asyncio.Task[Any]] = []
        go = asyncio.Event()

        async def later() -> Any:
            await go.wait()
            assert current_actor() is None
            return await asking(b, a, then=names)()

        async def leave_behind() -> None:
            tasks.append(asyncio.create_task(later()))

        async def wake_it() -> None:
            go.set()
            await asyncio.sleep(0)

        await a.ask(leave_behind)
        await a.ask(wake_it)
        assert await asyncio.wait_for(tasks[0], 60) == ("b", "a")


async def test_an_actor_spawned_by_a_handler_is_not_in_its_chain() -> None:
    async with callers("a") as [a]:
        system = ActorSystem()
        made: list[ActorRef[Caller]] = []

        async def spawn() -> None:
            made.append(system.spawn(Caller, name="child"))

        await a.ask(spawn)
        assert await made[0].ask(names) == ("child",)
        await system.stop_all(timeout=10)


async def test_a_tell_waits_for_nobody() -> None:
    async with callers("a", "b") as [a, b]:
        chains: list[tuple[str, ...]] = []

        async def ask_back() -> None:
            chains.append(await a.ask(names))

        async def tell() -> None:
            b.tell(ask_back)

        await a.ask(tell)
        await eventually(lambda: chains == [("b", "a")])


@pytest.mark.virtual
async def test_who_has_given_up_waiting_is_not_in_the_chain() -> None:
    async with callers("a", "b") as [a, b]:
        answers: list[Any] = []

        async def ask_back_late() -> None:
            await asyncio.sleep(10)
            answers.append(await a.ask(names))

        async def give_up() -> None:
            with pytest.raises(RequestTimeout):
                await b.ask(ask_back_late, timeout=5)
            await asyncio.sleep(20)

        await a.ask(give_up)
        await eventually(lambda: answers == [("b", "a")])


async def test_sending_to_a_full_mailbox_of_one_who_waits_is_refused() -> None:
    system = ActorSystem()
    a = system.spawn(Caller, name="a", mailbox=Mailbox(1))
    b = system.spawn(Caller, name="b")
    a_is_free = await a.ask(names)
    assert a_is_free == ("a",)

    async def send_back() -> None:
        a.tell(names)
        await a.send(names)

    with pytest.raises(DeadlockDetected, match=r"^a -> b -> a"):
        await asking(a, b, then=send_back)()
    await system.stop_all(timeout=10)


async def test_actors_of_equal_name_in_two_systems_are_two_actors() -> None:
    async with callers("a", "b") as [a, b], callers("a") as [namesake]:
        assert await asking(a, b, namesake, then=names)() == ("a", "b", "a")


async def test_a_chain_from_the_wire_counts_by_name() -> None:
    async with callers("a", "b", system_name="plant") as [a, b]:

        async def inside() -> Any:
            with enter_chain(("far/x", "plant/b")):
                chain = chain_names()
                with pytest.raises(DeadlockDetected, match=r"^plant/b -> plant/a -> plant/b"):
                    await b.ask(names)
            assert chain_names() == ("plant/a",)
            return chain

        assert await a.ask(inside) == ("far/x", "plant/b", "plant/a")


async def test_a_chain_outside_of_actors_is_empty() -> None:
    assert chain_names() == ()
    assert current_actor() is None
    with enter_chain(["far/x"]):
        assert chain_names() == ("far/x",)
    assert chain_names() == ()


async def test_a_chain_has_at_most_16_names() -> None:
    with enter_chain([f"n{number}" for number in range(40)]):
        assert chain_names() == tuple(f"n{number}" for number in range(24, 40))


def test_refuse_cycle_names_the_cycle() -> None:
    refuse_cycle("x", ["a", "b"])
    with pytest.raises(DeadlockDetected, match=r"^b -> c -> b: "):
        refuse_cycle("b", ["a", "b", "c"])
