"""The rules of injection for handlers that get several messages in one call, as lists."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, get_args, get_origin

import msgspec

from ..messaging._message import Message
from ..payloads._codec import Decoder
from ..payloads._type_readers import bare_type, type_name
from ._argument_getters import Getter, Scope
from ._parameter_rules import Analysis
from ._signatures import MISSING, Parameter, Unresolved

__all__ = ["BatchAnalysis"]

_WHOLE = "a call gets several messages; ask for list[Message[...]], where each has its own topic"


class BatchAnalysis(Analysis):
    """The rules for batches: ``list[T]`` for the payloads, ``list[Message[T]]`` for messages."""

    def _fill_by_type(self, parameter: Parameter) -> bool:
        element = _element(parameter.annotation)
        if _is_message(element):
            arguments = get_args(element)
            self._take_message(parameter.name, arguments[0] if arguments else bytes)
            return True
        if _is_message(_bare(parameter.annotation)):
            raise self._error(f"{parameter.name!r}: with batch={_WHOLE}")
        return super()._fill_by_type(parameter)

    def _fill_by_name(self, parameter: Parameter) -> bool:
        if parameter.name == "message":
            raise self._error(f"'message': with batch={_WHOLE}")
        return super()._fill_by_name(parameter)

    def _fill_capture(self, parameter: Parameter) -> bool:
        if parameter.name in self._available.all_captures:
            raise self._error(
                f"capture {parameter.name!r}: each message has its own, and with batch={_WHOLE}"
            )
        return False

    def _take_payload(self, parameter: Parameter) -> None:
        super()._take_payload(parameter)
        element = _element(parameter.annotation)
        if element is MISSING:
            annotation = parameter.annotation
            given = "has no annotation" if annotation is MISSING else f"is {type_name(annotation)}"
            raise self._error(
                f"with batch= the payloads come as a list, and {parameter.name!r} {given};"
                " annotate it list[...]"
            )
        self._payload_type = element

    def _fill_rest(self) -> tuple[str, ...]:
        super()._fill_rest()
        return ()

    def _decoder(self) -> Decoder[Any] | None:
        if self._payload_type is MISSING and self._message_type is MISSING:
            raise self._error(
                "with batch= a handler gets several messages; give it a parameter annotated"
                " list[...] or list[Message[...]]"
            )
        return super()._decoder()

    def _message_getter(self, *, raw: bool) -> Getter:
        return _raw_messages if raw else _decoded_messages


def _decoded_messages(scope: Scope) -> Any:
    return scope.message()


def _raw_messages(scope: Scope) -> list[Message[bytes]]:
    messages: Any = scope.message()
    return [msgspec.structs.replace(message, payload=message.raw) for message in messages]


def _bare(annotation: Any) -> Any:
    return annotation if isinstance(annotation, Unresolved) else bare_type(annotation)[0]


def _element(annotation: Any) -> Any:
    """Return the T of ``list[T]`` or ``Sequence[T]``; MISSING for anything else."""
    bare = _bare(annotation)
    if get_origin(bare) in (list, Sequence):
        return get_args(bare)[0]
    return MISSING


def _is_message(annotation: Any) -> bool:
    return annotation is Message or get_origin(annotation) is Message
