"""Envelopes, deliveries, topics, and one folder per kind of bus. Knows nothing of actors."""

from __future__ import annotations

from ._contract import Bus, Consumer, Identity, Receiver, SocketProvider, Subscription, Surroundings
from ._credentials import Secret
from ._dead_letter_topics import (
    dead_letter_filter,
    dead_letter_name,
    dead_letter_topic,
    named_topic,
    parked,
)
from ._delivery import Delivery, DeliveryState, Tracker
from ._effective_config import Config
from ._envelope import (
    CORRELATION_ID,
    DEFAULT_TYPE,
    REPLY_HEADER,
    Envelope,
    LeftOut,
    Replayed,
    Tombstone,
    check_encodable,
    without_payload,
)
from ._factory import SocketProviderFactory, as_provider
from ._outbox import (
    DEFAULT_OUTBOX,
    DEFAULT_OUTBOX_BYTES,
    Outbox,
    OutboxEntry,
    on_failure,
    on_outcome,
    payload_too_large,
    size_of,
)
from ._reconnect import Backoff
from ._topics import (
    RESERVED,
    TopicFilter,
    TopicTrie,
    check_filter,
    check_topic,
    command_topic,
    covers,
    is_reserved,
    minimal,
    reply_prefix,
)
from ._wire_formats import opened
from .kafka import KafkaConfig, KafkaProvider, KafkaTopic
from .memory import MemoryConfig, MemoryProvider
from .mqtt import LastWill, MqttConfig, MqttProvider

__all__ = [
    "CORRELATION_ID",
    "DEFAULT_OUTBOX",
    "DEFAULT_OUTBOX_BYTES",
    "DEFAULT_TYPE",
    "REPLY_HEADER",
    "RESERVED",
    "Backoff",
    "Bus",
    "Config",
    "Consumer",
    "Delivery",
    "DeliveryState",
    "Envelope",
    "Identity",
    "KafkaConfig",
    "KafkaProvider",
    "KafkaTopic",
    "LastWill",
    "LeftOut",
    "MemoryConfig",
    "MemoryProvider",
    "MqttConfig",
    "MqttProvider",
    "Outbox",
    "OutboxEntry",
    "Receiver",
    "Replayed",
    "Secret",
    "SocketProvider",
    "SocketProviderFactory",
    "Subscription",
    "Surroundings",
    "Tombstone",
    "TopicFilter",
    "TopicTrie",
    "Tracker",
    "as_provider",
    "check_encodable",
    "check_filter",
    "check_topic",
    "command_topic",
    "covers",
    "dead_letter_filter",
    "dead_letter_name",
    "dead_letter_topic",
    "is_reserved",
    "minimal",
    "named_topic",
    "on_failure",
    "on_outcome",
    "opened",
    "parked",
    "payload_too_large",
    "reply_prefix",
    "size_of",
    "without_payload",
]
