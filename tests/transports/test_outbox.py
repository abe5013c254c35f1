"""The outbox against a model of a broker that comes and goes, and the backoff."""

from __future__ import annotations

import asyncio
import itertools

import pytest
from hypothesis import given, settings, strategies as st

from spa_dat._environment import Environment
from spa_dat.errors import OutboxFull, PublishNotSent, PublishRefused, PublishUnknown
from spa_dat.transports._envelope import Envelope
from spa_dat.transports._outbox import Outbox, OutboxEntry, on_outcome
from spa_dat.transports._reconnect import Backoff
from support.machine import examples
from support.waiting import eventually


def envelope(number: int = 0) -> Envelope:
    return Envelope(topic="a", payload=str(number).encode(), id=str(number))


def number(entry: OutboxEntry) -> int:
    return int(entry.envelope.payload)


class Wire:
    """What was written, in order."""

    def __init__(self) -> None:
        self.written: list[OutboxEntry] = []

    def __call__(self, entry: OutboxEntry) -> None:
        self.written.append(entry)

    def take(self) -> list[bytes]:
        payloads = [entry.envelope.payload for entry in self.written]
        self.written.clear()
        return payloads


async def test_nothing_is_written_before_there_is_a_connection() -> None:
    wire = Wire()
    outbox = Outbox(wire)
    entry = outbox.submit(envelope())
    assert wire.written == []
    outbox.connected()
    assert wire.written == [entry]
    outbox.confirm(entry)
    await entry
    assert len(outbox) == 0


@pytest.mark.virtual
async def test_what_is_confirmed_at_the_last_moment_counts_as_confirmed() -> None:
    wire = Wire()
    outbox = Outbox(wire)
    outbox.connected()
    # At the same moment as the end of the wait, and before it.
    asyncio.get_running_loop().call_later(5.0, lambda: outbox.confirm(wire.written[0]))
    await outbox.publish(envelope(), 5.0)
    assert len(outbox) == 0


async def test_a_pause_keeps_what_is_written_where_it_is() -> None:
    wire = Wire()
    outbox = Outbox(wire)
    outbox.connected()
    first = outbox.submit(envelope(0))
    assert wire.take() == [b"0"]
    outbox.pause()
    second = outbox.submit(envelope(1))
    outbox.confirm(first)
    await first
    assert wire.take() == []
    outbox.resume()
    assert wire.take() == [b"1"]
    outbox.close()
    outbox.resume()
    assert wire.take() == []
    with pytest.raises(PublishUnknown):
        await second


async def test_a_transport_that_queues_says_itself_what_is_written() -> None:
    wire = Wire()
    outbox = Outbox(wire, queues=True)
    outbox.connected()
    queued, written = outbox.submit(envelope(0)), outbox.submit(envelope(1))
    assert [entry.writes for entry in wire.written] == [0, 0]
    written.writes += 1
    outbox.close()
    with pytest.raises(PublishNotSent):
        await queued
    with pytest.raises(PublishUnknown):
        await written


@pytest.mark.parametrize("repeat", [False, True])
async def test_qos_0_is_written_again_where_it_is_asked_for(repeat: bool) -> None:
    wire = Wire()
    outbox = Outbox(wire, repeat_qos0=repeat)
    outbox.connected()
    entry = outbox.submit(Envelope(topic="a", qos=0))
    outbox.disconnected()
    assert entry.done() is not repeat
    outbox.connected()
    assert len(wire.written) == (2 if repeat else 1)
    outbox.close()
    await asyncio.gather(entry, return_exceptions=True)


async def test_the_window_bounds_what_is_unconfirmed() -> None:
    wire = Wire()
    outbox = Outbox(wire, window=2)
    outbox.connected()
    entries = [outbox.submit(envelope(number)) for number in range(4)]
    assert wire.written == entries[:2]
    outbox.confirm(entries[1])
    assert wire.written == entries[:3]
    assert outbox.unconfirmed == 2


async def test_a_connection_may_narrow_the_window() -> None:
    wire = Wire()
    outbox = Outbox(wire, window=10)
    for number in range(5):
        outbox.submit(envelope(number))
    outbox.connected(window=1)
    assert wire.take() == [b"0"]


