"""Options of the MQTT transport."""

from __future__ import annotations

import re
from dataclasses import KW_ONLY, InitVar, dataclass

from ...errors import ConfigurationError
from .._contract import DEFAULT_WINDOW_BYTES
from .._credentials import PasswordFile, Secret, as_secret, password_from
from .._options import check_flag, check_numbers, check_text
from .._outbox import DEFAULT_OUTBOX_BYTES

__all__ = ["MqttConfig"]

_WHOLE = {
    "keepalive": (1, 65_535),
    "session_expiry": (0, 4_294_967_295),
    "window": (1, 65_535),
    "subscribe_batch": (1, 1_000),
    "inflight": (1, 65_535),
    "outbox": (1, 10_000_000),
    "window_bytes": (1, 2**40),
    "outbox_bytes": (1, 2**40),
    "max_payload": (1, 268_435_455),
}
_SECONDS = {
    "connect_timeout": (0.001, 3_600),
    "start_timeout": (0.001, 86_400),
    "backoff_min": (0.001, 3_600),
    "backoff_max": (0.001, 86_400),
}
_HOST = re.compile(r"[^\s/\\?#@%\[\]\x00-\x1f]+(%[A-Za-z0-9._~-]+)?")
_TLS_FILES = ("tls_ca", "tls_cert", "tls_key")


