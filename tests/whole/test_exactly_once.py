"""Messages that have their effects exactly once, on a simulated cluster."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections import Counter
from dataclasses import replace
from typing import Any

import aiokafka.errors as kafka
import pytest
from aiokafka import AIOKafkaConsumer
from aiokafka.structs import TopicPartition

from spa_dat import (
    Actor,
    DistributedApplication,
    Message,
    Overflow,
    Reject,
    RetryPolicy,
    Socket,
    SocketProviderFactory,
    on,
)
from spa_dat.errors import ConfigurationError, MessageTooLarge, PublishRefused, RemoteError
from spa_dat.testing import Faults, Harness
from spa_dat.transports._units import Outcome
from spa_dat.transports.kafka.consuming._unit_tracker import Due, RefusedOutcomes, Source
from spa_dat.transports.kafka.producing._transactions import (
    Refusals,
    TransactionalProducer,
    TransactionFailed,
)

URL = "kafka://cluster?partitions=3"
PATIENT = RetryPolicy(attempts=100, first=0.01)
FAULTS = replace(Faults.all(), duplicate=0.0, most=30)


def application(url: str = URL, name: str | None = "shop", **more: Any) -> DistributedApplication:
    return DistributedApplication(url, name=name, **more)


def test_what_a_handler_publishes_is_committed_with_its_message_and_not_before() -> None:
    app = application()
    seen: list[int] = []

    @app.application("orders", exactly_once=True)
    async def orders(number: int, socket: Socket) -> None:
        await socket.publish("invoices", number)
        seen.append(len(harness.published("invoices")))
        socket.post("labels", number)

    with Harness(app) as harness:
        harness.publish("orders", 1)
        harness.settle()
        assert seen == [0]
        assert harness.published("invoices") == [1]
        assert harness.published("labels") == [1]
        assert app.stats["kafka.transactions"] == 1


def test_an_attempt_that_fails_publishes_nothing() -> None:
    app = application()

    @app.application("orders", exactly_once=True, retry=RetryPolicy(attempts=2))
    async def orders(number: int, socket: Socket, message: Message[int]) -> None:
        await socket.publish("invoices", number)
        if number == 13:
            raise ValueError("bad luck")

    with Harness(app) as harness:
        harness.expect_failure(ValueError)
        for number in (12, 13, 14):
            harness.publish("orders", number)
        harness.settle()
        assert sorted(harness.published("invoices")) == [12, 14]
        (letter,) = harness.dead_letters()
        assert (letter.payload, letter.error) == (b"13", "ValueError")


def test_what_one_message_publishes_is_limited_in_bytes() -> None:
    app = application()

    @app.application("orders", exactly_once=True, retry=RetryPolicy(attempts=1))
    async def orders(count: int, socket: Socket) -> None:
        for _ in range(count):
            socket.post("invoices", b"x" * 1_000_000)

    with Harness(app) as harness:
        harness.expect_failure(MessageTooLarge)
        for count in (70, 2):
            harness.publish("orders", count)
        harness.settle()
        (letter,) = harness.dead_letters()
        assert letter.error == "MessageTooLarge"
        assert "publish less for each message" in letter.text
        assert len(harness.messages("invoices")) == 2


def test_messages_with_the_same_key_stay_in_order_in_lanes() -> None:
    app = application()

    @app.application("orders", exactly_once=True, concurrency=4)
    async def orders(number: int, socket: Socket, message: Message[int]) -> None:
        await socket.publish(f"invoices/{message.key}", number)

    with Harness(app) as harness:
        for number in range(40):
            harness.publish("orders", number, key=f"k{number % 5}")
        harness.settle()
        for key in range(5):
            assert harness.published(f"invoices/k{key}") == list(range(key, 40, 5))


def test_a_reply_is_sent_after_the_commit() -> None:
    app = application()

    @app.application("price", exactly_once=True)
    async def price(number: int, socket: Socket) -> int:
        socket.post("asked", number)
        return number * 2

    @app.application("price/by-hand", exactly_once=True, replies=True)
    async def by_hand(message: Message[int], socket: Socket) -> None:
        socket.post("asked", message.payload)
        await message.reply(message.payload * 3)

    @app.application("refused", exactly_once=True)
    async def refused(number: int, socket: Socket) -> int:
        socket.post("asked", number)
        raise Reject("never")

    with Harness(app) as harness:
        assert harness.request("price", 4) == b"8"
        assert app.stats["kafka.transactions"] == 1
        assert harness.request("price/by-hand", 5) == b"15"
        assert app.stats["kafka.transactions"] == 2
        harness.expect_failure(Reject)
        with pytest.raises(RemoteError, match="never"):
            harness.request("refused", 6)
        harness.settle()
        assert sorted(harness.published("asked")) == [4, 5]


def test_a_reply_that_cannot_be_encoded_takes_the_effects_with_it() -> None:
    app = application()

    @app.application("price", exactly_once=True)
    async def price(number: int, socket: Socket) -> object:
        socket.post("asked", number)
        return {object(): 1}

    with Harness(app) as harness:
        harness.expect_failure(Exception)
        with pytest.raises(RemoteError):
            harness.request("price", 4)
        harness.settle()
        assert harness.published("asked") == []


def test_what_the_cluster_refuses_makes_its_message_a_dead_letter_and_no_other() -> None:
    app = application(URL + "&max_payload=2000000")

    @app.application("orders", exactly_once=True)
    async def orders(number: int, socket: Socket) -> None:
        await socket.publish("invoices", b"x" * (1_500_000 if number == 3 else 10))

    with Harness(app) as harness:
        harness.expect_failure(Reject)
        for number in range(6):
            harness.publish("orders", number, key="one")
        harness.settle()
        assert len(harness.published("invoices")) == 5
        (letter,) = harness.dead_letters()
        assert letter.payload == b"3"


def test_an_actor_goes_on_although_the_cluster_refuses_something_again_and_again() -> None:
    app = application(URL + "&max_payload=2000000")

    @app.application("orders", exactly_once=True)
    async def orders(number: int, socket: Socket) -> None:
        await socket.publish("invoices", b"x" * (1_500_000 if number % 5 == 3 else 10))

    with Harness(app) as harness:
        harness.expect_failure(Reject)
        for number in range(200):
            harness.publish("orders", number, key="one")
            harness.advance(0.01)
        harness.advance(2.0)
        assert len(harness.published("invoices")) == 160
        letters = [int(letter.payload) for letter in harness.dead_letters()]
        assert letters == [*range(3, 200, 5)]


def test_two_applications_share_the_partitions() -> None:
    apps = [forwarding(number) for number in range(2)]
    with Harness(*apps) as harness:
        for number in range(30):
            harness.publish("orders", number, key=f"k{number % 7}")
        harness.settle()
        assert Counter(harness.published("invoices")) == Counter(range(30))
        assert all(app.stats["kafka.transactions"] for app in apps)


def forwarding(number: int = 0) -> DistributedApplication:
    app = application(instance=str(number))

    @app.application("orders", exactly_once=True, retry=PATIENT)
    async def orders(number: int, socket: Socket) -> None:
        await socket.publish("invoices", number)
        await socket.publish(f"parts/{number % 3}", number, key=str(number))

    return app


def forward(seed: int) -> tuple[Counter[int], Counter[int]]:
    """Return what comes out of 60 numbers while faults strike."""
    with Harness(forwarding(0), forwarding(1), seed=seed, faults=FAULTS) as harness:
        for number in range(60):
            harness.publish("orders", number, key=f"k{number % 7}")
            if number % 9 == 0:
                harness.advance(0.3)
        harness.settle()
        return Counter(harness.published("invoices")), Counter(harness.published("parts/+"))


@pytest.mark.parametrize("seed", range(6))
def test_whatever_faults_strike_everything_is_there_once(seed: int) -> None:
    assert forward(seed) == (Counter(range(60)), Counter(range(60)))


def fail_often(monkeypatch: pytest.MonkeyPatch, seed: int) -> Counter[str]:
    """Let transactions fail before and after they are committed; count both."""
    commit, dice, failures = TransactionalProducer.commit, random.Random(seed), Counter[str]()

    async def unsure(self: TransactionalProducer, *arguments: Any, **more: Any) -> None:
        if dice.random() < 0.3:
            failures["before"] += 1
            raise TransactionFailed(OSError("never sent"))
        await commit(self, *arguments, **more)
        if dice.random() < 0.3:
            failures["after"] += 1
            raise TransactionFailed(OSError("no answer"))

    monkeypatch.setattr(TransactionalProducer, "commit", unsure)
    return failures


def forward_unsure() -> tuple[Counter[int], list[list[int]]]:
    """Return what comes out of 60 numbers, and the numbers of each key in order."""
    app = application()

    @app.application("orders", exactly_once=True)
    async def orders(number: int, socket: Socket, message: Message[int]) -> None:
        await socket.publish(f"invoices/{message.key}", number, key=message.key)

    with Harness(app) as harness:
        for number in range(60):
            harness.publish("orders", number, key=f"k{number % 7}")
            harness.advance(0.05)
        harness.settle()
        keys = [harness.published(f"invoices/k{key}") for key in range(7)]
        return Counter(harness.published("invoices/+")), keys


@pytest.mark.parametrize("seed", range(4))
def test_a_transaction_that_has_failed_is_looked_up_and_not_repeated(
    monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    failures = fail_often(monkeypatch, seed)
    assert forward_unsure() == (
        Counter(range(60)),
        [list(range(key, 60, 7)) for key in range(7)],
    )
    assert min(failures["before"], failures["after"]) > 0


def test_without_going_back_to_what_is_committed_something_would_be_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def stay(*_: object) -> None:
        """Go on where the library is."""

    monkeypatch.setattr(AIOKafkaConsumer, "seek", stay)
    fail_often(monkeypatch, 1)
    with pytest.raises(AssertionError):
        assert forward_unsure()[0] == Counter(range(60))


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"per": "a"}, "per='a'"),
        ({"batch": (5, 1.0)}, "batch="),
        ({"overflow": Overflow.DROP_NEWEST}, "overflow="),
        ({"qos": 0}, "qos=0"),
        ({"subscription": "both"}, "subscription='both'"),
        ({"deliver": "all"}, "deliver='all'"),
        ({"rewind_to": "2026-01-01T00:00Z"}, "rewind_to="),
        ({"placement": "process"}, "placement='process'"),
        ({"exactly_once": "yes"}, "give True or False"),
    ],
)
def test_what_does_not_go_with_it_is_refused(options: dict[str, Any], problem: str) -> None:
    app = application()
    given = {"exactly_once": True, **options}
    with pytest.raises(ConfigurationError, match=problem):

        @app.application("orders/{a}", **given)
        async def orders(payload: bytes) -> None: ...


@pytest.mark.parametrize("url", ["memory://", "mqtt://broker"])
def test_a_bus_without_transactions_is_refused(url: str) -> None:
    app = application(url)
    with pytest.raises(ConfigurationError, match="needs a bus with transactions"):

        @app.application("orders", exactly_once=True)
        async def orders(payload: bytes) -> None: ...


def test_an_application_without_a_name_is_refused() -> None:
    app = application(name=None)

    @app.application("orders", exactly_once=True)
    async def orders(payload: bytes) -> None: ...

    with pytest.raises(ConfigurationError, match="needs a named application"), Harness(app):
        """It does not start."""


def test_a_pattern_of_topics_is_refused() -> None:
    app = application()

    @app.application("orders/+", exactly_once=True)
    async def orders(payload: bytes) -> None: ...

    with pytest.raises(ConfigurationError, match="whose names match a pattern"), Harness(app):
        """It does not start."""


def test_several_topics_are_read_in_one_transaction_for_each_partition() -> None:
    app = application()

    class Orders(Actor):
        exactly_once = True

        @on("orders")
        @on("returns")
        async def take(self, number: int, socket: Socket) -> None:
            await socket.publish("invoices", number)

    app.add(Orders)
    with Harness(app) as harness:
        for number in range(20):
            harness.publish("returns" if number % 3 else "orders", number, key=f"k{number % 5}")
        harness.settle()
        harness.crash()
        harness.restart()
        harness.publish("returns", 20)
        harness.settle()
        assert sorted(harness.published("invoices")) == [*range(21)]


def test_publishes_on_another_bus_are_there_before_the_commit() -> None:
    app = application()
    other = SocketProviderFactory.from_url("memory://other")

    @app.application("orders", exactly_once=True)
    async def orders(number: int, socket: Socket) -> None:
        app.socket(socket_provider=other).post("elsewhere", number)
        socket.post("invoices", number)

    @app.application("elsewhere", socket_provider=other)
    async def elsewhere(number: int) -> None: ...

    with Harness(app) as harness:
        harness.publish("orders", 1)
        harness.settle()
        assert harness.published("invoices") == [1]
        assert harness.published("elsewhere") == [1]


def test_a_dead_letter_that_is_refused_as_well_is_stored_without_a_transaction(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    app = application()
    refused: list[int] = []
    commit = TransactionalProducer.commit

    async def refuse(
        self: TransactionalProducer, records: Any, offsets: Any, **options: Any
    ) -> None:
        for place, placed in enumerate(records):
            if b"13" in (placed.record.value or b""):
                refused.append(place)
                errors = {place: PublishRefused("not this one")}
                raise TransactionFailed(OSError(), Refusals(errors, certain=True))
        await commit(self, records, offsets, **options)

    monkeypatch.setattr(TransactionalProducer, "commit", refuse)

    @app.application("orders", exactly_once=True)
    async def orders(number: int, socket: Socket) -> None:
        await socket.publish("invoices", number)

    with Harness(app) as harness:
        harness.expect_failure(Reject)
        for number in (12, 13, 14):
            harness.publish("orders", number, key="one")
        harness.settle()
        assert harness.published("invoices") == [12, 14]
        (letter,) = harness.dead_letters()
        assert letter.payload == b"13"
        assert "not this one" in letter.text
        assert len(refused) == 2


def test_large_batches_are_taken_apart_to_find_what_is_refused() -> None:
    refused = RefusedOutcomes()
    place, other = TopicPartition("orders", 0), TopicPartition("returns", 0)
    sources: list[Source] = [(place, 10), (place, 11), (place, 11), (place, 14)]
    errors = dict.fromkeys((2, 3), PublishRefused("one of them"))
    refused.add(Refusals(errors, certain=False), sources)
    due = Due({place: 15}, [(place, 14, Outcome())], {})
    assert refused.apart(due)
    assert not refused.apart(due._replace(outcomes=[(place, 15, Outcome())]))
    assert not refused.apart(due._replace(outcomes=[(other, 14, Outcome())]))
    assert refused.of((place, 14)) is None
    refused.add(Refusals({3: PublishRefused("this one")}, certain=True), sources)
    known = refused.of((place, 14))
    assert known is not None
    assert not known.letter_too
    assert refused.of((other, 14)) is None
    refused.add(Refusals({0: PublishRefused("its letter")}, certain=True), [(place, 14)])
    known = refused.of((place, 14))
    assert known is not None
    assert known.letter_too
    refused.forget(due._replace(offsets={other: 15}))
    assert refused.of((place, 14)) is not None
    # What is known is committed before anything new is tried.
    assert refused.limit([(place, 11), (place, 14), (place, 15)]) == 2
    assert refused.limit([(place, 11), (other, 11), (place, 15)]) == 1
    assert refused.limit([(place, 15), (other, 11)]) is None
    refused.forget(due)
    assert refused.of((place, 14)) is None
    assert not refused.apart(due)


def test_a_failure_after_a_rebalance_is_not_taken_for_the_one_before_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    app = forwarding()
    commit, errors = TransactionalProducer.commit, [kafka.ProducerFenced(), OSError("cut")]

    async def refused(self: TransactionalProducer, *arguments: Any, **more: Any) -> Any:
        if errors:
            raise TransactionFailed(errors.pop(0))
        return await commit(self, *arguments, **more)

    monkeypatch.setattr(TransactionalProducer, "commit", refused)
    with Harness(app) as harness:
        harness.publish("orders", 1)
        harness.advance(1.0)
        assert len(errors) == 1
        # Where it has been fenced it waits to hear that others have the partitions.
        harness.rebalance()
        harness.advance(4.0)
        assert not errors
        harness.advance(60.0)
        assert harness.published("invoices") == [1]


def test_the_reason_of_a_failed_transaction_is_named(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    commit, errors = TransactionalProducer.commit, [TimeoutError()]

    async def refused(self: TransactionalProducer, *arguments: Any, **more: Any) -> Any:
        if errors:
            raise TransactionFailed(errors.pop())
        return await commit(self, *arguments, **more)

    monkeypatch.setattr(TransactionalProducer, "commit", refused)
    with Harness(forwarding()) as harness:
        harness.publish("orders", 1)
        harness.settle()
    assert "since the last one is handled again: no answer in time" in caplog.text


def test_a_dead_letter_counts_once_it_is_committed(monkeypatch: pytest.MonkeyPatch) -> None:
    app = application(dead_letter_limit=2)
    commit, errors = TransactionalProducer.commit, [OSError("cut") for _ in range(5)]

    async def refused(self: TransactionalProducer, *arguments: Any, **more: Any) -> Any:
        if errors:
            raise TransactionFailed(errors.pop())
        return await commit(self, *arguments, **more)

    monkeypatch.setattr(TransactionalProducer, "commit", refused)

    @app.application("orders", exactly_once=True, retry=RetryPolicy(attempts=1))
    async def orders(number: int) -> None:
        raise ValueError("bad luck")

    with Harness(app) as harness:
        harness.expect_failure(ValueError)
        harness.publish("orders", 13)
        harness.settle()
        assert not errors
        assert len(harness.dead_letters()) == 1
        assert app.stats["dead_letters.stored"] == 1
        (actor,) = app.health().actors
        assert actor.dead_letters == 1
        assert app.problems == {}


def test_transactions_that_keep_failing_are_a_problem_and_tried_less_and_less_often(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    app = forwarding()
    tried: list[float] = []
    commit, works = TransactionalProducer.commit, False

    async def refused(self: TransactionalProducer, *arguments: Any, **more: Any) -> Any:
        tried.append(asyncio.get_running_loop().time())
        if works:
            return await commit(self, *arguments, **more)
        raise TransactionFailed(kafka.GroupAuthorizationFailedError("shop.orders"))

    monkeypatch.setattr(TransactionalProducer, "commit", refused)
    with Harness(app) as harness:
        harness.publish("orders", 1)
        harness.advance(60)
        waits = [after - before for before, after in itertools.pairwise(tried)]
        assert len(waits) > 3
        assert max(waits) > 5 * min(waits)
        (problem,) = app.problems.values()
        assert "nothing is committed" in problem
        assert "not authorised for the group 'shop.orders'" in problem
        works = True
        harness.settle()
        assert harness.published("invoices") == [1]
        assert app.problems == {}
