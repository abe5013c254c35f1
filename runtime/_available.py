"""What the parameters of a handler can ask for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from ..errors import ConfigurationError
from ._parts import PARTS

__all__ = ["RESERVED_NAMES", "Available"]

RESERVED_NAMES = ("message", "socket", "state", "context", "message_builder", "payload")
_OF_A_MESSAGE = ("message", "payload")


@dataclass(frozen=True)
class Available:
    """What the parameters of a handler can ask for.

    Attributes:
        captures: the names in each of its topic filters.
        topics: the texts of the filters.
        resources: names of its resources.
        has_state: a state was given.
        kind: producers have neither messages nor captures.
        special: types that decide whatever the parameter's name, and what of the scope they get.
        batch: a call gets several messages.
    """

    captures: tuple[tuple[str, ...], ...] = ()
    topics: tuple[str, ...] = ()
    resources: tuple[str, ...] = ()
    has_state: bool = True
    kind: Literal["application", "producer"] = "application"
    special: Mapping[type, str] = field(default_factory=dict)
    batch: bool = False

    @property
    def reserved(self) -> tuple[str, ...]:
        """The names that mean the same in every handler of the kind."""
        if self.kind == "application":
            return RESERVED_NAMES
        return tuple(name for name in RESERVED_NAMES if name not in _OF_A_MESSAGE)

    @property
    def all_captures(self) -> tuple[str, ...]:
        """The captures of all topics, each once."""
        return tuple(dict.fromkeys(name for names in self.captures for name in names))

    def check(self, owner: str) -> None:
        """Raise ConfigurationError unless reserved, resource and capture names are disjoint."""
        groups = [
            (RESERVED_NAMES, "a reserved name"),
            (self.resources, "a resource"),
            (self.all_captures, "a capture of a topic"),
        ]
        for index, (names, what) in enumerate(groups):
            for others, other in groups[index + 1 :]:
                for name in names:
                    if name in others:
                        raise ConfigurationError(
                            f"{owner}: {name!r} is both {what} and {other}; rename the latter"
                        )

    def __str__(self) -> str:
        types = [kind.__name__ for kind in self.special]
        if self.kind == "application":
            types.insert(0, "list[Message[...]]" if self.batch else "Message[...]")
        names = [name for name in self.reserved if not (self.batch and name == "message")]
        if self.kind == "application" and not self.batch:
            names += PARTS
        groups = [
            ("by name", names),
            ("by type", types),
            ("resources", self.resources),
            ("captures", () if self.batch else self.all_captures),
        ]
        text = "; ".join(f"{what}: {', '.join(names)}" for what, names in groups if names)
        payload = "; and one annotated parameter for the payload"
        if self.batch:
            payload = "; and one parameter annotated list[...] for the payloads"
        return text + (payload if self.kind == "application" else "")