async def test_what_is_pending_is_written_again_first_and_in_order() -> None:
    wire = Wire()
    outbox = Outbox(wire, window=3)
    outbox.connected()
    entries = [outbox.submit(envelope(number)) for number in range(5)]
    outbox.confirm(entries[1])
    wire.take()
    outbox.disconnected()
    late = outbox.submit(envelope(5))
    outbox.connected(window=10)
    assert wire.take() == [b"0", b"2", b"3", b"4", b"5"]
    assert late.writes == 1
    assert entries[0].writes == 2


async def test_what_was_written_with_qos_0_is_not_written_twice() -> None:
    wire = Wire()
    outbox = Outbox(wire, window=1)
    outbox.connected()
    once = outbox.submit(Envelope(topic="a", payload=b"once", qos=0))
    waiting = outbox.submit(Envelope(topic="a", payload=b"waiting", qos=0))
    outbox.disconnected()
    assert (once.done(), waiting.done()) == (True, False)
    outbox.connected()
    assert wire.take() == [b"once", b"waiting"]


async def test_a_confirmation_of_an_older_connection_counts_for_nothing() -> None:
    outbox = Outbox(Wire())
    outbox.connected()
    entry = outbox.submit(envelope())
    outbox.disconnected()
    outbox.confirm(entry)
    assert not entry.done()
    outbox.connected()
    outbox.confirm(entry)
    assert entry.done()


async def test_a_full_outbox_refuses_and_says_what_to_do() -> None:
    outbox = Outbox(Wire(), capacity=2)
    outbox.submit(envelope())
    entry = outbox.submit(envelope())
    with pytest.raises(OutboxFull, match=r"2 publishes are waiting .* 'a' .* option 'outbox'"):
        outbox.submit(envelope())
    entry.cancel()
    outbox.submit(envelope())


async def test_what_is_larger_than_the_outbox_is_told_that_it_has_to_wait_alone() -> None:
    outbox = Outbox(Wire(), capacity_bytes=10)
    large = Envelope(topic="b", payload=bytes(20))
    small = outbox.submit(envelope())
    with pytest.raises(OutboxFull, match=r"it has 20 bytes, and more than 10 have to wait alone"):
        outbox.submit(large)
    with pytest.raises(OutboxFull, match=r"wait for room with 'await socket\.drain\(\)'"):
        outbox.submit(Envelope(topic="b", payload=bytes(10)))
    small.cancel()
    outbox.submit(large)


async def test_a_refusal_ends_the_publish_and_makes_room() -> None:
    wire = Wire()
    outbox = Outbox(wire, window=1)
    outbox.connected()
    first, second = outbox.submit(envelope(1)), outbox.submit(envelope(2))
    outbox.fail(first, PublishRefused("no"))
    with pytest.raises(PublishRefused):
        await first
    assert wire.written == [first, second]


@pytest.mark.virtual
async def test_a_timeout_before_the_write_withdraws_the_publish() -> None:
    wire = Wire()
    outbox = Outbox(wire)
    with pytest.raises(PublishNotSent, match=r"within 0\.5 s.*safe to publish it again"):
        await outbox.publish(envelope(), 0.5)
    outbox.connected()
    assert wire.written == []


@pytest.mark.virtual
async def test_a_timeout_after_the_write_leaves_the_outcome_unknown() -> None:
    wire = Wire()
    outbox = Outbox(wire, window=1)
    outbox.connected()
    with pytest.raises(PublishUnknown, match="may have been received"):
        await outbox.publish(envelope(1), 0.5)
    entry = outbox.submit(envelope(2))
    assert wire.take() == [b"1"], "the place in the window is still the broker's"
    outbox.disconnected()
    outbox.connected()
    assert wire.take() == [b"2"], "what was given up is not written again"
    outbox.confirm(entry)
    assert entry.done()


@pytest.mark.virtual
async def test_a_publish_that_was_once_written_stays_unknown_while_it_waits_again() -> None:
    outbox = Outbox(Wire())
    outbox.connected()
    task = asyncio.create_task(outbox.publish(envelope(), 5.0))
    await asyncio.sleep(0)
    outbox.disconnected()
    with pytest.raises(PublishUnknown):
        await task


async def test_a_late_answer_frees_the_place_of_a_publish_that_was_given_up() -> None:
    wire = Wire()
    outbox = Outbox(wire, window=1)
    outbox.connected()
    first, second = outbox.submit(envelope(1)), outbox.submit(envelope(2))
    first.cancel()
    assert wire.written == [first]
    outbox.confirm(first)
    assert wire.written == [first, second]


