"""The settings of an application that its run needs."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from ..._environment import Environment
from ...actors import RestartPolicy
from ...errors import ConfigurationError
from ...transports import Identity, SocketProvider, TopicFilter
from ..options._checks import check_seconds
from ._observer import Observer

__all__ = ["LoopFactory", "Settings"]

LoopFactory = Callable[[], asyncio.AbstractEventLoop]


@dataclass(frozen=True)
class Settings:
    """What a run needs to know of its application; see `DistributedApplication`.

    Attributes:
        slow: seconds after which a handler at work is named; None for never.
        blocked: seconds after which a blocked event loop is named; None for never.
        reply_topics: where replies may go; None for everywhere.
        stand_in: what is used in place of each provider; None for the provider itself.
        observer: hears of what the actors do; None for nobody.
    """

    identity: Identity
    environment: Environment
    stats: Counter[str]
    provider: SocketProvider | None
    stop_timeout: float
    dead_letter_limit: int
    restart: RestartPolicy
    slow: float | None = 30.0
    blocked: float | None = 5.0
    reply_topics: tuple[TopicFilter, ...] | None = None
    stand_in: Callable[[SocketProvider], SocketProvider] | None = None
    observer: Observer | None = None

    def __post_init__(self) -> None:
        check_seconds("application", "stop_timeout", self.stop_timeout, zero=True)
        for option, seconds in (("slow_after", self.slow), ("blocked_after", self.blocked)):
            if seconds is not None:
                check_seconds("application", option, seconds)
        if not isinstance(self.dead_letter_limit, int) or self.dead_letter_limit < 0:
            raise ConfigurationError(
                f"dead_letter_limit={self.dead_letter_limit!r}: give a whole number, 0 or more"
            )
        if not isinstance(self.restart, RestartPolicy):
            raise ConfigurationError(f"restart={self.restart!r}: give a RestartPolicy")
