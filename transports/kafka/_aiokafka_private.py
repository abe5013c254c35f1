"""The fence around aiokafka: the only module that uses what the library does not document.

The other modules call what is here, and import only the library's documented parts (`aiokafka`, its
``abc``, ``errors`` and ``structs``), as a test ensures. `check_libraries` makes sure at the start
that the installed library has everything used here.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import ssl
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from importlib import metadata
from io import BytesIO
from types import ModuleType
from typing import Any, Protocol, TypeAlias

import aiokafka.errors as kafka
import msgspec
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, codec
from aiokafka.client import AIOKafkaClient, ConnectionGroup, CoordinationType
from aiokafka.cluster import ClusterMetadata
from aiokafka.conn import (
    AIOKafkaConnection,
    CloseReason,
    OAuthAuthenticator,
    collect_hosts,
)
from aiokafka.consumer.fetcher import (
    Fetcher,
    FetchError,
    FetchResult,
    OffsetResetStrategy,
    PartitionRecords,
)
from aiokafka.consumer.group_coordinator import (
    BaseCoordinator,
    GroupCoordinator,
    NoGroupCoordinator,
)
from aiokafka.consumer.subscription_state import (
    Assignment,
    SubscriptionState,
    TopicPartitionState,
)
from aiokafka.coordinator.assignors.roundrobin import RoundRobinPartitionAssignor
from aiokafka.coordinator.protocol import ConsumerProtocol, ConsumerProtocolMemberAssignment
from aiokafka.partitioner import murmur2
from aiokafka.producer.message_accumulator import BatchBuilder, MessageAccumulator, MessageBatch
from aiokafka.producer.sender import Sender
from aiokafka.producer.transaction_manager import TransactionManager
from aiokafka.protocol.admin import (
    CreateTopicsRequest,
    DeleteTopicsRequest,
    DescribeConfigsRequest,
    DescribeGroupsRequest,
    SaslHandShakeRequest,
)
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.commit import OffsetFetchRequest
from aiokafka.protocol.coordination import FindCoordinatorRequest
from aiokafka.protocol.fetch import FetchRequest
from aiokafka.protocol.group import JoinGroupRequest
from aiokafka.protocol.metadata import MetadataRequest
from aiokafka.protocol.offset import OffsetRequest
from aiokafka.protocol.produce import ProduceRequest
from aiokafka.protocol.types import (
    Array,
    Boolean,
    CompactArray,
    CompactString,
    Int16,
    Int32,
    Int64,
    Schema,
    String,
    TaggedFields,
)
from aiokafka.record.default_records import _DefaultRecordBatchPy, _DefaultRecordPy
from aiokafka.record.memory_records import MemoryRecords
from aiokafka.record.util import decode_varint
from aiokafka.structs import OffsetAndMetadata, TopicPartition

from ..._logs import get_logger
from ..._texts import quoted
from ...errors import ConfigurationError
from ._errors import LoginBrokenOff, TokenRefused, WrongLoginAnswer

__all__ = [
    "ConsumerProtocolMemberAssignment",
    "EpochEndsRequest",
    "LenientRecords",
    "RoundRobinPartitionAssignor",
    "TopicIdsRequest",
    "accepted_logins",
    "answers_plain",
    "background_tasks",
    "begin_at_start",
    "check_compression",
    "check_libraries",
    "client_of",
    "close_unused",
    "commit_offsets",
    "committed_offsets",
    "create_topics",
    "delete_topics",
    "describe_group",
    "divert_unreadable",
    "end_tasks",
    "fetching_ends",
    "find_topics",
    "forget_topic",
    "group_offsets",
    "group_state",
    "guard_transactions",
    "hosts_of",
    "is_assigned",
    "is_connected",
    "is_lost",
    "keep_connections",
    "knows_coordinator",
    "leave",
    "limit_prefetching",
    "look_seldom",
    "murmur2",
    "new_client",
    "next_offset",
    "on_connection_closed",
    "overhear",
    "producer_tasks",
    "read_leniently",
    "records_arrive",
    "rejoin",
    "renounce_numbers",
    "retire_producer",
    "sees_topic",
    "separate_fetches",
    "set_longest_fetch",
    "stop_consumer",
    "stop_waiting_for_metadata",
    "topic_settings",
    "traffic",
    "transaction_failure",
    "try_connection",
    "wake_fetching",
    "watch_topics",
]

_log = get_logger(__name__)

# The check at the start.

_PARTS: tuple[tuple[object, tuple[str, ...]], ...] = (
    (RoundRobinPartitionAssignor, ("assign", "metadata", "name", "on_assignment", "version")),
    (
        AIOKafkaConnection,
        (
            "_do_sasl_handshake",
            "authenticator_oauth",
            "close",
            "connect",
            "connected",
            "send",
        ),
    ),
    (
        AIOKafkaClient,
        (
            "_get_conn",
            "_get_conn_lock",
            "_md_synchronizer",
            "_on_connection_closed",
            "add_topic",
            "bootstrap",
            "close",
            "fetch_all_metadata",
            "force_metadata_update",
            "get_random_node",
            "hosts",
            "ready",
            "send",
            "set_topics",
        ),
    ),
    (
        ClusterMetadata,
        (
            "add_listener",
            "available_partitions_for_topic",
            "broker_metadata",
            "leader_for_partition",
            "partitions_for_topic",
            "topics",
        ),
    ),
    (Assignment, ("state_value",)),
    (BatchBuilder, ("append", "record_count")),
    (ConsumerProtocol, ("ASSIGNMENT",)),
    (Fetcher, ("_create_fetch_waiter", "_notify", "error_future", "request_offset_reset")),
    (MessageAccumulator, ("fail_all",)),
    (
        GroupCoordinator,
        (
            "_do_commit_offsets",
            "_get_metadata_snapshot",
            "_maybe_leave_group",
            "check_errors",
            "ensure_coordinator_known",
            "fetch_committed_offsets",
        ),
    ),
    (SubscriptionState, ("fetch_context", "is_assigned", "subscription")),
    (_DefaultRecordBatchPy, ("_read_msg", "validate_crc")),
    (codec, ("has_gzip", "has_lz4", "has_snappy", "has_zstd")),
    (Sender, ("_send_produce_req", "sender_task")),
    (TopicPartitionState, ("has_valid_position", "position")),
    (
        TransactionManager,
        ("error_transaction", "fatal_error", "increment_sequence_number"),
    ),
)
_PRODUCER_STATE = ("_closed", "_message_accumulator", "_sender", "_txn_manager", "client")
# A client has them as private attributes of the same names.
_CONNECTION_OPTIONS = (
    "client_id",
    "request_timeout_ms",
    "sasl_mechanism",
    "sasl_oauth_token_provider",
    "sasl_plain_password",
    "sasl_plain_username",
    "security_protocol",
    "ssl_context",
)
_CLIENT_STATE = (
    *(f"_{name}" for name in _CONNECTION_OPTIONS),
    "_connections_max_idle_ms",
    "_conns",
    "_md_update_fut",
    "_sync_task",
    "_topics",
    "cluster",
)
_CLUSTER_STATE = ("controller", "unauthorized_topics")
_CONSUMER_STATE = ("_client", "_closed", "_coordinator", "_fetcher", "_subscription")
# What a consumer creates and sets when it starts.
_STARTED: tuple[tuple[type, tuple[str, ...]], ...] = (
    (
        AIOKafkaConnection,
        ("_closed_fut", "_last_action", "_protocol", "_request_timeout", "_requests"),
    ),
    (BaseCoordinator, ("_metadata_snapshot",)),
    (FetchError, ("_error",)),
    (FetchResult, ("_partition_records",)),
    (
        Fetcher,
        (
            "_fetch_max_wait_ms",
            "_fetch_task",
            "_fetch_waiters",
            "_fetcher_timeout",
            "_isolation_level",
            "_pending_tasks",
            "_prefetch_backoff",
            "_records",
        ),
    ),
    (PartitionRecords, ("_records", "_records_iterator", "next_fetch_offset")),
    (SubscriptionState, ("_fetch_count",)),
    (
        GroupCoordinator,
        (
            "_commit_lock",
            "_commit_refresh_task",
            "_coordination_task",
            "_group_instance_id",
            "_group_subscription",
            "_heartbeat_task",
            "coordinator_id",
            "generation",
        ),
    ),
    (MessageAccumulator, ("_batches",)),
    (MessageBatch, ("_drain_waiter",)),
    (NoGroupCoordinator, ("_reset_committed_task",)),
    (ProduceRequest, ("_topics",)),
    (TransactionManager, ("_pending_txn_offsets", "_transaction_waiter")),
)
_METADATA, _WITH_IDS = 3, 10
_EPOCH_ENDS, _WITH_THROTTLING = 23, 2
_ANY_EPOCH = -1
_NO_ID = b"\0" * 16
_A_TOPIC = 2
_LOOK_AGAIN = 0.1
_MOST_BYTES = 52_428_800
_MOST_OF_A_PARTITION = 1_048_576
_BACKOFF = 0.1
_LONGEST_END = 0.5
_CANCEL_AGAIN = 0.05
# What the library raises over the answers to a login that are not those of a broker.
_WRONG_ANSWERS = (AssertionError, LookupError, ValueError)
_LENGTH_AT, _MAGIC_AT, _OVERHEAD = 8, 16, 12
_SECOND_FORMAT = 2
# The group of the connections that `separate_fetches` uses.
_FETCHES = "fetches"
_CHOICES = 20


@functools.cache
def check_libraries() -> None:
    """Check that the installed library has the internals used here.

    Must run inside an event loop.

    Raises:
        ConfigurationError: it does not; names the installed and the supported versions.
    """
    missing = [lack for owner, names in _PARTS for lack in _lacking(owner, names)]
    missing += [
        f"{_name(owner)}.{name}"
        for owner, names in _STARTED
        for name in names
        if name not in vars(owner)["__init__"].__code__.co_names
    ]
    missing += _lacking(_never_started(AIOKafkaConsumer()), _CONSUMER_STATE)
    probe = _never_started(AIOKafkaProducer(enable_idempotence=True))
    missing += _lacking(probe, _PRODUCER_STATE)
    if not missing:
        missing += _lacking(probe.client, _CLIENT_STATE)
        missing += _lacking(probe.client.cluster, _CLUSTER_STATE)
    if missing:
        raise ConfigurationError(
            f"aiokafka {metadata.version('aiokafka')} lacks {', '.join(missing)};"
            " install aiokafka>=0.14,<0.15"
        )


def check_compression(name: str | None) -> None:
    """Check that the library supports this compression.

    Args:
        name: the value of the option ``compression``.

    Raises:
        ConfigurationError: it does not.
    """
    if name is not None and not getattr(codec, f"has_{name}")():
        raise ConfigurationError(
            f"option compression={name!r} of KafkaConfig needs the package cramjam: install"
            " spa-dat[compression], or use 'gzip'"
        )


def _never_started(probe: Any) -> Any:
    # It would warn that it was not stopped.
    probe._closed = True
    return probe


def _lacking(thing: object, names: Sequence[str]) -> list[str]:
    where = _name(thing if isinstance(thing, (ModuleType, type)) else type(thing))
    return [f"{where}.{name}" for name in names if not hasattr(thing, name)]


def _name(thing: ModuleType | type) -> str:
    if isinstance(thing, ModuleType):
        return thing.__name__
    return f"{thing.__module__}.{thing.__qualname__}"


# Clients: those inside consumers and producers, and separate ones.


def client_of(consumer: Any) -> Any:
    """Return the client inside a consumer of the library."""
    return consumer._client


def new_client(options: Mapping[str, Any]) -> Any:
    """Create a client that belongs to no consumer or producer."""
    return AIOKafkaClient(**options)


def hosts_of(servers: str) -> list[tuple[str, int]]:
    """Split a list of addresses, separated by commas, as the library does."""
    return [(host, port) for host, port, _ in collect_hosts(servers.split(","))]


async def try_connection(host: str, port: int, options: Mapping[str, Any], seconds: float) -> None:
    """Connect to one broker, wait for an answer, and close.

    Args:
        host: of the broker.
        port: of the broker.
        options: of the connection.
        seconds: for all of it.

    Raises:
        OSError: it cannot be reached, or TLS failed.
        aiokafka.errors.KafkaError: it refused the login, answered it in a way that nobody does who
            knows the password, broke it off, or did not answer as a broker.
    """
    connection = _Connection(host, port, **options)
    try:
        deadline = asyncio.get_running_loop().time() + seconds
        await connection.open(seconds)
        if not connection.logs_in:
            # A broker that requires a login does not answer this without one.
            async with asyncio.timeout_at(deadline):
                await connection.send(MetadataRequest([]))
    except kafka.KafkaConnectionError as error:
        if isinstance(error.__cause__, ssl.SSLError):
            raise error.__cause__ from None
        raise
    except OSError:
        # Some of TLS are ValueErrors as well.
        raise
    except _WRONG_ANSWERS as error:
        raise WrongLoginAnswer(str(error)) from error
    finally:
        await _end(connection)


async def accepted_logins(host: str, port: int, options: Mapping[str, Any]) -> Sequence[str]:
    """Return the SASL mechanisms of a broker that requires a login, for a connection without one.

    Raises:
        OSError: it cannot be reached.
        aiokafka.errors.KafkaError: it did not answer as a broker.
    """
    connection = AIOKafkaConnection(host, port, **options)
    try:
        await connection.connect()
        answer = await connection.send(SaslHandShakeRequest("PLAIN"))
    finally:
        await _end(connection)
    refused = answer.error_code == kafka.IllegalSaslStateError.errno
    return () if refused else tuple(answer.enabled_mechanisms)


async def answers_plain(host: str, port: int) -> bool:
    """Return whether a broker answers there without TLS; never raises."""
    connection = AIOKafkaConnection(host, port)
    try:
        await connection.connect()
    except (OSError, kafka.KafkaError):
        return False
    finally:
        await _end(connection)
    return True


async def _end(connection: Any) -> None:
    """Close a connection; with TLS the broker has to confirm that, and gets little time for it."""
    closed = connection.close()
    if connection._protocol is not None:
        await asyncio.wait((closed,), timeout=_LONGEST_END)


class _Connection(AIOKafkaConnection):  # type: ignore[misc]
    """A connection that is open only once the broker has answered something after the login.

    The library takes a broker's explanation why it refuses a token for a success, and a login for
    done that the broker closes the connection over, or never comes back from. It would open one
    such connection after the other, and take each of them for a broker that is there.

    Attributes:
        logs_in: whether a login is under way, or done.
    """

    logs_in = False

    async def open(self, seconds: float) -> None:
        """Connect and log in within so many seconds; nothing stays open if that fails.

        Raises:
            OSError: it cannot be reached; TimeoutError is one.
            aiokafka.errors.KafkaError: it refused the login, or broke it off.
        """
        seconds = min(seconds, self._request_timeout)
        try:
            async with asyncio.timeout(seconds):
                await self.connect()
        except TimeoutError as error:
            if not self.logs_in:
                raise
            # Rounded, so that it is the same text at each attempt.
            within = f"{seconds:.0f}" if seconds >= 1 else f"{seconds:.1g}"
            raise LoginBrokenOff(
                f"no answer to the login within {within} s; look into the broker's log"
            ) from error

    async def _do_sasl_handshake(self) -> None:
        self.logs_in = True
        try:
            await super()._do_sasl_handshake()
            await self.send(MetadataRequest([]))
        except kafka.KafkaConnectionError as error:
            raise LoginBrokenOff(
                "the broker closed the connection during the login; look into its log, and check"
                " the password or token"
            ) from error

    def authenticator_oauth(self) -> Any:
        return _TokenLogin(sasl_oauth_token_provider=self._sasl_oauth_token_provider)


class _TokenLogin(OAuthAuthenticator):  # type: ignore[misc]
    async def step(self, payload: bytes | None) -> Any:
        if payload:
            raise TokenRefused(payload)
        return await super().step(payload)


Renew: TypeAlias = Callable[[], Awaitable[Mapping[str, Any]]]
"""Returns the options of a connection, as of now, that may have changed."""


def keep_connections(client: Any, renew: Renew, seconds: float) -> None:
    """Make a client of the library, not started, close every connection that it opens.

    A connection counts as open once the broker has accepted the login.

    Args:
        client: the library's.
        renew: called before each connection; raises OSError or ConfigurationError if there is none
            to be had.
        seconds: how long a broker may take to accept a connection and its login.
    """
    _Connections(client, renew, seconds)


class _Connections:
    """Opens the connections of a client of the library, and closes every one of them.

    The library leaves open a connection that is still being made when it closes, and its first
    connection when its start is cancelled. It also asks any broker, be it one that cannot be
    reached. Replaces the client's own methods.

    Args:
        client: the library's, not started.
        renew: see `keep_connections`.
        seconds: see `keep_connections`.
    """

    def __init__(self, client: Any, renew: Renew, seconds: float) -> None:
        self._client = client
        self._renew = renew
        self._seconds = seconds
        self._refusal = ""
        self._close_made = client.close
        self._making: set[asyncio.Task[Any]] = set()
        self._closed = False
        # Brokers to which no connection could be opened the last time.
        self._unreached: set[Any] = set()
        self._any_node = client.get_random_node
        client.get_random_node = self._node
        client._get_conn, client.bootstrap, client.close = self._get, self._bootstrap, self._close

    def _node(self) -> Any:
        """Choose a broker, rather not one that cannot be reached."""
        node = self._any_node()
        for _ in range(_CHOICES if self._unreached else 0):
            if node not in self._unreached:
                break
            node = self._any_node()
        return node

    async def _get(self, node_id: Any, **options: Any) -> Any:
        group = options.get("group", ConnectionGroup.DEFAULT)
        connection = self._client._conns.get((node_id, group))
        if connection is not None and connection.connected():
            return connection
        if self._closed:
            return None
        making = asyncio.ensure_future(self._renewed(node_id, group))
        self._making.add(making)
        making.add_done_callback(self._making.discard)
        try:
            await asyncio.wait((making,))
        finally:
            making.cancel()
        return None if making.cancelled() else making.result()

    async def _renewed(self, node_id: Any, group: Any) -> Any:
        if not await self._take_new_options():
            return None
        connection = await self._attempted(node_id, group)
        if connection is None:
            self._unreached.add(node_id)
        else:
            self._unreached.discard(node_id)
        return connection

    async def _attempted(self, node_id: Any, group: Any) -> Any:
        try:
            return await self._make(node_id, group)
        except (OSError, kafka.KafkaError) as error:
            _log.debug("no connection to broker %s: %s", node_id, error)
            # Perhaps it is somewhere else now.
            self._client.force_metadata_update()
            return None
        except Exception as error:  # noqa: BLE001
            # Of a login that the broker answers wrongly the library raises anything, and what asks
            # for the connection would end over it.
            _log.warning("a broker's answer to the login is wrong: %s", quoted(str(error)))
            return None

    async def _make(self, node_id: Any, group: Any) -> Any:
        client, key = self._client, (node_id, group)
        broker = client.cluster.broker_metadata(node_id)
        if broker is None:
            raise kafka.StaleMetadata(f"broker {node_id} is not in the metadata")
        async with client._get_conn_lock:
            # Whoever came first may have made it.
            connection = client._conns.get(key)
            if connection is None or not connection.connected():
                connection = await self._opened(
                    broker.host,
                    broker.port,
                    on_close=client._on_connection_closed,
                    max_idle_ms=client._connections_max_idle_ms,
                )
                client._conns[key] = connection
        return connection

    async def _opened(self, host: str, port: int, **more: Any) -> Any:
        options = {name: getattr(self._client, f"_{name}") for name in _CONNECTION_OPTIONS}
        connection = _Connection(host, port, **options, **more)
        await connection.open(self._seconds)
        return connection

    async def _take_new_options(self) -> bool:
        """Have the client use what certificates and passwords there are now; whether it can."""
        try:
            for name, value in (await self._renew()).items():
                setattr(self._client, f"_{name}", value)
        except (OSError, ConfigurationError) as error:
            # The library asks again soon.
            if str(error) != self._refusal:
                _log.warning("no connection to a broker can be opened: %s", error)
            self._refusal = str(error)
            return False
        self._refusal = ""
        return True

    async def _bootstrap(self) -> None:
        client = self._client
        if not await self._take_new_options():
            raise kafka.KafkaConnectionError(self._refusal)
        for host, port, _ in client.hosts:
            with contextlib.suppress(OSError, kafka.KafkaError, *_WRONG_ANSWERS):
                connection = await self._opened(host, port)
                try:
                    client.cluster.update_metadata(await connection.send(MetadataRequest([])))
                except BaseException:
                    connection.close()
                    raise
                if client.cluster.brokers():
                    connection.close()
                else:
                    # The library asks again until there are some.
                    client._conns["bootstrap", ConnectionGroup.DEFAULT] = connection
                break
        else:
            raise kafka.KafkaConnectionError(f"Unable to bootstrap from {client.hosts}")
        if client._sync_task is None:
            client._sync_task = asyncio.ensure_future(client._md_synchronizer())

    async def _close(self) -> None:
        self._closed = True
        making = [*self._making]
        for task in making:
            task.cancel()
        if making:
            await asyncio.wait(making)
        try:
            await self._close_made()
        finally:
            for connection in self._client._conns.values():
                connection.close(reason=CloseReason.SHUTDOWN)


def separate_fetches(client: Any) -> None:
    """Give the fetches of a client of the library connections of their own.

    A broker answers what comes over one connection in order: whatever came after a fetch would
    wait as long as the broker keeps that, and so would the next fetch after one was cancelled.
    """
    send = client.send

    async def send_separately(node: Any, request: Any, **options: Any) -> Any:
        if "group" in options or not isinstance(request, FetchRequest):
            return await send(node, request, **options)
        try:
            return await send(node, request, group=_FETCHES)
        except asyncio.CancelledError:
            connection = client._conns.get((node, _FETCHES))
            if connection is not None:
                connection.close()
            raise

    client.send = send_separately


def close_unused(client: Any, seconds: float) -> None:
    """Close the connections for neither fetches nor the group that were not used for so long.

    The library would do so, too, but with a timer for each connection.
    """
    now = asyncio.get_running_loop().time()
    for (_, group), connection in tuple(client._conns.items()):
        unused = connection.connected() and not connection._requests
        if group == ConnectionGroup.DEFAULT and unused and now - connection._last_action > seconds:
            connection.close(reason=CloseReason.IDLE_DROP)


def overhear(
    client: Any,
    *,
    fetched: Callable[[Any], None] | None = None,
    fetches: Callable[[int, bool], None] | None = None,
    joined: Callable[[Any], None] | None = None,
    produced: Callable[[Any], None] | None = None,
    unanswered: Callable[[Sequence[TopicPartition], bool], None] | None = None,
    throttled: Callable[[int], None] | None = None,
) -> None:
    """Listen to the answers that a client of the library gets: they say more than it passes on.

    Args:
        client: the library's.
        fetched: called with the topics of each answer to a fetch.
        fetches: called with the broker that each fetch was for, or each question for an offset to
            begin at, and whether it was answered.
        joined: called with each answer to finding the coordinator of the group and to joining it.
        produced: called with the topics of each answer to a produce request.
        unanswered: called with the partitions of each produce request without an answer, and
            whether the connection was closed over it, and not lost or refused before.
        throttled: called with how many milliseconds a broker leaves a connection alone, as more
            was sent or fetched than a quota allows.
    """
    send = client.send

    async def send_and_tell(node: Any, request: Any, **options: Any) -> Any:
        try:
            answer = await send(node, request, **options)
        except kafka.KafkaError as error:
            if unanswered is not None and isinstance(request, ProduceRequest):
                closed = isinstance(error, kafka.KafkaConnectionError)
                unanswered(_places_of(request), closed)
            if fetches is not None and isinstance(request, (FetchRequest, OffsetRequest)):
                fetches(node, False)
            raise
        if throttled is not None and (milliseconds := getattr(answer, "throttle_time_ms", 0)):
            throttled(milliseconds)
        if fetches is not None and isinstance(request, (FetchRequest, OffsetRequest)):
            fetches(node, True)
        if isinstance(request, FetchRequest):
            if fetched is not None:
                fetched(answer.topics)
        elif isinstance(request, ProduceRequest):
            if produced is not None:
                produced(answer.topics)
        elif joined is not None and isinstance(request, (FindCoordinatorRequest, JoinGroupRequest)):
            joined(answer)
        return answer

    client.send = send_and_tell


def _places_of(request: Any) -> list[TopicPartition]:
    return [TopicPartition(name, number) for name, parts in request._topics for number, _ in parts]


def on_connection_closed(client: Any, hear: Callable[[], None]) -> None:
    """Have ``hear`` called after the client has lost or closed a connection."""
    inner = client._on_connection_closed

    def closed(connection: Any, reason: Any) -> None:
        inner(connection, reason)
        hear()

    client._on_connection_closed = closed


def is_connected(client: Any) -> bool:
    """Return whether the client has a connection to any broker."""
    return any(connection.connected() for connection in client._conns.values())


def traffic(client: Any) -> tuple[float, bool]:
    """Return when a broker last sent anything (loop time), and whether one owes an answer.

    Members that wait for their group use a separate connection for it, which does not count.
    """
    connections = [
        connection
        for (_, group), connection in client._conns.items()
        if group != ConnectionGroup.COORDINATION and connection.connected()
    ]
    heard = max((connection._last_action for connection in connections), default=0.0)
    return heard, any(connection._requests for connection in connections)


def forget_topic(client: Any, name: str) -> None:
    """Stop requesting metadata of a topic that `AIOKafkaClient.add_topic` has added."""
    client._topics.discard(name)


def stop_waiting_for_metadata(client: Any) -> None:
    """End waits for metadata that nobody will fetch any more."""
    news = client._md_update_fut
    if news is not None and not news.done():
        news.set_result(False)


# Requests.


def begin_at_start(consumer: Any, places: Sequence[TopicPartition]) -> None:
    """Have the library find out where partitions begin, and read them from there."""
    if places:
        waiting = consumer._fetcher.request_offset_reset(places, OffsetResetStrategy.EARLIEST)
        # It goes on without anybody who waits for it.
        waiting.add_done_callback(lambda it: it.cancelled() or it.exception())


async def find_topics(client: Any, names: Sequence[str]) -> Any:
    """Return what any broker says about the topics, without creating them."""
    answer = await client.send(client.get_random_node(), MetadataRequest(names, False))
    return answer.topics


async def create_topics(
    client: Any, requests: Sequence[tuple[Any, ...]], timeout: float
) -> Sequence[Any]:
    """Create topics; return the code, and perhaps a text, for each.

    Args:
        client: the library's, or one from `new_client`.
        requests: name, partitions, replication, assignment and settings of each.
        timeout: seconds that the cluster may take.
    """
    controller = client.cluster.controller
    node = client.get_random_node() if controller is None else controller.nodeId
    answer = await client.send(node, CreateTopicsRequest(requests, int(timeout * 1000), False))
    errors: Sequence[Any] = answer.topic_errors
    return errors


async def delete_topics(client: Any, names: Sequence[str], timeout: float) -> None:
    """Delete topics; those that cannot be deleted stay.

    Args:
        client: the library's, or one from `new_client`.
        names: of the topics.
        timeout: seconds that the cluster may take.
    """
    controller = client.cluster.controller
    node = client.get_random_node() if controller is None else controller.nodeId
    await client.send(node, DeleteTopicsRequest([*names], int(timeout * 1000)))


async def topic_settings(
    client: Any, names: Iterable[str], settings: Sequence[str]
) -> dict[str, dict[str, str]] | None:
    """Return settings of topics; those that the cluster does not let us see are left out.

    Returns:
        None when the cluster cannot tell.
    """
    wanted = [(_A_TOPIC, name, [*settings]) for name in names]
    try:
        answer = await client.send(client.get_random_node(), DescribeConfigsRequest(wanted))
    except kafka.IncompatibleBrokerVersion:
        return None
    return {
        name: {key: value for key, value, *_ in entries}
        for code, _, _, name, entries in answer.resources
        if code == kafka.NoError.errno
    }


class _Id:
    @classmethod
    def encode(cls, value: bytes) -> bytes:
        return value

    @classmethod
    def decode(cls, data: BytesIO) -> bytes:
        return data.read(len(_NO_ID))

    @classmethod
    def repr(cls, value: bytes) -> str:
        return repr(value)


class _TopicIdsResponse(Response):  # type: ignore[misc]
    API_KEY = _METADATA
    API_VERSION = _WITH_IDS
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        (
            "brokers",
            CompactArray(
                ("node_id", Int32),
                ("host", CompactString("utf-8")),
                ("port", Int32),
                ("rack", CompactString("utf-8")),
                ("tags", TaggedFields),
            ),
        ),
        ("cluster_id", CompactString("utf-8")),
        ("controller_id", Int32),
        (
            "topics",
            CompactArray(
                ("error_code", Int16),
                ("name", CompactString("utf-8")),
                ("topic_id", _Id),
                ("is_internal", Boolean),
                (
                    "partitions",
                    CompactArray(
                        ("error_code", Int16),
                        ("partition", Int32),
                        ("leader", Int32),
                        ("leader_epoch", Int32),
                        ("replicas", CompactArray(Int32)),
                        ("isr", CompactArray(Int32)),
                        ("offline_replicas", CompactArray(Int32)),
                        ("tags", TaggedFields),
                    ),
                ),
                ("authorized_operations", Int32),
                ("tags", TaggedFields),
            ),
        ),
        ("cluster_authorized_operations", Int32),
        ("tags", TaggedFields),
    )


class _TopicIdsRequestStruct(RequestStruct):  # type: ignore[misc]
    FLEXIBLE_VERSION = True
    API_KEY = _METADATA
    API_VERSION = _WITH_IDS
    RESPONSE_TYPE = _TopicIdsResponse
    SCHEMA = Schema(
        (
            "topics",
            CompactArray(
                ("topic_id", _Id), ("name", CompactString("utf-8")), ("tags", TaggedFields)
            ),
        ),
        ("allow_auto_topic_creation", Boolean),
        ("include_cluster_authorized_operations", Boolean),
        ("include_topic_authorized_operations", Boolean),
        ("tags", TaggedFields),
    )


class TopicIdsRequest(Request[_TopicIdsRequestStruct]):  # type: ignore[misc]
    """Requests the ids of topics, and our rights; the library has only versions before that.

    Args:
        names: the topics' names.
    """

    API_KEY = _METADATA

    def __init__(self, names: list[str]) -> None:
        self._names = names

    def build(self, request_struct_class: Any) -> Any:
        no_tags: dict[int, bytes] = {}
        topics = [(_NO_ID, name, no_tags) for name in self._names]
        return request_struct_class(topics, False, False, True, no_tags)


class _EpochEndsResponse(Response):  # type: ignore[misc]
    API_KEY = _EPOCH_ENDS
    API_VERSION = _WITH_THROTTLING
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        (
            "topics",
            Array(
                ("topic", String("utf-8")),
                (
                    "partitions",
                    Array(
                        ("error_code", Int16),
                        ("partition", Int32),
                        ("leader_epoch", Int32),
                        ("end_offset", Int64),
                    ),
                ),
            ),
        ),
    )


class _EpochEndsRequestStruct(RequestStruct):  # type: ignore[misc]
    API_KEY = _EPOCH_ENDS
    API_VERSION = _WITH_THROTTLING
    RESPONSE_TYPE = _EpochEndsResponse
    SCHEMA = Schema(
        (
            "topics",
            Array(
                ("topic", String("utf-8")),
                (
                    "partitions",
                    Array(
                        ("partition", Int32),
                        ("current_leader_epoch", Int32),
                        ("leader_epoch", Int32),
                    ),
                ),
            ),
        ),
    )


class EpochEndsRequest(Request[_EpochEndsRequestStruct]):  # type: ignore[misc]
    """Asks the leader of partitions where the records of an epoch end; the library has no such one.

    Args:
        epochs: by partition.
    """

    API_KEY = _EPOCH_ENDS

    def __init__(self, epochs: Mapping[TopicPartition, int]) -> None:
        self._epochs = epochs

    def build(self, request_struct_class: Any) -> Any:
        topics: dict[str, list[tuple[int, int, int]]] = {}
        for place, epoch in self._epochs.items():
            topics.setdefault(place.topic, []).append((place.partition, _ANY_EPOCH, epoch))
        return request_struct_class([*topics.items()])


# Members of groups.


def knows_coordinator(consumer: Any) -> bool:
    """Return whether the member knows the coordinator of its group, and has a connection to it."""
    return consumer._coordinator.coordinator_id is not None


def is_lost(consumer: Any) -> bool:
    """Return whether the group has dropped the member, or another program took its name."""
    return bool(consumer._coordinator.generation < 0)


async def leave(consumer: Any) -> None:
    """Leave the group, instead of keeping the membership for a client that returns by its name."""
    coordinator = consumer._coordinator
    if coordinator is not None:
        instance, coordinator._group_instance_id = coordinator._group_instance_id, None
        try:
            await coordinator._maybe_leave_group()
        finally:
            coordinator._group_instance_id = instance


async def commit_offsets(
    consumer: Any, offsets: Mapping[TopicPartition, OffsetAndMetadata]
) -> None:
    """Commit once, as long as the membership lasts.

    The library's own method stops doing so once a pattern has found a new topic, although the
    partitions have not been revoked yet. It would also retry endlessly.

    Raises:
        aiokafka.errors.KafkaError: the cluster refused it, or cannot be reached.
    """
    coordinator = consumer._coordinator
    await coordinator.ensure_coordinator_known()
    async with coordinator._commit_lock:
        await coordinator._do_commit_offsets(None, offsets)


async def committed_offsets(
    consumer: Any, places: Sequence[TopicPartition]
) -> Mapping[TopicPartition, OffsetAndMetadata]:
    """Return what the group has committed, whichever members have the partitions."""
    committed: Mapping[TopicPartition, OffsetAndMetadata]
    committed = await consumer._coordinator.fetch_committed_offsets(places)
    return committed


async def rejoin(consumer: Any, reassigned: asyncio.Event) -> None:
    """Leave the group and join it again, so that everything is reassigned.

    Args:
        consumer: the library's.
        reassigned: set once that is done.

    Raises:
        aiokafka.errors.KafkaError: the cluster refused it.
    """
    coordinator = consumer._coordinator
    await leave(consumer)
    # Otherwise it counts as one that has stopped fetching, which is not let in.
    with consumer._subscription.fetch_context():
        while not reassigned.is_set():
            coordinator.check_errors()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_AGAIN):
                    await reassigned.wait()


def watch_topics(consumer: Any) -> None:
    """Watch the topics for new partitions.

    The library leaves that to the leader of the group, but a member that returns as the leader is
    not told so.
    """
    coordinator = consumer._coordinator
    if coordinator._group_subscription is None:
        coordinator._group_subscription = consumer.subscription()
        coordinator._metadata_snapshot = coordinator._get_metadata_snapshot()


async def describe_group(consumer: Any, group: str) -> tuple[int, str, set[TopicPartition]]:
    """Return the code of the answer, the state of the group, and its members' assignments."""
    coordinator = consumer._coordinator.coordinator_id
    return await _described(client_of(consumer), coordinator, group, ConnectionGroup.COORDINATION)