@dataclass(frozen=True)
class MqttConfig:
    """How to reach an MQTT 5 broker, and how much may be under way with it.

    Args:
        host: name or address of the broker; IPv6 addresses with or without brackets.
        port: TCP port; 1883 when not given, 8883 with ``tls``.
        username: who logs in.
        password: with what; kept as a `Secret`.
        password_env: take the password from the environment variable of this name.
        password_file: take the password from the first line of this file, each time it is
            needed: so it may be changed while the application runs.
        tls: encrypt the connection (TLS 1.2 or newer) and check the broker's certificate.
        tls_ca: file with the certificates to trust, PEM; the system's when not given.
        tls_cert: file with our own certificate, PEM.
        tls_key: file with its private key, PEM; when not given it is in ``tls_cert``.
        tls_key_password: what the private key is encrypted with; kept as a `Secret`.
        tls_insecure_skip_verification: accept any certificate. Anybody on the way can then read
            and change everything.
        keepalive: seconds between signs of life; a dead connection is noticed within two of them.
        session_expiry: seconds for which the broker keeps what arrives for a named application
            while it is away; 4294967295 for ever.
        connect_timeout: seconds for one attempt to connect.
        start_timeout: seconds for which the first connection is tried.
        window: the most deliveries of one subscription that may be unsettled at once.
        window_bytes: the most bytes of them; one message that takes more goes through alone.
        subscribe_batch: the most filters in one packet that subscribes or unsubscribes.
        inflight: the most publishes that may be written and not confirmed at once.
        outbox: the most publishes that may wait for confirmation at once.
        outbox_bytes: the most bytes of them; one message that takes more may wait alone.
        max_payload: the largest payload that may be published, in bytes.
        max_received: the largest payload that is taken, in bytes. A larger one is a dead letter
            without payload, or refused where it came with a request. None for ``max_payload``.
        qos: quality of service of publishes and subscriptions that name none, 0 or 1.
        backoff_min: seconds before the first attempt to reconnect, before jitter.
        backoff_max: the most seconds between two attempts to reconnect.

    Raises:
        ConfigurationError: an option has a value that cannot be, or options contradict.
    """

    host: str = "localhost"
    _: KW_ONLY
    port: int | None = None
    username: str | None = None
    password: Secret | str | None = None
    password_env: InitVar[str | None] = None
    password_file: InitVar[str | None] = None
    tls: bool = False
    tls_ca: str | None = None
    tls_cert: str | None = None
    tls_key: str | None = None
    tls_key_password: Secret | str | None = None
    tls_insecure_skip_verification: bool = False
    keepalive: int = 15
    session_expiry: int = 604_800
    connect_timeout: float = 5.0
    start_timeout: float = 10.0
    window: int = 200
    window_bytes: int = DEFAULT_WINDOW_BYTES
    subscribe_batch: int = 8
    inflight: int = 100
    outbox: int = 10_000
    outbox_bytes: int = DEFAULT_OUTBOX_BYTES
    max_payload: int = 1_048_576
    max_received: int | None = None
    qos: int = 1
    backoff_min: float = 0.1
    backoff_max: float = 10.0

    def __post_init__(self, password_env: str | None, password_file: str | None) -> None:
        object.__setattr__(self, "host", _checked_host(self.host))
        object.__setattr__(
            self, "password", password_from(self, self.password, password_env, password_file)
        )
        object.__setattr__(
            self, "tls_key_password", as_secret(self, "tls_key_password", self.tls_key_password)
        )
        if self.port is not None:
            check_numbers(self, {"port": (1, 65_535)}, whole=True)
        check_numbers(self, _WHOLE, whole=True)
        if self.max_received is not None:
            check_numbers(self, {"max_received": (1, 268_435_455)}, whole=True)
        check_numbers(self, _SECONDS, whole=False)
        self._check_qos()
        self._check_tls()
        check_text(self, "username")
        if self.backoff_max < self.backoff_min:
            raise ConfigurationError(
                f"option backoff_max={self.backoff_max} of MqttConfig:"
                f" give at least backoff_min, which is {self.backoff_min}"
            )

    @property
    def effective_port(self) -> int:
        """The TCP port to connect to."""
        if self.port is not None:
            return self.port
        return 8883 if self.tls else 1883

    @property
    def address(self) -> str:
        """The bus as a URL without user, secrets and options."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'mqtts' if self.tls else 'mqtt'}://{host}:{self.effective_port}"

    @property
    def secret(self) -> Secret | None:
        """The password as a `Secret`, whatever it was given as."""
        return as_secret(self, "password", self.password)

    @property
    def largest_received(self) -> int:
        """The largest payload that is taken, in bytes."""
        return self.max_received or self.max_payload

    @property
    def password_source(self) -> str | None:
        """The file that the password comes from; None when it was given another way."""
        secret = self.secret
        return secret.file if isinstance(secret, PasswordFile) else None

    def _check_qos(self) -> None:
        if self.qos == 2 and not isinstance(self.qos, bool):
            raise ConfigurationError(
                "option qos=2 of MqttConfig: give 0 or 1. QoS 2 promises no more than QoS 1: either"
                " the receipt is confirmed before the handler has run, and a crash loses the"
                " message, or after it, and the message comes again; then message.id tells"
                " that it was handled before"
            )
        check_numbers(self, {"qos": (0, 1)}, whole=True)

    def _check_tls(self) -> None:
        for option in ("tls", "tls_insecure_skip_verification"):
            check_flag(self, option)
        for option in _TLS_FILES:
            check_text(self, option)
        if not self.tls:
            asked = [
                option
                for option in (*_TLS_FILES, "tls_key_password", "tls_insecure_skip_verification")
                if getattr(self, option)
            ]
            if asked:
                raise ConfigurationError(
                    f"option {asked[0]} of MqttConfig has no effect without TLS:"
                    " give tls=True, or write the URL with mqtts://"
                )
        if self.tls_cert is None and (self.tls_key or self.tls_key_password):
            raise ConfigurationError(
                "option tls_key or tls_key_password of MqttConfig has no effect without a"
                " certificate: give tls_cert as well"
            )


def _checked_host(host: object) -> str:
    if isinstance(host, str):
        bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
        # An IPv6 address has at least two colons.
        if len(bare) <= 255 and _HOST.fullmatch(bare) and bare.count(":") != 1:
            return bare
    raise ConfigurationError(
        "option host of MqttConfig: give the name or address of a broker, for example"
        " 'localhost'; user, password and port are options of their own"
    )
