"""Reason codes: what brokers report, as text, and what is done about it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from aiomqtt.exceptions import (
    MqttCodeError,
    MqttConnectError,
    MqttError,
    MqttReentrantError,
)
from paho.mqtt import MQTTException
from paho.mqtt.reasoncodes import ReasonCode

from ...._texts import quoted
from ....errors import (
    ConfigurationError,
    ConnectFailed,
    ConnectionLost,
    MessageTooLarge,
    NotAuthorised,
    PublishRefused,
    SpaDatError,
    TransportError,
)
from ..._connect_failures import (
    ConnectProblem,
    describe_failure,
    is_wrong_setup,
    not_outage,
)
from ._packets import MalformedPacket

__all__ = [
    "ANSWERS",
    "NO_SUBSCRIBERS",
    "PACKET_TOO_LARGE",
    "SESSION_TAKEN_OVER",
    "TOPIC_ALIAS_INVALID",
    "TRANSLATIONS",
    "Answer",
    "BrokerReason",
    "Decision",
    "LoginRefused",
    "NotAdmitted",
    "NotAnswered",
    "OtherProtocol",
    "Packet",
    "WrongVersion",
    "answer_to",
    "connect_problem",
    "describe",
    "publish_refusal",
    "reason_text",
    "subscribe_refusal",
    "translate",
]

NO_SUBSCRIBERS = 0x10
SESSION_TAKEN_OVER = 0x8E
TOPIC_ALIAS_INVALID = 0x94
PACKET_TOO_LARGE = 0x95

_LONGEST_WORDS = 300

_NAMES = {
    0x00: "no reason given",
    0x80: "unspecified error",
    0x81: "malformed packet",
    0x82: "protocol error",
    0x83: "implementation specific error",
    0x84: "unsupported protocol version",
    0x85: "client identifier not valid",
    0x86: "bad user name or password",
    0x87: "not authorised",
    0x88: "server unavailable",
    0x89: "server busy",
    0x8A: "banned",
    0x8B: "server shutting down",
    0x8C: "bad authentication method",
    0x8D: "keep alive timeout",
    0x8E: "session taken over",
    0x8F: "topic filter invalid",
    0x90: "topic name invalid",
    0x91: "packet identifier in use",
    0x93: "receive maximum exceeded",
    TOPIC_ALIAS_INVALID: "topic alias invalid",
    0x95: "packet too large",
    0x96: "message rate too high",
    0x97: "quota exceeded",
    0x98: "administrative action",
    0x99: "payload format invalid",
    0x9A: "retain not supported",
    0x9B: "QoS not supported",
    0x9C: "use another server",
    0x9D: "server moved",
    0x9E: "shared subscriptions not supported",
    0x9F: "connection rate exceeded",
    0xA0: "maximum connect time",
    0xA1: "subscription identifiers not supported",
    0xA2: "wildcard subscriptions not supported",
}


class Packet(Enum):
    """The packets of a broker that carry a reason code."""

    CONNACK = "CONNACK"
    PUBACK = "PUBACK"
    SUBACK = "SUBACK"
    UNSUBACK = "UNSUBACK"
    DISCONNECT = "DISCONNECT"


class Decision(Enum):
    """What to do about a reason code.

    Nothing; retry after the backoff or after the longest one; or treat it as final for the message,
    the subscription or the application.
    """

    FINE = "fine"
    RETRY = "again"
    LATER = "again, later"
    MESSAGE = "message"
    SUBSCRIPTION = "subscription"
    APPLICATION = "application"


@dataclass(frozen=True)
class Answer:
    """The consequence of a reason code in a packet.

    Attributes:
        decision: what is done.
        error: raised to whoever waits for the outcome, if it comes to that.
        advice: what to do about it, for the error; empty if the code says it all.
    """

    decision: Decision
    error: type[SpaDatError] | None = None
    advice: str = ""


_FINE = Answer(Decision.FINE)
_RULES = "allow it in the broker's access rules"
_LOGIN = Answer(Decision.APPLICATION, NotAuthorised, "check the options username and password")
_NO_WILL = Answer(
    Decision.APPLICATION, ConnectFailed, "it says so of the last will: change the option will"
)
_NO_RIGHT = Answer(
    Decision.APPLICATION,
    NotAuthorised,
    f"{_LOGIN.advice}, and whether the broker allows this client identifier (in Mosquitto"
    " clientid_prefixes)",
)
_NO_START = Answer(Decision.APPLICATION, ConnectFailed)
_RETRY = Answer(Decision.RETRY, ConnectFailed)
_LATER = Answer(Decision.LATER, ConnectFailed)
_COMES_BACK = Answer(Decision.RETRY, ConnectionLost)
_COMES_BACK_LATER = Answer(Decision.LATER, ConnectionLost)
_NO_MESSAGE = Answer(Decision.MESSAGE, PublishRefused)
_NO_FILTER = Answer(Decision.SUBSCRIPTION, ConnectFailed)
_NO_SHARING = Answer(
    Decision.SUBSCRIPTION, ConnectFailed, "give deliver='all', or use another broker"
)
_NO_WILDCARDS = Answer(
    Decision.SUBSCRIPTION, ConnectFailed, "name the topics without + and #, or use another broker"
)

ANSWERS: dict[Packet, dict[int, Answer]] = {
    Packet.CONNACK: {
        0x00: _FINE,
        **dict.fromkeys((0x80, 0x83, 0x88, 0x89), _RETRY),
        **dict.fromkeys((0x97, 0x9C, 0x9F), _LATER),
        **dict.fromkeys((0x86, 0x8A, 0x8C), _LOGIN),
        0x87: _NO_RIGHT,
        **dict.fromkeys((0x81, 0x82, 0x95), _NO_START),
        **dict.fromkeys((0x90, 0x99, 0x9A, 0x9B), _NO_WILL),
        0x84: Answer(
            Decision.APPLICATION,
            ConnectFailed,
            "it does not speak MQTT 5, which is needed: use a broker that does",
        ),
        0x85: Answer(
            Decision.APPLICATION,
            ConnectFailed,
            "the client identifier consists of the names of application, instance and actor: choose"
            " others",
        ),
        0x9D: Answer(Decision.APPLICATION, ConnectFailed, "give the address to which it has moved"),
    },
    Packet.PUBACK: {
        **dict.fromkeys((0x00, NO_SUBSCRIBERS), _FINE),
        **dict.fromkeys((0x91, 0x97), Answer(Decision.RETRY)),
        **dict.fromkeys((0x80, 0x83, 0x90, 0x99), _NO_MESSAGE),
        0x87: Answer(Decision.MESSAGE, NotAuthorised, _RULES),
        # Not in the standard, but Mosquitto sends it.
        PACKET_TOO_LARGE: Answer(
            Decision.MESSAGE,
            MessageTooLarge,
            "send less, or raise the limit of the broker (in Mosquitto message_size_limit)",
        ),
    },
    Packet.SUBACK: {
        **dict.fromkeys((0x00, 0x01, 0x02), _FINE),
        **dict.fromkeys((0x91, 0x97), _COMES_BACK),
        **dict.fromkeys((0x80, 0x83, 0x8F, 0xA1), _NO_FILTER),
        0x87: Answer(Decision.SUBSCRIPTION, NotAuthorised, _RULES),
        0x9E: _NO_SHARING,
        0xA2: _NO_WILDCARDS,
    },
    Packet.UNSUBACK: {
        **dict.fromkeys((0x00, 0x11), _FINE),
        **dict.fromkeys((0x80, 0x83, 0x87, 0x8F, 0x91), Answer(Decision.RETRY)),
    },
    Packet.DISCONNECT: {
        **dict.fromkeys((0x00, 0x80, 0x81, 0x82, 0x83, 0x87, 0x8B), _COMES_BACK),
        **dict.fromkeys((0x8C, 0x8D, 0x93, TOPIC_ALIAS_INVALID, 0x98, 0xA0), _COMES_BACK),
        **dict.fromkeys((0x89, 0x96, 0x97, 0x9C, 0x9D, 0x9F), _COMES_BACK_LATER),
        **dict.fromkeys((0x90, 0x95, 0x99, 0x9A, 0x9B), _NO_MESSAGE),
        **dict.fromkeys((0x8F, 0xA1), _NO_FILTER),
        0x9E: _NO_SHARING,
        0xA2: _NO_WILDCARDS,
        SESSION_TAKEN_OVER: Answer(
            Decision.APPLICATION,
            ConfigurationError,
            "give every copy of the application its own instance (instance=..., or"
            " SPA_DAT_INSTANCE)",
        ),
    },
}
"""The decision for every reason code that MQTT 5 allows a broker in each packet, and one more, as
shown in ``docs/mqtt.md``. Until an application has started, what is final for it fails the start;
later only `SESSION_TAKEN_OVER` can end it, and everything else is retried."""

_UNKNOWN: dict[Packet, Answer] = {
    Packet.CONNACK: _NO_START,
    Packet.PUBACK: _NO_MESSAGE,
    Packet.SUBACK: _NO_FILTER,
    Packet.UNSUBACK: Answer(Decision.RETRY),
    Packet.DISCONNECT: _COMES_BACK,
}

TRANSLATIONS: tuple[tuple[type[BaseException], type[TransportError]], ...] = (
    (MqttConnectError, ConnectFailed),
    (MqttReentrantError, ConnectionLost),
    (MqttCodeError, ConnectionLost),
    (MqttError, ConnectionLost),
    (MQTTException, ConnectionLost),
    (MalformedPacket, ConnectionLost),
    (OSError, ConnectionLost),
)
"""Third-party exceptions and what they become, the most specific first."""


class BrokerReason(int):
    """A reason code, with whatever else the broker said about it.

    Attributes:
        words: its Reason String; empty without one.
        server: its Server Reference; empty without one.
    """

    words: str
    server: str

    def __new__(cls, code: int, words: str = "", server: str = "") -> BrokerReason:
        self = super().__new__(cls, code)
        self.words = words
        self.server = server
        return self

    @classmethod
    def of(cls, code: int, properties: Mapping[int, int | str]) -> BrokerReason:
        """Return a code with what the properties of its packet say."""
        return cls(code, str(properties.get(0x1F, "")), str(properties.get(0x1C, "")))


class LoginRefused(Exception):
    """The broker refused a CONNECT."""

    def __init__(self, reason: BrokerReason) -> None:
        super().__init__(reason_text(reason))
        self.reason = reason


class NotAnswered(MqttError):
    """The broker closed a connection without answering its CONNECT."""


class NotAdmitted(NotAnswered):
    """The broker closes connections before they are accepted, for a reason that could be found."""


class OtherProtocol(MalformedPacket):
    """What answers does not speak MQTT."""


class WrongVersion(MalformedPacket):
    """The broker speaks an older version of MQTT."""


def answer_to(packet: Packet, code: int) -> Answer:
    """Return the decision for a reason code; one not listed by MQTT 5 counts as unspecified."""
    known = ANSWERS[packet].get(int(code))
    if known is not None:
        return known
    return _UNKNOWN[packet] if code >= 0x80 else _FINE


def reason_text(code: int) -> str:
    """Return an MQTT 5 reason code as text, with its number and what the broker says about it."""
    text = f"{_NAMES.get(code, 'unknown reason')} ({code:#04x})"
    if isinstance(code, BrokerReason):
        if code.words:
            text += f", in the broker's words {quoted(code.words, _LONGEST_WORDS)}"
        if code.server:
            text += f", it refers to the server {quoted(code.server, _LONGEST_WORDS)}"
    return text


def translate(cause: BaseException, what: str) -> TransportError:
    """Return this package's error for one of the libraries, to be raised ``from`` it.

    Args:
        cause: what was raised there.
        what: what was being done, for the error text.
    """
    for kind, error in TRANSLATIONS:
        if isinstance(cause, kind):
            return error(f"{what}: {describe(cause)}")
    return ConnectionLost(f"{what}: {describe(cause)}")


def describe(cause: BaseException) -> str:
    """Describe an exception of a library in one line."""
    code = getattr(cause, "rc", None)
    if isinstance(code, ReasonCode):
        return reason_text(code.value)
    return describe_failure(cause)


def connect_problem(
    cause: BaseException,
    address: str,
    identifier: str,
    user: str | None,
    password_source: str | None = None,
) -> ConnectProblem:
    """Classify what an attempt to connect raised.

    Args:
        cause: the exception.
        address: of the broker, for the error text.
        identifier: the client identifier, for the error text.
        user: the user name of the login, for the error text.
        password_source: the file or document that the password was read from, for the error text;
            None if it was given in another way.
    """
    if isinstance(cause, (NotAuthorised, ConfigurationError, ConnectFailed)):
        return ConnectProblem(cause, final=True)
    if isinstance(cause, TransportError):
        return ConnectProblem(cause, final=False)
    reason = _reason_of(cause)
    said = describe(cause) if isinstance(cause, WrongVersion) else reason_text(reason or 0)
    if reason is None:
        text = f"no connection to the broker at {address}: {describe(cause)}"
        return ConnectProblem(
            ConnectFailed(text), final=is_wrong_setup(cause) or isinstance(cause, OtherProtocol)
        )
    answer = answer_to(Packet.CONNACK, reason)
    if answer.error is NotAuthorised:
        who = f"user {user!r}" if user is not None else "a client without a user name"
        text = (
            f"the broker at {address} refused the login of {who} with client identifier"
            f" {identifier!r}: {said}; {answer.advice}"
        )
        if password_source is not None:
            text += f"; the password is from {password_source}"
    else:
        text = f"no connection of {identifier!r} to the broker at {address}: {said}"
        text += f"; {answer.advice}" if answer.advice else ""
    kind = answer.error or ConnectFailed
    return ConnectProblem(
        kind(text),
        final=answer.decision is Decision.APPLICATION,
        later=answer.decision is Decision.LATER,
    )


def _reason_of(cause: BaseException) -> BrokerReason | None:
    if isinstance(cause, LoginRefused):
        return cause.reason
    if isinstance(cause, WrongVersion):
        return BrokerReason(0x84)
    code = getattr(cause, "rc", None)
    return BrokerReason(code.value) if isinstance(code, ReasonCode) else None


def subscribe_refusal(code: int, pattern: str) -> SpaDatError:
    """Return the error for a refused filter: an outage only if the broker may grant it later."""
    refusal = _refusal(Packet.SUBACK, code, f"the subscription to {pattern!r}", ConnectFailed)
    return not_outage(refusal) if isinstance(refusal, ConnectFailed) else refusal


def publish_refusal(code: int, topic: str) -> SpaDatError:
    """Return the error for a publish that the broker refused."""
    return _refusal(Packet.PUBACK, code, f"the publish to {topic!r}", PublishRefused)


def _refusal(packet: Packet, code: int, what: str, default: type[TransportError]) -> SpaDatError:
    answer = answer_to(packet, code)
    text = f"the broker refused {what}: {reason_text(code)}"
    if answer.advice:
        text += f"; {answer.advice}"
    return (answer.error or default)(text)