async def group_state(client: Any, group: str) -> str:
    """Return the state of a group, as the cluster calls it: ``Dead`` if there is none.

    Args:
        client: the library's, or one from `new_client`.
        group: its id.

    Raises:
        aiokafka.errors.KafkaError: no answer, or a refusal.
    """
    node = await client.coordinator_lookup(CoordinationType.GROUP, group)
    code, state, _ = await _described(client, node, group, ConnectionGroup.DEFAULT)
    if code:
        raise kafka.for_code(code)(group)
    return state


async def _described(
    client: Any, coordinator: int, group: str, connection: Any
) -> tuple[int, str, set[TopicPartition]]:
    answer = await client.send(coordinator, DescribeGroupsRequest([group]), group=connection)
    code, _, state, _, _, members, *_ = answer.groups[0]
    taken: set[TopicPartition] = set()
    for member in members:
        taken.update(_assigned_to(member[4]))
    return code, str(state), taken


async def group_offsets(client: Any, group: str) -> dict[TopicPartition, OffsetAndMetadata]:
    """Return all that a group has committed.

    Args:
        client: the library's, or one from `new_client`.
        group: its id.

    Raises:
        aiokafka.errors.KafkaError: no answer, or a refusal.
    """
    node = await client.coordinator_lookup(CoordinationType.GROUP, group)
    answer = await client.send(node, OffsetFetchRequest(group, None))
    if answer.error_code:
        raise kafka.for_code(answer.error_code)(group)
    offsets: dict[TopicPartition, OffsetAndMetadata] = {}
    for topic, partitions in answer.topics:
        for partition, offset, note, code in partitions:
            if code:
                raise kafka.for_code(code)(topic)
            if offset >= 0:
                offsets[TopicPartition(topic, partition)] = OffsetAndMetadata(offset, note)
    return offsets


