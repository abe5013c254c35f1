"""`BrokerConfig`: the options shared by the configurations of all network brokers."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from dataclasses import InitVar, dataclass, field
from typing import ClassVar, Protocol, Self

from .._environment import Environment
from .._texts import quoted, unfit_character
from ..errors import ConfigurationError
from ._contract import DEFAULT_WINDOW_BYTES
from ._credentials import (
    AskForPassword,
    PasswordFile,
    PasswordFunction,
    Secret,
    as_secret,
    password_from,
)
from ._outbox import DEFAULT_OUTBOX, DEFAULT_OUTBOX_BYTES
from ._reconnect import Backoff
from ._url_options import NOT_AN_OPTION, Limits, check_choices, check_flag, check_limits, check_text
from ._wire_formats import WIRE_CHOICES

__all__ = ["BrokerConfig", "Renewal", "check_login"]

_LIMITS = {
    "outbox": (1, 10_000_000),
    "window_bytes": (1, 2**40),
    "outbox_bytes": (1, 2**40),
    "max_payload": (1, 268_435_455),
    "connect_timeout": (0.001, 3_600),
    "start_timeout": (0.001, 86_400),
    "backoff_min": (0.001, 3_600),
    "backoff_max": (0.001, 86_400),
}
_TLS_FILES = ("tls_ca", "tls_cert", "tls_key")
_ONLY_WITH_TLS = (*_TLS_FILES, "tls_key_password", "tls_insecure_skip_verification")
_LONGEST_LOGIN = 65_535


class Renewal(Protocol):
    """Where the login of a configuration is read again before each attempt to connect.

    Attributes:
        origin: where that is, for messages.
        latest: the configuration that was read last; None before the first time.
    """

    @property
    def origin(self) -> str:
        """See the class."""

    @property
    def latest(self) -> BrokerConfig | None:
        """See the class."""

    async def renew(self, patience: float) -> None:
        """Read it, within so many seconds; if that fails keep the last one, and say so."""


@dataclass(frozen=True, kw_only=True)
class BrokerConfig(abc.ABC):
    """How to log in to any broker, and how much may be in flight with it.

    Args:
        username: the user to log in as.
        password: the user's password; kept as a `Secret`.
        password_env: take the password from the environment variable of this name.
        password_file: take the password from the first line of this file each time it is needed, so
            that it may be changed while the application runs.
        password_function: a function, ``async`` or not, that returns the password, usually a token,
            whenever a connection is opened. A JSON Web Token is used again until 80 % of its time
            is over, or it is refused. What the function raises counts as an outage. Only in code,
            not in a URL.
        tls: encrypt the connection (TLS 1.2 or newer) and check the broker's certificate.
        tls_ca: PEM file with the certificates to trust; the system's if not given.
        tls_cert: PEM file with our own certificate.
        tls_key: PEM file with its private key; if not given, the key is in ``tls_cert``.
        tls_key_password: the password of the private key; kept as a `Secret`.
        tls_insecure_skip_verification: accept any certificate. Anybody in between can then
            read and change everything.
        connect_timeout: seconds for one attempt to connect.
        start_timeout: seconds for which the first connection is attempted.
        window_bytes: the most bytes of deliveries of one subscription that may be unsettled at
            once; a single larger message passes alone.
        outbox: the most publishes that may be awaiting confirmation at once.
        outbox_bytes: the most bytes of them; a single larger message may wait alone.
        max_received: the largest payload that is accepted, in bytes. A message with a larger one
            becomes a dead letter without payload; if it is a request, it is refused.
        backoff_min: seconds before the first attempt to reconnect, before jitter.
        backoff_max: the longest pause between two attempts to reconnect, in seconds.
        wire: the format of messages: ``cloudevents``, or ``spa-dat`` for that of spa-dat 0.4.0.
        renewal: for configurations from a document, which `SocketProviderFactory` makes: where the
            login is read again.

    Attributes:
        tls_scheme: the scheme of URLs with ``tls``.
        limits: the lowest and highest values of options that are numbers.
        choices: the values of options that have only a few.

    Raises:
        ConfigurationError: an option has an invalid value, or options contradict each other.
    """

    tls_scheme: ClassVar[str]
    limits: ClassVar[Limits] = _LIMITS
    choices: ClassVar[Mapping[str, tuple[str | None, ...]]] = WIRE_CHOICES

    username: str | None = None
    password: Secret | str | None = None
    password_env: InitVar[str | None] = None
    password_file: InitVar[str | None] = None
    password_function: InitVar[AskForPassword | None] = None
    tls: bool = False
    tls_ca: str | None = None
    tls_cert: str | None = None
    tls_key: str | None = None
    tls_key_password: Secret | str | None = None
    tls_insecure_skip_verification: bool = False
    connect_timeout: float = 5.0
    start_timeout: float = 10.0
    window_bytes: int = DEFAULT_WINDOW_BYTES
    outbox: int = DEFAULT_OUTBOX
    outbox_bytes: int = DEFAULT_OUTBOX_BYTES
    max_payload: int
    max_received: int | None = None
    backoff_min: float = 0.1
    backoff_max: float = 10.0
    wire: str = "cloudevents"
    renewal: Renewal | None = field(default=None, repr=False, compare=False, metadata=NOT_AN_OPTION)

    def __post_init__(
        self,
        password_env: str | None,
        password_file: str | None,
        password_function: AskForPassword | None,
    ) -> None:
        password = password_from(
            self, self.password, password_env, password_file, password_function
        )
        object.__setattr__(self, "password", password)
        object.__setattr__(
            self, "tls_key_password", as_secret(self, "tls_key_password", self.tls_key_password)
        )
        check_limits(self)
        check_text(self, "username")
        check_choices(self)
        self._check_tls()
        if self.backoff_max < self.backoff_min:
            raise ConfigurationError(
                f"option backoff_max={self.backoff_max} of {type(self).__name__}:"
                f" give at least backoff_min, which is {self.backoff_min}"
            )

    @property
    @abc.abstractmethod
    def hosts(self) -> frozenset[str]:
        """Names or addresses of the brokers, or the path of a Unix socket."""

    @property
    def secret(self) -> Secret | None:
        """The password as a `Secret`, however it was given."""
        return as_secret(self, "password", self.password)

    @property
    def password_source(self) -> str | None:
        """The file or document that the password comes from; None if it was given in another way.

        It is a text for errors.
        """
        secret = self.secret
        if isinstance(secret, PasswordFile):
            return f"the file {secret.file!r}"
        if secret is not None and self.renewal is not None:
            return self.renewal.origin
        return None

    @property
    def login(self) -> Self:
        """The configuration whose user, password and TLS files are to be used now.

        It is another one if they were read again; nothing else of it may be used.
        """
        latest = None if self.renewal is None else self.renewal.latest
        return latest if isinstance(latest, type(self)) else self

    async def current_login(self) -> Self:
        """Read the login again if it comes from a document; return the configuration that has it.

        To be called before each attempt to connect. Takes ``connect_timeout`` seconds at the most;
        what comes later is there for the next attempt.
        """
        if self.renewal is not None:
            await self.renewal.renew(self.connect_timeout)
        return self.login

    async def current_password(self) -> str | None:
        """Return the password to log in with now: reads the file, or asks the function.

        Raises:
            OSError: the function did not return one within ``connect_timeout``.
            ConfigurationError: the file cannot be read, or the function returned something else.
        """
        secret = self.secret
        if isinstance(secret, PasswordFunction):
            return await secret.ask(self.connect_timeout)
        return None if secret is None else secret.reveal()

    def forget_password(self) -> None:
        """Have a function asked for the password again, as a broker has refused the login."""
        secret = self.secret
        if isinstance(secret, PasswordFunction):
            secret.forget()

    def backoff(self, environment: Environment, *, stable: float | None = None) -> Backoff:
        """Return the pauses between attempts to connect; see `Backoff`."""
        return Backoff(
            environment, minimum=self.backoff_min, maximum=self.backoff_max, stable=stable
        )

    def _check_tls(self) -> None:
        name = type(self).__name__
        for option in ("tls", "tls_insecure_skip_verification"):
            check_flag(self, option)
        for option in _TLS_FILES:
            check_text(self, option)
        asked = [option for option in _ONLY_WITH_TLS if getattr(self, option)]
        if asked and not self.tls:
            value = quoted(getattr(self, asked[0]))
            raise ConfigurationError(
                f"option {asked[0]}={value} of {name} has no effect without TLS:"
                f" give tls=True, or write the URL with {self.tls_scheme}://"
            )
        if self.tls_cert is None and (self.tls_key or self.tls_key_password):
            raise ConfigurationError(
                f"option tls_key or tls_key_password of {name} has no effect without a"
                " certificate: give tls_cert as well"
            )


def check_login(config: BrokerConfig) -> None:
    """Check that brokers accept user name and password as texts; they end connections over others.

    Raises:
        ConfigurationError: naming the option; a password is not shown.
    """
    name, secret = config.username, config.secret
    kind = type(config).__name__
    if name is not None and (unfit := unfit_character(name)) is not None:
        raise ConfigurationError(
            f"option username={quoted(name)} of {kind} contains {unfit}: leave it out"
        )
    if name is not None and len(name.encode()) > _LONGEST_LOGIN:
        raise ConfigurationError(
            f"option username={quoted(name, 40)} of {kind} is longer than {_LONGEST_LOGIN}"
            " bytes: give a shorter one"
        )
    if secret is None or isinstance(secret, (PasswordFile, PasswordFunction)):
        return
    try:
        size = len(secret.reveal().encode())
    except UnicodeEncodeError:
        raise ConfigurationError(
            f"option password of {kind} contains half of a surrogate pair, which cannot be"
            " encoded as UTF-8: use whole characters"
        ) from None
    if size > _LONGEST_LOGIN:
        raise ConfigurationError(
            f"option password of {kind} is longer than {_LONGEST_LOGIN} bytes: give a shorter one"
        )
