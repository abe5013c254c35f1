"""`MqttConfig`: the options of the MQTT transport."""

from __future__ import annotations

import os
import re
from dataclasses import KW_ONLY, dataclass
from typing import ClassVar
from urllib.parse import quote

from ..._texts import bracketed, quoted
from ..._unknown_names import suggests_keywords
from ...errors import ConfigurationError
from .._broker_config import BrokerConfig
from .._credentials import AskForPassword
from .._url_options import Limits, check_text
from ._last_will import LastWill, will_meant

__all__ = ["MqttConfig"]

_LIMITS = {
    "port": (1, 65_535),
    "keepalive": (1, 65_535),
    "session_expiry": (0, 4_294_967_295),
    "window": (1, 65_535),
    "subscribe_batch": (1, 1_000),
    "inflight": (1, 65_535),
    "topic_aliases": (0, 65_535),
    "max_received": (1, 268_435_455),
    "qos": (0, 1),
}
_WEBSOCKET_PATH = re.compile(r"/([A-Za-z0-9._~!$&'()*+,;=:@/-]|%[0-9A-Fa-f]{2}){0,1999}")
# The address of a Unix socket has room for so many bytes on Linux.
_LONGEST_SOCKET = 107
_HOST = re.compile(r"[^\s/\\?#@%\[\]\x00-\x1f]+(%[A-Za-z0-9._~-]+)?")


@suggests_keywords
@dataclass(frozen=True)
class MqttConfig(BrokerConfig):
    """How to reach an MQTT 5 broker, and how much may be in flight with it.

    Args:
        host: name or address of the broker; IPv6 addresses with or without brackets.
        port: TCP port; by default 1883, or 8883 with ``tls``; over websockets 80, or 443.
        websocket_path: connect over websockets, with this path, for example ``/mqtt``. Needs
            ``spa-dat[websockets]``.
        unix_socket: path of the broker's Unix socket; host and port are not used then.
        keepalive: seconds between signs of life; a dead connection is noticed within twice that.
        session_expiry: seconds for which the broker keeps messages for a named application while
            it is away; 4294967295 for forever.
        window: the most deliveries of one subscription that may be unsettled at once.
        subscribe_batch: the most filters in one SUBSCRIBE or UNSUBSCRIBE packet.
        inflight: the most publishes that may be written but not confirmed at once.
        topic_aliases: the most topics that are sent as numbers after the first time, if the broker
            accepts that; 0 for none.
        max_payload: the largest payload that may be published, in bytes, and that is accepted,
            unless ``max_received`` says otherwise.
        qos: quality of service of publishes and subscriptions that specify none, 0 or 1.
        will: what the broker publishes when the application is gone; see `LastWill`, for which a
            table with the same names can be given.

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
    websocket_path: str | None = None
    unix_socket: str | None = None
    keepalive: int = 15
    session_expiry: int = 604_800
    window: int = 200
    subscribe_batch: int = 8
    inflight: int = 100
    topic_aliases: int = 0
    max_payload: int = 1_048_576
    qos: int = 1
    will: LastWill | None = None

    def __post_init__(
        self,
        password_env: str | None,
        password_file: str | None,
        password_function: AskForPassword | None,
    ) -> None:
        object.__setattr__(self, "host", _checked_host(self.host))
        object.__setattr__(self, "will", will_meant(self.will))
        self._check_qos()
        if self.will is not None and self.wire != "cloudevents":
            raise ConfigurationError(
                f"option will of MqttConfig cannot be sent with wire={quoted(self.wire)}, whose"
                " programs read nothing but their own format: leave it out, or give it to another"
                " provider"
            )
        super().__post_init__(password_env, password_file, password_function)
        self._check_way()

    @property
    def effective_port(self) -> int:
        """The TCP port to connect to."""
        if self.port is not None:
            return self.port
        if self.websocket_path is not None:
            return 443 if self.tls else 80
        return 8883 if self.tls else 1883

    @property
    def address(self) -> str:
        """The URL of the bus without user, secrets and options."""
        if self.unix_socket is not None:
            return f"mqtt+unix://{quote(self.unix_socket)}"
        host = bracketed(self.host)
        if self.websocket_path is None:
            scheme, path = "mqtt", ""
        else:
            scheme, path = "ws", self.websocket_path
        return f"{scheme}{'s' if self.tls else ''}://{host}:{self.effective_port}{path}"

    @property
    def hosts(self) -> frozenset[str]:
        """The broker's host, or the path of its Unix socket."""
        return frozenset([self.unix_socket or self.host.lower()])

    @property
    def largest_received(self) -> int:
        """The largest payload that is accepted, in bytes."""
        return self.max_received or self.max_payload

    def _check_way(self) -> None:
        path, unix = self.websocket_path, self.unix_socket
        if path is not None and not (isinstance(path, str) and _WEBSOCKET_PATH.fullmatch(path)):
            raise ConfigurationError(
                f"option websocket_path={quoted(path)} of MqttConfig: give a path that begins with"
                " '/', in the characters of a URL, for example '/mqtt'; it has no '?' and no '#'"
            )
        check_text(self, "unix_socket")
        if unix is None:
            return
        if len(os.fsencode(unix)) > _LONGEST_SOCKET:
            raise ConfigurationError(
                f"option unix_socket={quoted(unix)} of MqttConfig is longer than {_LONGEST_SOCKET}"
                " bytes, which is the most that a Unix socket may have: give a shorter path"
            )
        for option in ("port", "websocket_path", "tls"):
            if getattr(self, option):
                raise ConfigurationError(
                    f"option {option} of MqttConfig has no effect with unix_socket: leave one out"
                )

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