def _assigned_to(assignment: bytes) -> Iterable[TopicPartition]:
    return ConsumerProtocol.ASSIGNMENT.decode(assignment).partitions() if assignment else ()


# Fetching.


def is_assigned(consumer: Any, partition: TopicPartition) -> bool:
    """Return whether the consumer has the partition."""
    return bool(consumer._subscription.is_assigned(partition))


def next_offset(consumer: Any, partition: TopicPartition) -> int:
    """Return the next offset that the library would hand out; -1 if it has none."""
    subscription = consumer._subscription.subscription
    assignment = None if subscription is None else subscription.assignment
    state = None if assignment is None else assignment.state_value(partition)
    return state.position if state is not None and state.has_valid_position else -1


def limit_prefetching(consumer: Any, seconds: float) -> None:
    """Limit how long before the last fetch is consumed the library requests more of a broker."""
    consumer._fetcher._prefetch_backoff = seconds


def look_seldom(consumer: Any, seconds: float) -> None:
    """Limit how often the library's fetching looks whether there is anything to do.

    Whatever gives it something to do wakes it: answers, new assignments, resumed partitions.
    """
    consumer._fetcher._fetcher_timeout = seconds


def set_longest_fetch(consumer: Any, seconds: float) -> None:
    """Limit how long a broker may keep the next fetches waiting that find no records."""
    consumer._fetcher._fetch_max_wait_ms = int(seconds * 1000)


