"""What the outbox keeps of publishes that expire, fail, wait aside, or fill it."""

from __future__ import annotations

import asyncio

import pytest

from spa_dat.errors import MessageTooLarge, OutboxFull, PublishNotSent, PublishRefused
from spa_dat.transports._envelope import Envelope
from spa_dat.transports._outbox import (
    Outbox,
    OutboxEntry,
    on_failure,
    on_outcome,
    payload_too_large,
    size_of,
)
from support.waiting import eventually

pytestmark = pytest.mark.virtual


def envelope(payload: bytes = b"1", expiry: float | None = None) -> Envelope:
    return Envelope(topic="a", payload=payload, expiry=expiry)


def outbox(*, capacity: int = 10, capacity_bytes: int = 1_000, window: int = 10) -> Outbox:
    return Outbox(
        lambda entry: None, capacity=capacity, capacity_bytes=capacity_bytes, window=window
    )


async def test_a_publish_is_worth_delivering_until_it_expires() -> None:
    box = outbox()
    lasting, short = box.submit(envelope()), box.submit(envelope(expiry=5.0))
    assert (lasting.left, short.left) == (None, 5.0)
    await asyncio.sleep(4.0)
    assert not short.expired
    await asyncio.sleep(2.0)
    assert (short.left, short.expired, lasting.expired) == (0.0, True, False)


async def test_a_post_that_has_expired_counts_as_done_and_a_publish_has_failed() -> None:
    box = outbox()
    post = box.submit(envelope(expiry=1.0))
    publish = asyncio.create_task(box.publish(envelope(expiry=1.0), 60.0))
    await asyncio.sleep(2.0)
    box.connected()
    assert post.done()
    assert post.exception() is None
    with pytest.raises(PublishNotSent, match="expired while it waited"):
        await publish
    assert len(box) == 0


async def test_a_request_that_has_expired_fills_no_log(caplog: pytest.LogCaptureFixture) -> None:
    box = outbox()
    asked = Envelope(topic="a", payload=b"", expiry=1.0, response_topic="back")
    box.submit(asked)
    await asyncio.sleep(2.0)
    box.connected()
    assert len(box) == 0
    assert caplog.messages == []


async def test_a_full_outbox_makes_room_of_what_has_expired_at_most_once_in_a_second() -> None:
    box = outbox(capacity=2)
    for expiry in (1.0, 2.0):
        box.submit(envelope(expiry=expiry))
    await asyncio.sleep(1.5)
    box.submit(envelope())
    await asyncio.sleep(0.6)
    with pytest.raises(OutboxFull, match="2 publishes are waiting"):
        box.submit(envelope())
    await asyncio.sleep(1.0)
    box.submit(envelope())
    assert len(box) == 2


async def test_bytes_fill_it_too_and_a_single_large_publish_has_room() -> None:
    box = outbox(capacity_bytes=100)
    large = box.submit(envelope(b"x" * 500))
    assert box.size == 500
    with pytest.raises(OutboxFull, match=r"publishes of 500 bytes .* 'outbox_bytes'"):
        box.submit(envelope())
    large.cancel()
    assert box.size == 0


def test_long_texts_count_as_bytes() -> None:
    short = Envelope(topic="a", payload=b"12", headers={"b": "c"}, key="k", content_type="t")
    assert size_of(short) == 2
    long = Envelope(topic="a", payload=b"12", headers={"b": "c" * 5_000}, key="k" * 10)
    assert size_of(long) == 2 + 1 + 1 + 5_000 + 10


def test_a_payload_that_is_too_large_says_what_may_be_raised() -> None:
    error = payload_too_large(envelope(b"123"), 2, "service")
    assert isinstance(error, MessageTooLarge)
    assert "3 bytes, and 2 are allowed" in str(error)
    assert "if the service allows it" in str(error)


async def test_who_wants_to_know_of_failures_hears_of_them_whenever_he_asks() -> None:
    box = outbox()
    box.connected()
    heard: list[str] = []
    waiting, refused = box.submit(envelope()), box.submit(envelope())
    on_failure(waiting, lambda post: heard.append("waiting"))
    box.fail(refused, PublishRefused("no"))
    on_failure(refused, lambda post: heard.append("refused"))
    box.fail(waiting, PublishRefused("no"))
    await eventually(lambda: len(heard) == 2)
    for post in (waiting, refused):
        assert isinstance(post.exception(), PublishRefused)


async def test_who_asks_for_the_outcome_of_what_is_done_hears_of_it() -> None:
    box = outbox()
    box.connected()
    entry = box.submit(envelope())
    box.confirm(entry)
    heard: list[object] = []
    on_outcome(entry, heard.append)
    await eventually(lambda: heard == [entry])


async def test_what_was_cancelled_before_its_outcome_is_told_was_told_already() -> None:
    box = outbox()
    box.connected()
    entry = box.submit(envelope())
    heard: list[object] = []
    on_outcome(entry, heard.append)
    entry.cancel()
    box.confirm(entry)
    await eventually(lambda: heard == [entry])
    assert entry.cancelled()


