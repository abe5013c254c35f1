"""Applications, their actors' handlers, sockets and requests: what joins actors and transports."""

from __future__ import annotations

from .application._application import DistributedApplication
from .application._program import run
from .diagnostics._health import ActorHealth, ConnectionHealth, Health, StalledCall
from .diagnostics._stop_report import StoppedActor, StopReport
from .injection._handler_context import Context
from .messaging._carried_headers import carried_headers
from .messaging._forgotten_awaits import report_forgotten_awaits
from .messaging._message import Message
from .messaging._middleware import CallOutcome, HandlerCall, Middleware, Outgoing
from .messaging._outgoing_message import MessageBuilder, PublishOptions
from .messaging._socket import Socket
from .messaging._sync_socket import SyncSocket
from .messaging._typed_topic import Topic
from .options._custom_codecs import Codec
from .options._resources import SupportedContextManagers
from .options._retry_policy import Reject, Retry, RetryPolicy
from .registration._specs import Spec
from .registration._typed_handlers import on

__all__ = [
    "ActorHealth",
    "CallOutcome",
    "Codec",
    "ConnectionHealth",
    "Context",
    "DistributedApplication",
    "HandlerCall",
    "Health",
    "Message",
    "MessageBuilder",
    "Middleware",
    "Outgoing",
    "PublishOptions",
    "Reject",
    "Retry",
    "RetryPolicy",
    "Socket",
    "Spec",
    "StalledCall",
    "StopReport",
    "StoppedActor",
    "SupportedContextManagers",
    "SyncSocket",
    "Topic",
    "carried_headers",
    "on",
    "run",
]

report_forgotten_awaits()
