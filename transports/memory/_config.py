"""Options of the memory transport."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from ..._texts import quoted
from ..._unknown_names import suggests_keywords
from ...errors import ConfigurationError
from .._contract import DEFAULT_WINDOW_BYTES
from .._outbox import DEFAULT_OUTBOX, DEFAULT_OUTBOX_BYTES
from .._url_options import Limits, check_choices, check_limits
from .._wire_formats import WIRE_CHOICES

__all__ = ["MemoryConfig"]

_LIMITS = {
    "window": (1, 65_535),
    "outbox": (1, 10_000_000),
    "window_bytes": (1, 2**40),
    "outbox_bytes": (1, 2**40),
    "queue": (1, 2**31),
    "queue_bytes": (1, 2**40),
    "max_payload": (1, 268_435_455),
    "max_received": (1, 268_435_455),
    "start_timeout": (0.001, 86_400),
    "qos": (0, 1),
}
_NAME = re.compile(r"[A-Za-z0-9_.-]{0,64}")


@suggests_keywords
@dataclass(frozen=True)
class MemoryConfig:
    """A broker in the process, without any network.

    Args:
        name: providers with the same name share one broker within one event loop; empty for a
            private broker. Up to 64 letters, digits and ``_ . -``.
        window: the most deliveries of one subscription that may be unsettled at once.
        window_bytes: the most bytes of them; a single larger message passes alone.
        outbox: the most publishes that may be awaiting confirmation at once.
        outbox_bytes: the most bytes of them; a single larger message may wait alone.
        max_payload: the largest payload that may be published, in bytes.
        max_received: the largest payload that is accepted, in bytes. A message with a larger one
            becomes a dead letter without payload; if it is a request, it is refused. None for
            ``max_payload``.
        start_timeout: seconds for which the first connection is attempted.
        qos: quality of service of publishes and subscriptions that specify none, 0 or 1.
        queue: messages that may wait for one subscription, beyond its window; then a publish to it
            waits, and a post raises OutboxFull.
        queue_bytes: bytes of them, likewise.
        wire: the format of messages: ``cloudevents``, or ``spa-dat`` for that of spa-dat 0.4.0.

    Attributes:
        limits: the lowest and highest values of options that are numbers.
        choices: the values of options that have only a few.

    Raises:
        ConfigurationError: an option has an invalid value.
    """

    limits: ClassVar[Limits] = _LIMITS
    choices: ClassVar[Mapping[str, tuple[str | None, ...]]] = WIRE_CHOICES

    name: str = ""
    window: int = 200
    window_bytes: int = DEFAULT_WINDOW_BYTES
    outbox: int = DEFAULT_OUTBOX
    outbox_bytes: int = DEFAULT_OUTBOX_BYTES
    max_payload: int = 1_048_576
    max_received: int | None = None
    start_timeout: float = 10.0
    qos: int = 1
    queue: int = 100_000
    queue_bytes: int = 67_108_864
    wire: str = "cloudevents"

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not _NAME.fullmatch(self.name):
            raise ConfigurationError(
                f"option name={quoted(self.name)} of MemoryConfig:"
                " give at most 64 letters, digits and any of '_', '.', '-'"
            )
        check_limits(self)
        check_choices(self)

    @property
    def largest_received(self) -> int:
        """The largest payload that is accepted, in bytes."""
        return self.max_received or self.max_payload

    @property
    def address(self) -> str:
        """The URL of the bus without options."""
        return f"memory://{self.name}"
