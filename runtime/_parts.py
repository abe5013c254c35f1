"""Parts of a message that a handler may ask for by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, cast, get_args, get_origin

from ..transports import Envelope
from ._getters import Getter, Scope
from ._signatures import MISSING
from ._type_readers import bare_type

__all__ = ["PARTS", "Part"]

_ANYTHING = (MISSING, Any, object)


class _OfAMessage(Protocol):
    """The scope of a handler that gets messages."""

    @property
    def envelope(self) -> Envelope: ...


@dataclass(frozen=True)
class Part:
    """A part of a message.

    Attributes:
        read: gets it from the envelope.
        kinds: the types that it has.
        written: how the type is written.
        always: every message has it.
    """

    read: Callable[[Any], Any]
    kinds: tuple[type, ...]
    written: str
    always: bool

    def takes(self, annotation: Any, *, required: bool) -> bool:
        """Whether a parameter with this annotation may get it."""
        if annotation in _ANYTHING:
            return True
        bare, optional = bare_type(annotation)
        kind = get_origin(bare) or bare
        texts = all(argument in (str, Any) for argument in get_args(bare))
        return kind in self.kinds and texts and (optional or self.always or not required)

    def getter(self, default: Any) -> Getter:
        """Fetches it; ``default`` where a message does not have it."""
        read = self.read

        def get(scope: Scope) -> Any:
            value = read(cast(_OfAMessage, scope).envelope)
            return default if value is None else value

        return get


PARTS: Mapping[str, Part] = {
    "topic": Part(lambda envelope: envelope.topic, (str,), "str", True),
    "headers": Part(
        lambda envelope: dict(envelope.headers), (dict, Mapping), "Mapping[str, str]", True
    ),
    "key": Part(lambda envelope: envelope.key, (str,), "str | None", False),
}
"""By the name of the parameter."""
