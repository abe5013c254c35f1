"""The Kafka transport."""

from __future__ import annotations

from ._config import KafkaConfig, KafkaTopic
from ._provider import KafkaProvider

__all__ = ["KafkaConfig", "KafkaProvider", "KafkaTopic"]
