"""Dead letters of durable keys on Kafka: a replay has its effects once, and the letter is gone."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from dataclasses import dataclass
from typing import Any

import pytest

from spa_dat import (
    Context,
    DistributedApplication,
    KafkaConfig,
    KafkaTopic,
    Reject,
    RetryPolicy,
    Socket,
)
from spa_dat.runtime.admin._dead_letter_replay import LetterOutcome
from spa_dat.runtime.application._application import runs_of
from spa_dat.runtime.dead_letters import _stored_letter
from spa_dat.runtime.dead_letters._stored_letter import StoredLetter
from spa_dat.testing import Kafka
from spa_dat.transports.kafka.consuming._unit_commits import UnitCommits
from spa_dat.transports.kafka.producing._transactions import (
    TransactionalProducer,
    TransactionFailed,
)
from support.kafka_bus import new_prefix
from support.simulated import SERVER, SimulatedCluster, world
from support.waiting import eventually

KEYS = 7
# Of what each key gets; the last one is a reminder.
POISON = (2, 4)


@dataclass
class Count:
    n: int = 0


class Plant:
    """An application that rejects the messages of all keys until it is mended."""

    def __init__(self, server: str = SERVER, instance: int = 0, **options: Any) -> None:
        self.mended = False
        names = ("work", "done")
        config = KafkaConfig(
            server,
            create_topics="all",
            partitions=3,
            topics={f"{name}/{{key}}": KafkaTopic(name, key="key") for name in names},
            **{"heartbeat_interval": 0.5, "session_timeout": 6.0, **options},
        )
        self.app = DistributedApplication(config, name="plant", instance=str(instance))

        @self.app.application(
            "work/{key}",
            per="key",
            state=Count,
            durable=True,
            exactly_once=True,
            retry=RetryPolicy(attempts=1),
        )
        async def work(
            number: int, key: str, state: Count, context: Context, socket: Socket
        ) -> None:
            await self._count(number, key, state, socket)
            if number == 3:
                context.remind("late", 4, after=0.5)

        @self.app.on_reminder("work", "late")
        async def late(number: int, key: str, state: Count, socket: Socket) -> None:
            await self._count(number, key, state, socket)

    async def _count(self, number: int, key: str, state: Count, socket: Socket) -> None:
        state.n += 1
        await socket.publish(f"done/{key}", [number, state.n])
        if number in POISON and not self.mended:
            raise Reject("not today")

    async def publish(self, *numbers: int) -> None:
        for number in numbers:
            for key in range(KEYS):
                await self.app.socket().publish(f"work/k{key}", number)

    async def letters(self) -> list[StoredLetter]:
        run = runs_of(self.app).current
        assert run is not None
        return [letter async for _, letter in run.dead_letters.search.stored()]

    @property
    def has_partitions(self) -> bool:
        """Whether it has some, and no rebalance is under way that it knows of."""
        run = runs_of(self.app).current
        assert run is not None
        runner = run.working("work")
        assert runner is not None
        assert runner.keyed is not None
        assert runner.keyed.units is not None
        return runner.keyed.units.stay

    async def replay(self, name: str) -> LetterOutcome:
        run = runs_of(self.app).current
        assert run is not None
        return await run.dead_letters.replay(name)

    async def counts(self) -> list[int]:
        states = [await self.app.peek("work", f"k{key}") for key in range(KEYS)]
        return [state.n for state in states]

    async def failed(self) -> list[StoredLetter]:
        """Publish three messages to each key; return the letters of one, and of a reminder."""
        await self.publish(1, 2, 3)
        while len(letters := await self.letters()) < len(POISON) * KEYS:
            await asyncio.sleep(0.1)
        return letters


def done(here: SimulatedCluster) -> dict[str, list[list[int]]]:
    """Return what is published and committed, by key."""
    found: dict[str, list[list[int]]] = {f"k{key}": [] for key in range(KEYS)}
    for partition in here.cluster.topics["done"].partitions:
        for record in partition.readable():
            assert record.key is not None
            found[record.key.decode()].append(json.loads(record.value or b""))
    return found


def is_right(found: dict[str, list[list[int]]]) -> bool:
    """Return whether each message and reminder was counted once."""
    return all(
        sorted(number for number, _ in of_key) == [1, 2, 3, 4]
        and [count for _, count in of_key] == [1, 2, 3, 4]
        for of_key in found.values()
    )


@pytest.mark.virtual
async def test_a_replay_changes_the_state_once_and_removes_the_letter() -> None:
    with world() as here:
        plant = Plant()
        async with plant.app:
            letters = await plant.failed()
            # Again in its place.
            assert (await plant.replay(letters[0].name)).outcome == "failed"
            assert len(await plant.letters()) == len(letters)
            plant.mended = True
            for letter in letters:
                assert await plant.replay(letter.name) == LetterOutcome(letter.name, "handled")
                assert (await plant.replay(letter.name)).outcome == "missing"
            assert await plant.letters() == []
            assert await plant.counts() == [4] * KEYS
        assert is_right(done(here))
        # The letters are gone in the transactions that have the counts.
        other = Plant()
        async with other.app:
            await eventually(lambda: not other.app.problems, 60.0)
            assert await other.letters() == []
            assert await other.counts() == [4] * KEYS


@pytest.mark.virtual
async def test_only_the_instance_that_has_the_partition_replays() -> None:
    with world() as here:
        plants = [Plant(instance=number) for number in range(2)]
        async with plants[0].app, plants[1].app:
            await eventually(lambda: _has_members(here, 2), 60.0)
            letters = await plants[0].failed()
            for plant in plants:
                plant.mended = True
            outcomes: Counter[tuple[str, bool]] = Counter()
            for letter in letters:
                # One of them is not asked, if the first one has handled it.
                for plant in plants:
                    answer = await plant.replay(letter.name)
                    outcomes[answer.outcome, answer.elsewhere] += 1
                    if not answer.elsewhere:
                        break
                    assert "which this instance does not have" in answer.why
            assert outcomes["handled", False] == 2 * KEYS
            assert 0 < outcomes["refused", True] < 2 * KEYS
        assert is_right(done(here))


def _has_members(here: SimulatedCluster, count: int) -> bool:
    return len(here.cluster.groups["plant.work"].members) == count


async def replay_in_trouble(seed: int, monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Replay letters while transactions fail before and after they are committed.

    Returns how many have failed: one of each kind, and more if chance decides so.
    """
    commit, dice, failures = TransactionalProducer.commit, random.Random(seed), Counter[str]()

    async def unsure(self: TransactionalProducer, *arguments: Any, **more: Any) -> Any:
        if not failures["before"] or dice.random() < 0.3:
            failures["before"] += 1
            raise TransactionFailed(OSError("never sent"))
        ends = await commit(self, *arguments, **more)
        if not failures["after"] or dice.random() < 0.3:
            failures["after"] += 1
            raise TransactionFailed(OSError("no answer"))
        return ends

    with world() as here:
        plant = Plant()
        async with plant.app:
            monkeypatch.setattr(TransactionalProducer, "commit", unsure)
            letters = await plant.failed()
            plant.mended = True
            left = [letter.name for letter in letters]
            while left:
                answers = await asyncio.gather(*(plant.replay(name) for name in left[:3]))
                left = left[3:] + [one.letter for one in answers if one.outcome == "refused"]
                assert {one.outcome for one in answers} <= {"handled", "missing", "refused"}
                await asyncio.sleep(dice.choice((0.0, 0.01, 1.0)))
            # What was replayed last may be handled again, if it was not committed.
            assert await plant.letters() == []
            monkeypatch.setattr(TransactionalProducer, "commit", commit)
        assert is_right(done(here))
    return failures


