"""Message keys: how a message's key is read, and which lane it chooses."""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from typing import Any

from ...errors import ConfigurationError
from ...transports import Delivery, Envelope, TopicFilter

__all__ = ["MessageKey", "lane_of"]

_HEADER = "header:"


def lane_of(key: str, lanes: int) -> int:
    """Return the lane of a key: the same in every process, under every hash seed."""
    return zlib.crc32(key.encode("utf-8", "surrogatepass")) % lanes


class MessageKey:
    """Reads the keys of an actor's messages.

    Args:
        owner: the actor, for errors.
        key: the name of a capture that all filters have, or ``header:`` and the name of a header;
            None for the message's own key. The topic is the key of a message that lacks the header
            or has no key of its own.
        filters: the actor's.
        per: the name of a capture that all filters have, in place of ``key``.

    Raises:
        ConfigurationError: ``key`` is neither a capture of all filters nor a header; or ``per`` is
            no capture of all filters.
    """

    def __init__(
        self,
        owner: str,
        key: str | None,
        filters: Iterable[TopicFilter],
        per: str | None = None,
    ) -> None:
        self._header: str | None = None
        self._capture: str | None = None
        option = "key" if per is None else "per"
        key = key if per is None else per
        if key is None:
            return
        if not isinstance(key, str):
            raise ConfigurationError(
                f"{owner}: key={key!r}: give the name of a capture, or 'header:<name>'"
            )
        known = list(filters)
        captures = dict.fromkeys(name for filter_ in known for _, name in filter_.captures)
        lacking = [filter_.text for filter_ in known if not _has(filter_, key)]
        if not lacking:
            self._capture = key
        elif key in captures:
            raise ConfigurationError(
                f"{owner}: {option}={key!r} is not a capture of"
                f" {', '.join(map(repr, lacking))}; all"
                " filters need it"
            )
        elif per is None and key.startswith(_HEADER) and len(key) > len(_HEADER):
            self._header = key.removeprefix(_HEADER)
        else:
            there_are = ", ".join(map(repr, captures)) or "none"
            raise ConfigurationError(
                f"{owner}: key={key!r} is neither a capture of its topics (there are: {there_are})"
                " nor 'header:<name>'"
                if per is None
                else f"{owner}: per={key!r} is not a capture of its topics (there are: {there_are})"
            )

    def check_filter(self, filter_: TopicFilter) -> None:
        """Raise ConfigurationError if messages of a further filter would not have the key."""
        if self._capture is not None and not _has(filter_, self._capture):
            raise ConfigurationError(
                f"filter {filter_.text!r} lacks the capture {self._capture!r}, which is the key of"
                " the actor's messages"
            )

    def of(self, envelope: Envelope, filter_: TopicFilter) -> str:
        """Return the key of a message that came through the filter."""
        if self._capture is not None:
            return filter_.capture(envelope.topic)[self._capture]
        key = envelope.key if self._header is None else envelope.headers.get(self._header)
        return envelope.topic if key is None else key

    def of_item(self, item: Any) -> Any:
        """Return the key of an item of a mailbox; each local message has one of its own."""
        if isinstance(item, Delivery):
            return self.of(item.envelope, item.route.filter)
        return id(item)


def _has(filter_: TopicFilter, capture: str) -> bool:
    return any(name == capture for _, name in filter_.captures)