async def test_an_outage_is_known_to_the_publish_that_has_met_it() -> None:
    box = outbox()
    box.connected()
    entry = box.submit(envelope())
    assert not entry.met_outage(1.0)
    assert entry.met_outage(60.0), "the broker is silent"
    box.pause()
    assert entry.met_outage(0.0)
    box.close()
    assert isinstance(entry.exception(), Exception)
    late = box.submit(envelope())
    assert not late.met_outage(60.0)
    assert isinstance(late.exception(), PublishNotSent)


async def test_what_the_broker_puts_off_says_so_when_it_is_given_up() -> None:
    box = outbox()
    entry = box.submit(envelope())
    entry.put_off = "the quota is used up"
    assert "was not sent: closed; the quota is used up" in str(entry.unconfirmed("closed"))


async def test_what_was_set_aside_is_written_after_what_waits() -> None:
    written: list[OutboxEntry] = []
    box = Outbox(written.append, window=1)
    box.connected()
    first, second = box.submit(envelope()), box.submit(envelope())
    box.set_aside(first)
    box.set_aside(first)
    assert written == [first, second]
    assert box.pending == [second, first]
    box.take_back()
    box.confirm(second)
    assert written == [first, second, first]
    box.confirm(first)
    assert (len(box), box.size) == (0, 0)


async def test_what_was_set_aside_may_be_given_up_refused_and_lost() -> None:
    box = outbox()
    box.connected()
    given_up, refused, left = (box.submit(envelope()) for _ in range(3))
    for entry in (given_up, refused, left):
        box.set_aside(entry)
    given_up.cancel()
    box.refuse(refused, PublishRefused("no"))
    assert isinstance(refused.exception(), PublishRefused)
    assert box.pending == [left]
    box.disconnected()
    assert box.oldest is left
    assert box.oldest_unconfirmed is None
    box.take_back()
    assert box.pending == [left]


async def test_a_publish_that_waits_can_be_refused() -> None:
    box = outbox()
    waiting = box.submit(envelope())
    box.refuse(waiting, PublishRefused("no"))
    assert isinstance(waiting.exception(), PublishRefused)
    assert (len(box), box.size) == (0, 0)


async def test_what_expires_while_the_broker_puts_it_off_leaves_its_place() -> None:
    box = outbox(window=1)
    box.connected()
    entry = box.submit(envelope(expiry=1.0))
    await asyncio.sleep(2.0)
    box.drop(entry)
    assert entry.done()
    assert (box.unconfirmed, box.size) == (0, 0)


async def test_what_was_given_up_in_the_queue_of_a_transport_leaves_its_place() -> None:
    box = outbox(window=1)
    box.connected()
    first, second = box.submit(envelope()), box.submit(envelope())
    box.let_go(first)
    assert box.written == [first], "it was not given up"
    first.cancel()
    assert box.given_up == [first]
    assert box.awaits_answer(first)
    box.let_go(first)
    assert not box.awaits_answer(first)
    assert box.written == [second]


async def test_publishes_that_are_confirmed_together_make_room_together() -> None:
    box = outbox(window=3)
    box.connected()
    entries = [box.submit(envelope()) for _ in range(5)]
    entries[0].cancel()
    box.confirm_all(entries[:3])
    assert [entry.done() for entry in entries] == [True, True, True, False, False]
    assert box.written == entries[3:]
    box.confirm_all(entries)
    assert (len(box), box.size) == (0, 0)


async def test_those_who_wait_for_room_go_on_when_half_of_it_is_free_or_it_is_closed() -> None:
    box = outbox(capacity=4)
    box.connected()
    entries = [box.submit(envelope()) for _ in range(4)]
    waits, cancelled = (asyncio.create_task(box.room()) for _ in range(2))
    await asyncio.sleep(0)
    cancelled.cancel()
    box.confirm(entries[0])
    await asyncio.sleep(0)
    assert not waits.done()
    box.confirm_all(entries[1:2])
    await waits
    await box.room()
    entries += [box.submit(envelope()) for _ in range(2)]
    again = asyncio.create_task(box.room())
    await asyncio.sleep(0)
    box.close()
    await again
    for entry in entries[2:]:
        assert entry.exception() is not None
    assert cancelled.cancelled()


async def test_a_closed_outbox_stays_so() -> None:
    box = outbox()
    box.close()
    box.connected()
    box.resume()
    assert isinstance(box.submit(envelope()).exception(), PublishNotSent)


async def test_a_writer_may_publish_before_it_returns() -> None:
    box: Outbox
    written: list[OutboxEntry] = []

    def write(entry: OutboxEntry) -> None:
        written.append(entry)
        if len(written) < 3:
            box.submit(envelope())

    box = Outbox(write)
    box.connected()
    box.submit(envelope())
    assert len(written) == 3
    assert box.written == written


async def test_a_late_refusal_frees_the_place_of_what_was_given_up_and_changes_nothing_else() -> (
    None
):
    box = outbox(window=1)
    box.connected()
    first, second = box.submit(envelope()), box.submit(envelope())
    box.fail(second, PublishRefused("it is not written"))
    first.cancel()
    box.give_up(first)
    box.give_up(first)
    box.refuse(first, PublishRefused("no"))
    assert box.written == [second]
    box.refuse(second, PublishRefused("no"))
    assert isinstance(second.exception(), PublishRefused)
    box.give_up(second)
    assert (len(box), box.size) == (0, 0)