@pytest.mark.virtual
@pytest.mark.parametrize("seed", range(4))
async def test_a_replay_has_its_effects_once_although_transactions_fail(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures = await replay_in_trouble(seed, monkeypatch)
    assert min(failures["before"], failures["after"]) > 0


@pytest.mark.kafka
async def test_a_letter_is_replayed_by_whoever_has_the_partition_after_a_takeover(
    kafka: Kafka,
) -> None:
    prefix = new_prefix()
    plant = Plant(kafka.server, prefix=prefix)
    async with plant.app:
        letters = await plant.failed()
    heir = Plant(kafka.server, instance=1, prefix=prefix)
    heir.mended = True
    async with heir.app:
        await eventually(lambda: not heir.app.problems, 60.0)
        left = {letter.name for letter in letters}

        async def all_replayed() -> bool:
            for name in tuple(left):
                answer = await heir.replay(name)
                # It may not have all partitions yet.
                assert answer.outcome in ("handled", "refused")
                if answer.outcome == "handled":
                    left.remove(name)
            return not left

        await eventually(all_replayed, 60.0)
        assert await heir.letters() == []
        assert await heir.counts() == [4] * KEYS


@pytest.mark.virtual
async def test_a_replay_waits_for_a_rebalance_and_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    finish = UnitCommits.finish

    async def slow(self: UnitCommits, *arguments: Any, **more: Any) -> None:
        await asyncio.sleep(2.0)
        await finish(self, *arguments, **more)

    with world() as here:
        plants = [Plant(instance=number) for number in range(2)]
        async with plants[0].app:
            letters = await plants[0].failed()
            plants[0].mended = plants[1].mended = True
            monkeypatch.setattr(UnitCommits, "finish", slow)

            async def replay_all() -> list[LetterOutcome]:
                while plants[0].has_partitions:
                    await asyncio.sleep(0.1)
                return [await plants[0].replay(letter.name) for letter in letters]

            replaying = asyncio.create_task(replay_all())
            async with plants[1].app:
                answers = await replaying
                assert {(one.outcome, one.elsewhere) for one in answers} == {
                    ("handled", False),
                    ("refused", True),
                }
                left = [one.letter for one in answers if one.elsewhere]
                assert {(await plants[1].replay(name)).outcome for name in left} == {"handled"}
        assert is_right(done(here))


@pytest.mark.virtual
async def test_an_instance_without_partitions_waits_for_some_before_it_refuses() -> None:
    loop = asyncio.get_running_loop()
    with world():
        plants = [Plant(instance=number) for number in range(4)]
        async with plants[0].app, plants[1].app, plants[2].app, plants[3].app:
            (idle,) = [plant for plant in plants if not plant.has_partitions]
            letter, *_ = await plants[0].failed()
            began = loop.time()
            answer = await idle.replay(letter.name)
            assert (answer.outcome, answer.elsewhere) == ("refused", True)
            assert 5.0 <= loop.time() - began < 10.0


@pytest.mark.virtual
async def test_a_replay_gives_up_after_a_while_and_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def never(*arguments: Any, **more: Any) -> Any:
        raise TransactionFailed(OSError("no connection"))

    with world() as here:
        plant = Plant()
        async with plant.app:
            letters = await plant.failed()
            plant.mended = True
            with monkeypatch.context() as patch:
                patch.setattr(TransactionalProducer, "commit", never)
                answer = await plant.replay(letters[0].name)
                assert "nothing is committed" in plant.app.problems["work"]
            assert answer.outcome == "refused"
            assert "try again" in answer.why
            assert not answer.elsewhere
            # None of those attempts has stored or removed one, and nothing waits any more.
            (actor,) = plant.app.health().actors
            assert actor.dead_letters == plant.app.stats["dead_letters.stored"] == len(letters)
            await asyncio.sleep(60)
            assert plant.app.problems == {}
            for letter in letters:
                assert (await plant.replay(letter.name)).outcome == "handled"
        assert is_right(done(here))


@pytest.mark.virtual
async def test_a_letter_that_does_not_name_its_partition_is_refused_with_what_to_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # As if another program had written it.
    monkeypatch.setattr(_stored_letter, "_number", lambda notes, name, default: default)
    with world():
        plant = Plant()
        async with plant.app:
            letter, *_ = await plant.failed()
            answer = await plant.replay(letter.name)
            assert (answer.outcome, answer.elsewhere) == ("refused", False)
            assert answer.why.endswith(
                f"publish the message again on '{letter.topic}' with its key, and discard this dead"
                " letter"
            )