async def records_arrive(consumer: Any, seconds: float) -> None:
    """Wait until there are records that ``getmany`` has not returned, at most for ``seconds``.

    Costs much less than a timeout of ``getmany``, and `wake_fetching` ends it.

    Raises:
        aiokafka.errors.KafkaError: why the library no longer fetches.
    """
    fetcher = consumer._fetcher
    arrived = fetcher._create_fetch_waiter()
    timer = asyncio.get_running_loop().call_later(seconds, fetcher._notify, arrived)
    try:
        await arrived
    finally:
        timer.cancel()


def wake_fetching(consumer: Any) -> None:
    """End `records_arrive`."""
    fetcher = consumer._fetcher
    for waiting in tuple(fetcher._fetch_waiters):
        fetcher._notify(waiting)


def background_tasks(consumer: Any) -> tuple[asyncio.Future[Any], ...]:
    """Return the tasks that a started consumer needs: none of them ends before it does."""
    return consumer._client._sync_task, consumer._fetcher._fetch_task


def fetching_ends(consumer: Any) -> tuple[asyncio.Future[Any], ...]:
    """Return futures that complete, or fail, when a started consumer stops fetching."""
    return consumer._fetcher.error_future, consumer._client._sync_task


async def stop_consumer(consumer: Any, timeout: float) -> None:
    """Stop a consumer of the library, and everything that it has started; never raises.

    Not by its own ``stop``: in the middle of a rebalance that would wait for its end, and if a
    fetch has just begun or failed it stops half-way. It would do nothing else, as the library does
    not commit anything, and a group is left with `leave`.

    Args:
        consumer: started or not.
        timeout: seconds for each of two steps.
    """
    consumer._closed = True
    await end_tasks(consumer, timeout)
    await _attempt(consumer._client.close(), timeout)


