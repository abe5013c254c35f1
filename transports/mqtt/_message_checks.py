"""Checks of what is published and subscribed to: which topics, filters and texts brokers accept."""

from __future__ import annotations

from ..._texts import LONGEST_REMEMBERED, quoted, unfit_character
from ...errors import ConfigurationError
from .._envelope import Envelope, named_texts
from .._topics import check_filter as check_any_filter, check_topic as check_any_topic

__all__ = ["RESERVED_NAMES", "check_filter", "check_message", "check_topic"]

RESERVED_NAMES = frozenset({"id", "source", "type", "time", "key", "specversion"})
"""Names of headers (user properties) that stand for fields of the envelope."""
_LONGEST = 65_535
# Mosquitto's limit, beyond which it ends the connection.
_MOST_LEVELS = 200
_LEVELS_OF_A_SHARE = 2
# A character takes at most four bytes in UTF-8.
_SURELY_SHORT = _LONGEST // 4
_MOST_REMEMBERED = 16_384
# Topics that have passed. Not an lru_cache, which touches several entries for each call.
_checked: dict[str, None] = {}


def check_topic(topic: str) -> None:
    """Raise ConfigurationError unless messages can be published to ``topic``."""
    if topic in _checked:
        return
    check_any_topic(topic)
    _check_levels("topic", topic, _MOST_LEVELS)
    if len(topic) <= LONGEST_REMEMBERED:
        if len(_checked) >= _MOST_REMEMBERED:
            _checked.clear()
        _checked[topic] = None


def check_filter(pattern: str) -> None:
    """Raise ConfigurationError unless ``pattern`` can be subscribed to, even when shared."""
    check_any_filter(pattern)
    _check_levels("filter", pattern, _MOST_LEVELS - _LEVELS_OF_A_SHARE)


def _check_levels(what: str, text: str, most: int) -> None:
    levels = text.count("/") + 1
    if levels > most:
        raise ConfigurationError(
            f"{what} {quoted(text, 40)} has {levels} levels, and more than {most} make some brokers"
            " end the connection: put what varies into a header or the payload"
        )


def check_message(envelope: Envelope) -> None:
    """Raise ConfigurationError if MQTT cannot carry a text of the message.

    Brokers end the connection over a text that they do not accept, without saying more. So what any
    of them refuses is refused here: the error names the field, shows its value, and says what to
    do.
    """
    topic = envelope.topic
    # check_topic(), without the cost of a call.
    if topic not in _checked:
        check_topic(topic)
    if envelope.response_topic is not None:
        try:
            check_topic(envelope.response_topic)
        except ConfigurationError as error:
            raise ConfigurationError(f"response_topic: {error}") from None
    correlation = envelope.correlation
    if correlation is not None and len(correlation) > _LONGEST:
        raise ConfigurationError(
            f"correlation has {len(correlation)} bytes, and MQTT carries {_LONGEST}: shorten it"
        )
    # All of them at once, because there is hardly ever anything to find.
    headers = envelope.headers
    texts = "".join(
        (
            envelope.content_type or "",
            envelope.key or "",
            envelope.id or "",
            envelope.source or "",
            envelope.type or "",
        )
    )
    if headers:
        texts = "".join((texts, *headers, *headers.values()))
    if not texts.isprintable() or len(texts) > _SURELY_SHORT:
        _check_each(envelope)
    if headers and not RESERVED_NAMES.isdisjoint(headers):
        name = next(name for name in headers if name in RESERVED_NAMES)
        raise ConfigurationError(
            f"header {name!r} has a name that the wire format uses itself: choose another name, or"
            " use the field of that name"
        )


def _check_each(envelope: Envelope) -> None:
    for what, text in named_texts(envelope):
        if text is not None:
            _check_text(text, what)
    for name, value in envelope.headers.items():
        _check_text(name, "name of a header")
        _check_text(value, "header", name)


def _check_text(text: str, what: str, name: str | None = None) -> None:
    if len(text) <= _SURELY_SHORT and text.isprintable():
        return
    described = what if name is None else f"{what} {quoted(name)}"
    if (unfit := unfit_character(text)) is not None:
        raise ConfigurationError(
            f"{described}: {quoted(text)} contains {unfit}, and MQTT carries no such text: leave it"
            " out, or send it in the payload"
        )
    size = len(text.encode())
    if size > _LONGEST:
        raise ConfigurationError(
            f"{described}: {quoted(text, 40)} has {size} bytes in UTF-8, and MQTT carries"
            f" {_LONGEST}: shorten it, or send it in the payload"
        )
