"""The rules for parameters: from a signature to what each parameter gets."""

from __future__ import annotations

import difflib
import operator
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args, get_origin

from ...errors import ConfigurationError
from ..messaging._message import Message
from ..options._custom_codecs import Codec
from ..payloads._codec import Decoder
from ..payloads._constraints import is_foreign_default
from ..payloads._type_readers import bare_type, type_name
from ._argument_getters import (
    PARTS,
    PAYLOAD,
    Getter,
    capture_converter,
    capture_getter,
    decoded_message,
    raw_message,
    resource_getter,
)
from ._signatures import MISSING, Parameter, Signature, Unresolved

__all__ = ["RESERVED_NAMES", "Analysis", "Available", "Plan"]

RESERVED_NAMES = ("message", "socket", "state", "context", "message_builder", "payload")
_OF_A_MESSAGE = ("message", "payload")
_SIMILAR = 0.8
_ANYTHING = (MISSING, Any, object)


@dataclass(frozen=True)
class Available:
    """What the parameters of a handler can ask for.

    Attributes:
        captures: the names of the captures in each of its topic filters.
        topics: the texts of the filters.
        resources: the names of its resources.
        has_state: whether a state was given.
        kind: producers have neither messages nor captures.
        special: types that decide whatever the parameter's name, each with the attribute of the
            scope that it stands for.
        batch: whether a call gets several messages.
        codec: the actor's; None for the runtime's own formats.
    """

    captures: tuple[tuple[str, ...], ...] = ()
    topics: tuple[str, ...] = ()
    resources: tuple[str, ...] = ()
    has_state: bool = True
    kind: Literal["application", "producer"] = "application"
    special: Mapping[type, str] = field(default_factory=dict)
    batch: bool = False
    codec: Codec | None = None

    @property
    def reserved(self) -> tuple[str, ...]:
        """The names that mean the same in every handler of this kind."""
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


@dataclass(frozen=True)
class Plan:
    """What each parameter gets.

    Attributes:
        getters: how to get each argument, by parameter.
        extra_captures: captures for ``**kwargs``, passed if the topic has them.
        required_captures: captures that the handler cannot be called without.
        payload_decoder: decodes the payload; None if nothing asks for it.
    """

    getters: Mapping[str, Getter]
    extra_captures: tuple[str, ...]
    required_captures: frozenset[str]
    payload_decoder: Decoder[Any] | None