async def end_tasks(consumer: Any, timeout: float) -> None:
    """End all background tasks of a consumer of the library, within ``timeout`` seconds."""
    loop = asyncio.get_running_loop()
    give_up = loop.time() + timeout
    tasks: set[asyncio.Task[Any]] = set()
    while True:
        # Again and again: while the library waits for the end of what it has cancelled, heartbeats
        # or fetches for partitions that it has lost, it takes its own cancellation for theirs, goes
        # on, and may start others.
        for task in _tasks_of(consumer):
            tasks.add(task)
            task.cancel()
        left = [task for task in tasks if not task.done()]
        seconds = give_up - loop.time()
        if not left or seconds <= 0:
            break
        await asyncio.wait(left, timeout=min(seconds, _CANCEL_AGAIN))
    for task in tasks:
        if task.done() and not task.cancelled():
            # How it ended no longer matters.
            task.exception()


def _tasks_of(consumer: Any) -> Iterator[asyncio.Task[Any]]:
    coordinator, fetcher = consumer._coordinator, consumer._fetcher
    for name in (
        "_coordination_task",
        "_heartbeat_task",
        "_commit_refresh_task",
        "_reset_committed_task",
    ):
        task = getattr(coordinator, name, None)
        if task is not None:
            yield task
    yield from _fetching_tasks(fetcher)


