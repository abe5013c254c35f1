"""An actor runtime for message-driven applications over MQTT and Kafka.

The package has four parts: ``actors`` knows nothing of brokers, ``transports`` nothing of actors,
``runtime`` joins them, and ``harness`` tests applications. The names in this module are the public
interface, together with those in ``spa_dat.errors``, ``spa_dat.states``, ``spa_dat.testing``,
``spa_dat.transports`` and ``spa_dat.recording``.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ._busy_threads import busy_thread
    from ._json_formatter import JsonFormatter
    from .actors import Actor, ActorRef, Overflow, RestartPolicy, on_reminder
    from .errors import RemoteError, SpaDatError
    from .runtime import (
        ActorHealth,
        CallOutcome,
        Codec,
        ConnectionHealth,
        Context,
        DistributedApplication,
        HandlerCall,
        Health,
        Message,
        MessageBuilder,
        Middleware,
        Outgoing,
        Reject,
        Retry,
        RetryPolicy,
        Socket,
        Spec,
        StalledCall,
        StoppedActor,
        StopReport,
        SupportedContextManagers,
        SyncSocket,
        Topic,
        carried_headers,
        on,
        run,
    )
    from .runtime.options._durable import Durable
    from .transports import (
        KafkaConfig,
        KafkaTopic,
        LastWill,
        MemoryConfig,
        MqttConfig,
        SocketProvider,
        SocketProviderFactory,
    )
    from .transports._outbox_options import OutboxFile

__all__ = [
    "Actor",
    "ActorHealth",
    "ActorRef",
    "CallOutcome",
    "Codec",
    "ConnectionHealth",
    "Context",
    "DistributedApplication",
    "Durable",
    "HandlerCall",
    "Health",
    "JsonFormatter",
    "KafkaConfig",
    "KafkaTopic",
    "LastWill",
    "MemoryConfig",
    "Message",
    "MessageBuilder",
    "Middleware",
    "MqttConfig",
    "OutboxFile",
    "Outgoing",
    "Overflow",
    "Reject",
    "RemoteError",
    "RestartPolicy",
    "Retry",
    "RetryPolicy",
    "Socket",
    "SocketProvider",
    "SocketProviderFactory",
    "SpaDatError",
    "Spec",
    "StalledCall",
    "StopReport",
    "StoppedActor",
    "SupportedContextManagers",
    "SyncSocket",
    "Topic",
    "busy_thread",
    "carried_headers",
    "on",
    "on_reminder",
    "run",
]

_PARTS = {
    "_busy_threads": ("busy_thread",),
    "_json_formatter": ("JsonFormatter",),
    "actors": (
        "Actor",
        "ActorRef",
        "Overflow",
        "RestartPolicy",
        "on_reminder",
    ),
    "errors": (
        "RemoteError",
        "SpaDatError",
    ),
    "runtime": (
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
    ),
    "runtime.options._durable": ("Durable",),
    "transports._outbox_options": ("OutboxFile",),
    "transports": (
        "KafkaConfig",
        "KafkaTopic",
        "LastWill",
        "MemoryConfig",
        "MqttConfig",
        "SocketProvider",
        "SocketProviderFactory",
    ),
}
__version__: str
_PART_OF = {name: part for part, names in _PARTS.items() for name in names}


if not TYPE_CHECKING:
    # Hidden from type checkers, so that they notice names that do not exist.

    def __getattr__(name: str) -> Any:
        # pytest imports the package at every start, for its plugin: unused parts must cost nothing.
        if name in _PART_OF:
            value = getattr(import_module(f".{_PART_OF[name]}", __name__), name)
        elif name in _PARTS:
            value = import_module(f".{name}", __name__)
        elif name == "__version__":
            # It stands in pyproject.toml, and nowhere else.
            value = import_module("importlib.metadata").version("spa-dat")
        else:
            advice = _advice_on(name)
            raise AttributeError(
                f"module {__name__!r} has no attribute {name!r}" + (advice and f": {advice}")
            )
        globals()[name] = value
        return value


def _advice_on(name: str) -> str:
    for advisor in ("._names_of_0_4_0", "._names_of_parts"):
        advice: str | None = import_module(advisor, __name__).advice_on_name(name)
        if advice is not None:
            return advice
    return ""


class _Advisor:
    """Is asked for modules that nothing else finds, and so for what `from` looks for in vain."""

    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> None:
        package, _, rest = name.partition(".")
        if package != __name__ or not rest:
            return
        import_module("._names_of_0_4_0", __name__).check_module(name)
        advice = _advice_on(rest)
        if advice:
            # `from` would replace the text of an AttributeError.
            raise ImportError(advice, name=__name__)


sys.meta_path.append(_Advisor)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
