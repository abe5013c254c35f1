"""The outbox against a model of a wire that answers late, at once, or never."""

from __future__ import annotations

import asyncio
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, precondition, rule

from spa_dat.errors import OutboxFull, PublishNotSent, PublishRefused, PublishUnknown
from spa_dat.transports._envelope import Envelope
from spa_dat.transports._outbox import Outbox, OutboxEntry
from support.machine import VirtualMachine, machine_case, step

CAPACITY = 5
TIMEOUT = 6.5
CONFIRMED, CANCELLED = "confirmed", "cancelled"


class OutboxMachine(VirtualMachine):
    """Publishes, and everything that a connection may do to them.

    The model knows what waits, what is written and what was given up after it was written, and
    looks at each write: it must be the turn of what is written.
    """

    queues = False

    @initialize(repeat_qos0=st.booleans())
    def begin(self, repeat_qos0: bool) -> None:
        self.repeat_qos0 = repeat_qos0
        self.window = 2
        self.outbox = Outbox(
            self.write,
            capacity=CAPACITY,
            window=self.window,
            queues=self.queues,
            repeat_qos0=repeat_qos0,
        )
        self.count = 0
        self.connected = self.closed = False
        self.waiting: list[int] = []
        self.written: list[int] = []
        self.abandoned: list[int] = []
        self.entries: dict[int, OutboxEntry] = {}
        self.writes: dict[int, int] = {}
        self.outcomes: dict[int, Any] = {}
        self.tasks: dict[int, asyncio.Task[None]] = {}
        self.deadlines: dict[int, float] = {}
        self.drains: list[asyncio.Task[None]] = []
        self.reaction = ""

    # The wire.

    def write(self, entry: OutboxEntry) -> None:
        number = int(entry.envelope.payload)
        self.entries[number] = entry
        assert self.connected
        assert not entry.done()
        assert number == self.waiting.pop(0), "in the order of submission"
        assert len(self.written) + len(self.abandoned) < self.window
        self.written.append(number)
        if not self.queues:
            self.writes[number] += 1
        assert entry.writes == self.writes[number]
        reaction, self.reaction = self.reaction, ""
        if reaction == "answers":
            self.answer(number, None)
        elif reaction == "breaks":
            self.lose()
        elif reaction == "breaks and comes back":
            self.connect(self.window)

    def answer(self, number: int, error: Exception | None) -> None:
        known = self.written if number in self.written else self.abandoned
        if number in known:
            known.remove(number)
            self.outcomes.setdefault(number, CONFIRMED if error is None else type(error))
        if error is None:
            self.outbox.confirm(self.entries[number])
        else:
            self.outbox.fail(self.entries[number], error)

    def lose(self) -> None:
        self.connection_gone()
        self.outbox.disconnected()

    def connect(self, window: int) -> None:
        if not self.closed:
            self.connection_gone()
            self.connected = True
            self.window = window
        self.outbox.connected(window)

    def connection_gone(self) -> None:
        self.connected = False
        again = []
        for number in self.written:
            if number % 3 == 0 and not self.repeat_qos0:
                self.outcomes[number] = CONFIRMED
            else:
                again.append(number)
        self.waiting[:0] = again
        self.written.clear()
        self.abandoned.clear()

    # What those do who publish.

    def new(self) -> Envelope:
        """The next one; every third has QoS 0."""
        self.count += 1
        number = self.count
        self.writes[number] = 0
        if self.closed:
            self.outcomes[number] = PublishNotSent
        elif len(self.waiting) + len(self.written) >= CAPACITY:
            self.outcomes[number] = OutboxFull
        else:
            self.waiting.append(number)
        return Envelope(topic="t", payload=str(number).encode(), qos=min(number % 3, 1))

    @rule()
    @step
    async def submit(self) -> None:
        envelope = self.new()
        try:
            self.entries[self.count] = self.outbox.submit(envelope)
        except OutboxFull:
            assert self.outcomes[self.count] is OutboxFull
        else:
            assert self.outcomes.get(self.count) is not OutboxFull
        await self.settle()

    @rule()
    @step
    async def publish(self) -> None:
        """As `submit`, by somebody who waits for it, and not for ever."""
        envelope = self.new()
        self.deadlines[self.count] = self.loop.time() + TIMEOUT
        self.tasks[self.count] = self.spawn(self.outbox.publish(envelope, TIMEOUT))
        await self.settle()

    def given_up(self, number: int, outcome: Any) -> None:
        self.outcomes[number] = outcome
        if number in self.written:
            self.written.remove(number)
            self.abandoned.append(number)
        else:
            self.waiting.remove(number)

    @rule(data=st.data())
    @step
    async def cancel(self, data: st.DataObject) -> None:
        pending = self.waiting + self.written
        if pending:
            number = data.draw(st.sampled_from(pending))
            self.given_up(number, CANCELLED)
            (self.tasks.get(number) or self.entries[number]).cancel()
            await self.settle()

    @rule(seconds=st.integers(1, 4))
    @step
    async def time_goes_by(self, seconds: int) -> None:
        await asyncio.sleep(seconds)
        for number, deadline in self.deadlines.items():
            if number not in self.outcomes and deadline < self.loop.time():
                written = self.writes[number] > 0
                self.given_up(number, PublishUnknown if written else PublishNotSent)
        await self.settle()

    # What the transport does.

    @rule(data=st.data(), error=st.sampled_from([None, None, PublishRefused("no")]))
    @step
    async def an_answer_comes(self, data: st.DataObject, error: Exception | None) -> None:
        """Also for what was given up, or written on an earlier connection."""
        if self.entries:
            number = data.draw(st.sampled_from(self.written + self.abandoned + list(self.entries)))
            self.answer(number, error)
            await self.settle()

    @rule(data=st.data())
    @step
    async def several_are_confirmed(self, data: st.DataObject) -> None:
        """Also such as were given up, or written on an earlier connection."""
        known = self.written + self.abandoned + list(self.entries)
        if not known:
            return
        numbers = data.draw(st.lists(st.sampled_from(known), max_size=4, unique=True))
        for number in numbers:
            if number in self.abandoned:
                # It makes room at once, and something else may be written before the others.
                numbers = [number]
                break
        for number in numbers:
            if number in self.written + self.abandoned:
                (self.written if number in self.written else self.abandoned).remove(number)
                self.outcomes.setdefault(number, CONFIRMED)
        self.outbox.confirm_all([self.entries[number] for number in numbers])
        await self.settle()

    @rule(data=st.data())
    @step
    async def one_is_refused_wherever_it_is(self, data: st.DataObject) -> None:
        """Also one that waits; the oldest is the one that connections may end over."""
        pending = self.written + self.waiting
        oldest = self.outbox.oldest
        assert (None if oldest is None else int(oldest.envelope.payload)) == next(
            iter(pending), None
        )
        assert [int(entry.envelope.payload) for entry in self.outbox.written] == self.written
        if not pending:
            return
        number = data.draw(st.sampled_from(pending))
        entry = self.entries.get(number)
        if entry is None:
            return
        self.outcomes[number] = PublishRefused
        (self.written if number in self.written else self.waiting).remove(number)
        self.outbox.refuse(entry, PublishRefused("it is"))
        await self.settle()

    @rule(window=st.integers(1, 3))
    @step
    async def connection_is_made(self, window: int) -> None:
        self.connect(window)
        await self.settle()

    @rule()
    @step
    async def connection_is_lost(self) -> None:
        self.lose()
        await self.settle()

    @rule()
    @step
    async def pause(self) -> None:
        self.connected = False
        self.outbox.pause()

    @rule(window=st.none() | st.integers(1, 3))
    @step
    async def resume(self, window: int | None) -> None:
        self.connected = not self.closed
        if self.connected and window is not None:
            self.window = window
        self.outbox.resume(window)
        await self.settle()

    @precondition(lambda self: not self.queues)
    @rule(reaction=st.sampled_from(["answers", "breaks", "breaks and comes back"]))
    def react_to_the_next_write(self, reaction: str) -> None:
        self.reaction = reaction

    @precondition(lambda self: self.queues)
    @rule(data=st.data())
    def something_in_line_is_written(self, data: st.DataObject) -> None:
        """Where `write` only puts entries in line."""
        if self.written:
            number = data.draw(st.sampled_from(self.written))
            self.writes[number] += 1
            self.entries[number].writes += 1

    @rule()
    @step
    async def drain(self) -> None:
        self.drains.append(self.spawn(self.outbox.drain()))
        await self.settle()

    @precondition(lambda self: self.count > 12)
    @rule()
    @step
    async def close(self) -> None:
        for number in self.waiting + self.written:
            self.outcomes[number] = PublishUnknown if self.writes[number] else PublishNotSent
        self.connected, self.closed = False, True
        for known in (self.waiting, self.written, self.abandoned):
            known.clear()
        self.outbox.close()
        await self.settle()

    # What holds after each of them.

    @invariant()
    def nothing_waits_that_could_be_written(self) -> None:
        room = len(self.written) + len(self.abandoned) < self.window
        assert not (self.connected and self.waiting and room)

    @invariant()
    def counts_agree(self) -> None:
        assert len(self.outbox) == len(self.waiting) + len(self.written)
        assert self.outbox.unconfirmed == len(self.written)

    @invariant()
    def outcomes_agree(self) -> None:
        for number in range(1, self.count + 1):
            future = self.tasks.get(number) or self.entries.get(number)
            if future is None:
                assert self.outcomes.get(number) is OutboxFull or number in self.waiting
                continue
            expected = self.outcomes.get(number)
            assert future.done() is (expected is not None)
            if expected is CANCELLED:
                assert future.cancelled()
            elif expected is not None:
                error = future.exception()
                assert (CONFIRMED if error is None else type(error)) is expected

    @invariant()
    def draining_ends_when_nothing_is_pending(self) -> None:
        if not self.waiting and not self.written:
            assert all(drain.done() for drain in self.drains)
            self.drains.clear()
        assert not any(drain.done() for drain in self.drains)

    async def finish(self) -> None:
        """A connection that holds brings everything to its end."""
        self.reaction = ""
        self.connect(2)
        while self.written:
            self.answer(self.written[0], None)
        await self.settle()
        assert len(self.outbox) == 0
        self.outcomes_agree()
        self.draining_ends_when_nothing_is_pending()


class QueuedOutboxMachine(OutboxMachine):
    """The same for a transport that only puts in line what it is given to write."""

    queues = True


TestOutbox = machine_case(OutboxMachine)
TestQueuedOutbox = machine_case(QueuedOutboxMachine, tries=20)
