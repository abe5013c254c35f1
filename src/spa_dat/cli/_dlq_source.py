"""Whose dead letters a command is about, and where they are."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import ConfigurationError
from ..runtime.options._option_checks import check_name
from ..transports import MemoryConfig, SocketProvider, SocketProviderFactory
from ._broker_client import broker_at

__all__ = ["LetterSource"]


@dataclass(frozen=True)
class LetterSource:
    """The dead letters of an application, on its bus or behind its admin endpoint.

    Attributes:
        url: of the broker or document.
        application: its name.
        name: of the provider in the document.
        admin: the address of the running application to ask; None to ask the broker.
    """

    url: str
    application: str
    name: str | None
    admin: str | None

    def provider(self) -> SocketProvider:
        """Return the provider for the broker that has them.

        Raises:
            ConfigurationError: an application cannot have this name, or as `broker_at`.
        """
        check_name("--application", self.application)
        config = SocketProviderFactory.from_url(self.url, name=self.name).config
        if isinstance(config, MemoryConfig):
            raise ConfigurationError(
                "memory:// is inside the application: give its admin endpoint as well, with --admin"
            )
        return broker_at(self.url, name=self.name)
