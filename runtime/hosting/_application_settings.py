"""The settings of a whole application, as opposed to the options of one actor."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ..._environment import Environment
from ...actors import RestartPolicy
from ...errors import ConfigurationError
from ...transports import Identity, SocketProvider, TopicFilter
from ..messaging._middleware import Middleware, handles, publishes
from ..options._custom_codecs import Codec
from ..options._option_checks import check_seconds
from ._actor_observer import Observer

if TYPE_CHECKING:
    from pathlib import Path

    from ...transports._commit_steps import Reached
    from ...transports._outbox_options import OutboxFile
    from ...transports._state_store import StateStore
    from ..metrics._measurements import Measurements
    from ..options._admin_address import AdminAddress
    from ..options._exporters import Exporter

__all__ = ["LoopFactory", "Settings"]

LoopFactory = Callable[[], asyncio.AbstractEventLoop]


@dataclass(frozen=True)
class Settings:
    """The settings of an application, as given to `DistributedApplication`, for its runs.

    Attributes:
        slow: seconds after which a running handler is reported; None for never.
        blocked: seconds after which a blocked event loop is reported; None for never.
        reply_topics: filters for where replies may go; None for anywhere.
        codec: of sockets that belong to no actor; actors have it among their options.
        outbox: the files of its outboxes; None to have them in memory.
        stand_in: returns what to use in place of a provider; None to use the provider itself.
        observer: is told what the actors do; None for nobody.
        admin: where it answers probes; None for nowhere.
        number: of this process among several of its one actor; None anywhere else.
        middleware: the application's, in order; the same list in all copies of the settings.
        exporters: what its metrics are for, ``prometheus`` or ``opentelemetry``.
        measurements: what they, and what the admin endpoint shows, are made of; None without both.
        state_folder: where the states of durable keys are; None for the default.
        state_store: keeps them instead of a file; None for a file.
        reached: is told of each step in which what a message has come to is committed.
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
    codec: Codec | None = None
    outbox: OutboxFile | None = None
    stand_in: Callable[[SocketProvider], SocketProvider] | None = None
    observer: Observer | None = None
    admin: AdminAddress | None = None
    number: int | None = None
    middleware: list[Middleware] = field(default_factory=list)
    exporters: tuple[Exporter, ...] = ()
    measurements: Measurements | None = None
    state_folder: str | None = None
    state_store: StateStore | None = None
    reached: Reached | None = None

    @property
    def folder(self) -> Callable[[], Path] | None:
        """What returns the folder of the states of durable keys; None if no files are kept.

        It raises ConfigurationError if there is no folder.
        """
        if self.state_store is not None:
            return None

        def folder() -> Path:
            # Hardly any application needs it.
            from ...transports._state_folder import state_folder

            return state_folder(self.state_folder, of="a durable actor", option="state_folder=")

        return folder

    @property
    def around_handlers(self) -> tuple[Middleware, ...]:
        """The middleware that handlers are called through."""
        return tuple(one for one in self.middleware if handles(one))

    @property
    def on_publishes(self) -> tuple[Middleware, ...]:
        """The middleware that sees what is published."""
        return tuple(one for one in self.middleware if publishes(one))

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
