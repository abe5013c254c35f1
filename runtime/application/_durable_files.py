"""Where the states of durable actors are kept."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from ..._busy_threads import has_own_clock
from ...errors import ConfigurationError
from ...transports._sqlite_states import SqliteStates
from ...transports._state_folder import state_folder
from ...transports._state_store import StateStore
from ..hosting._application_settings import Settings
from ..hosting._durable_states import DurableStates

__all__ = ["states_of"]


def states_of(settings: Settings, fatal: Callable[[BaseException], None]) -> DurableStates:
    """Return what loads and commits the states of an application's durable keys, not opened.

    Raises:
        ConfigurationError: the application has no name, or there is no folder.
    """
    identity = settings.identity
    if identity.ephemeral:
        raise ConfigurationError(
            "durable actors need an application with a name, which finds its states again after a"
            " restart: give name="
        )
    store = settings.state_store
    path = None
    if store is None:
        folder = state_folder(settings.state_folder, of="a durable actor", option="state_folder=")
        path = folder / _file_of(settings)

    def open_store() -> StateStore:
        if store is not None:
            return store
        assert path is not None
        return SqliteStates(path)

    inline = has_own_clock(asyncio.get_running_loop())
    return DurableStates(open_store, settings.environment, fatal, inline=inline)


def _file_of(settings: Settings) -> str:
    return f"{settings.identity.client_id}.states"
