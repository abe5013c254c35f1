"""Options of the memory transport."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ...errors import ConfigurationError
from .._checks import check_numbers

__all__ = ["MemoryConfig"]

_NAME = re.compile(r"[A-Za-z0-9_.-]{0,64}")


@dataclass(frozen=True)
class MemoryConfig:
    """A broker in the process, without any network.

    Args:
        name: providers with the same name share one broker within one event loop; empty for a
            broker of one's own. Up to 64 letters, digits and ``_ . -``.
        window: the most deliveries of one subscription that may be unsettled at once.
        outbox: the most publishes that may wait for confirmation at once.
        max_payload: the largest payload that may be published, in bytes.
        start_timeout: how long a first connection is tried for, in seconds.
        qos: quality of service of publishes and subscriptions that name none, 0 or 1.

    Raises:
        ConfigurationError: an option has a value that can not be.
    """

    name: str = ""
    window: int = 200
    outbox: int = 10_000
    max_payload: int = 1_048_576
    start_timeout: float = 10.0
    qos: int = 1

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not _NAME.fullmatch(self.name):
            raise ConfigurationError(
                f"option name={self.name!r} of MemoryConfig:"
                " give at most 64 letters, digits and any of '_', '.', '-'"
            )
        check_numbers(
            self,
            {
                "window": (1, 65_535),
                "outbox": (1, 10_000_000),
                "max_payload": (1, 268_435_455),
                "qos": (0, 1),
            },
            whole=True,
        )
        check_numbers(self, {"start_timeout": (0.001, 86_400)}, whole=False)

    @property
    def address(self) -> str:
        """The bus as a URL without options."""
        return f"memory://{self.name}"
