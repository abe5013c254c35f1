"""Rewinding to a time: a group goes back once, and never past what it has not handled yet."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer
from aiokafka.errors import CommitFailedError
from aiokafka.structs import TopicPartition

from spa_dat.testing import Kafka
from support.kafka_bus import bus_client, create, new_prefix, publish_at
from support.kafka_consuming import Taker, committed, taker
from support.waiting import eventually

pytestmark = pytest.mark.kafka

# Neither in the future nor too old to be kept.
NOON = datetime.now(UTC).replace(microsecond=0) - timedelta(days=1)
BASE = NOON.timestamp()
LAST = BASE + 72_000


@contextlib.asynccontextmanager
async def rewound(
    kafka: Kafka, prefix: str, to: datetime | None = None, **options: Any
) -> AsyncIterator[Taker]:
    """Make a consumer of topic ``a`` that goes back to a time."""
    subscription = {"rewind_to": to} | options.pop("subscription", {})
    async with taker(
        kafka.server, "a", prefix=prefix, subscription=subscription, **options
    ) as inbox:
        yield inbox


async def handled(kafka: Kafka, prefix: str, *numbers: int) -> None:
    """Let the group handle what it gets, which are these messages and no others."""
    async with rewound(kafka, prefix) as inbox:
        await inbox.get(len(numbers))
        assert sorted(inbox.numbers) == list(numbers)


async def history(kafka: Kafka, prefix: str) -> None:
    """Make a topic with two partitions, and an hour between one message and the next in each."""
    await create(kafka.server, f"{prefix}a", 2)
    for partition in range(2):
        times = {10 * partition + hour: BASE + 3600 * hour for hour in range(5)}
        await publish_at(kafka.server, f"{prefix}a", partition, times)


async def only(inbox: Taker, kafka: Kafka, prefix: str, *numbers: int) -> None:
    """Wait for these and a last message, in both partitions; assert that nothing else came."""
    for partition in range(2):
        await publish_at(kafka.server, f"{prefix}a", partition, {99: LAST})
    await inbox.get(len(numbers) + 2)
    assert sorted(inbox.numbers) == [*numbers, 99, 99]


async def test_a_group_goes_back_to_a_time_and_does_not_do_so_again(kafka: Kafka) -> None:
    prefix = new_prefix()
    await history(kafka, prefix)
    await handled(kafka, prefix, 0, 1, 2, 3, 4, 10, 11, 12, 13, 14)
    three = NOON + timedelta(hours=3)
    async with rewound(kafka, prefix, three) as inbox:
        await inbox.get(4)
        assert sorted(inbox.numbers) == [3, 4, 13, 14]
        assert inbox.stats["kafka.partitions_rewound"] == 2
    # The same moment, written in another way.
    again = three.astimezone(tz=None)
    async with rewound(kafka, prefix, again) as inbox:
        await only(inbox, kafka, prefix)
        assert inbox.stats["kafka.partitions_rewound"] == 0
    # Who runs without the option, as an older version of the program may, does not make it forget.
    async with rewound(kafka, prefix) as inbox:
        await only(inbox, kafka, prefix)
    async with rewound(kafka, prefix, three) as inbox:
        await only(inbox, kafka, prefix)
    async with rewound(kafka, prefix, NOON + timedelta(hours=4)) as inbox:
        await inbox.get(8)
        assert sorted(inbox.numbers) == [4, 14, *[99] * 6]


async def test_what_was_not_handled_yet_is_not_skipped(kafka: Kafka) -> None:
    prefix = new_prefix()
    await create(kafka.server, f"{prefix}a", 2)
    await publish_at(kafka.server, f"{prefix}a", 0, {0: BASE, 1: BASE + 3600})
    await handled(kafka, prefix, 0, 1)
    await publish_at(kafka.server, f"{prefix}a", 0, {2: BASE, 3: BASE + 36_000})
    # A partition that the group has never had anything of begins as it would without the option.
    await publish_at(kafka.server, f"{prefix}a", 1, {10: BASE})
    async with rewound(kafka, prefix, NOON + timedelta(hours=10)) as inbox:
        await inbox.get(3)
        assert sorted(inbox.numbers) == [2, 3, 10]
        assert inbox.stats["kafka.partitions_rewound"] == 0


@pytest.mark.parametrize(
    ("reset", "first"),
    [("earliest", 0), ("latest", 3), ((NOON + timedelta(hours=1)).isoformat(), 1)],
    ids=["earliest", "latest", "earlier"],
)
async def test_a_new_group_starts_with_the_time_at_the_latest(
    kafka: Kafka, reset: str, first: int
) -> None:
    prefix = new_prefix()
    await history(kafka, prefix)
    hours = range(first, 5)
    three = NOON + timedelta(hours=3)
    async with rewound(kafka, prefix, three, offset_reset=reset) as inbox:
        await inbox.get(2 * len(hours))
        assert sorted(inbox.numbers) == [*hours, *(10 + hour for hour in hours)]
    async with rewound(kafka, prefix, three, offset_reset=reset) as inbox:
        await only(inbox, kafka, prefix)


@pytest.mark.parametrize(
    "reset", ["latest", (NOON + timedelta(hours=5)).isoformat()], ids=["latest", "later"]
)
async def test_a_group_with_a_start_of_its_own_goes_back_too(kafka: Kafka, reset: str) -> None:
    prefix = new_prefix()
    await history(kafka, prefix)
    async with rewound(kafka, prefix, offset_reset=reset) as inbox:
        await only(inbox, kafka, prefix)
    async with rewound(kafka, prefix, NOON + timedelta(hours=4), offset_reset=reset) as inbox:
        await inbox.get(4)
        assert sorted(inbox.numbers) == [4, 14, 99, 99]


async def test_members_that_start_together_go_back_once_between_them(kafka: Kafka) -> None:
    prefix = new_prefix()
    await history(kafka, prefix)
    await handled(kafka, prefix, 0, 1, 2, 3, 4, 10, 11, 12, 13, 14)
    two = NOON + timedelta(hours=2)
    async with (
        rewound(kafka, prefix, two, start=False) as one,
        rewound(kafka, prefix, two, start=False, instance="1") as other,
    ):
        await asyncio.gather(one.consumer.start(), other.consumer.start())
        await eventually(lambda: one.partitions and other.partitions)
        await eventually(lambda: len(one.numbers + other.numbers) >= 6)
    async with rewound(kafka, prefix, two, instance="2") as inbox:
        await only(inbox, kafka, prefix)
    assert sorted(one.numbers + other.numbers) == [2, 3, 4, 12, 13, 14]


async def test_what_one_member_has_not_handled_again_comes_to_the_next(kafka: Kafka) -> None:
    prefix = new_prefix()
    await history(kafka, prefix)
    await handled(kafka, prefix, 0, 1, 2, 3, 4, 10, 11, 12, 13, 14)
    three = NOON + timedelta(hours=3)
    async with rewound(kafka, prefix, three, settle=False) as inbox:
        deliveries = await inbox.get(4)
        (first,) = (it for it in deliveries if it.envelope.payload == b"3")
        assert first.start()
        first.settle()
    assert await committed(kafka.server, prefix) == {"a/0": 4, "a/1": 3}
    async with rewound(kafka, prefix, three, instance="1") as other:
        await other.get(3)
        assert sorted(other.numbers) == [4, 13, 14]
    async with rewound(kafka, prefix, three) as inbox:
        await only(inbox, kafka, prefix)


async def test_an_offset_that_somebody_has_set_by_hand_stays(
    kafka: Kafka, caplog: pytest.LogCaptureFixture
) -> None:
    prefix = new_prefix()
    await history(kafka, prefix)
    await handled(kafka, prefix, 0, 1, 2, 3, 4, 10, 11, 12, 13, 14)
    async with AIOKafkaConsumer(
        bootstrap_servers=kafka.server, group_id=f"{prefix}app.actor", enable_auto_commit=False
    ) as tool:
        place = TopicPartition(f"{prefix}a", 1)
        tool.assign([place])

        async def committed_by_hand() -> bool:
            # For some seconds the group waits for its member to come back.
            with contextlib.suppress(CommitFailedError):
                await tool.commit({place: 4})
                return True
            return False

        await eventually(committed_by_hand)
    with caplog.at_level(logging.WARNING, "spa_dat"):
        async with rewound(kafka, prefix, NOON + timedelta(hours=3)) as inbox:
            await inbox.get(3)
            assert sorted(inbox.numbers) == [3, 4, 14]
    told = [record.getMessage() for record in caplog.records if "rewind_to" in record.getMessage()]
    assert told == [
        f"group '{prefix}app.actor': rewind_to: reading again from that time: {prefix}a-0",
        (
            f"group '{prefix}app.actor': rewind_to has no effect where a tool or another program"
            f" has set the offset: {prefix}a-1; set it to that time in the same way"
        ),
    ]


async def test_each_instance_goes_back_where_each_has_its_own_group(kafka: Kafka) -> None:
    prefix = new_prefix()
    await history(kafka, prefix)
    for to, hours in ((None, range(5)), (NOON + timedelta(hours=4), range(4, 5))):
        for instance in ("0", "1"):
            async with rewound(
                kafka, prefix, to, instance=instance, subscription={"share": False}
            ) as inbox:
                await inbox.get(2 * len(hours))
                assert sorted(inbox.numbers) == [*hours, *(10 + hour for hour in hours)]


async def test_what_is_committed_on_receipt_goes_back_once_too(kafka: Kafka) -> None:
    prefix = new_prefix()
    await history(kafka, prefix)
    await handled(kafka, prefix, 0, 1, 2, 3, 4, 10, 11, 12, 13, 14)
    three = NOON + timedelta(hours=3)
    async with rewound(kafka, prefix, three, subscription={"qos": 0}) as inbox:
        await inbox.get(4)
        assert sorted(inbox.numbers) == [3, 4, 13, 14]
    async with rewound(kafka, prefix, three, subscription={"qos": 0}) as inbox:
        await only(inbox, kafka, prefix)


async def test_without_a_group_it_reads_from_the_time_at_each_start(kafka: Kafka) -> None:
    prefix = new_prefix()
    await history(kafka, prefix)
    async with bus_client(kafka.server, prefix=prefix):
        for _ in range(2):
            async with rewound(kafka, prefix, NOON + timedelta(hours=3), ephemeral=True) as inbox:
                await inbox.get(4)
                assert sorted(inbox.numbers) == [3, 4, 13, 14]
    assert await committed(kafka.server, prefix) == {}
