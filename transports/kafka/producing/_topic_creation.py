"""Topic creation: making sure that topics exist, and creating those that may be created."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial
from typing import Any, TypeVar

import aiokafka.errors as kafka

from ...._logs import get_logger
from ....errors import ConfigurationError, NotAuthorised, SpaDatError, UnknownTopic
from .._aiokafka_private import (
    create_topics,
    delete_topics,
    find_topics,
    keep_connections,
    new_client,
    topic_settings,
)
from .._client_options import common_options, renewed_options
from .._config import KafkaConfig
from .._errors import address_of, describe, translate
from .._own_topic_settings import DECISIVE_SETTINGS, unfit_settings
from .._reachability import reach
from .._topic_names import Names

__all__ = ["Topics"]

T = TypeVar("T")

_log = get_logger(__name__)

_LOOK_AGAIN = 0.1
_LOOKS_TOGETHER = 20
_MOST_IN_A_REQUEST = 200
_REPLICAS = 3
# Replies are useless after their request has timed out. Only whole segments are removed, so
# these must be short too.
_REPLY_SETTINGS = [
    ("cleanup.policy", "delete"),
    ("retention.ms", "3600000"),
    ("segment.ms", "600000"),
]
# Who has been away for longer has to begin anew, or would keep what was deleted meanwhile.
_STATE_SETTINGS = [
    ("cleanup.policy", "compact"),
    ("delete.retention.ms", "604800000"),
]
_DEAD_LETTER_SETTINGS = [
    ("cleanup.policy", "delete"),
    ("retention.ms", "-1"),
    ("retention.bytes", "-1"),
]
_TEMPORARY = (
    kafka.LeaderNotAvailableError,
    kafka.NotControllerError,
    kafka.RequestTimedOutError,
    kafka.NodeNotReadyError,
    kafka.KafkaConnectionError,
)
# A cluster whose brokers start, stop or are cut off has none for a new topic: an outage.
_NO_BROKER = re.compile(r"\bfenced\b|\bavailable brokers: 0\b")


class _SharedLook:
    """One look at the topics of all who ask until it begins.

    Attributes:
        names: of the topics.
        waiting: how many wait for it; it ends with the last of them.
        ready: the topics that exist and have leaders, when it is over.
        failure: why it failed.
        task: makes it.
    """

    task: asyncio.Task[None]

    def __init__(self) -> None:
        self.names: dict[str, None] = {}
        self.waiting = 0
        self.ready: set[str] = set()
        self.failure: Exception | None = None


class Topics:
    """Makes sure that topics exist. Nothing is ever changed, and deleted only if a caller asks.

    Args:
        config: where the cluster is, and what may be created and how.
        names: knows which topics are the runtime's own.
        client_id: our name in the cluster's logs.
    """

    def __init__(self, config: KafkaConfig, names: Names, client_id: str) -> None:
        self._config = config
        self._names = names
        self._client_id = client_id
        self._counts: dict[str, int] = {}
        # Names of topics whose settings are known: they were asked for, or are those given here.
        self._looked_at: set[str] = set()
        self._next: _SharedLook | None = None
        self._one_at_a_time = asyncio.Lock()

    def may_create(self, name: str) -> bool:
        """Return whether ``create_topics`` allows creating the topic."""
        policy = self._config.create_topics
        return policy == "all" or (policy == "own" and self._names.is_own(name))

    def will_have(self, name: str, partitions: int) -> None:
        """Say with how many partitions one of the runtime's own topics is created."""
        self._counts[name] = partitions

    async def ensure(
        self,
        names: Iterable[str],
        timeout: float,
        on_wait: Callable[[str], None] = lambda why: None,
    ) -> None:
        """Wait until all the topics exist and have leaders; create what may be created.

        Args:
            names: of the topics on the cluster.
            timeout: seconds to wait for topics that somebody else has to create.
            on_wait: called, maybe several times, with the reason why it has to wait.

        Raises:
            UnknownTopic: a topic is missing and can or may not be created; says what to do.
            NotAuthorised: the cluster does not let us see or create one.
            ConfigurationError: the TLS files cannot be used, or the cluster cannot create a
                topic with this ``replication`` or these ``partitions``.
            OSError, aiokafka.errors.KafkaError: no connection, no broker is up, or topics that
                exist have no leader; to be passed to `connect_problem`.
        """
        wanted = dict.fromkeys(names)
        if not wanted:
            return
        await reach(self._config, self._client_id)
        ready = await self._ensure_together(wanted)
        left = [name for name in wanted if name not in ready]
        if left:
            await self._with_client(lambda client: self._ensure(client, left, timeout, on_wait))

    async def delete(self, names: Sequence[str]) -> None:
        """Delete topics of the runtime; those that the cluster does not let us delete stay.

        Raises:
            OSError, aiokafka.errors.KafkaError: no connection.
        """
        timeout = self._config.request_timeout
        self._looked_at.difference_update(names)
        await self._with_client(lambda client: delete_topics(client, names, timeout))

    async def _with_client(self, use: Callable[[Any], Awaitable[T]]) -> T:
        # Not an asynchronous context manager: the coroutine of a killed application has to be
        # closed from its innermost await outwards, and one cannot look into a generator.
        config = self._config
        client = new_client(common_options(config, self._client_id))
        keep_connections(client, partial(renewed_options, config), config.connect_timeout)
        try:
            await client.bootstrap()
            for left in reversed(range(max(len(client.cluster.brokers()), 1))):
                try:
                    return await use(client)
                except kafka.NodeNotReadyError:
                    # Another one is asked then.
                    if not left:
                        raise
            raise AssertionError("it ends with the last attempt")
        except kafka.NodeNotReadyError as error:
            # The one that was asked first has answered.
            named = ", ".join(map(address_of, client.cluster.brokers()))
            raise ConnectionError(
                f"a broker cannot be reached at the address advertised by the cluster: {named}; if"
                " that is not reachable from here, check advertised.listeners of the brokers"
            ) from error
        finally:
            await client.close()

    async def _ensure_together(self, names: dict[str, None]) -> set[str]:
        """Look topics up, and create them, for all who ask at about the same time.

        A request for each of a thousand actors that start together would take a cluster longer than
        any of them waits.

        Returns:
            The topics that exist and have leaders. What is wrong with the others each finds out for
            itself: it concerns nobody else.

        Raises:
            Exception: why it failed, if nobody else had asked.
        """
        look = self._next
        if look is None:
            look = self._next = _SharedLook()
            look.task = asyncio.ensure_future(self._run(look))
        look.names.update(names)
        look.waiting += 1
        try:
            await asyncio.wait({look.task})
        finally:
            look.waiting -= 1
            if not look.waiting:
                look.task.cancel()
                if self._next is look:
                    self._next = None
        if look.failure is not None and look.names == names:
            raise look.failure
        return look.ready

    async def _run(self, look: _SharedLook) -> None:
        async with self._one_at_a_time:
            # Whoever asks from now on waits for the next one.
            self._next = None
            try:
                names = list(look.names)
                look.ready = await self._with_client(
                    lambda client: self._look_and_create(client, names)
                )
            except Exception as error:  # noqa: BLE001 (each that waits meets it again)
                look.failure = error

    async def _look_and_create(self, client: Any, names: list[str]) -> set[str]:
        created: set[str] = set()
        for _ in range(_LOOKS_TOGETHER):
            missing, pending = await self._look(client, names)
            fresh = [name for name in missing if name not in created and self.may_create(name)]
            for start in range(0, len(fresh), _MOST_IN_A_REQUEST):
                await self._create(client, fresh[start : start + _MOST_IN_A_REQUEST], created)
            # What is not ready for other reasons keeps nobody else waiting.
            if not created.intersection((*missing, *pending)):
                break
            if not fresh:
                await asyncio.sleep(_LOOK_AGAIN)
        ready = set(names).difference(missing, pending)
        await self._look_at_settings(client, ready)
        return ready

    async def _look_at_settings(self, client: Any, ready: set[str]) -> None:
        """Log, once, which of the runtime's own topics do not keep what is in them."""
        names = [
            name
            for name in sorted(ready - self._looked_at)
            # Who needs states looks at their settings, too.
            if self._names.is_own(name) and not self._names.are_states(name)
        ]
        if not names:
            return
        found = await topic_settings(client, names, DECISIVE_SETTINGS)
        self._looked_at.update(names)
        for name, settings in (found or {}).items():
            text = unfit_settings(name, self._names, settings)
            if text is not None:
                _log.warning("%s", text)

    async def _ensure(
        self, client: Any, wanted: list[str], timeout: float, on_wait: Callable[[str], None]
    ) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        created: set[str] = set()
        while True:
            missing, pending = await self._look(client, wanted)
            ours = [name for name in missing if self.may_create(name)]
            fresh = [name for name in ours if name not in created]
            if fresh:
                await self._create(client, fresh, created)
                continue
            if not missing and not pending:
                return
            foreign = [name for name in missing if name not in created]
            hopeless = bool(foreign) and all(map(self._names.is_own, foreign))
            why = self._unknown(foreign) if foreign else _not_there_yet(missing, pending)
            if hopeless or loop.time() >= deadline:
                raise why
            on_wait(str(why))
            await asyncio.sleep(_LOOK_AGAIN)

    async def _look(self, client: Any, wanted: list[str]) -> tuple[list[str], list[str]]:
        """Return what is missing, and what exists but has no leader."""
        found = await find_topics(client, wanted)
        missing, pending = [], []
        for code, name, _, partitions in found:
            error = kafka.for_code(code)
            if error is kafka.UnknownTopicOrPartitionError:
                missing.append(name)
            elif error in _TEMPORARY or any(leader < 0 for _, _, leader, *_ in partitions):
                pending.append(name)
            elif error is not kafka.NoError:
                raise translate(error(), f"topic {name!r}")
        return missing, pending

    async def _create(self, client: Any, names: Sequence[str], created: set[str]) -> None:
        brokers = len(client.cluster.brokers())
        replication = self._config.replication or max(min(_REPLICAS, brokers), 1)
        requests = [(name, *self._shape(name, replication), self._settings(name)) for name in names]
        errors = await create_topics(client, requests, self._config.request_timeout)
        for name, code, *text in errors:
            error = kafka.for_code(code)
            if error in (kafka.NoError, kafka.TopicAlreadyExistsError):
                created.add(name)
                if error is kafka.NoError:
                    self._looked_at.add(name)
                    _log.info("topic %r created", name)
            elif error in _TEMPORARY:
                await asyncio.sleep(_LOOK_AGAIN)
                await client.force_metadata_update()
            else:
                said = next(iter(text), None)
                if error is kafka.InvalidReplicationFactorError and _NO_BROKER.search(said or ""):
                    raise kafka.KafkaError(f"topic {name!r} cannot be created yet: {said}")
                raise self._not_created(name, error(), said)

    def _shape(self, name: str, replication: int) -> tuple[int, int, list[Any]]:
        return self._partitions_of(name), replication, []

    def _partitions_of(self, name: str) -> int:
        return self._counts.get(name, 1) if self._names.is_own(name) else self._config.partitions

    def _settings(self, name: str) -> list[tuple[str, str]]:
        if name.startswith(self._names.replies("")):
            return _REPLY_SETTINGS
        if self._names.are_states(name):
            return _STATE_SETTINGS
        return _DEAD_LETTER_SETTINGS if self._names.is_own(name) else []

    def _not_created(self, name: str, error: Exception, text: str | None) -> SpaDatError:
        said = f"topic {name!r} could not be created: {text or describe(error)}"
        if isinstance(
            error, (kafka.TopicAuthorizationFailedError, kafka.ClusterAuthorizationFailedError)
        ):
            return NotAuthorised(f"{said}; allow it in the cluster's access rules, or create it")
        if isinstance(error, (kafka.InvalidReplicationFactorError, kafka.InvalidPartitionsError)):
            return ConfigurationError(f"{said}; check the options replication and partitions")
        if isinstance(error, kafka.InvalidTopicError):
            # Nobody else can create it either.
            return UnknownTopic(f"{said}; choose another address, or bind it with topics=")
        return UnknownTopic(f"{said}; create it by hand")

    def _unknown(self, names: Sequence[str]) -> UnknownTopic:
        missing = ", ".join(map(repr, names))
        own = [name for name in names if self._names.is_own(name)]
        if own:
            settings = "; ".join(
                f"{name!r} with {_counted(self._partitions_of(name))} and "
                + ", ".join(f"{key}={value}" for key, value in self._settings(name))
                for name in own
            )
            advice = f"create {settings}; or give create_topics='own'"
        else:
            it = "it" if len(names) == 1 else "them"
            advice = f"create {it}, or give create_topics='all'"
        what = f"topic {missing} does" if len(names) == 1 else f"topics {missing} do"
        return UnknownTopic(f"{what} not exist on the cluster: {advice}")


def _counted(partitions: int) -> str:
    return "1 partition" if partitions == 1 else f"{partitions} partitions"


def _not_there_yet(created: Sequence[str], leaderless: Sequence[str]) -> kafka.KafkaError:
    """Return the error for topics that a cluster has but does not serve yet: it will pass."""
    what = "was created, and no broker knows it yet"
    if not created:
        what = "has no leader; start the brokers that have its replicas"
    names = created or leaderless
    more = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
    return kafka.KafkaError(f"topic {names[0]!r}{more} {what}")
