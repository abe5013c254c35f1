"""Every error that the package raises deliberately.

SpaDatError
├── ConfigurationError     the program is wrong: registration, configuration, URL, topic
├── TransportError         the broker or the network
│   ├── ConnectFailed      no connection could be made
│   ├── ConnectionLost     a connection ended during an operation
│   ├── NotAuthorised      the broker refused the login or the operation
│   ├── PublishRefused     the broker answered a publish with a refusal
│   ├── PublishNotSent     a publish was given up before a byte of it was written
│   ├── PublishUnknown     a publish was written, and no confirmation came in time
│   ├── OutboxFull         too many publishes are waiting for confirmation
│   ├── MessageTooLarge    a message is over the limit of the bus
│   └── UnknownTopic       the bus does not have the topic
├── MessageError           the bytes are wrong
│   ├── DecodeError        a payload or capture does not fit the type asked for
│   └── EncodeError        a value cannot be written in the wire format
├── RequestError
│   ├── RequestTimeout     no reply came in time (also a TimeoutError)
│   ├── NoResponder        the bus says that nobody listens to the topic
│   └── RemoteError        the responder answered with an error; see its ``code``
└── ActorError
    ├── ActorStopped       the actor has stopped
    ├── MailboxFull        the mailbox has no free place
    ├── ProcessCrashed     the process of an actor has ended under a message
    ├── DeadlockDetected   the actor asked is waiting, directly or not, for the one that asks
    └── RestartLimitReached  the actor's start failed too often; it stays stopped
"""

from __future__ import annotations

from ._texts import escaped

__all__ = [
    "ActorError",
    "ActorStopped",
    "ConfigurationError",
    "ConnectFailed",
    "ConnectionLost",
    "DeadlockDetected",
    "DecodeError",
    "EncodeError",
    "MailboxFull",
    "MessageError",
    "MessageTooLarge",
    "NoResponder",
    "NotAuthorised",
    "NotHere",
    "OutboxFull",
    "ProcessCrashed",
    "PublishNotSent",
    "PublishRefused",
    "PublishUnknown",
    "RemoteError",
    "RequestError",
    "RequestTimeout",
    "RestartLimitReached",
    "SpaDatError",
    "StateConflict",
    "StateLost",
    "StateNotWritten",
    "StateUnreadable",
    "TransportError",
    "UnknownTopic",
]


class SpaDatError(Exception):
    """Base of every error that this package raises deliberately."""


class ConfigurationError(SpaDatError):
    """The program is wrong: a registration, a configuration, a URL, a topic or a filter."""


class TransportError(SpaDatError):
    """The broker or the network did not do what was asked.

    Attributes:
        outage: whether it happened because there was no connection. A handler that fails over
            an outage is called again however often that happens; anything else is a failure of
            the handler. None if the transport does not say.
    """

    outage: bool | None = None


class StateNotWritten(TransportError):
    """The state of a durable key could not be read or written: the disk is full, or has failed.

    Nothing was written. The message is handled again until it can be.
    """

    outage: bool | None = True


class StateLost(TransportError):
    """It is unknown whether what was written would survive. The application ends with it."""

    outage: bool | None = False


class StateConflict(TransportError):
    """Somebody else has changed what is kept of a durable key since it was loaded.

    Nothing was written. The state is loaded again, and the message is handled again.
    """

    outage: bool | None = True


class StateUnreadable(TransportError):
    """What is kept of a durable key cannot be read with this version of the program.

    It is left as it is, the message stays with the bus, and the actor stops.
    """

    outage: bool | None = True


class ConnectFailed(TransportError):
    """No connection could be made."""

    outage: bool | None = True


class ConnectionLost(TransportError):
    """The connection ended while an operation needed it."""

    outage: bool | None = True


class NotAuthorised(TransportError):
    """The broker refused the login, the subscription or the publish. Retrying does not help."""


class PublishRefused(TransportError):
    """The broker refused the publish. Retrying does not help."""


class PublishNotSent(TransportError):
    """The publish was given up before any of it was written: nobody has received it."""


class PublishUnknown(TransportError):
    """The publish was written, and no confirmation came: it may or may not have been received."""


class OutboxFull(TransportError):
    """Too many publishes are waiting for the broker's confirmation, or in memory for an actor."""


class MessageTooLarge(TransportError):
    """The message is over the size limit of the bus."""


class UnknownTopic(TransportError):
    """The bus does not have the topic and is not allowed to create it."""


class MessageError(SpaDatError):
    """The bytes of a message are wrong."""


class DecodeError(MessageError):
    """A payload or a topic capture does not fit the type that the handler asked for."""


class EncodeError(MessageError):
    """A value cannot be written in the wire format."""


class RequestError(SpaDatError):
    """A request got no usable reply."""


class RequestTimeout(RequestError, TimeoutError):
    """No reply came in time. The responder may still have done the work.

    Attributes:
        outage: whether there was no connection at some point meanwhile.
    """

    outage: bool | None = False


class NoResponder(RequestError):
    """The bus says that nobody is subscribed to the topic of the request."""


class RemoteError(RequestError):
    """The responder answered with an error.

    Attributes:
        code: what kind of error; an open set. The runtime of the responder sends ``bad-request``,
            ``failed``, ``rejected``, ``crashed`` and ``deadlock``, or the code of a RemoteError
            that the handler raised; the requester's own makes ``reply-too-large`` and
            ``too-many-replies``.
        text: the responder's words.
    """

    def __init__(self, code: str, text: str) -> None:
        # Both come from somebody else, and logs show this text.
        super().__init__(f"{escaped(str(code), 100)}: {escaped(str(text))}")
        self.code = code
        self.text = text


class ActorError(SpaDatError):
    """An actor could not take or handle a message."""


class ActorStopped(ActorError):
    """The actor has stopped, or stopped before it handled the message."""


class NotHere(ActorError):
    """The state of a durable key was asked for where its actor is not running."""


class MailboxFull(ActorError):
    """The mailbox is full; ``await ref.send(...)`` waits for room."""


class DeadlockDetected(ActorError):
    """The actor that is asked is already waiting, directly or not, for the one that asks."""


class ProcessCrashed(ActorError):
    """The process of an actor with ``placement="process"`` ended while it handled a message."""


class RestartLimitReached(ActorError):
    """The actor's start failed more often than its restart policy allows; it stays stopped."""
