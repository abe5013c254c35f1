"""`KafkaConfig`: the options of the Kafka transport."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, field
from types import MappingProxyType
from typing import ClassVar

from ..._texts import quoted
from ..._unknown_names import suggests_keywords
from ...errors import ConfigurationError
from .._broker_config import BrokerConfig
from .._credentials import AskForPassword
from .._topics import TopicFilter, is_reserved
from .._url_options import Limits, check_flag
from ._offset_reset_option import check_offset_reset

__all__ = ["KafkaConfig", "KafkaTopic"]

_LIMITS = {
    "window": (1, 1_000_000),
    "max_uncommitted": (1, 100_000_000),
    "commit_records": (1, 100_000_000),
    "max_batch": (1, 268_435_455),
    "partitions": (1, 100_000),
    "replication": (1, 1_000),
    "max_received": (1, 2_147_483_647),
    "qos": (0, 1),
    "request_timeout": (0.1, 3_600),
    "commit_interval": (0.001, 3_600),
    "session_timeout": (0.1, 86_400),
    "heartbeat_interval": (0.01, 3_600),
    "rebalance_timeout": (0.1, 86_400),
    "max_poll_interval": (1, 86_400),
    "topic_refresh": (0.05, 86_400),
}
_BEARER = "OAUTHBEARER"
_CHOICES: Mapping[str, tuple[str | None, ...]] = {
    "create_topics": ("never", "own", "all"),
    "sasl_mechanism": ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", _BEARER),
    "compression": (None, "gzip", "snappy", "lz4", "zstd"),
}
_LARGEST_RECEIVED = 2_097_152
_SERVER = re.compile(
    r"(?P<host>\[[0-9A-Fa-f:.]+\]|[^\s/\\?#@%\[\]:,\x00-\x1f]+)(:(?P<port>\d{1,5}))?"
)
_TOPIC = re.compile(r"[A-Za-z0-9._-]{1,249}")
_PREFIX = re.compile(r"[A-Za-z0-9._-]{0,100}")
_NO_TOPICS: Mapping[str, KafkaTopic] = MappingProxyType({})


@suggests_keywords
@dataclass(frozen=True)
class KafkaTopic:
    """The Kafka topic that an address is bound to.

    Args:
        name: the topic's name on the cluster.
        key: the capture of the address that becomes the record's key, so that messages with the
            same value of it stay in order; None if the address has none, or publishers give keys.

    Raises:
        ConfigurationError: the name is not a valid topic name.
    """

    name: str
    key: str | None = None

    def __post_init__(self) -> None:
        if (
            not isinstance(self.name, str)
            or not _TOPIC.fullmatch(self.name)
            or self.name in (".", "..")
        ):
            raise ConfigurationError(
                f"KafkaTopic(name={quoted(self.name)}): give 1 to 249 of A-Z, a-z, 0-9, '.',"
                " '_', '-'"
            )
        if self.name.split(".", 1)[0] == "_spa":
            raise ConfigurationError(
                f"KafkaTopic(name={self.name!r}): names that start with '_spa.' belong to the"
                " runtime"
            )


@suggests_keywords
@dataclass(frozen=True)
class KafkaConfig(BrokerConfig):
    """How to reach a Kafka cluster, and how much may be in flight with it.

    Args:
        servers: one or more bootstrap brokers, as ``host:port,host2:port``; the default port is
            9092.
        sasl_mechanism: ``PLAIN``, ``SCRAM-SHA-256`` or ``SCRAM-SHA-512``; or ``OAUTHBEARER``, for
            which the password is the token, from ``password_function`` or ``password_file``, and
            there is no user name.
        allow_plain_password: log in over a connection that is not encrypted. Anybody in between can
            then read the password or token (PLAIN, OAUTHBEARER) or everything else (SCRAM).
        prefix: put in front of every topic and group on the cluster, including the runtime's own,
            so that several environments can share one. It does not show in addresses.
        topics: addresses that are bound to topics with other names; see `KafkaTopic`, for which a
            dict with ``name`` and perhaps ``key`` may stand.
        create_topics: ``own`` creates the runtime's own topics (``_spa.``) if they are missing,
            ``all`` also those that the program uses, ``never`` none.
        partitions: the number of partitions of created topics of the program.
        replication: copies of each partition of a created topic; None for 3, or as many as there
            are brokers.
        offset_reset: where a group that has read nothing yet starts: ``earliest``, ``latest``, or
            with the first record that is not older than a time, as ``2026-11-27T09:00:00Z``, or
            than a while before the start, as ``90s``, ``30m``, ``1h`` or ``7d``.
        session_timeout: seconds without a sign of life after which the group gives a member's
            partitions to others.
        heartbeat_interval: seconds between signs of life, at most a third of
            ``session_timeout``.
        rebalance_timeout: seconds that a member may take to hand over its partitions; for 80 % of
            them it waits for running handlers.
        max_poll_interval: seconds after which a member leaves its group if its window is full and
            nothing is settled.
        topic_refresh: seconds until a new topic that matches a wildcard is noticed.
        commit_interval: seconds between two commits of settled records.
        commit_records: number of settled records at which a commit does not wait for the interval.
        window: the most deliveries of one subscription that may be unsettled at once.
        window_bytes: the most bytes of them; a single larger message passes alone. Half of it, but
            at least 64 KiB, is requested from a broker at once.
        max_uncommitted: the most records of one partition that may be handed out beyond its commit
            point, settled or not; at that number the partition is paused.
        request_timeout: seconds for one answer of a broker.
        max_payload: the largest payload that may be published, in bytes.
        max_received: the largest value that is accepted, in bytes. A record with a larger one
            becomes a dead letter that says where the record is. None for 2 MiB, or ``max_payload``
            if that is more.
        max_batch: size in bytes, before compression, from which on nothing is added to a batch.
        compression: of published records: None, ``gzip``, ``snappy``, ``lz4`` or ``zstd`` (all but
            the first two need ``spa-dat[compression]``).
        qos: quality of service of subscriptions that specify none: 1, or 0 to commit on receipt.

    All others are those of `BrokerConfig`: ``username`` and ``password`` (SASL), ``tls``,
    ``backoff_min`` and so on.

    Raises:
        ConfigurationError: an option has an invalid value, or options contradict each other.
    """

    tls_scheme: ClassVar[str] = "kafkas"
    limits: ClassVar[Limits] = {**BrokerConfig.limits, **_LIMITS}
    choices: ClassVar[Mapping[str, tuple[str | None, ...]]] = {**BrokerConfig.choices, **_CHOICES}

    servers: str = "localhost:9092"
    _: KW_ONLY
    sasl_mechanism: str = "PLAIN"
    allow_plain_password: bool = False
    prefix: str = ""
    topics: Mapping[str, KafkaTopic] = field(default_factory=lambda: _NO_TOPICS)
    create_topics: str = "own"
    partitions: int = 1
    replication: int | None = None
    offset_reset: str = "earliest"
    session_timeout: float = 30.0
    heartbeat_interval: float = 3.0
    rebalance_timeout: float = 60.0
    max_poll_interval: float = 300.0
    topic_refresh: float = 3.0
    commit_interval: float = 1.0
    commit_records: int = 10_000
    window: int = 1_000
    max_uncommitted: int = 20_000
    request_timeout: float = 30.0
    max_payload: int = 1_000_000
    max_batch: int = 262_144
    compression: str | None = None
    qos: int = 1

    def __post_init__(
        self,
        password_env: str | None,
        password_file: str | None,
        password_function: AskForPassword | None,
    ) -> None:
        object.__setattr__(self, "servers", _checked_servers(self.servers))
        super().__post_init__(password_env, password_file, password_function)
        object.__setattr__(self, "topics", _checked_topics(self.topics))
        check_offset_reset(self.offset_reset)
        if not isinstance(self.prefix, str) or not _PREFIX.fullmatch(self.prefix):
            raise ConfigurationError(
                f"option prefix={quoted(self.prefix)} of KafkaConfig:"
                " give at most 100 of A-Z, a-z, 0-9, '.', '_', '-'"
            )
        self._check_security()
        if self.heartbeat_interval * 3 > self.session_timeout:
            raise ConfigurationError(
                f"option heartbeat_interval={self.heartbeat_interval:g} of KafkaConfig:"
                f" give at most a third of session_timeout, which is {self.session_timeout:g}"
            )

    @property
    def hosts(self) -> frozenset[str]:
        """The hosts of the bootstrap brokers."""
        return frozenset(server.rpartition(":")[0].lower() for server in self.servers.split(","))

    @property
    def address(self) -> str:
        """The URL of the bus without user, secrets and options other than the prefix."""
        scheme = "kafkas" if self.tls else "kafka"
        return f"{scheme}://{self.servers}" + (f"?prefix={self.prefix}" if self.prefix else "")

    @property
    def largest_received(self) -> int:
        """The largest value that is accepted, in bytes."""
        return self.max_received or max(_LARGEST_RECEIVED, self.max_payload)

    @property
    def uses_token(self) -> bool:
        """Whether the password is a token that says by itself who logs in."""
        return self.sasl_mechanism == _BEARER

    def _check_security(self) -> None:
        check_flag(self, "allow_plain_password")
        if self.uses_token:
            self._check_token()
        elif (self.username is None) != (self.password is None):
            given, missing = (
                ("password", "username") if self.username is None else ("username", "password")
            )
            raise ConfigurationError(f"option {given} of KafkaConfig needs {missing} as well")
        if self.password is not None and not self.tls and not self.allow_plain_password:
            what = "token" if self.uses_token else "password"
            raise ConfigurationError(
                f"option password of KafkaConfig: the connection is not encrypted, so the {what}"
                " could be read: give tls=True (in a URL write kafkas://), or allow it with"
                " allow_plain_password=True"
            )

    def _check_token(self) -> None:
        if self.username is not None:
            raise ConfigurationError(
                f"option username={self.username!r} of KafkaConfig has no effect with"
                " sasl_mechanism='OAUTHBEARER', where the token says who logs in: leave it out"
            )
        if self.password is None:
            raise ConfigurationError(
                "option sasl_mechanism='OAUTHBEARER' of KafkaConfig needs a token:"
                " give password_function or password_file"
            )


def _checked_servers(servers: object) -> str:
    checked: list[str] = []
    if isinstance(servers, str):
        for server in servers.split(","):
            match = _SERVER.fullmatch(server.strip())
            if match is None or not 1 <= int(match["port"] or 9092) <= 65_535:
                checked.clear()
                break
            checked.append(f"{match['host']}:{int(match['port'] or 9092)}")
    if not checked:
        # The value may be a URL with a password in it.
        raise ConfigurationError(
            "option servers of KafkaConfig: give one or more brokers as 'host:port,host2:port';"
            " user and password are separate options"
        )
    return ",".join(dict.fromkeys(checked))


def _checked_topics(topics: object) -> Mapping[str, KafkaTopic]:
    if not isinstance(topics, Mapping):
        raise ConfigurationError(
            f"option topics={quoted(topics)} of KafkaConfig: give a dict of addresses and"
            " KafkaTopic"
        )
    bound: dict[str, str] = {}
    checked: dict[str, KafkaTopic] = {}
    for address, value in topics.items():
        owner = f"option topics of KafkaConfig, address {quoted(address)}"
        topic = _as_topic(owner, value)
        if not isinstance(address, str):
            raise ConfigurationError(f"{owner}: give a KafkaTopic for an address that is a string")
        filter_ = TopicFilter.parse(address)
        names = [name for _, name in filter_.captures]
        if is_reserved(filter_.pattern):
            raise ConfigurationError(f"{owner}: everything under _spa/ belongs to the runtime")
        if "#" in filter_.pattern or filter_.pattern.count("+") != len(names):
            raise ConfigurationError(f"{owner}: name the levels, as in 'fleet/{{truck}}/position'")
        if topic.key is not None and topic.key not in names:
            raise ConfigurationError(
                f"{owner}: key={quoted(topic.key)} is not one of its captures;"
                f" there are: {', '.join(names) or 'none'}"
            )
        if topic.name in bound:
            raise ConfigurationError(
                f"{owner}: topic {topic.name!r} is already bound to {bound[topic.name]!r}"
            )
        bound[topic.name] = address
        checked[address] = topic
    return MappingProxyType(checked)


def _as_topic(owner: str, value: object) -> KafkaTopic:
    """Return a topic that may be given as a table, as documents have it."""
    if isinstance(value, KafkaTopic):
        return value
    if isinstance(value, Mapping) and {"name"} <= value.keys() <= {"name", "key"}:
        return KafkaTopic(value["name"], value.get("key"))
    raise ConfigurationError(
        f"{owner}: give a KafkaTopic, or a table with the name of the topic and perhaps its key:"
        ' {"name": "positions", "key": "truck"}'
    )
