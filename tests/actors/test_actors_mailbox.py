"""The bounded mailbox: order, overflow policies, waiting for a place, threads."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Hashable
from typing import Any

import pytest
from hypothesis import settings, strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from spa_dat.actors import Mailbox, Overflow
from spa_dat.errors import ActorStopped, ConfigurationError, MailboxFull
from support.machine import examples
from support.waiting import eventually


def taken(mailbox: Mailbox) -> list[Any]:
    return [mailbox.get_nowait() for _ in range(len(mailbox))]


def filled(
    *items: Any, overflow: Overflow = Overflow.REFUSE, key: Callable[[Any], Hashable] | None = None
) -> tuple[Mailbox, list[Any]]:
    """A mailbox that the items fill exactly, and the list of what it drops."""
    mailbox = Mailbox(len(items), overflow, key)
    dropped: list[Any] = []
    mailbox.on_drop = dropped.append
    for item in items:
        assert mailbox.offer(item)
    return mailbox, dropped


def test_items_come_out_in_order() -> None:
    mailbox, _ = filled(1, 2, 3)
    assert taken(mailbox) == [1, 2, 3]
    assert mailbox.empty()
    with pytest.raises(asyncio.QueueEmpty):
        mailbox.get_nowait()


def test_refuse_raises_and_keeps_what_is_in() -> None:
    mailbox, dropped = filled(1, 2)
    mailbox.name = "boiler"
    with pytest.raises(MailboxFull, match=r"'boiler' is full \(2 messages\)"):
        mailbox.offer(3)
    assert (taken(mailbox), dropped, mailbox.dropped) == ([1, 2], [], 0)


@pytest.mark.parametrize("overflow", [Overflow.DROP_OLDEST, Overflow.DROP_NEWEST])
def test_what_is_to_be_kept_makes_no_room(overflow: Overflow) -> None:
    class Kept:
        is_kept = True

    first, second = Kept(), Kept()
    mailbox, dropped = filled(1, overflow=overflow)
    mailbox.force(first)
    mailbox.push_front([second])
    mailbox.offer(2)
    mailbox.offer(3)
    left = 3 if overflow is Overflow.DROP_OLDEST else 1
    assert [item for item in mailbox.items if item not in (first, second)] == [left]
    assert [second, first] == [item for item in mailbox.items if isinstance(item, Kept)]
    assert sorted([*dropped, left]) == [1, 2, 3]


def test_where_everything_is_to_be_kept_the_new_one_is_dropped() -> None:
    class Kept:
        is_kept = True

    mailbox, dropped = filled(Kept(), Kept(), overflow=Overflow.DROP_OLDEST)
    assert not mailbox.offer(1)
    assert dropped == [1]


def test_drop_oldest_makes_room() -> None:
    mailbox, dropped = filled(1, 2, overflow=Overflow.DROP_OLDEST)
    assert mailbox.offer(3)
    assert (taken(mailbox), dropped, mailbox.dropped) == ([2, 3], [1], 1)


def test_drop_newest_says_so() -> None:
    mailbox, dropped = filled(1, 2, overflow=Overflow.DROP_NEWEST)
    assert mailbox.offer(3) is False
    assert (taken(mailbox), dropped, mailbox.dropped) == ([1, 2], [3], 1)


def test_latest_by_key_replaces_in_place_even_with_room() -> None:
    mailbox = Mailbox(10, Overflow.LATEST_BY_KEY, lambda item: item[0])
    dropped: list[Any] = []
    mailbox.on_drop = dropped.append
    for item in ("a1", "b1", "a2", "a3"):
        mailbox.offer(item)
    assert (taken(mailbox), dropped) == (["a3", "b1"], ["a1", "a2"])
    mailbox.offer("a4")
    assert taken(mailbox) == ["a4"], "a key is free again once its item was taken"


def test_latest_by_key_drops_the_oldest_for_a_new_key() -> None:
    mailbox, dropped = filled("a1", "b1", overflow=Overflow.LATEST_BY_KEY, key=lambda item: item[0])
    mailbox.offer("c1")
    mailbox.offer("a2")
    assert (taken(mailbox), dropped) == (["c1", "a2"], ["a1", "b1"])


def test_latest_by_key_leaves_forced_items_alone() -> None:
    mailbox = Mailbox(10, Overflow.LATEST_BY_KEY, lambda item: item[0])
    mailbox.force("a1")
    mailbox.offer("a2")
    mailbox.force("a3")
    assert taken(mailbox) == ["a1", "a2", "a3"]


def test_force_and_push_front_are_always_taken() -> None:
    mailbox, _ = filled(1, 2)
    mailbox.force(3)
    mailbox.push_front([-1, 0])
    assert taken(mailbox) == [-1, 0, 1, 2, 3]


@pytest.mark.parametrize("overflow", list(Overflow))
def test_extract_keeps_both_orders(overflow: Overflow) -> None:
    key = (lambda item: item) if overflow is Overflow.LATEST_BY_KEY else None
    mailbox, _ = filled(1, 2, 3, 4, 5, overflow=overflow, key=key)
    assert mailbox.extract(lambda item: item % 2 == 0) == [2, 4]
    mailbox.offer(2)
    assert taken(mailbox) == [1, 3, 5, 2]


def test_what_on_drop_raises_does_not_reach_the_sender(caplog: pytest.LogCaptureFixture) -> None:
    mailbox, _ = filled(1, overflow=Overflow.DROP_OLDEST)

    def broken(item: Any) -> None:
        raise ValueError(item)

    mailbox.on_drop = broken
    assert mailbox.offer(2)
    assert "on_drop" in caplog.text


@pytest.mark.parametrize(
    ("capacity", "overflow", "key"),
    [
        (0, Overflow.REFUSE, None),
        (1, Overflow.LATEST_BY_KEY, None),
        (1, Overflow.DROP_OLDEST, str),
    ],
)
def test_wrong_arguments_are_refused(
    capacity: int, overflow: Overflow, key: Callable[[Any], Hashable] | None
) -> None:
    with pytest.raises(ConfigurationError, match=r"mailbox|policy"):
        Mailbox(capacity, overflow, key)


def test_a_closed_mailbox_takes_nothing_and_keeps_what_is_in() -> None:
    mailbox, _ = filled(1, 2)
    mailbox.close()
    with pytest.raises(ActorStopped):
        mailbox.offer(3)
    with pytest.raises(ActorStopped):
        mailbox.force(3)
    with pytest.raises(ActorStopped):
        mailbox.push_front([3])
    assert taken(mailbox) == [1, 2]


async def test_get_waits_and_ends_with_close() -> None:
    mailbox = Mailbox()
    getting = asyncio.create_task(mailbox.get())
    await asyncio.sleep(0)
    mailbox.offer("late")
    assert await getting == "late"
    getting = asyncio.create_task(mailbox.get())
    await asyncio.sleep(0)
    mailbox.close()
    with pytest.raises(ActorStopped):
        await getting


async def test_a_cancelled_get_loses_nothing() -> None:
    mailbox = Mailbox()
    getting = asyncio.create_task(mailbox.get())
    await asyncio.sleep(0)
    mailbox.offer(1)
    getting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await getting
    mailbox.offer(2)
    assert [await mailbox.get(), await mailbox.get()] == [1, 2]


async def test_a_second_taker_is_refused() -> None:
    mailbox = Mailbox()
    getting = asyncio.create_task(mailbox.get())
    await asyncio.sleep(0)
    with pytest.raises(RuntimeError, match="already taking"):
        await mailbox.get()
    mailbox.close()
    with pytest.raises(ActorStopped):
        await getting


async def test_put_wait_is_first_come_first_served() -> None:
    mailbox, _ = filled("first")
    putting = [asyncio.create_task(mailbox.put_wait(number)) for number in range(5)]
    await asyncio.sleep(0)
    with pytest.raises(MailboxFull):
        mailbox.offer("pushy")
    got = [await asyncio.wait_for(mailbox.get(), 60) for _ in range(6)]
    assert got == ["first", 0, 1, 2, 3, 4]
    await asyncio.gather(*putting)


async def test_nobody_slips_into_a_granted_place() -> None:
    mailbox, _ = filled("first")
    putting = asyncio.create_task(mailbox.put_wait("patient"))
    await asyncio.sleep(0)
    mailbox.get_nowait()
    with pytest.raises(MailboxFull):
        mailbox.offer("pushy")
    await putting
    assert taken(mailbox) == ["patient"]


async def test_a_cancelled_put_hands_its_place_on() -> None:
    mailbox, _ = filled("first")
    putting = [asyncio.create_task(mailbox.put_wait(number)) for number in range(3)]
    await asyncio.sleep(0)
    putting[1].cancel()
    mailbox.get_nowait()
    putting[0].cancel()
    results = await asyncio.gather(*putting, return_exceptions=True)
    assert [isinstance(result, asyncio.CancelledError) for result in results] == [True, True, False]
    assert taken(mailbox) == [2]
    assert mailbox.offer("the place of the cancelled is free again")


async def test_close_sends_those_away_who_wait_for_a_place() -> None:
    mailbox, _ = filled("first")
    putting = [asyncio.create_task(mailbox.put_wait(number)) for number in range(2)]
    await asyncio.sleep(0)
    mailbox.get_nowait()
    mailbox.close()
    for result in await asyncio.gather(*putting, return_exceptions=True):
        assert isinstance(result, ActorStopped)
    assert mailbox.empty()


async def test_put_works_from_threads_and_keeps_each_ones_order() -> None:
    mailbox = Mailbox(10_000)
    mailbox.bind(asyncio.get_running_loop(), "target")

    def put(name: str) -> None:
        for number in range(200):
            mailbox.put((name, number))

    threads = [threading.Thread(target=put, args=(name,)) for name in "abc"]
    for thread in threads:
        thread.start()
    got = [await asyncio.wait_for(mailbox.get(), 60) for _ in range(600)]
    for thread in threads:
        thread.join()
    for name in "abc":
        assert [number for who, number in got if who == name] == list(range(200))


async def test_put_from_a_thread_keeps_to_the_capacity() -> None:
    mailbox = Mailbox(3)
    mailbox.bind(asyncio.get_running_loop(), "target")
    outcome: list[str] = []

    def put() -> None:
        for number in range(5):
            try:
                mailbox.put(number)
                outcome.append("taken")
            except MailboxFull:
                outcome.append("full")

    thread = threading.Thread(target=put)
    thread.start()
    thread.join()
    await eventually(lambda: len(mailbox) == 3)
    assert outcome == ["taken"] * 3 + ["full"] * 2


async def test_put_from_a_thread_into_a_closed_mailbox_is_refused() -> None:
    mailbox = Mailbox()
    mailbox.bind(asyncio.get_running_loop(), "target")
    mailbox.close()
    with pytest.raises(ActorStopped):
        await asyncio.to_thread(mailbox.put, 1)


async def test_a_mailbox_serves_one_actor() -> None:
    mailbox = Mailbox()
    mailbox.bind(asyncio.get_running_loop(), "one")
    with pytest.raises(ConfigurationError, match=r"'two' is already in use by actor 'one'"):
        mailbox.bind(asyncio.get_running_loop(), "two")


class MailboxModel(RuleBasedStateMachine):
    """All operations but waiting ones, against a plain list."""

    overflow = Overflow.REFUSE
    capacity = 3

    def __init__(self) -> None:
        super().__init__()
        keyed = self.overflow is Overflow.LATEST_BY_KEY
        self.mailbox = Mailbox(self.capacity, self.overflow, self.key if keyed else None)
        self.dropped: list[Any] = []
        self.mailbox.on_drop = self.dropped.append
        # Entries are (item, whether a newer one of the same key may replace it).
        self.model: deque[tuple[int, bool]] = deque()
        self.model_dropped: list[int] = []
        self.closed = False
        self.count = 0

    @staticmethod
    def key(item: int) -> int:
        return item % 3

    def new(self, key: int) -> int:
        self.count += 3
        return self.count + key

    @precondition(lambda self: not self.closed)
    @rule(key=st.integers(0, 2))
    def offer(self, key: int) -> None:
        item = self.new(key)
        if self.overflow is Overflow.LATEST_BY_KEY:
            for place, (old, replaceable) in enumerate(self.model):
                if replaceable and self.key(old) == key:
                    self.model[place] = (item, True)
                    self.model_dropped.append(old)
                    assert self.mailbox.offer(item)
                    return
        full = len(self.model) >= self.capacity
        if full and self.overflow is Overflow.REFUSE:
            with pytest.raises(MailboxFull):
                self.mailbox.offer(item)
            return
        if full and self.overflow is Overflow.DROP_NEWEST:
            self.model_dropped.append(item)
            assert self.mailbox.offer(item) is False
            return
        if full:
            self.model_dropped.append(self.model.popleft()[0])
        self.model.append((item, True))
        assert self.mailbox.offer(item) is True

    @precondition(lambda self: not self.closed)
    @rule(key=st.integers(0, 2))
    def force(self, key: int) -> None:
        item = self.new(key)
        self.model.append((item, False))
        self.mailbox.force(item)

    @precondition(lambda self: not self.closed)
    @rule(size=st.integers(0, 3))
    def push_front(self, size: int) -> None:
        items = [self.new(0) for _ in range(size)]
        self.model.extendleft((item, False) for item in reversed(items))
        self.mailbox.push_front(items)

    @rule()
    def get(self) -> None:
        if not self.model:
            with pytest.raises(asyncio.QueueEmpty):
                self.mailbox.get_nowait()
        else:
            assert self.mailbox.get_nowait() == self.model.popleft()[0]

    @rule(key=st.integers(0, 2))
    def extract(self, key: int) -> None:
        wanted = [item for item, _ in self.model if self.key(item) == key]
        self.model = deque(entry for entry in self.model if self.key(entry[0]) != key)
        assert self.mailbox.extract(lambda item: self.key(item) == key) == wanted

    @precondition(lambda self: self.count > 60)
    @rule()
    def close(self) -> None:
        self.closed = True
        self.mailbox.close()
        with pytest.raises(ActorStopped):
            self.mailbox.offer(0)

    @invariant()
    def same(self) -> None:
        assert len(self.mailbox) == len(self.model)
        assert self.mailbox.empty() == (not self.model)
        assert self.dropped == self.model_dropped
        assert self.mailbox.dropped == len(self.model_dropped)


def _machine(policy: Overflow) -> Any:
    machine: Any = type(f"Model{policy.name}", (MailboxModel,), {"overflow": policy})
    machine.TestCase.settings = settings(
        max_examples=examples(20), stateful_step_count=40, deadline=None
    )
    return machine.TestCase


TestRefuse = _machine(Overflow.REFUSE)
TestDropOldest = _machine(Overflow.DROP_OLDEST)
TestDropNewest = _machine(Overflow.DROP_NEWEST)
TestLatestByKey = _machine(Overflow.LATEST_BY_KEY)
