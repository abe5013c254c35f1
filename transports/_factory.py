"""The factory: from a URL, or a configuration, to its provider."""

from __future__ import annotations

from typing import Any

from ..errors import ConfigurationError
from ._contract import SocketProvider
from ._effective_config import Config, EffectiveConfig, effective_config, whence
from .kafka._config import KafkaConfig
from .kafka._provider import KafkaProvider
from .memory._config import MemoryConfig
from .memory._provider import MemoryProvider
from .mqtt._config import MqttConfig
from .mqtt._provider import MqttProvider

__all__ = ["SocketProviderFactory", "as_provider", "provider_of"]


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
        return provider_of(found)

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


def provider_of(found: EffectiveConfig) -> SocketProvider:
    """Return the provider for a configuration.

    Raises:
        ConfigurationError: no broker would take it; says from where the option comes.
    """
    try:
        return SocketProviderFactory.from_config(found.config)
    except ConfigurationError as error:
        raise ConfigurationError(f"{error}{whence(str(error), found.given)}") from None
