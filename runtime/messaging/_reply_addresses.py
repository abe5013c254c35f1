"""Reply addresses: which response topics of received messages are refused, and why."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ...errors import ConfigurationError
from ...transports import (
    REPLY_HEADER,
    RESERVED,
    Envelope,
    SocketProvider,
    TopicFilter,
    check_topic,
    is_reserved,
)

__all__ = ["ReplyAddresses"]

_LONGEST_ADDRESS = 1024
_LONGEST_CORRELATION = 1024
_MOST_REMEMBERED = 16_384


class ReplyAddresses:
    """The rules for where the replies of one application may go on one bus.

    Args:
        provider: what opened the bus.
        takes: whether an actor of the application subscribes to a topic.
        reply_topics: filters for where replies may go; None for anywhere. Actors may have their
            own.
    """

    def __init__(
        self,
        provider: SocketProvider,
        takes: Callable[[str], bool],
        reply_topics: Sequence[TopicFilter] | None,
    ) -> None:
        self._provider = provider
        self._takes = takes
        self._reply_topics = reply_topics
        # All but the last level of addresses that may be used.
        self._prefixes: dict[str, None] = {}

    def problem(
        self, envelope: Envelope, reply_topics: Sequence[TopicFilter] | None = None
    ) -> str | None:
        """Return why the response topic of a received message must not be used; None if it may.

        It comes from whoever sent the message, so it is checked as hostile input. A requester must
        not reach further with this application's rights than with their own: no actor of the
        application is ever sent a reply that somebody else has asked for.

        Args:
            envelope: the message.
            reply_topics: filters for where the handling actor may reply; None for those of the
                application.
        """
        address = envelope.response_topic
        if address is None:
            return None
        if REPLY_HEADER in envelope.headers:
            return "the message is itself a reply"
        if len(address) > _LONGEST_ADDRESS:
            return f"it is {len(address)} characters long; {_LONGEST_ADDRESS} are allowed"
        if envelope.correlation is not None and len(envelope.correlation) > _LONGEST_CORRELATION:
            return (
                f"its correlation data has {len(envelope.correlation)} bytes;"
                f" {_LONGEST_CORRELATION} are allowed"
            )
        prefix, _, last = address.rpartition("/")
        if prefix in self._prefixes and _is_plain(last):
            return None
        try:
            check_topic(address)
            self._provider.check_topic(address)
        except ConfigurationError as error:
            return str(error)
        if is_reserved(address):
            if not address.startswith(f"{RESERVED}/reply/"):
                return f"it is under {RESERVED}/"
            if _is_plain(last):
                if len(self._prefixes) >= _MOST_REMEMBERED:
                    self._prefixes.clear()
                self._prefixes[prefix] = None
            return None
        if self._takes(address):
            return "an actor of this application would get the reply"
        allowed = self._reply_topics if reply_topics is None else reply_topics
        if allowed is not None and not any(filter_.matches(address) for filter_ in allowed):
            return "reply_topics does not include it"
        return None


def _is_plain(level: str) -> bool:
    return level.isascii() and level.isalnum()
