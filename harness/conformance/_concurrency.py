"""Applications with lanes and batches."""

from __future__ import annotations

import asyncio
import random
from collections import Counter, defaultdict
from collections.abc import Sized

from ...runtime.application._application import DistributedApplication
from ...runtime.injection._handler_context import Context
from ...runtime.messaging._message import Message
from ...runtime.messaging._socket import Socket
from ...runtime.options._retry_policy import RetryPolicy
from .._eventually import Gate, eventually
from ._scenario import Scenarios, scenario
from ._transport_harness import TransportHarness

__all__ = ["Concurrency"]

KEYS = [f"k{number}" for number in range(12)]


async def post(app: DistributedApplication, numbers: range) -> None:
    """Publish the numbers, each with one of the keys in turn."""
    socket = app.socket()
    sending = (socket.publish("work", n, key=KEYS[n % len(KEYS)]) for n in numbers)
    await asyncio.gather(*sending)


async def reaches(counted: Sized, least: float) -> None:
    """Wait until it has so many items."""
    await eventually(lambda: len(counted) >= least, 60.0)


def first_of_each(numbers: list[int]) -> dict[int, list[int]]:
    """Return the numbers of each key, in the order in which they were first seen."""
    found: dict[int, list[int]] = defaultdict(list)
    for number in dict.fromkeys(numbers):
        found[number % len(KEYS)].append(number)
    return found


class Concurrency(Scenarios):
    """Whole applications with lanes and batches."""

    @scenario
    async def test_keys_run_at_the_same_time_and_each_in_order(
        self, harness: TransportHarness
    ) -> None:
        gate = Gate()
        begun: list[int] = []
        done: list[int] = []
        app = harness.application("plant")

        @app.application("work", concurrency=4)
        async def handle(number: int) -> None:
            begun.append(number)
            await gate.pass_()
            done.append(number)

        async with app:
            await post(app, range(60))
            await gate.reached(4)
            assert len(begun) == 4
            gate.open()
            await eventually(lambda: len(set(done)) == 60, 60.0)
        assert all(numbers == sorted(numbers) for numbers in first_of_each(begun).values())

    @scenario
    async def test_a_stuck_key_does_not_stop_the_others(self, harness: TransportHarness) -> None:
        gate = Gate()
        done: list[int] = []
        app = harness.application("plant")

        @app.application("work", concurrency=8)
        async def handle(number: int, message: Message[int]) -> None:
            if number == 0:
                await gate.pass_()
            done.append(number)

        async with app:
            await post(app, range(1))
            await gate.reached()
            await post(app, range(1, 61))
            # Other keys may share the stuck one's lane, but not all of them do.
            if harness.sends_on:
                await eventually(lambda: len(set(done)) >= 20, 60.0)
            assert not [number for number in done if number % len(KEYS) == 0]
            gate.open()
            await eventually(lambda: len(set(done)) == 61, 60.0)

    @scenario
    async def test_cuts_and_stops_while_lanes_run_lose_nothing(
        self, harness: TransportHarness
    ) -> None:
        chance = random.Random(5)
        begun: list[int] = []
        done: Counter[int] = Counter()
        count = 600

        app = harness.application("plant", stop_timeout=20.0)
        sender = harness.application("sender")

        @app.application("work", concurrency=4, window=40)
        async def handle(number: int, socket: Socket) -> None:
            begun.append(number)
            await asyncio.sleep(chance.choice([0.0, 0.0, 0.002, 0.01]))
            if number % 7 == 0:
                socket.post("out", number)
            if chance.random() < 0.02:
                raise ValueError(number)
            done[number] += 1

        async with sender:
            async with app:
                await post(sender, range(count))
                for share in (0.2, 0.4):
                    await reaches(done, share * count)
                    await harness.cut()
                await reaches(done, 0.6 * count)
            async with app:
                await reaches(done, count)
        assert all(numbers == sorted(numbers) for numbers in first_of_each(begun).values())

    @scenario
    async def test_a_batch_comes_when_it_is_full_and_when_time_is_up(
        self, harness: TransportHarness
    ) -> None:
        calls: list[list[int]] = []
        app = harness.application("plant")

        @app.application("work", batch=(25, 0.5))
        async def handle(numbers: list[int]) -> None:
            calls.append(numbers)

        async with app:
            await post(app, range(60))
            await eventually(lambda: sum(map(len, calls)) == 60, 60.0)
        assert [number for numbers in calls for number in numbers] == list(range(60))
        assert max(map(len, calls)) == 25
        handled = len(calls)
        # What was settled together does not come again.
        async with app:
            await post(app, range(60, 85))
            await eventually(lambda: sum(map(len, calls)) == 85, 60.0)
        assert [number for numbers in calls[handled:] for number in numbers] == list(range(60, 85))
        assert len(calls) == handled + 1 or not harness.sends_on

    @scenario
    async def test_one_bad_message_does_not_park_its_batch(self, harness: TransportHarness) -> None:
        calls: list[list[str]] = []
        app = harness.application("plant")

        @app.application("work", batch=(5, 0.2), retry=RetryPolicy(attempts=2, first=0.05))
        async def handle(messages: list[Message[int]], context: Context) -> None:
            numbers = [message.payload for message in messages]
            if 3 in numbers:
                context.stats["bad"] += 1
                raise ValueError(numbers)
            calls.append([str(number) for number in numbers])

        app.stats["bad"] = 0
        async with app:
            socket = app.socket()
            for payload in ("1", "two", "3", "4", "5"):
                await socket.publish("work", payload)
            await eventually(lambda: app.stats["dead_letters.stored"] == 2, 60.0)
            await eventually(lambda: sum(map(len, calls)) == 3, 60.0)
        assert sorted(number for numbers in calls for number in numbers) == ["1", "4", "5"]

    @scenario
    async def test_cuts_and_stops_while_batches_run_lose_nothing(
        self, harness: TransportHarness
    ) -> None:
        chance = random.Random(6)
        begun: list[int] = []
        done: Counter[int] = Counter()
        count = 600

        app = harness.application("plant", stop_timeout=20.0)
        sender = harness.application("sender")

        @app.application("work", batch=(10, 0.05), concurrency=3, window=60)
        async def handle(numbers: list[int], socket: Socket) -> None:
            begun.extend(numbers)
            await asyncio.sleep(chance.choice([0.0, 0.01, 0.05]))
            socket.post("out", numbers)
            if chance.random() < 0.05:
                raise ValueError(numbers)
            done.update(numbers)

        async with sender:
            async with app:
                await post(sender, range(count))
                for share in (0.2, 0.4):
                    await reaches(done, share * count)
                    await harness.cut()
                await reaches(done, 0.6 * count)
            async with app:
                await reaches(done, count)
        assert all(numbers == sorted(numbers) for numbers in first_of_each(begun).values())
