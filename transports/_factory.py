"""The factory: from a URL, or a configuration, to its provider."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias
from urllib.parse import unquote

from .._keywords import nearest_or_all
from .._texts import quoted
from ..errors import ConfigurationError
from ._broker_config import BrokerConfig
from ._contract import SocketProvider
from ._credentials import Secret
from ._url_options import (
    BusUrl,
    check_names,
    check_provider_name,
    environment_prefix,
    flag_from_text,
    option_types,
    parse_url,
    scheme_of,
    value_from_text,
)
from .kafka._config import KafkaConfig
from .kafka._provider import KafkaProvider
from .memory._config import MemoryConfig
from .memory._provider import MemoryProvider
from .mqtt._config import MqttConfig
from .mqtt._provider import MqttProvider

__all__ = ["Config", "EffectiveConfig", "SocketProviderFactory", "as_provider", "effective_config"]

Config: TypeAlias = KafkaConfig | MemoryConfig | MqttConfig
"""The options of one bus."""

_IN_THE_AUTHORITY = ("host", "port", "username", "password")
# Different ways to give the same: one of them replaces all that come after it in precedence.
_PASSWORDS = frozenset(["password", "password_env", "password_file", "password_function"])
# What most brokers have or ignore.
_WEBSOCKET_PATH = "/mqtt"
_DOCUMENTS = ("file", "https", "http")
_ALLOW_HTTP = "SPA_DAT_ALLOW_HTTP"
_OPTION_IN_ERROR = re.compile(r"\boptions? '?(\w+)")
_LONGEST_READING = 10.0


class SocketProviderFactory:
    """Creates providers from configurations and URLs. Both have the same options."""

    @staticmethod
    def from_config(config: Config) -> SocketProvider:
        """Return the provider for a configuration, which is taken as it is.

        Raises:
            ConfigurationError: it is not a configuration of a bus.
        """
        if isinstance(config, MemoryConfig):
            return MemoryProvider(config)
        if isinstance(config, MqttConfig):
            return MqttProvider(config)
        if isinstance(config, KafkaConfig):
            return KafkaProvider(config)
        what = type(config).__name__
        if isinstance(config, type):
            what = f"the class {config.__name__} (without parentheses and options)"
        raise ConfigurationError(
            f"{what} is not a configuration of a bus:"
            " give a MemoryConfig, an MqttConfig or a KafkaConfig"
        )

    @staticmethod
    def from_url(
        url: str, *, name: str | None = None, allow_http: bool = False, **options: Any
    ) -> SocketProvider:
        """Return the provider for the URL of a bus, or for that of a configuration document.

        ``memory://`` is a private broker in the process, ``memory://name`` one that is shared under
        that name; ``mqtt://user:secret@host:port?option=value`` is an MQTT 5 broker, ``mqtts://``
        one with TLS, ``ws://host/path`` and ``wss://host/path`` the same over websockets, and
        ``mqtt+unix:///path`` over a Unix socket.
        ``kafka://host:port,host2:port?option=value`` is a Kafka cluster,
        ``kafkas://`` one with TLS. The options are those of `MemoryConfig`, `MqttConfig` and
        `KafkaConfig`. In user name, password and options special characters are written as
        ``%40`` and so on.

        ``file:///path/plant.toml`` and ``https://host/plant.toml`` are documents in TOML, JSON or
        YAML, which have the URL of a bus and options under their own names. They are read at once,
        which may block for 10 seconds, and again before each attempt to connect: user, password and
        TLS files are then taken from their new contents.

        An option that is not given here, nor in the URL of a bus, is looked for in the environment
        (``keepalive`` in ``SPA_DAT_KEEPALIVE``), and then in the document.

        Args:
            url: of the bus or document.
            name: of the provider, if a document has several; ``#name`` at the end of its URL is the
                same. A provider with a name has its own environment variables
                (``SPA_DAT_NAME_KEEPALIVE``).
            allow_http: whether a document may come over ``http://``, where anybody in between can
                read and change it. The environment variable ``SPA_DAT_ALLOW_HTTP`` allows it, too.
            **options: these are used whatever else is given.

        Raises:
            ConfigurationError: unknown scheme or option (names the nearest valid one), an
                invalid value, or a document that cannot be used. Never shows a password.
        """
        found = effective_config(url, name=name, allow_http=allow_http, options=options)
        return found.provider()

    @staticmethod
    def config_from_url(
        url: str, *, name: str | None = None, allow_http: bool = False, **options: Any
    ) -> Config:
        """Return the configuration that a URL stands for; see `from_url`."""
        return effective_config(url, name=name, allow_http=allow_http, options=options).config

    @staticmethod
    def url(config: Config) -> str:
        """Return the address of a bus without user, secrets and options."""
        return config.address


def as_provider(value: SocketProvider | Config | str) -> SocketProvider:
    """Return a provider as it is, or the one for a configuration or URL.

    Raises:
        ConfigurationError: it is none of them, or what `SocketProviderFactory.from_url` raises.
    """
    if isinstance(value, SocketProvider):
        return value
    if isinstance(value, str):
        return SocketProviderFactory.from_url(value)
    return SocketProviderFactory.from_config(value)


class Given(NamedTuple):
    """An option's value, and who has given it.

    Attributes:
        value: as the configuration takes it.
        origin: as a part of a sentence: "the environment variable SPA_DAT_QOS".
    """

    value: object
    origin: str


@dataclass(frozen=True)
class EffectiveConfig:
    """A configuration, and where its values come from.

    Attributes:
        config: the configuration.
        given: the options that do not have their defaults.
        name: of the provider; None if it has none.
    """

    config: Config
    given: Mapping[str, Given]
    name: str | None

    def provider(self) -> SocketProvider:
        """Return the provider for the configuration.

        Raises:
            ConfigurationError: no broker would take it; says from where the option comes.
        """
        try:
            return SocketProviderFactory.from_config(self.config)
        except ConfigurationError as error:
            raise ConfigurationError(f"{error}{_whence(str(error), self.given)}") from None


def effective_config(
    url: str, *, name: str | None, allow_http: bool, options: Mapping[str, object]
) -> EffectiveConfig:
    """Return the configuration that a URL stands for, and where its values come from.

    Takes and raises what `SocketProviderFactory.from_url` does.
    """
    scheme = scheme_of(url)
    if name is not None:
        check_provider_name(name)
    if not isinstance(allow_http, bool):
        # A text such as "false" would allow it.
        raise ConfigurationError(f"argument allow_http={quoted(allow_http)}: give True or False")
    if scheme in _READERS:
        address = parse_url(url)
        kind, from_url = _of_bus(address, f"the URL {address}")
        return _effective(kind, address, options, [from_url, _of_environment(kind, name)], name)
    if scheme not in _DOCUMENTS:
        valid = {*_READERS, "file", "https"}
        ours = _NAMES_OF_OTHERS.get(scheme)
        hint = nearest_or_all(scheme, valid) if ours is None else f"for MQTT write {ours}://"
        raise ConfigurationError(f"scheme {scheme!r} is not known: {hint}")
    if scheme == "http" and not (allow_http or _is_http_allowed()):
        raise ConfigurationError(
            "scheme 'http' is not allowed for a configuration document, which anybody in between"
            " could read and change: use https://, or allow it with allow_http=True or the"
            f" environment variable {_ALLOW_HTTP}=true"
        )
    return _from_document(url, name, options)


def _is_http_allowed() -> bool:
    text = os.environ.get(_ALLOW_HTTP, "")
    allowed = flag_from_text(text) if text else False
    if allowed is None:
        raise ConfigurationError(
            f"environment variable {_ALLOW_HTTP}={quoted(text)}: give true or false"
        )
    return allowed


def _from_document(url: str, name: str | None, options: Mapping[str, object]) -> EffectiveConfig:
    # Most programs have none, and need not spend the time to import what reads them.
    from .documents import ConfigurationDocument, DocumentRenewal

    document = ConfigurationDocument(url, name)

    def load() -> EffectiveConfig:
        table = document.load(_LONGEST_READING)
        try:
            scheme = scheme_of(table.url)
            if scheme not in _READERS:
                raise ConfigurationError(
                    f"scheme {scheme!r} is not that of a bus: {nearest_or_all(scheme, _READERS)}"
                )
            address = parse_url(table.url)
            kind, stated = _of_bus(address, table.origin)
        except ConfigurationError as error:
            raise ConfigurationError(f"option url of {table.origin}: {error}") from None
        beside = {option: Given(value, table.origin) for option, value in table.options.items()}
        check_names(kind, beside, table.origin)
        for option in beside:
            if option in stated:
                raise ConfigurationError(
                    f"option {option} of {table.origin} is given twice: in the url and beside it;"
                    " leave one out"
                )
        layers = [_of_environment(kind, table.name), {**stated, **beside}]
        return _effective(kind, address, options, layers, table.name, renewal)

    renewal = DocumentRenewal(document.shown, lambda: load().config, is_remote=document.is_remote)
    effective = load()
    renewal.first = effective.config
    return effective


def _effective(
    kind: type[Config],
    address: BusUrl,
    options: Mapping[str, object],
    layers: Iterable[Mapping[str, Given]],
    name: str | None,
    renewal: object = None,
) -> EffectiveConfig:
    """Merge options, those of the call first, then the layers in the order of precedence."""
    in_call = {option: Given(value, "the call") for option, value in options.items()}
    check_names(kind, in_call, "the call of from_url")
    given: dict[str, Given] = {}
    for layer in (in_call, *layers):
        has_password = not _PASSWORDS.isdisjoint(given)
        for option, entry in layer.items():
            if option not in given and not (has_password and option in _PASSWORDS):
                given[option] = entry
    needed = "host" if kind is MqttConfig else "servers" if kind is KafkaConfig else None
    if needed is not None and needed not in given and "unix_socket" not in given:
        port = "" if kind is MqttConfig else ":9092"
        raise ConfigurationError(
            f"{address} has no host: write for example {address.scheme}://localhost{port}"
        )
    values = {option: entry.value for option, entry in given.items()}
    if renewal is not None and issubclass(kind, BrokerConfig):
        values["renewal"] = renewal
    try:
        config = kind(**values)  # type: ignore[arg-type]
    except ConfigurationError as error:
        raise ConfigurationError(f"{error}{_whence(str(error), given)}") from error.__cause__
    return EffectiveConfig(config, given, name)


def _whence(text: str, given: Mapping[str, Given]) -> str:
    """Return from where the option comes that an error names, unless that is the URL itself."""
    found = _OPTION_IN_ERROR.search(text)
    entry = given.get(found[1]) if found else None
    if entry is None or entry.origin.startswith("the URL"):
        return ""
    return f"; it is from {entry.origin}"


def _of_environment(kind: type[Config], name: str | None) -> dict[str, Given]:
    """Return the options that environment variables give; an empty one gives nothing."""
    found: dict[str, Given] = {}
    prefix = environment_prefix(name)
    if not any(variable.startswith(prefix) for variable in os.environ):
        return found
    for option, kinds in option_types(kind).items():
        variable = prefix + option.upper()
        text = os.environ.get(variable)
        if text:
            origin = f"the environment variable {variable}"
            value = value_from_text(option, Secret(text), kinds, origin)
            found[option] = Given(value, origin)
    return found


def _of_bus(address: BusUrl, origin: str) -> tuple[type[Config], dict[str, Given]]:
    """Return the kind of a bus, and the options that its URL gives."""
    kind, stated = _READERS[address.scheme](address)
    values = dict(stated)
    check_names(kind, address.options, str(address))
    for option, text in address.options.items():
        if option in stated:
            raise ConfigurationError(
                f"option {option!r} of {address} is given twice: as an option after '?' and in"
                " front of it; leave one out"
            )
        values[option] = value_from_text(option, text, option_types(kind)[option], str(address))
    return kind, {option: Given(value, origin) for option, value in values.items()}


def _memory(address: BusUrl) -> tuple[type[Config], dict[str, object]]:
    if address.username is not None or address.password is not None or address.port is not None:
        raise ConfigurationError(
            "a memory:// URL has neither a user nor a port: write memory:// or memory://name"
        )
    return MemoryConfig, {"name": address.host} if address.host else {}


def _mqtt(address: BusUrl) -> tuple[type[Config], dict[str, object]]:
    for name in _IN_THE_AUTHORITY:
        if name in address.options:
            raise ConfigurationError(
                f"option {name!r} of {address} is written in front of the '?':"
                f" {address.scheme}://user:password@host:port"
            )
    stated: dict[str, object] = {"host": address.host} if address.host else {}
    if address.scheme in ("mqtts", "wss"):
        stated["tls"] = True
    if address.scheme in ("ws", "wss"):
        stated["websocket_path"] = address.path or _WEBSOCKET_PATH
    for name in _IN_THE_AUTHORITY[1:]:
        value = getattr(address, name)
        if value is not None:
            stated[name] = value
    if address.scheme == "mqtt+unix":
        if "host" in stated or "port" in stated or address.path in ("", "/"):
            raise ConfigurationError(
                "an mqtt+unix:// URL has the path of a socket and no host: write it with three"
                " slashes, as in mqtt+unix:///run/mosquitto/mosquitto.sock"
            )
        stated["unix_socket"] = unquote(address.path, errors="surrogateescape")
    return MqttConfig, stated


def _kafka(address: BusUrl) -> tuple[type[Config], dict[str, object]]:
    for name in ("servers", "username", "password"):
        if name in address.options:
            raise ConfigurationError(
                f"option {name!r} of {address} is written in front of the '?':"
                f" {address.scheme}://user:password@host:port,host2:port"
            )
    stated: dict[str, object] = {"servers": address.host} if address.host else {}
    if address.scheme == "kafkas":
        stated["tls"] = True
    for name in ("username", "password"):
        value = getattr(address, name)
        if value is not None:
            stated[name] = value
    return KafkaConfig, stated


_READERS: Mapping[str, Callable[[BusUrl], tuple[type[Config], dict[str, object]]]] = {
    "kafka": _kafka,
    "kafkas": _kafka,
    "memory": _memory,
    "mqtt": _mqtt,
    "mqtts": _mqtt,
    "mqtt+unix": _mqtt,
    "ws": _mqtt,
    "wss": _mqtt,
}
"""By scheme: from a URL to the kind of bus, and to what stands in front of the options."""

_NAMES_OF_OTHERS = {"tcp": "mqtt", "ssl": "mqtts", "tls": "mqtts"}
"""What other MQTT clients call a scheme, and what it is called here."""
