"""An actor runtime for message applications over MQTT and Kafka.

The package is arranged in three parts: ``actors`` knows nothing of brokers, ``transports`` nothing
of actors, and ``runtime`` joins them. What is named here is the public interface, together with
the module ``spa_dat.errors``.
"""

from __future__ import annotations

from .actors import Actor, ActorRef, Overflow, RestartPolicy, on
from .errors import RemoteError, SpaDatError
from .runtime import (
    Context,
    DistributedApplication,
    Message,
    MessageBuilder,
    Reject,
    Retry,
    RetryPolicy,
    Socket,
    Spec,
    SupportedContextManagers,
    SyncSocket,
    run,
)
from .transports import (
    KafkaConfig,
    KafkaTopic,
    MemoryConfig,
    MqttConfig,
    SocketProvider,
    SocketProviderFactory,
)

__all__ = [
    "Actor",
    "ActorRef",
    "Context",
    "DistributedApplication",
    "KafkaConfig",
    "KafkaTopic",
    "MemoryConfig",
    "Message",
    "MessageBuilder",
    "MqttConfig",
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
    "SupportedContextManagers",
    "SyncSocket",
    "on",
    "run",
]
