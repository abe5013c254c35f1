"""What brokers and the client library report, in the words of this package."""

from __future__ import annotations

import ssl

from aiomqtt.exceptions import (
    MqttCodeError,
    MqttConnectError,
    MqttError,
    MqttReentrantError,
)
from paho.mqtt import MQTTException
from paho.mqtt.reasoncodes import ReasonCode

from ...errors import (
    ConfigurationError,
    ConnectFailed,
    ConnectionLost,
    NotAuthorised,
    PublishRefused,
    TransportError,
)
from .._failures import ConnectProblem, describe_failure
from ._packets import MalformedPacket

__all__ = [
    "NO_SUBSCRIBERS",
    "SESSION_TAKEN_OVER",
    "TRANSLATIONS",
    "connect_problem",
    "publish_refusal",
    "reason_text",
    "subscribe_refusal",
    "translate",
]

NO_SUBSCRIBERS = 0x10
SESSION_TAKEN_OVER = 0x8E

_NAMES = {
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
_LOGIN_REFUSED = frozenset({0x86, 0x87, 0x8A, 0x8C})
# Anything else that a broker answers to a login does not go away by itself.
_PASSING = frozenset({0x80, 0x83, 0x88, 0x89, 0x8B, 0x96, 0x97, 0x9C, 0x9D, 0x9F})

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


def reason_text(code: int) -> str:
    """A reason code of MQTT 5 in words, with its number."""
    return f"{_NAMES.get(code, 'unknown reason')} ({code:#04x})"


def translate(cause: BaseException, what: str) -> TransportError:
    """The error of this package for one of the libraries below, to be raised ``from`` it.

    Args:
        cause: what was raised there.
        what: what was being done, for the message.
    """
    for kind, error in TRANSLATIONS:
        if isinstance(cause, kind):
            return error(f"{what}: {describe(cause)}")
    return ConnectionLost(f"{what}: {describe(cause)}")


def describe(cause: BaseException) -> str:
    """What an exception of a library below says, in one line."""
    code = getattr(cause, "rc", None)
    if isinstance(code, ReasonCode):
        return reason_text(code.value)
    return describe_failure(cause)


def connect_problem(cause: BaseException, address: str, user: str | None) -> ConnectProblem:
    """Sort out what an attempt to connect raised.

    Args:
        cause: the exception.
        address: of the broker, for the message.
        user: name used to log in, for the message.
    """
    if isinstance(cause, (NotAuthorised, ConfigurationError, ConnectFailed)):
        return ConnectProblem(cause, final=True)
    if isinstance(cause, TransportError):
        return ConnectProblem(cause, final=False)
    code = getattr(cause, "rc", None)
    number = code.value if isinstance(code, ReasonCode) else None
    if number in _LOGIN_REFUSED:
        who = f"user {user!r}" if user is not None else "a client without user name"
        text = (
            f"the broker at {address} refused the login of {who}: {reason_text(number)};"
            " check the options username and password"
        )
        return ConnectProblem(NotAuthorised(text), final=True)
    text = f"no connection to the broker at {address}: {describe(cause)}"
    final = (number is not None and number not in _PASSING) or isinstance(cause, ssl.SSLError)
    return ConnectProblem(ConnectFailed(text), final=final)


def subscribe_refusal(code: int, pattern: str) -> TransportError:
    """The error for a filter that the broker refused."""
    text = f"the broker refused the subscription to {pattern!r}: {reason_text(code)}"
    if code == 0x87:
        return NotAuthorised(f"{text}; allow it in the broker's access rules")
    return ConnectFailed(text)


def publish_refusal(code: int, topic: str) -> TransportError:
    """The error for a publish that the broker refused."""
    text = f"the broker refused the publish to {topic!r}: {reason_text(code)}"
    if code == 0x87:
        return NotAuthorised(f"{text}; allow it in the broker's access rules")
    return PublishRefused(text)
