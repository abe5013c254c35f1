"""The last will: what the broker publishes when an application is gone without a word."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..._texts import quoted
from ..._unknown_names import nearest_or_all, suggests_keywords
from ...errors import ConfigurationError
from .._envelope import Envelope
from .._topics import RESERVED, is_reserved
from ._message_checks import check_message

__all__ = ["LastWill", "will_meant"]

_LONGEST = 65_535
_LONGEST_DELAY = 4_294_967_295
_OWNER = "option will of MqttConfig"


@suggests_keywords
@dataclass(frozen=True)
class LastWill:
    """What the broker publishes when an application is gone, so that others know.

    With ``birth`` the topic says whether the application is there: give ``retain`` as well, and
    whoever subscribes later is told at once.

    Args:
        topic: where to publish it.
        payload: the text.
        retain: whether the broker keeps it as the topic's last value.
        qos: quality of service, 0 or 1.
        delay: seconds that the broker waits first, and in which the application may come back
            without anybody noticing.
        birth: the text that the application publishes to the topic, in the same way, each time it
            has connected; None for nothing.
        on_stop: whether the will is also published when the application stops cleanly.
        content_type: MIME type of both texts.

    Raises:
        ConfigurationError: names what is wrong.
    """

    topic: str
    payload: str = ""
    retain: bool = False
    qos: int = 1
    delay: int = 0
    birth: str | None = None
    on_stop: bool = True
    content_type: str = "text/plain"

    def __post_init__(self) -> None:
        for name in ("topic", "payload", "content_type"):
            self._check_text(name)
        if self.birth is not None:
            self._check_text("birth")
        try:
            check_message(self.message)
        except ConfigurationError as error:
            raise ConfigurationError(f"{_OWNER}: {error}") from None
        if is_reserved(self.topic):
            raise ConfigurationError(
                f"{_OWNER}: topic {quoted(self.topic)}: everything under {RESERVED}/ belongs to the"
                " runtime; choose another first level"
            )
        for name in ("retain", "on_stop"):
            if not isinstance(getattr(self, name), bool):
                raise self._wrong(name, "give True or False")
        if isinstance(self.qos, bool) or self.qos not in (0, 1):
            raise self._wrong("qos", "give 0 or 1")
        if (
            isinstance(self.delay, bool)
            or not isinstance(self.delay, int)
            or not 0 <= self.delay <= _LONGEST_DELAY
        ):
            raise self._wrong("delay", f"give a whole number of seconds from 0 to {_LONGEST_DELAY}")

    def _check_text(self, name: str) -> None:
        text = getattr(self, name)
        if not isinstance(text, str):
            raise self._wrong(name, "give a str")
        try:
            size = len(text.encode())
        except UnicodeEncodeError:
            raise self._wrong(name, "it has a character that UTF-8 cannot encode") from None
        if size > _LONGEST:
            raise ConfigurationError(
                f"{_OWNER}: {name} is {size} bytes long in UTF-8; at most {_LONGEST} are allowed"
            )

    def _wrong(self, name: str, advice: str) -> ConfigurationError:
        return ConfigurationError(f"{_OWNER}: {name}={quoted(getattr(self, name))}: {advice}")

    @property
    def message(self) -> Envelope:
        """The will as a message."""
        return self._as_message(self.payload)

    @property
    def birth_message(self) -> Envelope:
        """The message to publish after connecting."""
        return self._as_message(self.birth or "")

    def _as_message(self, text: str) -> Envelope:
        return Envelope(
            topic=self.topic,
            payload=text.encode(),
            content_type=self.content_type,
            qos=self.qos,
            retain=self.retain,
        )


def will_meant(value: Any) -> LastWill | None:
    """Return the will that was given as itself, or as a table of its options.

    Raises:
        ConfigurationError: it is neither, or an option is wrong.
    """
    if value is None or isinstance(value, LastWill):
        return value
    if not isinstance(value, Mapping):
        raise ConfigurationError(
            f"{_OWNER}: {quoted(value)}: give a LastWill, or a table with topic, payload, ..."
        )
    names = [entry.name for entry in dataclasses.fields(LastWill)]
    for name in value:
        if name not in names:
            raise ConfigurationError(
                f"{_OWNER}: {quoted(name)} is not known: {nearest_or_all(str(name), names)}"
            )
    if "topic" not in value:
        raise ConfigurationError(f"{_OWNER} needs a topic")
    return LastWill(**value)
