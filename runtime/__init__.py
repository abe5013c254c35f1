"""Applications, their actors' handlers, sockets and requests: what joins actors and transports."""

from __future__ import annotations

from ._application import DistributedApplication
from ._context import Context
from ._message import Message, MessageBuilder
from ._resources import SupportedContextManagers
from ._retry import Reject, Retry, RetryPolicy
from ._running import run
from ._socket import Socket
from ._specs import Spec
from ._sync_socket import SyncSocket

__all__ = [
    "Context",
    "DistributedApplication",
    "Message",
    "MessageBuilder",
    "Reject",
    "Retry",
    "RetryPolicy",
    "Socket",
    "Spec",
    "SupportedContextManagers",
    "SyncSocket",
    "run",
]
