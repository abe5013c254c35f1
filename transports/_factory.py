"""The factory: from a URL or a configuration to its provider."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

from ..errors import ConfigurationError
from ._contract import SocketProvider
from ._url_options import BusUrl, nearest, options_to_config, parse_url
from .kafka._config import KafkaConfig
from .kafka._provider import KafkaProvider
from .memory._config import MemoryConfig
from .memory._provider import MemoryProvider
from .mqtt._config import MqttConfig
from .mqtt._provider import MqttProvider

__all__ = ["Config", "SocketProviderFactory", "as_provider"]

Config: TypeAlias = KafkaConfig | MemoryConfig | MqttConfig
"""The options of one bus."""

_IN_THE_AUTHORITY = ("host", "port", "username", "password")


class SocketProviderFactory:
    """Creates providers from configurations and URLs. Both have the same options."""

    @staticmethod
    def from_config(config: Config) -> SocketProvider:
        """Return the provider for a configuration.

        Raises:
            ConfigurationError: it is not a configuration of a bus.
        """
        if isinstance(config, MemoryConfig):
            return MemoryProvider(config)
        if isinstance(config, MqttConfig):
            return MqttProvider(config)
        if isinstance(config, KafkaConfig):
            return KafkaProvider(config)
        raise ConfigurationError(
            f"{type(config).__name__} is not a configuration of a bus:"
            " give a MemoryConfig, an MqttConfig or a KafkaConfig"
        )

    @staticmethod
    def from_url(url: str) -> SocketProvider:
        """Return the provider for a URL.

        ``memory://`` is a private broker in the process, ``memory://name`` one that is shared under
        that name; ``mqtt://user:secret@host:port?option=value`` is an MQTT 5 broker, ``mqtts://``
        one with TLS. ``kafka://host:port,host2:port?option=value`` is a Kafka cluster,
        ``kafkas://`` one with TLS. The options are those of `MemoryConfig`, `MqttConfig` and
        `KafkaConfig`. In user name, password and options special characters are written as
        ``%40`` and so on.

        Raises:
            ConfigurationError: unknown scheme or option (names the nearest valid one), or an
                invalid value. Never shows the password.
        """
        return SocketProviderFactory.from_config(SocketProviderFactory.config_from_url(url))

    @staticmethod
    def config_from_url(url: str) -> Config:
        """Return the configuration that a URL stands for. Raises what `from_url` raises."""
        address = parse_url(url)
        read = _SCHEMES.get(address.scheme)
        if read is not None:
            return read(address)
        raise ConfigurationError(
            f"scheme {address.scheme!r} is not known: {nearest(address.scheme, _SCHEMES)}"
        )

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


def _memory(address: BusUrl) -> MemoryConfig:
    if address.username is not None or address.password is not None or address.port is not None:
        raise ConfigurationError(
            "a memory:// URL has neither a user nor a port: write memory:// or memory://name"
        )
    known: dict[str, object] = {"name": address.host} if address.host else {}
    return options_to_config(MemoryConfig, address.options, known, address=address)


def _mqtt(address: BusUrl) -> MqttConfig:
    if not address.host:
        raise ConfigurationError(
            f"{address} has no host: write for example {address.scheme}://localhost"
        )
    for name in _IN_THE_AUTHORITY:
        if name in address.options:
            raise ConfigurationError(
                f"option {name!r} of {address} is written in front of the '?':"
                f" {address.scheme}://user:password@host:port"
            )
    known: dict[str, object] = {"host": address.host}
    if address.scheme == "mqtts":
        known["tls"] = True
    for name in _IN_THE_AUTHORITY[1:]:
        value = getattr(address, name)
        if value is not None:
            known[name] = value
    return options_to_config(MqttConfig, address.options, known, address=address)


def _kafka(address: BusUrl) -> KafkaConfig:
    if not address.host:
        raise ConfigurationError(
            f"{address} has no host: write for example {address.scheme}://localhost:9092"
        )
    for name in ("servers", "username", "password"):
        if name in address.options:
            raise ConfigurationError(
                f"option {name!r} of {address} is written in front of the '?':"
                f" {address.scheme}://user:password@host:port,host2:port"
            )
    known: dict[str, object] = {"servers": address.host}
    if address.scheme == "kafkas":
        known["tls"] = True
    for name in ("username", "password"):
        value = getattr(address, name)
        if value is not None:
            known[name] = value
    return options_to_config(KafkaConfig, address.options, known, address=address)


_SCHEMES: Mapping[str, Callable[[BusUrl], Config]] = {
    "kafka": _kafka,
    "kafkas": _kafka,
    "memory": _memory,
    "mqtt": _mqtt,
    "mqtts": _mqtt,
}
