"""The configuration that a URL stands for: its options, environment variables and documents."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias
from urllib.parse import unquote

from .._texts import quoted
from .._unknown_names import nearest_or_all
from ..errors import ConfigurationError
from ._broker_config import BrokerConfig
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
from .memory._config import MemoryConfig
from .mqtt._config import MqttConfig

__all__ = ["Config", "EffectiveConfig", "effective_config", "whence"]

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
        layers = [from_url, _of_environment_variables(kind, name)]
        return _effective(kind, address, options, layers, name)
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
        layers = [_of_environment_variables(kind, table.name), {**stated, **beside}]
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
        raise ConfigurationError(f"{error}{whence(str(error), given)}") from error.__cause__
    return EffectiveConfig(config, given, name)


def whence(text: str, given: Mapping[str, Given]) -> str:
    """Return from where the option comes that an error names, unless that is the URL itself."""
    found = _OPTION_IN_ERROR.search(text)
    entry = given.get(found[1]) if found else None
    if entry is None or entry.origin.startswith("the URL"):
        return ""
    return f"; it is from {entry.origin}"


def _of_environment_variables(kind: type[Config], name: str | None) -> dict[str, Given]:
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
