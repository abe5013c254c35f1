"""The MQTT transport, for MQTT 5 brokers."""

from __future__ import annotations

from ._config import MqttConfig
from ._last_will import LastWill
from ._message_checks import check_filter, check_message, check_topic
from ._provider import MqttProvider
from .protocol._packets import as_taken

__all__ = [
    "LastWill",
    "MqttConfig",
    "MqttProvider",
    "as_taken",
    "check_filter",
    "check_message",
    "check_topic",
]
