"""Where the states of durable actors are kept."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path

from ..._busy_threads import has_own_clock
from ...errors import ConfigurationError
from ...transports._sqlite_states import SqliteStates
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
    path = None if store is not None else _folder(settings.state_folder) / _file_of(settings)

    def open_store() -> StateStore:
        if store is not None:
            return store
        assert path is not None
        return SqliteStates(path)

    inline = has_own_clock(asyncio.get_running_loop())
    return DurableStates(open_store, settings.environment, fatal, inline=inline)


def _file_of(settings: Settings) -> str:
    return f"{settings.identity.client_id}.states"


def _folder(given: str | None) -> Path:
    if given is not None:
        return Path(given).absolute()
    state = os.environ.get("STATE_DIRECTORY", "").split(":")[0]
    if state:
        return Path(state).absolute()
    home = os.environ.get("XDG_STATE_HOME")
    try:
        # As its specification says, relative ones are ignored.
        base = Path(home) if home and Path(home).is_absolute() else Path.home() / ".local/state"
    except RuntimeError as error:
        raise ConfigurationError(
            "durable actors need a folder, and the user has no home: give state_folder="
        ) from error
    return base / "spa-dat"
