"""The provider of the Kafka transport."""

from __future__ import annotations

from typing import Literal

from .._broker_config import check_login
from .._contract import Bus, SocketProvider, Surroundings
from .._envelope import Envelope
from .._wire_formats import WIRES, WireName
from ._config import KafkaConfig
from ._records import check_message
from ._topic_names import Names

__all__ = ["KafkaProvider"]


class KafkaProvider(SocketProvider):
    """Connects applications to a Kafka cluster.

    Args:
        config: the configuration.
    """

    config: KafkaConfig
    wires: tuple[WireName, ...] = WIRES
    default_deliver: Literal["share", "all"] = "share"
    keeps_history = True
    has_transactions = True
    null_headers = True

    def __init__(self, config: KafkaConfig) -> None:
        check_login(config)
        self.config: KafkaConfig = config
        self.default_qos: int = config.qos
        self.default_window: int = config.window
        self.default_window_bytes: int = config.window_bytes
        self._names = Names(config)

    @property
    def address(self) -> str:
        return self.config.address

    def open(self, surroundings: Surroundings) -> Bus:
        """Return a bus, not started.

        Raises:
            ConfigurationError: the installed client library is not supported.
        """
        # Importing the client library takes a tenth of a second that programs on other buses
        # should not spend.
        from ._aiokafka_private import check_libraries
        from ._bus import KafkaBus

        check_libraries()
        return KafkaBus(self.config, self._names, surroundings)

    def check_topic(self, topic: str) -> None:
        self._names.destination(topic)

    def check_filter(self, pattern: str) -> None:
        self._names.check_filter(pattern)

    def check_message(self, envelope: Envelope) -> None:
        self._names.destination(envelope.topic)
        if envelope.response_topic is not None:
            self._names.destination(envelope.response_topic)
        check_message(envelope)

    def __repr__(self) -> str:
        return f"KafkaProvider({self.address!r})"
