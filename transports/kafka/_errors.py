"""Errors of clusters and the client library, translated to those of this package."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import aiokafka.errors as kafka

from ..._texts import escaped, quoted
from ...errors import (
    ConfigurationError,
    ConnectFailed,
    ConnectionLost,
    MessageTooLarge,
    NotAuthorised,
    PublishRefused,
    TransportError,
    UnknownTopic,
)
from .._connect_failures import ConnectProblem, describe_failure, is_wrong_setup
from .._credentials import PasswordUnavailable

__all__ = [
    "REACHABLE_FROM_HERE",
    "TRANSLATIONS",
    "GroupRefused",
    "InvalidRecordError",
    "LoginBrokenOff",
    "LoginMissing",
    "TokenRefused",
    "UnknownAnswerError",
    "UnsupportedCompressionError",
    "WrongLoginAnswer",
    "address_of",
    "broker_at",
    "connect_problem",
    "describe",
    "error_for",
    "is_login_failure",
    "is_obstacle",
    "publish_refusal",
    "translate",
]

REACHABLE_FROM_HERE = "check whether that can be reached from here (advertised.listeners)"
"""What to do about a broker that does not answer while others do."""

# Characters, as of a name in DNS.
_LONGEST_HOST = 255
_LONGEST_WORDS = 300


class GroupRefused(ConfigurationError):
    """A consumer group does not let us join.

    Args:
        text: why, and what to do.
        may_pass: whether that may change without our doing.
    """

    def __init__(self, text: str, *, may_pass: bool) -> None:
        super().__init__(text)
        self.may_pass = may_pass


class LoginBrokenOff(kafka.KafkaError):  # type: ignore[misc]
    """A broker has neither accepted nor refused a login.

    Args:
        words: what it did instead.
    """

    def __init__(self, words: str) -> None:
        super().__init__()
        self.words = words


class LoginMissing(kafka.SaslAuthenticationFailed):  # type: ignore[misc]
    """A broker requires a login, and none is configured.

    Args:
        mechanisms: what it accepts.
    """

    def __init__(self, mechanisms: Sequence[str]) -> None:
        super().__init__()
        self.mechanisms = mechanisms


class WrongLoginAnswer(kafka.SaslAuthenticationFailed):  # type: ignore[misc]
    """What answers does not prove that it knows the password, as SCRAM asks of a broker.

    Args:
        words: what is wrong with the answer.
    """

    def __init__(self, words: str) -> None:
        super().__init__()
        self.words = words


class TokenRefused(kafka.SaslAuthenticationFailed):  # type: ignore[misc]
    """A broker does not accept the token of a login.

    Args:
        words: what it says.
    """

    def __init__(self, words: bytes) -> None:
        super().__init__()
        self.words = words.decode("utf-8", "replace")


class InvalidRecordError(kafka.BrokerResponseError):  # type: ignore[misc]
    """A record violates a rule of its topic: in a compacted one each needs a key."""

    errno = 87
    message = "INVALID_RECORD"


class UnsupportedCompressionError(kafka.BrokerResponseError):  # type: ignore[misc]
    """The broker, or the topic, does not accept this compression."""

    errno = 76
    message = "UNSUPPORTED_COMPRESSION_TYPE"


class UnknownAnswerError(kafka.BrokerResponseError):  # type: ignore[misc]
    """An error code that the library has no name for.

    Args:
        code: what the broker answered.
    """

    def __init__(self, code: int) -> None:
        super().__init__(f"answer {code}")
        self.errno = code


TRANSLATIONS: tuple[tuple[type[BaseException], type[TransportError]], ...] = (
    (kafka.TopicAuthorizationFailedError, NotAuthorised),
    (kafka.GroupAuthorizationFailedError, NotAuthorised),
    (kafka.ClusterAuthorizationFailedError, NotAuthorised),
    (kafka.TransactionalIdAuthorizationFailed, NotAuthorised),
    (kafka.SaslAuthenticationFailed, NotAuthorised),
    (kafka.AuthenticationFailedError, NotAuthorised),
    (kafka.UnsupportedSaslMechanismError, NotAuthorised),
    (kafka.IllegalSaslStateError, NotAuthorised),
    (kafka.MessageSizeTooLargeError, MessageTooLarge),
    (kafka.RecordListTooLargeError, MessageTooLarge),
    (kafka.UnknownTopicOrPartitionError, UnknownTopic),
    (kafka.InvalidTopicError, UnknownTopic),
    (kafka.KafkaError, ConnectionLost),
    (OSError, ConnectionLost),
)
"""Third-party exceptions and what they become, the most specific first."""

# Errors of a cluster in plain words.
_WORDS: tuple[tuple[type[BaseException], str], ...] = (
    (kafka.TopicAuthorizationFailedError, "not authorised for the topic"),
    (kafka.GroupAuthorizationFailedError, "not authorised for the group"),
    (kafka.ClusterAuthorizationFailedError, "not authorised for this on the cluster"),
    (kafka.SaslAuthenticationFailed, "bad user name or password"),
    (kafka.AuthenticationFailedError, "bad user name or password"),
    (kafka.UnsupportedSaslMechanismError, "this SASL mechanism is not enabled there"),
    (kafka.IllegalSaslStateError, "this port does not accept a login"),
    (kafka.MessageSizeTooLargeError, "larger than the topic allows (max.message.bytes)"),
    (kafka.RecordListTooLargeError, "larger than a segment of the topic"),
    (
        kafka.BrokerNotAvailableError,
        "its leader does not answer, others do: can it be reached here (advertised.listeners)?",
    ),
    (kafka.UnknownTopicOrPartitionError, "unknown topic or partition"),
    (kafka.InvalidTopicError, "not a valid topic name"),
    (InvalidRecordError, "the record violates a rule of the topic"),
    (UnsupportedCompressionError, "this compression is not accepted (option compression)"),
    (
        kafka.InvalidTimestampError,
        (
            "the timestamp is out of the range that the topic accepts (compare the clocks of this"
            " machine and of the brokers; message.timestamp.before.max.ms and"
            " message.timestamp.after.max.ms)"
        ),
    ),
    (
        kafka.OffsetMetadataTooLargeError,
        (
            "what is noted with an offset is longer than the brokers allow"
            " (offset.metadata.max.bytes; set it to 256 or more)"
        ),
    ),
    (
        kafka.CorruptRecordException,
        "the record is not acceptable to the topic (does it have a key?)",
    ),
    (kafka.PolicyViolationError, "it violates a policy of the cluster"),
    (kafka.InvalidReplicationFactorError, "not enough brokers for the replication"),
    (kafka.NotEnoughReplicasError, "fewer replicas in sync than the topic needs"),
    (kafka.LeaderNotAvailableError, "it has no leader (check which of its brokers are down)"),
    (kafka.RequestTimedOutError, "no answer in time"),
    (kafka.NodeNotReadyError, "the broker cannot be reached"),
)
_LOGIN_REFUSED = (
    kafka.SaslAuthenticationFailed,
    kafka.AuthenticationFailedError,
    kafka.UnsupportedSaslMechanismError,
    kafka.IllegalSaslStateError,
)
_FORBIDDEN = (
    kafka.TopicAuthorizationFailedError,
    kafka.GroupAuthorizationFailedError,
    kafka.ClusterAuthorizationFailedError,
    kafka.TransactionalIdAuthorizationFailed,
)


def translate(cause: BaseException, what: str) -> TransportError:
    """Return this package's error for one of the library, to be raised ``from`` it.

    Args:
        cause: what was raised there.
        what: what was being done, for the error text.
    """
    advice = "; allow it in the cluster's access rules" if isinstance(cause, _FORBIDDEN) else ""
    for kind, error in TRANSLATIONS:
        if isinstance(cause, kind):
            return error(f"{what}: {describe(cause)}{advice}")
    return ConnectionLost(f"{what}: {describe(cause)}")


def address_of(broker: Any) -> str:
    """Return what a broker advertises, on one line; its host may be any text."""
    return f"{escaped(broker.host, _LONGEST_HOST)}:{broker.port}"


def broker_at(number: int, broker: Any) -> str:
    """Name a broker by its number, and by what it advertises unless that is unknown (None)."""
    return f"broker {number}" if broker is None else f"broker {number} at {address_of(broker)}"


def describe(cause: BaseException) -> str:
    """Describe an exception of the library in one line."""
    for kind, words in _WORDS:
        if isinstance(cause, kind):
            if kind is kafka.GroupAuthorizationFailedError and cause.args:
                return f"{words} {cause.args[0]!r}"
            return words
    if isinstance(cause, LoginBrokenOff):
        return cause.words
    if isinstance(cause, kafka.KafkaConnectionError):
        return " ".join(str(cause).split()).removeprefix("KafkaConnectionError: ")
    if isinstance(cause, ConnectionResetError):
        return "the broker closed the connection"
    if isinstance(cause, kafka.KafkaError):
        # Has several lines where the library explains its own options.
        return " ".join(str(cause).split()) or type(cause).__name__
    return describe_failure(cause)


def is_login_failure(cause: BaseException) -> bool:
    """Return whether a broker was reached that does not let us in."""
    return isinstance(cause, (LoginBrokenOff, *_LOGIN_REFUSED))


def is_obstacle(cause: BaseException) -> bool:
    """Return whether no connection can be had until something is set up differently."""
    if isinstance(cause, (ConfigurationError, PasswordUnavailable)):
        return True
    return is_wrong_setup(cause) or is_login_failure(cause)


def connect_problem(cause: BaseException, address: str, user: str | None) -> ConnectProblem:
    """Classify what an attempt to connect raised.

    Args:
        cause: the exception.
        address: of the cluster, for the error text.
        user: the user name of the login, for the error text.
    """
    if isinstance(cause, GroupRefused):
        return ConnectProblem(cause, final=not cause.may_pass)
    if isinstance(cause, (NotAuthorised, ConfigurationError, ConnectFailed, UnknownTopic)):
        return ConnectProblem(cause, final=True)
    if isinstance(cause, TransportError):
        return ConnectProblem(cause, final=False)
    if isinstance(cause, LoginMissing):
        text = (
            f"the cluster at {address} requires a login: give username and password, and one of"
            f" its mechanisms as sasl_mechanism: {quoted(', '.join(cause.mechanisms))}"
        )
        return ConnectProblem(NotAuthorised(text), final=True)
    if isinstance(cause, WrongLoginAnswer):
        text = (
            f"what answers at {address} does not prove that it knows the password of {user!r}, as a"
            f" broker does: {quoted(cause.words, _LONGEST_WORDS)}; check the address, and use TLS"
        )
        return ConnectProblem(NotAuthorised(text), final=True)
    if isinstance(cause, TokenRefused):
        text = (
            f"the cluster at {address} refused the token of the login, in its words"
            f" {quoted(cause.words, _LONGEST_WORDS)}; check where it comes from, and that it is"
            " for this cluster and has not expired"
        )
        return ConnectProblem(NotAuthorised(text), final=True)
    if isinstance(cause, _LOGIN_REFUSED):
        who = f"user {user!r}" if user is not None else "a client without a user name"
        text = (
            f"the cluster at {address} refused the login of {who}: {describe(cause)};"
            " check the options username, password and sasl_mechanism"
        )
        return ConnectProblem(NotAuthorised(text), final=True)
    if isinstance(cause, _FORBIDDEN):
        return ConnectProblem(translate(cause, f"the cluster at {address} refused"), final=True)
    text = f"no connection to the cluster at {address}: {describe(cause)}"
    return ConnectProblem(ConnectFailed(text), final=is_wrong_setup(cause))


def error_for(code: int) -> kafka.BrokerResponseError:
    """Return the error for a broker's error code, even if the library has no name for it."""
    for kind in (InvalidRecordError, UnsupportedCompressionError):
        if kind.errno == code:
            return kind()
    known = kafka.for_code(code)
    return known() if known.errno == code else UnknownAnswerError(code)


def publish_refusal(cause: BaseException, topic: str, *, keyless: bool = False) -> TransportError:
    """Return the error for a publish that the cluster refused for good.

    Args:
        cause: the library's error.
        topic: the address published to.
        keyless: whether the message has no key.
    """
    text = f"the cluster refused the publish to {topic!r}: {describe(cause)}"
    if keyless and isinstance(cause, (InvalidRecordError, kafka.CorruptRecordException)):
        return PublishRefused(f"{text}: if it is compacted, every message needs a key=")
    if isinstance(cause, _FORBIDDEN):
        return NotAuthorised(f"{text}; allow it in the cluster's access rules")
    if isinstance(cause, (kafka.MessageSizeTooLargeError, kafka.RecordListTooLargeError)):
        return MessageTooLarge(f"{text}: send less, or raise the limit of the topic")
    if isinstance(cause, (kafka.UnknownTopicOrPartitionError, kafka.InvalidTopicError)):
        return UnknownTopic(f"{text}; create it, or give create_topics='all'")
    return PublishRefused(text)
