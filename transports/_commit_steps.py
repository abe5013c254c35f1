"""The steps in which what a message has come to is committed."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Literal, TypeAlias

__all__ = ["STEPS_IN_STORES", "STEPS_IN_TRANSACTIONS", "CommitStep", "Reached"]

CommitStep: TypeAlias = Literal[
    "handled", "committed", "published", "acknowledged", "sent", "offsets"
]
"""``handled``: the handler has succeeded, and nothing is committed.
``committed``: it is, and nothing is sent; in transactions neither replies are, nor is it in the
    snapshot.
``published``: what the message has published is confirmed, and it is not acknowledged.
``acknowledged``: it is, and the store does not know of either.
``sent``: all records of a transaction are confirmed, and none of its offsets is.
``offsets``: these are, too, and the transaction is open.
"""

STEPS_IN_STORES: tuple[CommitStep, ...] = ("handled", "committed", "published", "acknowledged")
STEPS_IN_TRANSACTIONS: tuple[CommitStep, ...] = ("handled", "sent", "offsets", "committed")

Reached: TypeAlias = Callable[[CommitStep], Awaitable[None]]
"""Is awaited when a message has reached a step, before anything further happens to it."""
