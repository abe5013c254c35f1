"""MQTT 5 brokers."""

from __future__ import annotations

from ._config import MqttConfig
from ._large import as_taken
from ._provider import MqttProvider
from ._texts import check_filter, check_message, check_topic

__all__ = ["MqttConfig", "MqttProvider", "as_taken", "check_filter", "check_message", "check_topic"]