async def test_a_cancelled_task_withdraws_what_it_was_publishing() -> None:
    wire = Wire()
    outbox = Outbox(wire)
    task = asyncio.create_task(outbox.publish(envelope(), 60))
    await eventually(lambda: len(outbox) == 1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    outbox.connected()
    assert wire.written == []


async def test_draining_waits_for_every_outcome() -> None:
    wire = Wire()
    outbox = Outbox(wire)
    await outbox.drain()
    entries = [outbox.submit(envelope(number)) for number in range(2)]
    draining = asyncio.create_task(outbox.drain())
    outbox.connected()
    outbox.confirm(entries[0])
    await asyncio.sleep(0)
    assert not draining.done()
    entries[1].cancel()
    await asyncio.wait_for(draining, 60)


async def test_closing_tells_what_is_known_of_each_publish() -> None:
    outbox = Outbox(Wire(), window=1)
    outbox.connected()
    written, waiting = outbox.submit(envelope(1)), outbox.submit(envelope(2))
    outbox.close()
    with pytest.raises(PublishUnknown):
        await written
    with pytest.raises(PublishNotSent):
        await waiting
    late = outbox.submit(envelope(3))
    with pytest.raises(PublishNotSent, match="closed"):
        await late


async def test_who_waits_for_outcomes_hears_of_each_once_and_in_order() -> None:
    wire = Wire()
    outbox = Outbox(wire)
    outbox.connected()
    told: list[tuple[int, bool]] = []

    def tell(entry: asyncio.Future[None]) -> None:
        assert isinstance(entry, OutboxEntry)
        failed = entry.cancelled() or entry.exception() is not None
        told.append((number(entry), failed))

    entries = [outbox.submit(envelope(count)) for count in range(6)]
    for entry in entries[:5]:
        on_outcome(entry, tell)
    outbox.confirm(entries[0])
    outbox.fail(entries[1], PublishRefused("no"))
    entries[2].cancel()
    outbox.confirm(entries[3])
    assert not told
    await eventually(lambda: len(told) == 4)
    assert sorted(told) == [(0, False), (1, True), (2, True), (3, False)]

    # What has an outcome already is told all the same.
    on_outcome(entries[0], tell)
    outbox.close()
    await eventually(lambda: len(told) == 6)
    assert told[4:] == [(0, False), (4, True)] or told[4:] == [(4, True), (0, False)]
    assert entries[1].exception() is not None
    assert entries[5].exception() is not None


async def test_publishes_that_are_confirmed_together_take_one_call_of_the_loop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    outbox = Outbox(Wire())
    outbox.connected()
    told: list[int] = []
    entries = [outbox.submit(envelope(count)) for count in range(10)]
    for entry in entries:
        on_outcome(entry, lambda entry: told.append(number(entry)))  # type: ignore[arg-type]
    loop = asyncio.get_running_loop()
    calls: list[object] = []
    soon = loop.call_soon

    def counted(callback: object, *args: object, **options: object) -> asyncio.Handle:
        calls.append(callback)
        return soon(callback, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(loop, "call_soon", counted)
    for entry in entries:
        outbox.confirm(entry)
    monkeypatch.undo()
    await eventually(lambda: told == [*range(10)])
    assert len(calls) == 1


async def test_an_error_of_one_who_waits_for_an_outcome_keeps_nobody_from_hearing() -> None:
    outbox = Outbox(Wire())
    outbox.connected()
    told: list[int] = []
    reported: list[str] = []

    def fail(entry: asyncio.Future[None]) -> None:
        raise ValueError("a bug")

    first, second = outbox.submit(envelope(0)), outbox.submit(envelope(1))
    on_outcome(first, fail)
    on_outcome(second, lambda entry: told.append(1))
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda loop, context: reported.append(str(context["exception"])))
    outbox.confirm(first)
    outbox.confirm(second)
    await eventually(lambda: bool(told))
    loop.set_exception_handler(None)
    assert reported == ["a bug"]


async def test_a_publish_keeps_nothing_of_who_has_heard_of_its_outcome() -> None:
    outbox = Outbox(Wire())
    outbox.connected()
    entries = [outbox.submit(envelope(count)) for count in range(3)]
    for entry in entries:
        on_outcome(entry, lambda entry: None)
    outbox.confirm(entries[0])
    outbox.fail(entries[1], PublishRefused("no"))
    entries[2].cancel()
    await asyncio.sleep(0)
    assert [entry.on_outcome for entry in entries] == [None, None, None]
    assert entries[1].exception() is not None


async def test_a_writer_may_answer_before_it_returns() -> None:
    order: list[bytes] = []

    def write(entry: OutboxEntry) -> None:
        order.append(entry.envelope.payload)
        if entry.envelope.payload == b"1":
            outbox.fail(entry, PublishRefused("no"))
        else:
            outbox.confirm(entry)

    outbox = Outbox(write, window=1)
    entries = [outbox.submit(envelope(number)) for number in range(1_200)]
    outbox.connected()
    assert len(order) == 1_200
    with pytest.raises(PublishRefused):
        await entries[1]


async def test_a_writer_may_lose_the_connection_before_it_returns() -> None:
    writes: list[OutboxEntry] = []

    def write(entry: OutboxEntry) -> None:
        writes.append(entry)
        if len(writes) == 1:
            outbox.disconnected()

    outbox = Outbox(write)
    first, second = outbox.submit(envelope(1)), outbox.submit(envelope(2))
    outbox.connected()
    assert writes == [first]
    outbox.connected()
    assert writes == [first, first, second]


_STEPS = st.sampled_from(
    ["submit", "connect", "disconnect", "confirm", "confirm any", "refuse", "cancel", "expire"]
)


@settings(max_examples=examples(60), deadline=None)
@given(steps=st.lists(st.tuples(_STEPS, st.integers(0, 50)), max_size=60), window=st.integers(1, 4))
async def test_any_sequence_keeps_order_window_and_outcomes(
    steps: list[tuple[str, int]], window: int
) -> None:
    in_flight: list[OutboxEntry] = []
    connected = False

    def write(entry: OutboxEntry) -> None:
        assert connected
        assert not entry.done(), "what has an outcome is never written"
        if in_flight:
            assert number(in_flight[-1]) < number(entry), "written in the order of submission"
        in_flight.append(entry)
        assert len(in_flight) <= window

    outbox = Outbox(write, capacity=6, window=window)
    counter = itertools.count()
    entries: list[OutboxEntry] = []
    for step, place in steps:
        if step == "submit":
            waiting = len(outbox)
            try:
                entries.append(outbox.submit(envelope(next(counter))))
            except OutboxFull:
                assert waiting == 6
        elif step == "connect":
            in_flight.clear()
            connected = True
            outbox.connected()
        elif step == "disconnect":
            connected = False
            outbox.disconnected()
            in_flight.clear()
        elif step in ("confirm", "refuse", "confirm any") and in_flight:
            entry = in_flight.pop(0 if step == "confirm" else place % len(in_flight))
            if step == "refuse":
                outbox.fail(entry, PublishRefused("no"))
            else:
                outbox.confirm(entry)
        elif step in ("cancel", "expire") and entries:
            entry = entries[place % len(entries)]
            if step == "cancel":
                entry.cancel()
            else:
                outbox._expire(entry, 1.0)
    pending = [entry for entry in entries if not entry.done()]
    assert len(outbox) == len(pending)
    in_flight.clear()
    connected = True
    outbox.connected()
    while in_flight:
        outbox.confirm(in_flight.pop(0))
    for entry in entries:
        assert entry.done(), "every publish gets an outcome"
        if not entry.cancelled():
            entry.exception()
    await outbox.drain()


def test_delays_grow_with_jitter_up_to_the_maximum() -> None:
    backoff = Backoff(Environment(seed=1), minimum=0.1, maximum=1.0)
    delays = [backoff.next_delay() for _ in range(200)]
    assert all(0.05 <= delay <= 1.0 for delay in delays)
    assert delays[0] <= 0.1
    assert len({round(delay, 6) for delay in delays}) > 100


def test_delays_start_again_after_a_connection_that_held() -> None:
    backoff = Backoff(Environment(seed=1), minimum=0.1, maximum=10.0, stable=5.0)
    for _ in range(10):
        backoff.next_delay()
    assert backoff.next_delay(lasted=4.9) > 1.0
    assert backoff.next_delay(lasted=5.0) <= 0.1
    backoff.next_delay()
    backoff.reset()
    assert backoff.next_delay() <= 0.1


def test_two_seeds_do_not_come_back_in_step() -> None:
    one, other = Backoff(Environment(seed=1)), Backoff(Environment(seed=2))
    assert [one.next_delay() for _ in range(5)] != [other.next_delay() for _ in range(5)]