def _fetching_tasks(fetcher: Any) -> tuple[asyncio.Task[Any], ...]:
    task = getattr(fetcher, "_fetch_task", None)
    return () if task is None else (task, *getattr(fetcher, "_pending_tasks", ()))


async def _attempt(step: Coroutine[Any, Any, None], timeout: float) -> None:
    task = asyncio.ensure_future(step)
    try:
        await asyncio.wait((task,), timeout=timeout)
    finally:
        if not task.done():
            task.cancel()
        elif not task.cancelled():
            task.exception()


class _Report(Protocol):
    def __call__(
        self, partition: TopicPartition, error: Exception, offset: int, beyond: int | None = None
    ) -> None: ...


def divert_unreadable(consumer: Any, report: _Report) -> None:
    """Have unreadable records reported, instead of raised from a fetch.

    The library raises whatever is wrong with any partition, and forgets what it had fetched from
    the others.

    Args:
        consumer: the library's, started.
        report: gets the partition, the error, the offset from which on nothing can be read, and
            the offset after the batch in question, or None if it is not known.
    """
    fetcher = consumer._fetcher
    fetched = _Fetched(consumer, report)
    for partition, result in fetcher._records.items():
        fetched[partition] = result
    fetcher._records = fetched


class _FetchedRecord(msgspec.Struct, frozen=True, gc=False):
    """What is used of a record; it is made in a third of the time that the library's takes."""

    topic: str
    partition: int
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...]


