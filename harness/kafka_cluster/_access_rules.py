"""Access rules: what clients may not do."""

from __future__ import annotations

import enum

from ._errors import ErrorCode, RequestRefused

__all__ = ["AccessRules", "Right"]


class Right(enum.Enum):
    """A right that can be denied, as a broker calls the operation and the kind of resource."""

    TRANSACT = "Write on a transactional id"
    READ_GROUP = "Read on a group"
    WRITE_TOPIC = "Write on a topic"


_REFUSALS = {
    Right.TRANSACT: ErrorCode.TRANSACTIONAL_ID_AUTHORIZATION_FAILED,
    Right.READ_GROUP: ErrorCode.GROUP_AUTHORIZATION_FAILED,
    Right.WRITE_TOPIC: ErrorCode.TOPIC_AUTHORIZATION_FAILED,
}


class AccessRules:
    """Allows everything that was not denied, to everybody."""

    def __init__(self) -> None:
        self._denied: set[tuple[Right, str]] = set()

    def deny(self, right: Right, name: str) -> None:
        """Deny a right to what has this name."""
        self._denied.add((right, name))

    def allow(self, right: Right, name: str) -> None:
        """End `deny`."""
        self._denied.discard((right, name))

    def check(self, right: Right, name: str) -> None:
        """Check that a right was not denied.

        Raises:
            RequestRefused: it was.
        """
        if (right, name) in self._denied:
            raise RequestRefused(_REFUSALS[right])
