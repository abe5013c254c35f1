"""What commands have in common that are clients of a broker."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import replace
from typing import Any, TypeVar

from .._logs import log_error
from ..errors import ConfigurationError
from ..runtime.application._program import new_loop
from ..transports import MemoryConfig, MqttConfig, SocketProvider, SocketProviderFactory

__all__ = ["broker_at", "run_client"]

T = TypeVar("T")


def broker_at(url: str, *, name: str | None = None) -> SocketProvider:
    """Return the provider for the URL of a broker, or of a configuration document.

    It has no last will: what that says is said of the application that the document is for.

    Args:
        url: of the broker or document.
        name: of the provider in the document.

    Raises:
        ConfigurationError: the bus is inside one process, or what
            `SocketProviderFactory.from_url` raises.
    """
    provider = SocketProviderFactory.from_url(url, name=name)
    config = provider.config
    if isinstance(config, MemoryConfig):
        raise ConfigurationError(
            "memory:// is inside one process, and this command is another one: give the address"
            " of a broker"
        )
    if isinstance(config, MqttConfig) and config.will is not None:
        return SocketProviderFactory.from_config(replace(config, will=None))
    return provider


def run_client(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine on an event loop of its own; Ctrl-C cancels it."""

    def made() -> asyncio.AbstractEventLoop:
        loop = new_loop()
        loop.set_exception_handler(log_error)
        return loop

    with asyncio.Runner(loop_factory=made) as runner:
        return runner.run(work)
