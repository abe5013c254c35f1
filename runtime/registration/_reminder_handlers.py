"""Handlers of reminders: which methods and functions are called when one is due."""

from __future__ import annotations

from collections.abc import Sequence

from ...errors import ConfigurationError
from ...transports import RESERVED, TopicFilter
from ..options._option_checks import check_name
from ..options._retry_policy import Reject

__all__ = [
    "ANY_REMINDER",
    "check_reminders",
    "no_handler",
    "reminder_filter",
    "reminder_topic",
]

ANY_REMINDER = "*"
"""Stands for the reminders that have no handler."""
_CAPTURE = "reminder"


def check_reminders(owner: str, names: Sequence[object]) -> None:
    """Raise ConfigurationError unless these can be the names of reminders, at least one."""
    if not names:
        raise ConfigurationError(f"{owner}: give the name of a reminder")
    for name in names:
        check_name(f"{owner}: reminder", name)  # type: ignore[arg-type]


def reminder_filter(per: str) -> TopicFilter:
    """Return the filter of the topics of reminders; nobody subscribes to it.

    Args:
        per: the name of the capture that has the key.
    """
    name = "+" if per == _CAPTURE else f"{{{_CAPTURE}}}"
    return TopicFilter.parse(f"{RESERVED}/reminder/{name}/{{{per}}}")


def reminder_topic(name: str, key: str) -> str:
    """Return the topic of a reminder."""
    return f"{RESERVED}/reminder/{name}/{key}"


async def no_handler(topic: str) -> None:
    """Handle a reminder that has no handler any more: it becomes a dead letter."""
    raise Reject(
        f"reminder {topic.split('/')[2]!r} has no handler: add it again, or forget what it was for"
    )
