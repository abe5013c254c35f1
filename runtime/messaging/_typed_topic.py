"""`Topic`: an address together with the types of what is sent there."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, Generic, TypeVar, get_args

from ..._texts import quoted
from ...errors import ConfigurationError
from ...transports import TopicFilter
from ..options._custom_codecs import Codec
from ..payloads._type_readers import check_codec_inside, codec_in, type_name

if TYPE_CHECKING:
    from typing_extensions import TypeVar as TypeVarWithDefault

    R = TypeVarWithDefault("R", default=None)
else:
    R = TypeVar("R")

__all__ = ["Topic", "address_meant", "filter_meant"]

P = TypeVar("P")


class Topic(Generic[P, R]):
    """An address, the type of the payloads that are sent there, and that of the replies.

    Define it once, for everyone who publishes, requests, handles and tests; type checkers then
    check all of them. It can be used wherever a topic or a filter is expected::

        readings = Topic[Reading]("plant/{machine}/temperature")
        orders = Topic[Order, Receipt]("shop/orders")

        await socket.publish(readings.at(machine="boiler"), Reading(21.5))
        receipt = await socket.request(orders, Order("tea"))

    Args:
        text: the address, or a filter: `at` fills in its captures.

    Raises:
        ConfigurationError: the text is not a valid filter.
    """

    def __init__(self, text: str) -> None:
        if not isinstance(text, str):
            raise ConfigurationError(f"Topic({quoted(text)}): give the address as a str")
        filter_ = TopicFilter.parse(text)
        self._text = self._unfilled = text
        self._captures = tuple(name for _, name in filter_.captures)
        self._is_concrete = not any(level in ("+", "#") for level in filter_.pattern.split("/"))

    def __class_getitem__(cls, types: Any) -> Any:
        # Topic[Reading] is for Topic[Reading, None]. Type parameters have defaults from Python 3.13
        # on.
        given = types if isinstance(types, tuple) else (types,)
        return super().__class_getitem__((*given, None) if len(given) == 1 else given)  # type: ignore[misc]

    def at(self, **captures: str | int) -> Topic[P, R]:
        """Return the topic with its captures filled in, to publish there.

        Args:
            captures: a value for each capture.

        Raises:
            ConfigurationError: a value is missing, is for no capture, is empty, or contains a ``/``
                or a wildcard; or the topic has wildcards, which nothing can fill.
        """
        if captures.keys() != {*self._captures}:
            wanted = ", ".join(f"{name}=" for name in self._captures) or "nothing"
            got = ", ".join(f"{name}=" for name in captures) or "nothing"
            raise ConfigurationError(f"{self!r}.at() takes {wanted}, and got {got}")
        levels = self._text.split("/")
        for index, level in enumerate(levels):
            if level in ("+", "#"):
                raise ConfigurationError(
                    f"{self!r}.at(): nothing can fill the wildcard {level!r}; give it a name, as in"
                    " {machine}"
                )
            if level[:1] == "{":
                levels[index] = self._level(level[1:-1], captures[level[1:-1]])
        filled: Topic[P, R] = object.__new__(type(self))
        filled.__dict__ |= self.__dict__
        filled._text, filled._captures, filled._is_concrete = "/".join(levels), (), True
        return filled

    def _level(self, name: str, value: object) -> str:
        if not isinstance(value, str | int) or isinstance(value, bool):
            raise ConfigurationError(
                f"{self!r}.at({name}={quoted(value)}): give a str or an int, not"
                f" {type(value).__name__}"
            )
        # An Enum of texts or numbers would give its name.
        text = str.__str__(value) if isinstance(value, str) else int.__repr__(value)
        if not text or any(mark in text for mark in "/+#"):
            raise ConfigurationError(
                f"{self!r}.at({name}={quoted(text)}): the value is one level of the address, so it"
                " cannot be empty, or contain '/', '+' or '#'"
            )
        return text

    @property
    def address(self) -> str:
        """The topic to publish on.

        Raises:
            ConfigurationError: it has captures that are not filled in, or wildcards.
        """
        if self._is_concrete:
            return self._text
        if self._captures:
            names = ", ".join(f"{name}=..." for name in self._captures)
            raise ConfigurationError(
                f"{self!r} has captures: publish to one address, {self!r}.at({names})"
            )
        raise ConfigurationError(
            f"{self!r} has a wildcard, so it is only for handlers: publish to one address"
        )

    @property
    def filter(self) -> str:
        """The filter for those who receive what is sent there.

        Raises:
            ConfigurationError: a value that was filled in has braces, which filters keep for
                captures.
        """
        if not self._captures and "{" in self._text:
            raise ConfigurationError(
                f"{self!r} cannot be received from: its braces would mean a capture"
            )
        return self._text

    @property
    def unfilled(self) -> str:
        """The text of the topic that this one was made from by `at`, or else its own."""
        return self._unfilled

    @property
    def payload(self) -> Any:
        """The type of the payloads; Any if it was not given."""
        return self._types[0]

    @property
    def reply(self) -> Any:
        """The type of the replies; None if there are none, Any if no types were given."""
        reply = self._types[1]
        return None if reply is type(None) else reply

    @functools.cached_property
    def codec(self) -> Codec | None:
        """The codec that the type of the payloads names; None if it names none."""
        codec = codec_in(self.payload)
        if codec is None:
            check_codec_inside(self.payload)
        return codec

    @property
    def _types(self) -> tuple[Any, Any]:
        # Topic[Reading]("...") sets it after __init__.
        payload, reply = get_args(self.__dict__.get("__orig_class__")) or (Any, Any)
        return payload, reply

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Topic):
            return NotImplemented
        return self._text == other._text and self._types == other._types

    def __hash__(self) -> int:
        return hash(self._text)

    def __str__(self) -> str:
        return self._text

    def __repr__(self) -> str:
        types = [type_name(part) for part in self._types if part is not type(None)]
        suffix = f"[{', '.join(types)}]" if "__orig_class__" in self.__dict__ else ""
        return f"Topic{suffix}({quoted(self._text)})"


def address_meant(topic: Any) -> Any:
    """Return the address of a `Topic`; anything else as it is."""
    return topic.address if isinstance(topic, Topic) else topic


def filter_meant(pattern: Any) -> Any:
    """Return the filter of a `Topic`; anything else as it is."""
    return pattern.filter if isinstance(pattern, Topic) else pattern