def _fetched_record(partition: TopicPartition, record: Any) -> _FetchedRecord:
    return _FetchedRecord(
        partition.topic,
        partition.partition,
        record.offset,
        record.timestamp,
        record.key,
        record.value,
        tuple(record.headers),
    )


class _Fetched(OrderedDict[TopicPartition, Any]):
    """What the library has fetched and not handed out, by partition."""

    def __init__(self, consumer: Any, report: _Report) -> None:
        super().__init__()
        self._consumer = consumer
        self._report = report

    def __setitem__(self, partition: TopicPartition, result: Any) -> None:
        if isinstance(result, FetchError):
            # If it were raised by the next fetch, it would end the fetch for all partitions.
            self._report(partition, result._error, next_offset(self._consumer, partition))
            return
        records = result._partition_records
        if records is not None:
            records._consumer_record = _fetched_record
            result._partition_records = _Readable(self._report, partition, records)
        super().__setitem__(partition, result)


class _Readable:
    """The records of a fetch up to the first unreadable one.

    Args:
        report: called for that one.
        partition: the partition they are from.
        records: as the library has them.
    """

    __slots__ = ("_batches", "_iterator", "_partition", "_records", "_report")

    def __init__(self, report: _Report, partition: TopicPartition, records: Any) -> None:
        self._report = report
        self._partition = partition
        self._records = records
        self._batches = records._records = _Batches(records._records)
        # A single iterator: a loop that was left continues where it was.
        self._iterator = self._read()

    @property
    def next_fetch_offset(self) -> int:
        """The offset after the last record that was read or skipped."""
        offset: int = self._records.next_fetch_offset
        return offset

    def __iter__(self) -> Iterator[Any]:
        return self._iterator

    def _read(self) -> Iterator[Any]:
        try:
            yield from self._records._records_iterator
        # Whatever the library or a codec raises over the bytes.
        except Exception as error:  # noqa: BLE001
            offset = self.next_fetch_offset
            beyond = self._batches.beyond
            if beyond is not None and beyond <= offset:
                beyond = None
            self._report(self._partition, error, offset, beyond)


class _Batches:
    """The batches of a fetch; remembers where the last one ends."""

    __slots__ = ("_inner", "_last", "has_next")

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self._last: Any = None
        self.has_next: Callable[[], bool] = inner.has_next

    def next_batch(self) -> Any:
        """Return the next batch, as the library has them."""
        self._last = None
        self._last = batch = self._inner.next_batch()
        return batch

    @property
    def beyond(self) -> int | None:
        """The offset after the last batch; None if there is none."""
        offset: int | None = getattr(self._last, "next_offset", None)
        return offset


