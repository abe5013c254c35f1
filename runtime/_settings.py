"""What a run needs to know of its application."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from .._environment import Environment
from ..actors import RestartPolicy
from ..transports import Identity, SocketProvider, TopicFilter
from ._observer import Observer

__all__ = ["Settings"]


@dataclass(frozen=True)
class Settings:
    """What a run needs to know of its application; see `DistributedApplication`.

    Attributes:
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
    reply_topics: tuple[TopicFilter, ...] | None = None
    stand_in: Callable[[SocketProvider], SocketProvider] | None = None
    observer: Observer | None = None
