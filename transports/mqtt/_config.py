"""`MqttConfig`: the options of the MQTT transport."""

from __future__ import annotations

import re
from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

from ...errors import ConfigurationError
from .._broker_config import BrokerConfig
from .._credentials import AskForPassword
from .._url_options import Limits

__all__ = ["MqttConfig"]

_LIMITS = {
    "port": (1, 65_535),
    "keepalive": (1, 65_535),
    "session_expiry": (0, 4_294_967_295),
    "window": (1, 65_535),
    "subscribe_batch": (1, 1_000),
    "inflight": (1, 65_535),
    "max_received": (1, 268_435_455),
    "qos": (0, 1),
}
_HOST = re.compile(r"[^\s/\\?#@%\[\]\x00-\x1f]+(%[A-Za-z0-9._~-]+)?")


@dataclass(frozen=True)
class MqttConfig(BrokerConfig):
    """How to reach an MQTT 5 broker, and how much may be in flight with it.

    Args:
        host: name or address of the broker; IPv6 addresses with or without brackets.
        port: TCP port; by default 1883, or 8883 with ``tls``.
        keepalive: seconds between signs of life; a dead connection is noticed within twice that.
        session_expiry: seconds for which the broker keeps messages for a named application while
            it is away; 4294967295 for forever.
        window: the most deliveries of one subscription that may be unsettled at once.
        subscribe_batch: the most filters in one SUBSCRIBE or UNSUBSCRIBE packet.
        inflight: the most publishes that may be written but not confirmed at once.
        max_payload: the largest payload that may be published, in bytes, and that is accepted,
            unless ``max_received`` says otherwise.
        qos: quality of service of publishes and subscriptions that specify none, 0 or 1.

    All others are those of `BrokerConfig`: ``username``, ``password``, ``tls``, ``backoff_min``
    and so on.

    Raises:
        ConfigurationError: an option has an invalid value, or options contradict each other.
    """

    tls_scheme: ClassVar[str] = "mqtts"
    limits: ClassVar[Limits] = {**BrokerConfig.limits, **_LIMITS}

    host: str = "localhost"
    _: KW_ONLY
    port: int | None = None
    keepalive: int = 15
    session_expiry: int = 604_800
    window: int = 200
    subscribe_batch: int = 8
    inflight: int = 100
    max_payload: int = 1_048_576
    qos: int = 1

    def __post_init__(
        self,
        password_env: str | None,
        password_file: str | None,
        password_function: AskForPassword | None,
    ) -> None:
        object.__setattr__(self, "host", _checked_host(self.host))
        self._check_qos()
        super().__post_init__(password_env, password_file, password_function)

    @property
    def effective_port(self) -> int:
        """The TCP port to connect to."""
        if self.port is not None:
            return self.port
        return 8883 if self.tls else 1883

    @property
    def address(self) -> str:
        """The URL of the bus without user, secrets and options."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'mqtts' if self.tls else 'mqtt'}://{host}:{self.effective_port}"

    @property
    def largest_received(self) -> int:
        """The largest payload that is accepted, in bytes."""
        return self.max_received or self.max_payload

    def _check_qos(self) -> None:
        if self.qos == 2 and not isinstance(self.qos, bool):
            raise ConfigurationError(
                "option qos=2 of MqttConfig: give 0 or 1. QoS 2 promises no more than QoS 1: either"
                " the receipt is confirmed before the handler has run, and a crash loses the"
                " message, or after it, and the message comes again; then message.id tells"
                " that it was handled before"
            )


def _checked_host(host: object) -> str:
    if isinstance(host, str):
        bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
        # An IPv6 address has at least two colons.
        if len(bare) <= 255 and _HOST.fullmatch(bare) and bare.count(":") != 1:
            return bare
    raise ConfigurationError(
        "option host of MqttConfig: give the name or address of a broker, for example"
        " 'localhost'; user, password and port are separate options"
    )
