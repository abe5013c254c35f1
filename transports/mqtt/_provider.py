"""The provider of the MQTT transport."""

from __future__ import annotations

import asyncio

from .._broker_config import check_login
from .._contract import Bus, SocketProvider, Surroundings
from .._envelope import Envelope
from .._wire_formats import WIRES, WireName
from ._config import MqttConfig
from ._message_checks import check_filter, check_message, check_topic

__all__ = ["MqttProvider"]


class MqttProvider(SocketProvider):
    """Connects applications to an MQTT 5 broker.

    Args:
        config: the configuration.
    """

    config: MqttConfig
    wires: tuple[WireName, ...] = WIRES

    def __init__(self, config: MqttConfig) -> None:
        check_login(config)
        self.config: MqttConfig = config
        self.default_qos: int = config.qos
        self.default_window: int = config.window
        self.default_window_bytes: int = config.window_bytes

    @property
    def address(self) -> str:
        return self.config.address

    def open(self, surroundings: Surroundings) -> Bus:
        """Return a bus, not started.

        Raises:
            ConfigurationError: the installed client libraries or the event loop are not supported.
        """
        # Importing the client libraries takes time that programs on other buses should not spend.
        from ._bus import MqttBus
        from .protocol._library_check import check_libraries, check_loop, check_websockets

        check_loop(asyncio.get_running_loop())
        check_libraries()
        if self.config.websocket_path is not None:
            check_websockets()
        return MqttBus(self.config, surroundings)

    def check_topic(self, topic: str) -> None:
        check_topic(topic)

    def check_filter(self, pattern: str) -> None:
        check_filter(pattern)

    def check_message(self, envelope: Envelope) -> None:
        check_message(envelope)

    def __repr__(self) -> str:
        return f"MqttProvider({self.address!r})"
