"""The mailbox while some wait for a place and one waits for an item, against a model.

Nothing runs between two steps unless the step `let_run` comes up: what happens to the rest while
somebody has been called and has not come yet is what goes wrong in queues. The model keeps what is
ready in the order in which the loop runs it.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, precondition, rule

from spa_dat.actors import Mailbox, Overflow
from spa_dat.errors import ActorStopped, MailboxFull
from support.machine import VirtualMachine, at_once, machine_case, step
from support.mailbox_model import MailboxModel, Putting

CAPACITY = 3
KEYS = st.integers(0, 2)


class MailboxMachine(VirtualMachine):
    """All operations, of which those that wait are cancelled at any point."""

    overflow = Overflow.REFUSE

    @initialize()
    @at_once
    def begin(self) -> None:
        self.model = MailboxModel(CAPACITY, self.overflow)
        keyed = self.overflow is Overflow.LATEST_BY_KEY
        self.mailbox = Mailbox(CAPACITY, self.overflow, self.model.key if keyed else None)
        self.mailbox.bind(asyncio.get_running_loop(), "actor")
        self.dropped: list[int] = []
        self.mailbox.on_drop = self.dropped.append
        self.count = 0
        self.putting: list[Putting] = []
        self.getting: asyncio.Task[int] | None = None

    def new(self, key: int = 0) -> int:
        self.count += 3
        return self.count + key

    # The steps.

    @rule()
    @step
    async def let_run(self) -> None:
        self.model.run_ready()
        await self.settle()
        for putting in self.putting:
            assert putting.task is not None
            assert putting.task.done() is (putting.phase == "done")
            if putting.outcome is asyncio.CancelledError:
                assert putting.task.cancelled()
            elif putting.outcome is ActorStopped:
                assert isinstance(putting.task.exception(), ActorStopped)
            elif putting.outcome:
                assert putting.task.result() is None
        if self.getting is not None:
            assert self.getting.done() is (self.model.getter == "done")
        if self.model.getter == "done" and self.getting is not None:
            if isinstance(self.model.got, int):
                assert self.getting.result() == self.model.got
            else:
                assert self.getting.cancelled() or self.getting.exception() is not None
            self.model.getter, self.getting = "", None

    @rule(key=KEYS)
    @at_once
    def offer(self, key: int) -> None:
        item = self.new(key)
        expected = self.model.offer(item)
        if isinstance(expected, type):
            with pytest.raises(expected):
                self.mailbox.offer(item)
        else:
            assert self.mailbox.offer(item) is expected

    @rule(count=st.integers(0, 4), way=st.sampled_from(["force", "force_all", "push_front"]))
    @at_once
    def put_anyway(self, count: int, way: str) -> None:
        items = [self.new() for _ in range(1 if way == "force" else count)]
        put: Any = getattr(self.mailbox, way)
        if self.model.closed:
            with pytest.raises(ActorStopped):
                put(items[0] if way == "force" else items)
            return
        entries = [(item, False) for item in items]
        if way == "push_front":
            self.model.items.extendleft(reversed(entries))
        else:
            self.model.items.extend(entries)
        self.model.arrived()
        put(items[0] if way == "force" else items)

    @rule()
    @at_once
    def put_wait(self) -> None:
        putting = Putting(self.new())
        putting.task = self.spawn(self.mailbox.put_wait(putting.item))
        self.putting.append(putting)
        self.model.ready.append(putting)

    @rule(data=st.data())
    @at_once
    def cancel_a_put(self, data: st.DataObject) -> None:
        pending = [putting for putting in self.putting if putting.phase != "done"]
        if pending:
            putting = data.draw(st.sampled_from(pending))
            assert putting.task is not None
            putting.task.cancel()
            if putting.phase in ("called", "cancelled when called"):
                putting.phase = "cancelled when called"
                return
            if putting.phase == "waits":
                self.model.waiting.remove(putting)
            putting.phase, putting.outcome = "done", asyncio.CancelledError

    @rule(key=KEYS)
    def put_from_a_thread(self, key: int) -> None:
        item = self.new(key)
        raised: list[type[Exception]] = []

        def put() -> None:
            try:
                self.mailbox.put(item)
            except Exception as error:
                raised.append(type(error))

        thread = threading.Thread(target=put)
        thread.start()
        thread.join()
        if self.model.closed:
            assert raised == [ActorStopped]
        elif (
            self.overflow is Overflow.REFUSE
            and len(self.model.items) + len(self.model.incoming) >= CAPACITY
        ):
            assert raised == [MailboxFull]
        else:
            assert raised == []
            self.model.incoming.append(item)
            self.model.ready.append("incoming")

    @precondition(lambda self: self.getting is None)
    @rule()
    @at_once
    def get(self) -> None:
        self.begin_to_get()

    @precondition(lambda self: self.getting is None)
    @rule()
    @step
    async def get_and_wait(self) -> None:
        self.begin_to_get()
        self.model.run_ready()
        await self.settle()

    def begin_to_get(self) -> None:
        self.getting = self.spawn(self.mailbox.get())
        self.model.getter = "starts"
        self.model.ready.append("getter")

    @precondition(lambda self: self.model.getter in ("starts", "waits", "called"))
    @rule()
    @at_once
    def cancel_the_get(self) -> None:
        assert self.getting is not None
        self.getting.cancel()
        self.model.getter, self.model.got = "done", asyncio.CancelledError

    @rule()
    @at_once
    def get_nowait(self) -> None:
        if self.model.items:
            assert self.mailbox.get_nowait() == self.model.take()
        else:
            with pytest.raises(asyncio.QueueEmpty):
                self.mailbox.get_nowait()

    @rule(key=KEYS)
    @at_once
    def extract(self, key: int) -> None:
        wanted = [item for item, _ in self.model.items if self.model.key(item) == key]
        self.model.items = deque(
            entry for entry in self.model.items if self.model.key(entry[0]) != key
        )
        self.model.let_in()
        assert self.mailbox.extract(lambda item: self.model.key(item) == key) == wanted

    @precondition(lambda self: self.count > 36)
    @rule()
    @at_once
    def close(self) -> None:
        self.mailbox.close()
        self.model.closed = True
        for putting in self.model.waiting:
            putting.phase, putting.outcome = "done", ActorStopped
        self.model.waiting.clear()
        self.model.arrived()

    @invariant()
    def same(self) -> None:
        entries = [getattr(entry, "item", entry) for entry in self.mailbox.items]
        assert entries == [item for item, _ in self.model.items]
        assert len(self.mailbox) == len(self.model.items)
        assert self.mailbox.full is self.model.full()
        assert self.dropped == self.model.gone
        assert self.mailbox.dropped == len(self.model.gone)

    async def finish(self) -> None:
        """Nobody waits for ever where somebody takes."""
        self.model.run_ready()
        await self.settle()
        if self.getting is not None:
            self.getting.cancel()
            await self.settle()
        while self.mailbox.items:
            self.mailbox.get_nowait()
            await self.settle()
        for putting in self.putting:
            assert putting.task is not None
            assert putting.task.done()


class LatestMailboxMachine(MailboxMachine):
    """The same where a newer item takes the place of an older one."""

    overflow = Overflow.LATEST_BY_KEY


class OldestMailboxMachine(MailboxMachine):
    """The same where the oldest item makes room."""

    overflow = Overflow.DROP_OLDEST


TestMailbox = machine_case(MailboxMachine, tries=30)
TestMailboxOfLatest = machine_case(LatestMailboxMachine, tries=20)
TestMailboxThatDrops = machine_case(OldestMailboxMachine, tries=20)
