"""What becomes of messages that a full mailbox has no place for."""

from __future__ import annotations

from collections.abc import Hashable
from enum import Enum
from typing import Any

__all__ = ["Overflow", "Slot"]


class Overflow(Enum):
    """What a full mailbox does with one more message."""

    REFUSE = "refuse"
    """The sender gets MailboxFull."""
    DROP_OLDEST = "drop_oldest"
    """The message that has waited longest makes room."""
    DROP_NEWEST = "drop_newest"
    """The new message is not taken."""
    LATEST_BY_KEY = "latest_by_key"
    """A new message takes the place of the waiting one with the same key, full or not; one with
    a key of its own makes the message that has waited longest go when the mailbox is full."""


class Slot:
    """The place of the latest item of one key."""

    __slots__ = ("item", "key")

    def __init__(self, key: Hashable, item: Any) -> None:
        self.key = key
        self.item = item
