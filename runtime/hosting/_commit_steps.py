"""The steps in which what a message of a durable key has come to is committed."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Literal

__all__ = ["CommitStep", "Reached"]

CommitStep = Literal["handled", "committed", "published", "acknowledged"]
"""``handled``: the handler has succeeded, and nothing is committed.
``committed``: it is, and nothing is sent.
``published``: what the message has published is confirmed, and it is not acknowledged.
``acknowledged``: it is, and the store does not know of either.
"""

Reached = Callable[[CommitStep], Awaitable[None]]
"""Is awaited when a message has reached a step, before anything further happens to it."""
