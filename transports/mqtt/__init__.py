"""MQTT 5 brokers."""

from __future__ import annotations

from ._config import MqttConfig
from ._provider import MqttProvider

__all__ = ["MqttConfig", "MqttProvider"]