class Analysis:
    """The rules of injection, applied to one signature.

    Args:
        signature: the handler's.
        available: what its parameters can ask for.
    """

    def __init__(self, signature: Signature, available: Available) -> None:
        self._signature = signature
        self._available = available
        self._getters: dict[str, Getter] = {}
        self._required_captures: set[str] = set()
        self._message_names: list[str] = []
        self._message_type: Any = MISSING
        self._payload_type: Any = MISSING
        self._payload_name: str | None = None

    def run(self) -> Plan:
        """Apply the rules; raises ConfigurationError if there is nothing to pass to a parameter."""
        self._available.check(self._signature.name)
        remaining = [p for p in self._signature.parameters if not self._fill(p)]
        required = [p for p in remaining if p.required]
        self._refuse_misspelt(required)
        if len(required) == 1 and self._may_be_payload(required[0]):
            self._take_payload(required[0])
        elif required:
            names = ", ".join(repr(p.name) for p in required)
            of_class = ""
            if required[0].name == "self":
                of_class = (
                    "; decorate methods with @on(...), in a class that is derived from Actor, and"
                    " register that with add(...)"
                )
            raise self._error(f"nothing to pass to {names}{of_class}")
        extra_captures = self._fill_rest() if self._signature.takes_anything else ()
        raw = self._message_type is bytes and self._payload_type not in (MISSING, bytes)
        for name in self._message_names:
            self._getters[name] = self._message_getter(raw=raw)
        return Plan(
            self._getters, extra_captures, frozenset(self._required_captures), self._decoder()
        )

    def _message_getter(self, *, raw: bool) -> Getter:
        return raw_message if raw else decoded_message

    def _error(self, problem: str) -> ConfigurationError:
        return ConfigurationError(
            f"{self._signature.name}: {problem}. It can ask for: {self._available}"
        )

    def _fill(self, parameter: Parameter) -> bool:
        if is_foreign_default(parameter.default):
            raise self._error(
                f"the default of {parameter.name!r} is {parameter.default!r:.100}, which does"
                f" nothing here; write {parameter.name}: Annotated[..., pydantic.Field(...)]"
            )
        return (
            self._fill_by_type(parameter)
            or self._fill_by_name(parameter)
            or self._fill_resource(parameter)
            or self._fill_capture(parameter)
            or self._fill_part(parameter)
        )

    def _fill_by_type(self, parameter: Parameter) -> bool:
        if isinstance(parameter.annotation, Unresolved):
            return False
        wanted = bare_type(parameter.annotation)[0]
        plain = get_origin(wanted) or wanted
        if plain is Message:
            arguments = get_args(wanted)
            self._take_message(parameter.name, arguments[0] if arguments else bytes)
            return True
        for kind, attribute in self._available.special.items():
            if plain is kind:
                self._getters[parameter.name] = operator.attrgetter(attribute)
                return True
        return False

    def _fill_by_name(self, parameter: Parameter) -> bool:
        name = parameter.name
        if name not in RESERVED_NAMES:
            return False
        if name not in self._available.reserved:
            if parameter.required:
                raise self._error(f"{name!r}: a producer gets no messages")
            return True
        if name == "message":
            self._check_plain_message(parameter)
            self._take_message(name, bytes)
        elif name == "payload":
            self._take_payload(parameter)
        elif name != "state" or self._state_is_welcome(parameter):
            self._getters[name] = operator.attrgetter(name)
        return True

    def _check_plain_message(self, parameter: Parameter) -> None:
        annotation = parameter.annotation
        if isinstance(annotation, Unresolved):
            raise self._unresolved(parameter)
        if annotation not in _ANYTHING:
            named = type_name(annotation)
            raise self._error(
                f"'message' is annotated {named}, but it is a Message; write Message[{named}], or"
                " rename the parameter if it is meant to be the payload"
            )

    def _state_is_welcome(self, parameter: Parameter) -> bool:
        if self._available.has_state:
            return True
        if not parameter.required:
            return False
        annotation = parameter.annotation
        if annotation in _ANYTHING or isinstance(annotation, Unresolved):
            return True
        if not bare_type(annotation)[1]:
            raise self._error(
                f"'state' is annotated {type_name(annotation)}, and no state was given; register"
                " the handler with state=..."
            )
        return True

    def _fill_resource(self, parameter: Parameter) -> bool:
        if parameter.name not in self._available.resources:
            return False
        self._getters[parameter.name] = resource_getter(parameter.name)
        return True

    def _fill_capture(self, parameter: Parameter) -> bool:
        name = parameter.name
        if name not in self._available.all_captures:
            return False
        pairs = zip(self._available.topics, self._available.captures, strict=True)
        lacking = [topic for topic, names in pairs if name not in names]
        if lacking and parameter.required:
            raise self._error(
                f"capture {name!r} is not in {', '.join(map(repr, lacking))}; give the parameter a"
                " default"
            )
        if isinstance(parameter.annotation, Unresolved):
            raise self._unresolved(parameter)
        convert = None
        if parameter.annotation is not MISSING:
            try:
                convert = capture_converter(name, parameter.annotation)
            except ConfigurationError as error:
                raise self._error(str(error)) from error
        if parameter.required:
            self._required_captures.add(name)
        self._getters[name] = capture_getter(name, convert, parameter.default)
        return True

    def _fill_part(self, parameter: Parameter) -> bool:
        """Fill a parameter named like a part of the message; captures and resources go first."""
        name = parameter.name
        part = PARTS.get(name)
        if part is None or self._available.kind == "producer":
            return False
        if self._available.batch:
            raise self._error(
                f"{name!r}: each message has its own; take list[Message[...]], and message.{name}"
            )
        if isinstance(parameter.annotation, Unresolved):
            raise self._unresolved(parameter)
        if not part.takes(parameter.annotation, required=parameter.required):
            raise self._error(
                f"{name!r} is annotated {type_name(parameter.annotation)}, but it is the message's"
                f" {name}; write {name}: {part.written}, or rename the parameter if it is meant"
                " to be the payload"
            )
        self._getters[name] = part.getter(None if parameter.required else parameter.default)
        return True

    def _refuse_misspelt(self, required: Iterable[Parameter]) -> None:
        given = {p.name for p in self._signature.parameters} | self._signature.fixed
        known = (
            *self._available.all_captures,
            *self._available.resources,
            *self._available.reserved,
        )
        open_names = {name.lower(): name for name in known if name not in given}
        for parameter in required:
            if self._available.batch and parameter.name == "payloads":
                continue
            near = difflib.get_close_matches(
                parameter.name.lower(), list(open_names), n=1, cutoff=_SIMILAR
            )
            if near:
                meant = open_names[near[0]]
                raise self._error(
                    f"nothing to pass to {parameter.name!r}; did you mean {meant!r}? (A parameter"
                    " for the payload needs a name that is less similar to it)"
                )

    def _may_be_payload(self, parameter: Parameter) -> bool:
        if self._available.kind == "producer" or self._payload_type is not MISSING:
            return False
        if parameter.annotation is MISSING:
            raise self._error(
                f"parameter {parameter.name!r} has no annotation; annotate it with the payload's"
                " type if it is the payload"
            )
        return True

    def _take_message(self, name: str, payload_type: Any) -> None:
        if self._available.kind == "producer":
            raise self._error(f"{name!r}: a producer gets no messages")
        if self._message_type not in (MISSING, payload_type):
            raise self._error(
                f"one message cannot be read as {type_name(self._message_type)} and as"
                f" {type_name(payload_type)}"
            )
        self._message_type = payload_type
        self._message_names.append(name)
        self._payload_name = self._payload_name or name

    def _take_payload(self, parameter: Parameter) -> None:
        if isinstance(parameter.annotation, Unresolved):
            raise self._unresolved(parameter)
        self._payload_type = bytes if parameter.annotation is MISSING else parameter.annotation
        self._getters[parameter.name] = PAYLOAD
        self._payload_name = parameter.name

    def _fill_rest(self) -> tuple[str, ...]:
        """Give everything else to ``**kwargs``; return the captures, which a topic may lack."""
        taken = {p.name for p in self._signature.parameters} | self._signature.fixed
        for name in self._available.reserved:
            if name == "message" and name not in taken:
                self._message_names.append(name)
            elif name not in taken:
                self._getters[name] = operator.attrgetter(name)
        if self._payload_type is MISSING and self._available.kind == "application":
            self._payload_type = bytes if self._message_type is MISSING else self._message_type
        for name in self._available.resources:
            if name not in taken:
                self._getters[name] = resource_getter(name)
        return tuple(name for name in self._available.all_captures if name not in taken)

    def _decoder(self) -> Decoder[Any] | None:
        wanted, message = self._payload_type, self._message_type
        if wanted is MISSING:
            wanted = message
        if wanted is MISSING:
            return None
        if message not in (MISSING, wanted, bytes):
            raise self._error(
                f"one payload cannot be read as {type_name(message)} and as {type_name(wanted)}"
            )
        try:
            return Decoder.of(wanted, self._available.codec)
        except ConfigurationError as error:
            whose = "" if self._payload_name is None else f"parameter {self._payload_name!r}: "
            raise self._error(f"{whose}{error}") from error

    def _unresolved(self, parameter: Parameter) -> ConfigurationError:
        unresolved = parameter.annotation
        return self._error(
            f"the annotation {unresolved.text!r} of parameter {parameter.name!r} cannot be"
            f" resolved ({unresolved.reason}); import the name where the handler is defined, not"
            " only for type checking"
        )
