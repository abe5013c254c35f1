"""How publishes become batches, against a library that only takes notes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import aiokafka.errors as kafka
import pytest
from hypothesis import given, strategies as st

from spa_dat.errors import MessageTooLarge, PublishNotSent, PublishRefused, UnknownTopic
from spa_dat.transports import Envelope
from spa_dat.transports._outbox import Outbox, OutboxEntry
from spa_dat.transports.kafka._records import Record
from spa_dat.transports.kafka.producing._partition_queue import PartitionQueue, blames_records
from support.waiting import eventually

Verdict = Callable[[list[int]], Exception | None]


class Batch:
    def __init__(self, most: int) -> None:
        self.numbers: list[int] = []
        self._most = most

    def append(self, *, timestamp: Any, key: Any, value: bytes, headers: Any) -> object | None:
        if value == b"broken":
            raise TypeError("no such value")
        if len(self.numbers) >= self._most:
            return None
        self.numbers.append(int(value))
        return object()


class Library:
    """The owner of one queue; batches are answered by `answer`, or by themselves.

    Args:
        most: records in a batch.
        verdict: what becomes of a batch; without it every batch waits for `answer`.
    """

    def __init__(self, most: int = 1_000, verdict: Verdict | None = None) -> None:
        self.outbox = Outbox(self._write, queues=True, repeat_qos0=True, window=10_000)
        self.suspects: set[OutboxEntry] = set()
        self.open = True
        self.sent: list[list[int]] = []
        self.confirmed: list[int] = []
        self.taken_back: list[int] = []
        self.broken: list[BaseException] = []
        self.unknown: Exception | None = None
        self.code = -1
        self.pending: list[asyncio.Future[None]] = []
        self.queue = PartitionQueue(self, "t", 0)
        self._most = most
        self._verdict = verdict
        self.outbox.connected()

    def post(self, *numbers: int) -> list[OutboxEntry]:
        return [self.post_bytes(b"%d" % number) for number in numbers]

    def post_bytes(self, value: bytes) -> OutboxEntry:
        return self.outbox.submit(Envelope(topic="t"), Record("t", None, value, [], None))

    def answer(self, error: Exception | None = None) -> None:
        future = self.pending.pop(0)
        if error is None:
            future.set_result(None)
        else:
            future.set_exception(error)

    def again(self) -> None:
        """Another producer takes over."""
        self.outbox.disconnected()
        self.open = True
        self.queue = PartitionQueue(self, "t", 0)
        self.outbox.connected()

    def _write(self, entry: OutboxEntry) -> None:
        self.queue.append(entry)

    # What a queue asks for.

    def new_batch(self) -> Batch:
        return Batch(self._most)

    async def send(self, batch: Batch, name: str, partition: int) -> asyncio.Future[None]:
        self.sent.append(batch.numbers)
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.pending.append(future)
        if self._verdict is not None:
            error = self._verdict(batch.numbers)
            if error is None:
                self.confirmed += batch.numbers
            self.answer(error)
        return future

    async def find(self, name: str) -> None:
        if self.unknown is not None:
            raise self.unknown

    def take_back(self, name: str, partition: int, count: int) -> None:
        self.taken_back.append(count)

    def last_refusal(self, name: str, partition: int) -> int:
        return self.code

    def break_off(self, cause: BaseException) -> None:
        self.broken.append(cause)
        self.open = False

    def on_batch(self, queue: PartitionQueue) -> None:
        pass


async def test_nothing_waits_where_nothing_is_on_its_way() -> None:
    library = Library()
    (entry,) = library.post(1)
    # One round of the loop, and no clock.
    await asyncio.sleep(0)
    assert library.sent == [[1]]
    library.answer()
    await entry


async def test_what_comes_while_a_batch_is_on_its_way_makes_the_next() -> None:
    library = Library(most=3)
    entries = library.post(0, 1)
    await asyncio.sleep(0)
    entries += library.post(2, 3, 4, 5, 6)
    await asyncio.sleep(0)
    assert library.sent == [[0, 1]]
    for _ in range(3):
        await eventually(lambda: bool(library.pending))
        library.answer()
    await asyncio.gather(*entries)
    assert library.sent == [[0, 1], [2, 3, 4], [5, 6]]


async def test_the_next_batch_goes_before_the_last_one_is_confirmed() -> None:
    library = Library()
    (first,) = library.post(0)
    await asyncio.sleep(0)
    (second,) = library.post(1)
    seen: list[int] = []
    first.add_done_callback(lambda _: seen.append(len(library.sent)))
    library.answer()
    await first
    assert seen == [2]
    library.answer()
    await second


def reply() -> Record:
    return Record("t", None, b"0", [], None, is_reply=True)


async def test_replies_that_are_not_taken_for_long_are_refused_and_the_rest_is_tried_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    library = Library()
    queue = library.queue
    first = [library.outbox.submit(Envelope(topic="t"), reply()), *library.post(1)]
    await eventually(lambda: library.pending)
    line = [library.outbox.submit(Envelope(topic="t"), reply()), *library.post(2)]
    for seconds in (0.0, 4.0, 6.0, 29.0):
        trouble = queue.refused(5, seconds)
    assert trouble is not None
    assert "partition 0 of topic 't' accepts no publishes" in trouble
    assert "it has no leader" in trouble
    assert not any(entry.done() for entry in first + line)
    queue.refused(5, 30.0)
    assert caplog.text.count("has accepted no publish") == 1
    for entry in (first[0], line[0]):
        with pytest.raises(PublishRefused, match=r"reply to 't' is given up: partition 0.*leader"):
            await entry
    library.answer()
    await eventually(lambda: library.pending)
    library.answer()
    await asyncio.gather(first[1], line[1])
    assert library.sent == [[0, 1], [2]]
    assert queue.refused(0, 0.0) is None
    assert len(library.outbox) == library.outbox.size == 0


async def test_what_gets_no_answer_for_long_is_told_of() -> None:
    library = Library()
    queue, now = library.queue, asyncio.get_running_loop().time()
    assert queue.unanswered(now + 100) is None
    entry = library.outbox.submit(Envelope(topic="t"), reply())
    await eventually(lambda: library.pending)
    # Whoever asked has chosen where it goes.
    assert queue.unanswered(now + 100) is None
    library.answer()
    await entry
    (entry,) = library.post(1)
    await eventually(lambda: library.pending)
    assert queue.unanswered(now + 9) is None
    trouble = queue.unanswered(now + 100)
    assert trouble is not None
    assert "partition 0 of topic 't' accepts no publishes" in trouble
    assert "have not answered for 10 s" in trouble
    library.answer()
    await entry
    assert queue.unanswered(now + 100) is None


async def test_strangers_replies_alone_are_no_trouble_of_the_application() -> None:
    library = Library()
    entry = library.outbox.submit(Envelope(topic="t"), reply())
    await eventually(lambda: library.pending)
    assert library.queue.refused(5, 10.0) is None
    library.answer()
    await entry


async def test_what_was_given_up_in_line_of_one_partition_holds_no_place_of_others() -> None:
    library = Library()
    library.outbox = Outbox(
        library._write, queues=True, repeat_qos0=True, window=10, window_bytes=1_000
    )
    library.outbox.connected()
    library.post(0)
    await eventually(lambda: library.pending)
    for number in range(1, 30):
        (entry,) = library.post(number)
        entry.cancel()
    other = library.post(30)[0]
    assert other.writes == 0
    answers = library.outbox._answers
    library.queue.refused(19, 10.0)
    # Nobody has answered: a frozen broker must not look alive.
    assert library.outbox._answers == answers
    library.answer()
    await eventually(lambda: library.pending)
    library.answer()
    await other
    assert library.sent == [[0], [30]]


async def test_what_was_given_up_in_line_is_not_sent_and_says_so() -> None:
    library = Library()
    library.post(0)
    await asyncio.sleep(0)
    cancelled, kept = library.post(1, 2)
    assert cancelled.cancel()
    with pytest.raises(PublishNotSent):
        await library.outbox.publish(Envelope(topic="t"), 0.001, Record("t", None, b"3", [], None))
    library.answer()
    await eventually(lambda: len(library.sent) == 2)
    library.answer()
    await kept
    assert library.sent == [[0], [2]]
    assert len(library.outbox) == 0


@given(
    count=st.integers(1, 40),
    bad=st.sets(st.integers(0, 39), max_size=5),
    most=st.integers(1, 50),
)
async def test_only_the_record_to_blame_is_refused_and_the_order_stays(
    count: int, bad: set[int], most: int
) -> None:
    def verdict(numbers: list[int]) -> Exception | None:
        return kafka.MessageSizeTooLargeError() if bad & set(numbers) else None

    library = Library(most, verdict)
    results = await asyncio.gather(*library.post(*range(count)), return_exceptions=True)
    wrong = [number for number, result in enumerate(results) if result is not None]
    assert wrong == sorted(number for number in bad if number < count)
    assert all(isinstance(results[number], MessageTooLarge) for number in wrong)
    assert library.confirmed == [number for number in range(count) if number not in bad]
    assert not library.broken
    refused = [len(numbers) for numbers in library.sent if bad & set(numbers)]
    assert library.taken_back == refused


@pytest.mark.parametrize("error", [kafka.UnknownError(), kafka.PolicyViolationError()])
async def test_what_breaks_a_rule_of_the_topic_is_refused_alone(
    error: Exception,
) -> None:
    library = Library(verdict=lambda numbers: error if 2 in numbers else None)
    # The library has no name for this one.
    library.code = 87
    results = await asyncio.gather(*library.post(*range(5)), return_exceptions=True)
    assert [number for number, result in enumerate(results) if result is not None] == [2]
    assert isinstance(results[2], PublishRefused)
    assert library.confirmed == [0, 1, 3, 4]
    assert not library.broken


@pytest.mark.parametrize("code", [76])
async def test_what_no_record_of_the_topic_would_change_is_refused_for_all(code: int) -> None:
    library = Library(verdict=lambda numbers: kafka.UnknownError())
    library.code = code
    results = await asyncio.gather(*library.post(*range(5)), return_exceptions=True)
    assert [type(result) for result in results] == [PublishRefused] * 5
    assert "compression" in str(results[0])
    assert library.sent == [[0, 1, 2, 3, 4]]
    assert not library.broken


@given(count=st.integers(1, 30), bad=st.sets(st.integers(0, 29), max_size=4))
async def test_an_answer_that_is_not_known_is_looked_into_one_by_one(
    count: int, bad: set[int]
) -> None:
    def verdict(numbers: list[int]) -> Exception | None:
        return kafka.UnknownError() if bad & set(numbers) else None

    library = Library(verdict=verdict)
    library.code = 12_345
    entries = library.post(*range(count))
    for _ in range(2 * len(bad) + 2):
        for _ in range(count + 5):
            await asyncio.sleep(0)
        if not library.open:
            library.again()
    results = await asyncio.gather(*entries, return_exceptions=True)
    wrong = [number for number, result in enumerate(results) if result is not None]
    assert wrong == sorted(number for number in bad if number < count)
    assert all(isinstance(results[number], PublishRefused) for number in wrong)
    good = [number for number in range(count) if number not in bad]
    assert list(dict.fromkeys(library.confirmed)) == good
    assert not library.suspects


@pytest.mark.parametrize(
    "error",
    [
        kafka.OutOfOrderSequenceNumber(),
        kafka.ProducerFenced(),
        kafka.UnknownProducerId(),
        kafka.NotLeaderForPartitionError(),
        kafka.KafkaError("a task ended"),
    ],
    ids=repr,
)
async def test_a_lost_producer_is_not_the_records_fault(error: Exception) -> None:
    library = Library()
    entries = library.post(0, 1, 2)
    await asyncio.sleep(0)
    entries += library.post(3)
    library.answer(error)
    await eventually(lambda: bool(library.broken))
    assert library.broken == [error]
    assert not any(entry.done() for entry in entries)
    assert not library.taken_back
    library.again()
    await asyncio.sleep(0)
    assert library.sent[-1] == [0, 1, 2, 3]
    library.answer()
    await asyncio.gather(*entries)


async def test_an_unknown_topic_fails_what_is_in_line() -> None:
    library = Library()
    library.unknown = UnknownTopic("topic 't' does not exist")
    results = await asyncio.gather(*library.post(0, 1), return_exceptions=True)
    assert [type(result) for result in results] == [UnknownTopic] * 2
    assert results[0] is not results[1]
    library.unknown = None
    (entry,) = library.post(2)
    await asyncio.sleep(0)
    library.answer()
    await entry


async def test_a_record_that_can_not_be_written_fails_alone() -> None:
    library = Library(verdict=lambda numbers: None)
    before = library.post(0)
    broken = library.post_bytes(b"broken")
    after = library.post(1)
    with pytest.raises(PublishRefused, match="no such value"):
        await broken
    await asyncio.gather(*before, *after)
    assert library.confirmed == [0, 1]


async def test_what_the_library_should_never_raise_breaks_the_producer_off() -> None:
    library = Library()

    async def send(batch: Batch, name: str, partition: int) -> asyncio.Future[None]:
        raise AssertionError("Unrecognized partition")

    library.send = send  # type: ignore[method-assign]
    (entry,) = library.post(0)
    await eventually(lambda: bool(library.broken))
    assert not entry.done()
    assert entry.cancel()


async def test_a_paused_queue_keeps_its_line() -> None:
    library = Library(verdict=lambda numbers: None)
    library.open = False
    entries = library.post(0, 1)
    await asyncio.sleep(0)
    assert library.sent == []
    library.open = True
    library.queue.start()
    await asyncio.gather(*entries)
    assert library.sent == [[0, 1]]


def test_records_are_not_to_blame_for_a_login_that_was_refused() -> None:
    assert not blames_records(kafka.IllegalSaslStateError())
    assert blames_records(kafka.InvalidTimestampError())
