"""Topics that exist, are created, or are missing."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self

import aiokafka.errors as kafka
import pytest
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.protocol.admin import CreateTopicsRequest

from spa_dat import DistributedApplication, KafkaTopic
from spa_dat._pytest import require
from spa_dat.errors import ConfigurationError, UnknownTopic
from spa_dat.testing import Kafka
from spa_dat.transports import REPLY_HEADER, Envelope, KafkaConfig
from spa_dat.transports.kafka._aiokafka_private import create_topics
from spa_dat.transports.kafka._errors import connect_problem
from spa_dat.transports.kafka._own_topic_settings import unfit_settings
from spa_dat.transports.kafka._topic_names import Names
from spa_dat.transports.kafka.producing import _topic_creation as _creation
from spa_dat.transports.kafka.producing._topic_creation import Topics
from support.kafka_bus import admin, bus_client, create, new_prefix, read, settings
from support.simulated import SERVER, world
from support.waiting import eventually

pytestmark = pytest.mark.kafka


def topics(kafka: Kafka, **options: object) -> tuple[Topics, str]:
    config = KafkaConfig(kafka.server, prefix=new_prefix(), **options)  # type: ignore[arg-type]
    return Topics(config, Names(config), "tests"), config.prefix


async def test_own_topics_are_created_with_their_settings(kafka: Kafka) -> None:
    async with bus_client(kafka.server, create_topics="own", partitions=3) as client:
        prefix = client.config.prefix
        count, replies = await settings(kafka.server, f"{prefix}_spa.reply.app")
        assert (count, replies["retention.ms"], replies["segment.ms"]) == (1, "3600000", "600000")
        count, letters = await settings(kafka.server, f"{prefix}_spa.dead-letter.app")
        assert (count, letters["retention.ms"]) == (1, "-1")
        assert letters["cleanup.policy"] == "delete"


async def test_topics_of_the_program_are_created_as_configured(kafka: Kafka) -> None:
    async with bus_client(kafka.server, create_topics="all", partitions=3) as client:
        await client.publish("plant/a")
        assert (await settings(kafka.server, f"{client.config.prefix}plant.a"))[0] == 3


@pytest.mark.parametrize("policy", ["own", "never"])
async def test_a_topic_that_is_missing_fails_within_seconds_and_holds_up_nobody(
    kafka: Kafka, policy: str
) -> None:
    prefix = new_prefix()
    for name in ("_spa.reply.app", "_spa.dead-letter.app", "there"):
        await create(kafka.server, prefix + name)
    async with bus_client(kafka.server, prefix=prefix, create_topics=policy) as client:
        missing = [client.bus.post(Envelope(topic="not/there")) for _ in range(3)]
        await client.publish("there")
        assert not any(post.done() for post in missing)
        results = await asyncio.wait_for(asyncio.gather(*missing, return_exceptions=True), 60)
        assert [type(result) for result in results] == [UnknownTopic] * 3
        assert f"'{prefix}not.there'" in str(results[0])
        assert "create_topics='all'" in str(results[0])
        # It is looked for again, so it can be created while the program runs.
        await create(kafka.server, f"{prefix}not.there")
        await client.publish("not/there")


@pytest.mark.parametrize(
    "answer",
    [
        Envelope(topic="answers", correlation=b"0a"),
        Envelope(topic="_spa/reply/nobody/token/0a", correlation=b"0a"),
        # Whoever gives no correlation id gets none.
        Envelope(topic="answers", headers={REPLY_HEADER: "1"}),
    ],
)
async def test_a_topic_that_only_a_requester_names_is_not_created(
    kafka: Kafka, answer: Envelope
) -> None:
    async with bus_client(kafka.server, create_topics="all") as client:
        reply = client.bus.post(answer)
        with pytest.raises(UnknownTopic):
            await asyncio.wait_for(reply, 60)
        await client.publish("answers")
        await client.bus.publish(Envelope(topic="answers", correlation=b"0a"), timeout=10)


async def test_a_topic_that_somebody_creates_meanwhile_is_used(kafka: Kafka) -> None:
    async with bus_client(kafka.server, create_topics="own") as client:
        post = client.bus.post(Envelope(topic="soon"))
        await create(kafka.server, f"{client.config.prefix}soon", 2)
        await asyncio.wait_for(post, 60)


async def test_without_leave_to_create_the_own_topics_must_be_there(kafka: Kafka) -> None:
    async with bus_client(kafka.server, create_topics="never", start=False) as client:
        prefix = client.config.prefix
        with pytest.raises(UnknownTopic) as caught:
            await asyncio.wait_for(client.start(), 60)
        for text in (f"'{prefix}_spa.reply.app'", f"'{prefix}_spa.dead-letter.app'"):
            assert text in str(caught.value)
        assert "retention.ms=-1" in str(caught.value)
        assert "create_topics='own'" in str(caught.value)
        assert (await settings(kafka.server, f"{prefix}_spa.reply.app"))[0] == 0


async def test_topics_that_are_wanted_at_the_same_time_are_created_together(
    kafka: Kafka, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, prefix = topics(kafka, create_topics="all")
    asked: list[int] = []

    async def counted(
        client: object, requests: Sequence[tuple[Any, ...]], timeout: float
    ) -> object:
        asked.append(len(requests))
        return await create_topics(client, requests, timeout)

    monkeypatch.setattr(_creation, "create_topics", counted)
    monkeypatch.setattr(_creation, "_MOST_IN_A_REQUEST", 20)
    await asyncio.gather(*(made.ensure([f"{prefix}t{number}"], 30) for number in range(50)))
    assert sum(asked) == 50
    assert len(asked) <= 10
    assert max(asked) == 20
    assert (await settings(kafka.server, f"{prefix}t49"))[0] > 0


async def test_a_topic_that_cannot_be_created_concerns_nobody_who_asks_at_the_same_time(
    kafka: Kafka,
) -> None:
    made, prefix = topics(kafka, create_topics="all")
    names = [f"{prefix}before", "not a name", f"{prefix}after"]
    before, bad, after = await asyncio.gather(
        *(made.ensure([name], 30) for name in names), return_exceptions=True
    )
    assert (before, after) == (None, None)
    assert isinstance(bad, UnknownTopic)
    assert "'not a name'" in str(bad)


async def test_a_look_at_topics_ends_with_the_last_who_waits_for_it(
    kafka: Kafka, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, prefix = topics(kafka, create_topics="all")
    looking, ended = asyncio.Event(), asyncio.Event()

    async def hanging(*_: object) -> None:
        looking.set()
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            ended.set()

    with monkeypatch.context() as patched:
        patched.setattr(_creation, "find_topics", hanging)
        first = asyncio.ensure_future(made.ensure([f"{prefix}a"], 30))
        await asyncio.wait_for(looking.wait(), 60)
        # It waits for the next look, which does not begin.
        second = asyncio.ensure_future(made.ensure([f"{prefix}b"], 30))
        first.cancel()
        await asyncio.wait_for(ended.wait(), 60)
    second.cancel()
    await asyncio.gather(first, second, return_exceptions=True)
    await made.ensure([f"{prefix}b"], 30)


@pytest.fixture(scope="module")
def creating() -> Iterator[Kafka]:
    require(Kafka)
    with Kafka(auto_create=True) as broker:
        yield broker


async def test_the_broker_may_create_topics_itself(creating: Kafka) -> None:
    async with bus_client(creating.server, create_topics="never", start=False) as client:
        # Asking for topics that may not be created does not make the broker create them.
        with pytest.raises(UnknownTopic):
            await client.start()
    async with bus_client(creating.server, create_topics="own") as client:
        await client.publish("any")
        assert len(await read(creating.server, f"{client.config.prefix}any", 1)) == 1
        count, letters = await settings(
            creating.server, f"{client.config.prefix}_spa.dead-letter.app"
        )
        assert (count, letters["retention.ms"]) == (1, "-1")


async def test_a_broker_that_creates_topics_itself_creates_none_for_requesters(
    creating: Kafka,
) -> None:
    async with bus_client(creating.server) as client:
        answer = Envelope(topic="answers", correlation=b"0a")
        with pytest.raises(UnknownTopic, match="only requesters name"):
            await asyncio.wait_for(client.bus.post(answer), 60)
        assert not await _exists(creating, f"{client.config.prefix}answers")
        await client.publish("answers")
        await client.bus.publish(answer, timeout=10)


@pytest.mark.virtual
async def test_a_reply_to_a_topic_that_is_not_there_holds_its_request_up_for_a_moment_only() -> (
    None
):
    """Requests that wait for that take room in the window from those of everybody else."""
    with world() as cluster:
        async with bus_client(SERVER) as client:
            began = cluster.loop.time()
            with pytest.raises(UnknownTopic, match="only requesters name"):
                await client.bus.post(Envelope(topic="nowhere", correlation=b"0a"))
            assert cluster.loop.time() - began < 1.0


async def test_more_replicas_than_brokers_are_a_wrong_configuration(kafka: Kafka) -> None:
    async with bus_client(kafka.server, replication=2, start=False) as client:
        with pytest.raises(ConfigurationError, match=r"could not be created.*replication"):
            await asyncio.wait_for(client.start(), 60)


async def test_names_that_a_cluster_takes_for_the_same_need_another(kafka: Kafka) -> None:
    async with bus_client(kafka.server) as client:
        await client.publish("plant/boiler_1")
        with pytest.raises(UnknownTopic, match=r"collides.* choose another address"):
            await client.publish("plant/boiler/1")


async def test_ensure_waits_for_others_and_creates_only_what_it_may(kafka: Kafka) -> None:
    mine, prefix = topics(kafka, create_topics="own")
    name = f"{prefix}a"
    waiting = asyncio.ensure_future(mine.ensure([name, f"{prefix}_spa.reply.x"], 20.0))
    await eventually(lambda: _exists(kafka, f"{prefix}_spa.reply.x"))
    assert not waiting.done()
    assert not await _exists(kafka, name)
    await create(kafka.server, name)
    await asyncio.wait_for(waiting, 60)
    with pytest.raises(UnknownTopic, match=f"'{prefix}b'"):
        await mine.ensure([name, f"{prefix}b"], 0.0)
    await mine.ensure([], 0.0)


async def test_several_may_create_the_same_topics_at_once(kafka: Kafka) -> None:
    mine, prefix = topics(kafka, create_topics="all", partitions=2)
    names = [f"{prefix}a", f"{prefix}b"]
    await asyncio.wait_for(asyncio.gather(*(mine.ensure(names, 5.0) for _ in range(5))), 60)
    assert (await settings(kafka.server, names[1]))[0] == 2


async def test_a_topic_that_gets_more_partitions_uses_them(kafka: Kafka) -> None:
    async with bus_client(kafka.server, topic_refresh=0.1) as client:
        await client.publish("a", key="0")
        name = f"{client.config.prefix}a"
        await _grow(kafka, name, 4)

        async def used() -> bool:
            for number in range(20):
                await client.publish("a", key=str(number))
            records = await read(kafka.server, name, 1)
            return {record.partition for record in records} == {0, 1, 2, 3}

        await eventually(used)


async def test_a_topic_that_is_deleted_under_way_is_unknown(kafka: Kafka) -> None:
    async with bus_client(kafka.server, create_topics="own", topic_refresh=0.1) as client:
        name = f"{client.config.prefix}a"
        await create(kafka.server, name)
        await client.publish("a")
        await _delete(kafka, name)
        with pytest.raises(UnknownTopic):
            await client.publish("a")


async def _exists(kafka: Kafka, name: str) -> bool:
    return (await settings(kafka.server, name))[0] > 0


async def _grow(kafka: Kafka, name: str, count: int) -> None:
    from aiokafka.admin import NewPartitions

    from support.kafka_bus import admin

    async with admin(kafka.server) as client:
        await client.create_partitions({name: NewPartitions(count)})


async def _delete(kafka: Kafka, name: str) -> None:
    from support.kafka_bus import admin

    async with admin(kafka.server) as client:
        await client.delete_topics([name])
    await eventually(lambda: _gone(kafka, name))


async def _gone(kafka: Kafka, name: str) -> bool:
    return not await _exists(kafka, name)


class Cluster:
    """A cluster that answers the first request for a topic with an error, and is well then."""

    def __init__(self, text: str | None, *, brokers: int = 1) -> None:
        self.text = text
        self.count = brokers
        self.replicas: list[int] = []

    def __call__(self, **options: object) -> Self:
        return self

    async def bootstrap(self) -> None: ...

    async def close(self) -> None: ...

    async def force_metadata_update(self) -> bool:
        return True

    def get_random_node(self) -> int:
        return 0

    @property
    def cluster(self) -> Self:
        return self

    controller = None

    def brokers(self) -> range:
        return range(self.count)

    async def send(self, node: int, request: object) -> SimpleNamespace:
        if not isinstance(request, CreateTopicsRequest):
            missing = kafka.UnknownTopicOrPartitionError.errno
            code, leaders = (0, [(0, 0, 0)]) if self.replicas[1:] else (missing, [])
            return SimpleNamespace(topics=[(code, "a", False, leaders)])
        self.replicas.append(request.create_topic_requests[0][2])
        code = 0 if self.replicas[1:] else kafka.InvalidReplicationFactorError.errno
        return SimpleNamespace(topic_errors=[("a", code, self.text)])


async def _reached(*args: object) -> None: ...


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (
            "Unable to replicate the partition 1 time(s): All brokers are currently fenced.",
            kafka.KafkaError,
        ),
        ("Replication factor: 1 larger than available brokers: 0.", kafka.KafkaError),
        (
            "The target replication factor of 3 cannot be reached because only 1 broker(s) are up.",
            ConfigurationError,
        ),
        (None, ConfigurationError),
    ],
)
async def test_a_cluster_without_a_broker_for_a_new_topic_is_an_outage(
    monkeypatch: pytest.MonkeyPatch, text: str | None, error: type[Exception]
) -> None:
    cluster = Cluster(text, brokers=0)
    monkeypatch.setattr(_creation, "new_client", lambda options: cluster(**options))
    monkeypatch.setattr(_creation, "keep_connections", lambda *args: None)
    monkeypatch.setattr(_creation, "reach", _reached)
    config = KafkaConfig("127.0.0.1:1", create_topics="all")
    made = Topics(config, Names(config), "tests")
    with pytest.raises(error) as caught:
        await made.ensure(["a"], 5.0)
    if error is kafka.KafkaError:
        problem = connect_problem(caught.value, config.address, None)
        assert not problem.final
        assert text is not None
        assert text in str(problem.error)
        await made.ensure(["a"], 5.0)
        assert cluster.replicas == [1, 1]


async def test_topics_are_asked_of_another_broker_if_one_cannot_be_reached(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Partly(Cluster):
        async def send(self, node: int, request: object) -> SimpleNamespace:
            self.tries += 1
            if self.tries < self.count:
                raise kafka.NodeNotReadyError
            return SimpleNamespace(topics=[(0, "a", False, [(0, 0, 0)])])

        tries = 0

    monkeypatch.setattr(_creation, "keep_connections", lambda *args: None)
    monkeypatch.setattr(_creation, "reach", _reached)
    config = KafkaConfig("127.0.0.1:1")
    cluster = Partly(None, brokers=3)
    monkeypatch.setattr(_creation, "new_client", lambda options: cluster(**options))
    await Topics(config, Names(config), "tests").ensure(["a"], 5.0)
    assert cluster.tries == 3


class SlowCluster(Cluster):
    """A cluster that creates what it is asked for, and knows of it only later, or leads it later.

    Args:
        looks: requests until it does.
        exists: the topic was there all the time, and has no leader.
    """

    def __init__(self, looks: int, *, exists: bool) -> None:
        super().__init__(None)
        self.looks = looks
        self.exists = exists

    async def send(self, node: int, request: object) -> SimpleNamespace:
        if isinstance(request, CreateTopicsRequest):
            return SimpleNamespace(topic_errors=[("a", 0, None)])
        self.looks -= 1
        code = 0 if self.exists or self.looks < 0 else kafka.UnknownTopicOrPartitionError.errno
        leader = 0 if self.looks < 0 else -1
        return SimpleNamespace(topics=[(code, "a", False, [(0, 0, leader)])])


@pytest.mark.parametrize(
    ("exists", "what"), [(False, "was created, and no broker knows it yet"), (True, "no leader")]
)
async def test_a_topic_that_is_there_and_not_ready_is_an_outage_and_not_missing(
    monkeypatch: pytest.MonkeyPatch, exists: bool, what: str
) -> None:
    cluster = SlowCluster(3, exists=exists)
    monkeypatch.setattr(_creation, "_LOOKS_TOGETHER", 1)
    monkeypatch.setattr(_creation, "new_client", lambda options: cluster(**options))
    monkeypatch.setattr(_creation, "keep_connections", lambda *args: None)
    monkeypatch.setattr(_creation, "reach", _reached)
    config = KafkaConfig("127.0.0.1:1", create_topics="all")
    made = Topics(config, Names(config), "tests")
    with pytest.raises(kafka.KafkaError, match=what) as caught:
        await made.ensure(["a"], 0.0)
    problem = connect_problem(caught.value, config.address, None)
    assert not problem.final
    assert "topic 'a'" in str(problem.error)
    await made.ensure(["a"], 30.0)


async def test_own_topics_that_do_not_keep_what_they_have_to_are_named(
    kafka: Kafka, caplog: pytest.LogCaptureFixture
) -> None:
    prefix = new_prefix()
    for name in ("_spa.reply.app", "_spa.dead-letter.app"):
        await create(kafka.server, f"{prefix}{name}", cleanup_policy="compact")
    async with bus_client(kafka.server, prefix=prefix):
        pass
    warnings = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert len(warnings) == 2
    for name, what in (("reply", "accepts no replies"), ("dead-letter", "the last dead letter")):
        (text,) = [text for text in warnings if f"_spa.{name}.app" in text]
        assert what in text
        assert "cleanup.policy=delete" in text


async def test_the_settings_of_a_topic_that_was_just_created_are_not_asked_for(
    kafka: Kafka, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    async def look(client: object, names: Sequence[str], settings: object) -> None:
        asked.extend(names)

    monkeypatch.setattr(_creation, "topic_settings", look)
    made, prefix = topics(kafka)
    name = f"{prefix}_spa.reply.app"
    await made.ensure([name], 30.0)
    assert not asked
    await Topics(made._config, made._names, "tests").ensure([name], 30.0)
    assert asked == [name]
    await made.delete([name])


@pytest.mark.parametrize(
    ("settings", "lost"),
    [
        ({"cleanup.policy": "compact", "retention.ms": "1000"}, None),
        ({"cleanup.policy": "delete", "retention.ms": "1000"}, "retention.ms=1000:"),
        ({"cleanup.policy": "compact,delete", "retention.ms": "7"}, "retention.ms=7:"),
        ({"cleanup.policy": "delete", "retention.ms": "-1", "retention.bytes": "9"}, "bytes=9:"),
        ({"cleanup.policy": "delete", "retention.ms": "-1", "retention.bytes": "-1"}, None),
        ({}, None),
    ],
)
def test_a_topic_of_states_must_not_be_cleared(settings: dict[str, str], lost: str | None) -> None:
    names = Names(KafkaConfig("h"))
    text = unfit_settings(names.states("app", "actor"), names, settings)
    assert text is None if lost is None else text is not None and lost in text


async def test_states_that_would_be_lost_are_refused_until_their_topic_is_set_up(
    kafka: Kafka, tmp_path: Path
) -> None:
    prefix = new_prefix()
    topics = {"work/{key}": KafkaTopic("work", key="key")}
    config = KafkaConfig(kafka.server, prefix=prefix, create_topics="all", topics=topics)
    await create(kafka.server, f"{prefix}_spa.state.app.keep", cleanup_policy="delete")

    def keeping() -> DistributedApplication:
        app = DistributedApplication(config, name="app", state_folder=tmp_path)

        @app.application("work/{key}", per="key", state=dict[str, int], durable=True)
        async def keep(payload: bytes) -> None: ...

        return app

    with pytest.raises(ConfigurationError, match=r"_spa.state.app.keep.*loses the states"):
        async with keeping():
            pass
    async with admin(kafka.server) as client:
        name, setting = f"{prefix}_spa.state.app.keep", {"cleanup.policy": "compact"}
        await client.alter_configs([ConfigResource(ConfigResourceType.TOPIC, name, setting)])
    async with keeping() as app:
        await eventually(lambda: app.healthy)