async def read_leniently(consumer: Any, partition: TopicPartition) -> None:
    """Make the library accept the next records of the partition as they are.

    Names of headers are texts to the library, but any bytes to the cluster: one that is not UTF-8
    would end every attempt to read its batch, and anybody who may publish could stop a partition.
    Call it while the partition is paused where the library cannot read on.

    Raises:
        aiokafka.errors.KafkaError: the cluster did not answer with records.
    """
    client, fetcher = consumer._client, consumer._fetcher
    assignment = consumer._subscription.subscription.assignment
    # With the consumer's own isolation level: open transactions may be visible to it or not.
    isolation = fetcher._isolation_level
    position = await consumer.position(partition)
    place = (partition.partition, position, _MOST_OF_A_PARTITION)
    answer = await client.send(
        client.cluster.leader_for_partition(partition),
        FetchRequest(0, 1, _MOST_BYTES, isolation, [(partition.topic, [place])]),
        group=ConnectionGroup.DEFAULT,
    )
    _, code, _, *parts = answer.topics[0][1][0]
    if kafka.for_code(code) is not kafka.NoError or not parts[-1]:
        raise kafka.KafkaError(f"no records at offset {position} of {partition}")
    aborted = parts[2] if answer.API_VERSION >= 11 else parts[-2]
    if assignment.active and await consumer.position(partition) == position:
        # In place of what could not be read, which keeps the library from fetching it again.
        fetcher._records[partition] = FetchResult(
            partition,
            assignment=assignment,
            partition_records=PartitionRecords(
                partition,
                LenientRecords(parts[-1]),
                aborted,
                position,
                None,
                None,
                True,
                isolation,
            ),
            backoff=_BACKOFF,
        )


class LenientRecords:
    """The batches of a fetch, in which names of headers may be any bytes.

    Args:
        data: as fetched.
    """

    def __init__(self, data: bytes) -> None:
        self._data = bytes(data)
        self._at = 0

    def has_next(self) -> bool:
        """Return whether there is another batch; the cluster may have truncated the last one."""
        return len(self._data) >= self._at + _OVERHEAD and len(self._data) >= self._end()

    def next_batch(self) -> Any:
        """Return the next batch, as the library has them."""
        start, self._at = self._at, self._end()
        batch = self._data[start : self._at]
        if batch[_MAGIC_AT] >= _SECOND_FORMAT:
            return _LenientBatch(batch)
        # Older ones have no headers.
        return MemoryRecords(batch).next_batch()

    def _end(self) -> int:
        length = int.from_bytes(self._data[self._at + _LENGTH_AT : self._at + _OVERHEAD], "big")
        return self._at + _OVERHEAD + length


class _LenientBatch(_DefaultRecordBatchPy):  # type: ignore[misc]
    _pos: int

    def _read_msg(self, varint: Any = decode_varint) -> Any:
        buffer = self._buffer
        length, at = varint(buffer, self._pos)
        end = at + length
        _, at = varint(buffer, at)
        delay, at = varint(buffer, at)
        delta, at = varint(buffer, at)
        key, at = _bytes(buffer, at)
        value, at = _bytes(buffer, at)
        count, at = varint(buffer, at)
        headers: list[tuple[str, bytes | None]] = []
        for _ in range(count):
            name, at = _bytes(buffer, at)
            content, at = _bytes(buffer, at)
            headers.append(((name or b"").decode("utf-8", "backslashreplace"), content))
        if at != end:
            raise kafka.CorruptRecordException(f"a record of {length} bytes ends at {at - end}")
        self._pos = at
        appended = self.timestamp_type == self.LOG_APPEND_TIME
        time = self.max_timestamp if appended else self.first_timestamp + delay
        offset = self.base_offset + delta
        return _DefaultRecordPy(offset, time, self.timestamp_type, key, value, headers)


def _bytes(buffer: bytearray, at: int) -> tuple[bytes | None, int]:
    length, at = decode_varint(buffer, at)
    return (None, at) if length < 0 else (bytes(buffer[at : at + length]), at + length)


# Producing.


def producer_tasks(producer: Any) -> tuple[asyncio.Future[Any] | None, ...]:
    """Return the tasks that a producer needs; None before its start."""
    return producer.client._sync_task, producer._sender.sender_task


def retire_producer(producer: Any) -> asyncio.Future[Any] | None:
    """Stop a producer from sending anything more; return the task that is still ending.

    The library's own method waits for confirmations, forever if the cluster is away.
    """
    producer._closed = True
    sender: asyncio.Future[Any] | None = producer._sender.sender_task
    if sender is not None:
        sender.cancel()
    return sender


def renounce_numbers(producer: Any, place: TopicPartition, count: int) -> None:
    """Take back the sequence numbers of the last ``count`` records of the partition."""
    producer._txn_manager.increment_sequence_number(place, -count)


def guard_transactions(producer: Any) -> None:
    """Make a transactional producer look at the failures that the library itself drops.

    To be called before its start. A sender that ends outside of a transaction would raise where
    nobody can catch it, and asyncio would complain of errors that nobody has looked at.
    """
    manager, accumulator, sender = (
        producer._txn_manager,
        producer._message_accumulator,
        producer._sender,
    )
    manager._transaction_waiter = asyncio.get_running_loop().create_future()
    fail_all, request = accumulator.fail_all, sender._send_produce_req

    def looking(fail: Callable[[BaseException], None]) -> Callable[[BaseException], None]:
        def failing(error: BaseException) -> None:
            waiting = [waiter for _, _, waiter in manager._pending_txn_offsets]
            fail(error)
            for waiter in (*waiting, manager._transaction_waiter):
                waiter.exception()

        return failing

    manager.error_transaction = looking(manager.error_transaction)
    manager.fatal_error = looking(manager.fatal_error)

    def failing_all(error: BaseException) -> None:
        batches = [batch for batches in accumulator._batches.values() for batch in batches]
        fail_all(error)
        for batch in batches:
            if batch._drain_waiter.done():
                batch._drain_waiter.exception()

    async def requesting(*args: Any) -> Any:
        task = asyncio.current_task()
        assert task is not None
        task.add_done_callback(lambda done: done.cancelled() or done.exception())
        return await request(*args)

    accumulator.fail_all = failing_all
    sender._send_produce_req = requesting


def transaction_failure(producer: Any) -> BaseException | None:
    """Return why the current transaction of a producer cannot be committed any more, if so."""
    waiter: asyncio.Future[Any] = producer._txn_manager._transaction_waiter
    return waiter.exception() if waiter.done() and not waiter.cancelled() else None


def sees_topic(client: Any, name: str) -> int:
    """Have a client look after a topic; return how many partitions of it are known."""
    if name not in client._topics:
        client.add_topic(name)
    return len(client.cluster.partitions_for_topic(name) or ())


def add_record(
    batch: BatchBuilder,
    key: bytes | None,
    value: bytes | None,
    headers: Sequence[tuple[str, bytes | None]],
    timestamp: int | None,
) -> bool:
    """Add a record to a batch of the library; return False, and close the batch, if it is full.

    It does as ``batch.append`` in half the time.
    """
    if batch._closed:
        return False
    number = batch._relative_offset
    added = batch._builder.append(number, timestamp, key=key, value=value, headers=list(headers))
    if added is None:
        batch.close()
        return False
    batch._relative_offset = number + 1
    return True
