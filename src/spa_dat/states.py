"""Stores for the states of durable keys, other than the file that is used by default.

A class derived from `StateStore` keeps them in a database, for example; what makes one is given as
``Durable(store=...)``.
"""

from __future__ import annotations

from .transports._state_store import (
    MOST_HANDLED,
    SECONDS_HANDLED,
    Change,
    Handled,
    MessageIdentity,
    StateStore,
    StoredKey,
)
from .transports._stored_envelopes import envelopes_from_bytes, envelopes_to_bytes

__all__ = [
    "MOST_HANDLED",
    "SECONDS_HANDLED",
    "Change",
    "Handled",
    "MessageIdentity",
    "StateStore",
    "StoredKey",
    "envelopes_from_bytes",
    "envelopes_to_bytes",
]
