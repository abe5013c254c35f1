"""Access rules for Mosquitto: the lines of an ``acl_file`` for one application."""

from __future__ import annotations

from collections.abc import Iterator

from .._access import Access
from .._dead_letter_topics import dead_letter_filter
from .._topics import RESERVED, minimal, reply_filter
from ._config import MqttConfig

__all__ = ["mosquitto_rules"]


def mosquitto_rules(config: MqttConfig, access: Access) -> list[str]:
    """Return the lines that allow an application what it needs, and nothing else.

    The format is that of mosquitto.conf(5), "acl_file".
    """
    return [f"user {access.user}", *dict.fromkeys(_topics(config, access))]


def _topics(config: MqttConfig, access: Access) -> Iterator[str]:
    received, published = {*access.received}, {*access.published}
    if config.will is not None:
        published.add(config.will.topic)
    for pattern in sorted(minimal(received)):
        yield f"topic read {pattern}"
    for pattern in sorted(minimal(published)):
        yield f"topic write {pattern}"
    yield f"topic read {reply_filter(access.application)}"
    # Requesters, and whoever asks it to replay dead letters.
    yield f"topic write {RESERVED}/reply/#"
    if access.answers:
        for pattern in sorted(minimal(access.reply_topics)):
            yield f"topic write {pattern}"
    # It reads those that it is to replay.
    yield f"topic readwrite {dead_letter_filter(access.application)}"
