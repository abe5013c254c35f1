"""The files of an application: the states of durable actors, and outboxes of other addresses."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from ..._busy_threads import has_own_clock
from ..._logs import get_logger
from ..._texts import quoted
from ...errors import ConfigurationError
from ...transports import Identity
from ...transports._outbox_file import messages_in
from ...transports._outbox_options import OutboxFile
from ...transports._sqlite_states import SqliteStates
from ...transports._state_store import StateStore
from ..hosting._application_settings import Settings
from ..hosting._durable_states import DurableStates
from ..registration._specs import Spec

__all__ = ["states_of", "tell_of_other_outboxes"]

_log = get_logger("spa_dat")


def states_of(
    settings: Settings, specs: Iterable[Spec[Any]], fatal: Callable[[BaseException], None]
) -> DurableStates:
    """Return what loads and commits the states of an application's durable keys, not opened.

    Raises:
        ConfigurationError: the application has no name, or there is no folder; or its actors give
            different stores.
    """
    identity = settings.identity
    if identity.ephemeral:
        raise ConfigurationError(
            "durable actors need an application with a name, which finds its states again after a"
            " restart: give name="
        )
    store, folder = settings.state_store, settings.folder
    path = None
    opens = _store_of([spec for spec in specs if _keeps_here(spec)])
    if folder is not None and opens is None:
        path = folder() / _file_of(settings)

    def open_store() -> StateStore:
        if store is not None:
            return store
        if path is not None:
            return SqliteStates(path)
        assert opens is not None
        opened = opens(identity.client_id)
        if not isinstance(opened, StateStore):
            raise ConfigurationError(
                f"Durable(store={quoted(opens)}) has returned {quoted(opened)}: return an instance"
                " of a class derived from spa_dat.states.StateStore"
            )
        return opened

    inline = has_own_clock(asyncio.get_running_loop())
    return DurableStates(
        open_store, settings.environment, fatal, inline=inline, reached=settings.reached
    )


def _keeps_here(spec: Spec[Any]) -> bool:
    """Return whether the states of an actor are durable, and not kept by its bus."""
    options = spec.options
    return bool(options.durable) and not options.are_kept_by(options.socket_provider)


def _store_of(specs: Sequence[Spec[Any]]) -> Callable[[str], StateStore] | None:
    """Return what opens the store that all of the actors give; None for a file."""
    for spec in specs:
        if spec.options.kept.store is not specs[0].options.kept.store:
            raise ConfigurationError(
                f"actors {specs[0].name!r} and {spec.name!r} give different stores: all durable"
                " actors of an application have the same Durable(store=...), as the same object"
            )
    return specs[0].options.kept.store


def _file_of(settings: Settings) -> str:
    return f"{settings.identity.client_id}.states"


async def tell_of_other_outboxes(
    outbox: OutboxFile, identity: Identity, addresses: Iterable[str]
) -> None:
    """Log which outbox files wait for a bus that the application does not use at the moment.

    Args:
        outbox: where the files are.
        identity: the application's.
        addresses: those of its buses.
    """
    own = {outbox.path(identity, address) for address in addresses}

    def left() -> list[tuple[str, int | None]]:
        others = [path for path in outbox.paths(identity) if path not in own]
        return [(str(path), messages_in(path)) for path in others]

    for path, count in await asyncio.get_running_loop().run_in_executor(None, left):
        if count:
            _log.warning(
                "%s has %d messages for a bus at another address: they stay there until the"
                " application uses that address again",
                quoted(path, 1_000),
                count,
            )
