"""JSON Schemas of payload types, and what messages with such payloads are on the wire."""

from __future__ import annotations

import enum
import functools
import inspect
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, Union, get_args, get_origin

import msgspec

from ..._texts import reason_of
from ..options._custom_codecs import Codec
from ..payloads._codec import BINARY, JSON, TEXT
from ..payloads._pydantic import is_pydantic
from ..payloads._type_readers import (
    bare_type,
    codec_in,
    is_read_by_pydantic,
    is_union,
    type_name,
)

__all__ = ["DescribedPayload", "Mode", "PayloadSchemas", "name_of", "shown_type", "unique"]

Mode: TypeAlias = Literal["received", "sent"]
"""Whether values of the type are read or written: pydantic has a schema for each."""
Schema: TypeAlias = Any
"""A JSON Schema of draft 7, which is a dict or a bool."""

_SHARED = "#/components/schemas/"
# Where the parts of a schema are until they have their names among all others.
_LOCAL = "#/local/"
_OF_NONE = "None is sent as an empty payload without content type."
_RAW = (bytes, bytearray, memoryview)
_UNNAMEABLE = re.compile(r"[^A-Za-z0-9._-]+")
_ADDRESS = re.compile(r" at 0x[0-9A-Fa-f]+")
_OF_ONE = (
    *("items", "additionalItems", "additionalProperties", "contains", "propertyNames", "not"),
    *("if", "then", "else"),
)
_OF_SEVERAL = ("allOf", "anyOf", "oneOf")
_BY_NAME = ("properties", "patternProperties", "definitions", "dependentSchemas")
_VALUES = ("default", "const", "enum", "examples")


@dataclass(frozen=True)
class DescribedPayload:
    """What payloads of a type are on the wire.

    Attributes:
        name: for the message, which others may have as well.
        title: the type, as errors show it.
        content_type: None if nothing is known about it.
        schema: of the payload.
        note: what is to be said about it; None for nothing.
    """

    name: str
    title: str
    content_type: str | None
    schema: Schema
    note: str | None = None


def shown_type(annotation: Any) -> str:
    """Return an annotation as text, without codecs, and the same in every process."""
    codec = codec_in(annotation)
    if codec is not None:
        bare, optional = bare_type(annotation)
        return type_name(bare) + (" | None" if optional else "")
    return _ADDRESS.sub("", type_name(annotation))


class PayloadSchemas:
    """The schemas of all payload types of an application.

    Types of the same name are told apart by a number. Those that also have the same content share a
    schema.

    Attributes:
        schemas: those of classes, by name, as `DescribedPayload.schema` refers to them.
    """

    def __init__(self) -> None:
        self.schemas: dict[str, Schema] = {}
        # By what they contain, with all that they refer to.
        self._names: dict[str, str] = {}
        self._contents: dict[Any, list[DescribedPayload]] = {}

    def reserve(self, name: str, schema: Schema) -> Schema:
        """Add a schema that is no payload's; returns the reference to it."""
        self.schemas[name] = schema
        return {"$ref": _SHARED + name}

    def contents(
        self, annotation: Any, mode: Mode, codec: Codec | None = None
    ) -> list[DescribedPayload]:
        """Return what payloads of a type may be on the wire.

        Args:
            annotation: the type.
            mode: whether the application reads or writes them.
            codec: the actor's, for types that name none.
        """
        try:
            found = self._contents.get((annotation, mode, codec))
        except TypeError:
            # Annotated may contain something unhashable, and so may the codec.
            return self._made(annotation, mode, codec)
        if found is None:
            found = self._contents[annotation, mode, codec] = self._made(annotation, mode, codec)
        return found

    def _made(self, annotation: Any, mode: Mode, codec: Codec | None) -> list[DescribedPayload]:
        own = codec_in(annotation)
        bare, optional = bare_type(annotation)
        if own is not None:
            return [_encoded(annotation, own)]
        if bare in _RAW:
            return [_raw(mode, optional=optional)]
        if codec is not None:
            # It reads payloads of all formats, and writes only this one.
            rest = [] if mode == "sent" else self._plain(annotation, mode)
            known = (one for one in rest if one.note in (None, _OF_NONE))
            return [_encoded(annotation, codec), *known]
        return self._plain(annotation, mode)

    def _plain(self, annotation: Any, mode: Mode) -> list[DescribedPayload]:
        bare, optional = bare_type(annotation)
        title = shown_type(annotation)
        if bare in (Any, object):
            return [_anything()]
        if bare is type(None):
            return [
                DescribedPayload("Nothing", title, None, {"type": "null"}, "The payload is empty.")
            ]
        note = _OF_NONE if optional else None
        if _is_text(bare):
            schema = _without_null(self._text_schema(annotation, mode))
            return [DescribedPayload(name_of(title), title, TEXT, schema, note)]
        if is_union(bare):
            texts = [part for part in get_args(bare) if _is_text(bare_type(part)[0])]
            rest = tuple(part for part in get_args(bare) if part not in texts)
            if texts and rest:
                rest += (None,) if optional else ()
                return [
                    *(content for part in texts for content in self._plain(part, mode)),
                    *self._plain(Union[rest], mode),  # noqa: UP007  (built from a tuple)
                ]
        try:
            schema = self._schema(annotation, mode)
        except Exception as error:  # noqa: BLE001  (so many libraries and hooks of the user's)
            return [
                DescribedPayload(
                    name_of(title), title, JSON, {}, f"It has no schema: {reason_of(error)}"
                )
            ]
        reference = schema.get("$ref", "") if isinstance(schema, dict) else ""
        name = reference.removeprefix(_SHARED) or name_of(title)
        return [DescribedPayload(name, title, JSON, schema, note)]

    def _text_schema(self, annotation: Any, mode: Mode) -> Schema:
        try:
            return self._schema(annotation, mode)
        except Exception:  # noqa: BLE001  (as above; it is a text in any case)
            return {"type": "string"}

    def _schema(self, annotation: Any, mode: Mode) -> Schema:
        if is_read_by_pydantic(annotation):
            return self._by_pydantic(annotation, mode)

        def of_other(kind: type) -> Schema:
            if not is_pydantic(kind):
                raise TypeError(f"nothing is known about {type_name(kind)}")
            return self._by_pydantic(kind, mode)

        (schema,), parts = msgspec.json.schema_components(
            [annotation], schema_hook=of_other, ref_template=_LOCAL + "{name}"
        )
        return self._absorb(schema, _with_flags(annotation, parts))

    def _by_pydantic(self, annotation: Any, mode: Mode) -> Schema:
        import pydantic

        schema = pydantic.TypeAdapter(annotation).json_schema(
            ref_template=_LOCAL + "{model}",
            mode="validation" if mode == "received" else "serialization",
            schema_generator=_pydantic_generator(),
        )
        parts = schema.pop("$defs", {})
        kind = bare_type(annotation)[0]
        if is_pydantic(kind) and "$ref" not in schema:
            # At the top pydantic writes a model out.
            name = name_of(schema.get("title", kind.__name__))
            while name in parts:
                name += "_"
            parts = {**parts, name: schema}
            schema = {"$ref": _LOCAL + name}
        return self._absorb(schema, parts)

    def _absorb(self, schema: Schema, parts: Mapping[str, Schema]) -> Schema:
        """Give the parts names among all others; returns the schema with these names."""
        plain = {name: _draft_7(part, lambda reference: reference) for name, part in parts.items()}
        names: dict[str, str] = {}
        fresh: list[str] = []
        for local in plain:
            key = json.dumps([local, _closure(local, plain)], sort_keys=True)
            known = self._names.get(key)
            if known is None:
                known = unique(name_of(local), self.schemas)
                self._names[key] = known
                self.schemas[known] = {}
                fresh.append(local)
            names[local] = known

        def rename(reference: str) -> str:
            local = reference.removeprefix(_LOCAL)
            return reference if local == reference else _SHARED + names[local]

        for local in fresh:
            self.schemas[names[local]] = _draft_7(plain[local], rename)
        return _draft_7(schema, rename)


def unique(name: str, taken: Mapping[str, object]) -> str:
    """Return a name that is not taken, with a number at its end if need be."""
    found, number = name, 2
    while found in taken:
        found = f"{name}-{number}"
        number += 1
    return found


def name_of(text: str) -> str:
    """Return a text as names of components may be."""
    return _UNNAMEABLE.sub("_", text).strip("_") or "_"


def _is_text(bare: Any) -> bool:
    """Return whether values of a type are sent as text, without quotes."""
    if get_origin(bare) is Literal:
        return all(isinstance(value, str) for value in get_args(bare))
    return isinstance(bare, type) and issubclass(bare, str)


@functools.cache
def _pydantic_generator() -> Any:
    """Return what makes pydantic's schemas: that of pydantic describes flags as one flag each."""
    from pydantic.json_schema import GenerateJsonSchema

    class Generator(GenerateJsonSchema):
        def enum_schema(self, schema: Any) -> dict[str, Any]:
            made, kind = super().enum_schema(schema), schema["cls"]
            return _flag_schema(kind, made) if issubclass(kind, enum.Flag) else made

    return Generator


def _with_flags(annotation: Any, parts: Mapping[str, Schema]) -> Mapping[str, Schema]:
    """Return parts with what flags are on the wire: msgspec describes them as one flag each."""
    if not any("enum" in part for part in parts.values()):
        return parts
    flags = {
        (flag.__name__, *sorted(one.value for one in flag)): flag for flag in _flags(annotation)
    }
    return {
        name: _flag_schema(flags[key], part)
        if "enum" in part and (key := (part.get("title"), *part["enum"])) in flags
        else part
        for name, part in parts.items()
    }


def _flags(annotation: Any) -> Iterator[type[enum.Flag]]:
    # Its nodes refer to each other where types do; the first one keeps them all.
    root = msgspec.inspect.type_info(annotation)
    waiting: list[Any] = [root]
    seen: set[int] = set()
    while waiting:
        node = waiting.pop()
        if isinstance(node, tuple):
            waiting += node
        elif isinstance(node, msgspec.Struct) and id(node) not in seen:
            seen.add(id(node))
            if isinstance(node, msgspec.inspect.EnumType) and issubclass(node.cls, enum.Flag):
                yield node.cls
            waiting += (getattr(node, name) for name in node.__struct_fields__)


def _flag_schema(flag: type[enum.Flag], part: Mapping[str, Any]) -> dict[str, Any]:
    values = ", ".join(f"{one.value} is {one.name}" for one in flag)
    kept = {name: value for name, value in part.items() if name != "enum"}
    text = f"The sum of any of these: {values}."
    before = kept.get("description")
    return {
        **kept,
        "type": "integer",
        "description": text if before is None else f"{before}\n\n{text}",
    }


def _without_null(schema: Schema) -> Schema:
    """Return the schema of a text that may be None, which is sent without any text."""
    parts = schema.get("anyOf", ()) if isinstance(schema, dict) else ()
    rest = [part for part in parts if part != {"type": "null"}]
    if not rest:
        return schema
    return rest[0] if len(rest) == 1 and len(schema) == 1 else {**schema, "anyOf": rest}


def _anything() -> DescribedPayload:
    return DescribedPayload("Anything", "any payload", None, {}, "The payload may be anything.")


def _raw(mode: Mode, *, optional: bool) -> DescribedPayload:
    if mode == "received":
        note = "Any bytes, whatever their content type: nothing decodes them."
        return DescribedPayload("RawBytes", "bytes", None, {}, note)
    note_of_none = _OF_NONE if optional else None
    return DescribedPayload(
        "Bytes", "bytes", BINARY, {"type": "string", "format": "binary"}, note_of_none
    )


def _encoded(annotation: Any, codec: Codec) -> DescribedPayload:
    name = type_name(type(codec))
    title = shown_type(annotation)
    note = f"The codec {name} of the application encodes it; no JSON Schema describes its payloads."
    return DescribedPayload(name_of(f"{title}-{name}"), title, codec.content_type, {}, note)


def _draft_7(schema: Schema, rename: Callable[[str], str]) -> Schema:
    """Return a schema as draft 7 has it, which is what AsyncAPI extends.

    Args:
        schema: by msgspec or pydantic, which write draft 2020-12.
        rename: from a reference to the one to write.
    """
    if not isinstance(schema, Mapping):
        return schema
    inside = functools.partial(_draft_7, rename=rename)
    result: dict[str, Any] = {}
    for key, value in schema.items():
        if key == "$ref":
            # What stands beside a reference has no effect in draft 7.
            reference = {"$ref": rename(value)}
            result |= reference if len(schema) == 1 else {"allOf": [reference]}
        elif key == "prefixItems":
            result["items"] = [inside(part) for part in value]
        elif key == "items" and "prefixItems" in schema:
            result["additionalItems"] = inside(value)
        elif key == "items" and isinstance(value, list):
            result["items"] = [inside(part) for part in value]
        elif key == "description":
            result[key] = inspect.cleandoc(value)
        elif key == "discriminator" and isinstance(value, Mapping):
            # That is OpenAPI's; in AsyncAPI the word means something else.
            continue
        elif key in _VALUES:
            if _is_json(value):
                result[key] = json.loads(json.dumps(value))
        elif key in _BY_NAME:
            result[key] = {name: inside(part) for name, part in value.items()}
        elif key in _OF_SEVERAL:
            result[key] = [*result.get(key, ()), *(inside(part) for part in value)]
        elif key in _OF_ONE:
            result[key] = inside(value)
        elif _is_json(value):
            result[key] = value
    return result


def _is_json(value: object) -> bool:
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        return False
    return True


def _references(schema: Schema) -> Iterator[str]:
    found: list[str] = []

    def note(reference: str) -> str:
        found.append(reference)
        return reference

    _draft_7(schema, note)
    yield from found


def _closure(local: str, parts: Mapping[str, Schema]) -> dict[str, Schema]:
    """Return a part and all that it refers to, by name."""
    found: dict[str, Schema] = {}
    waiting = [local]
    while waiting:
        name = waiting.pop()
        if name in found or name not in parts:
            continue
        found[name] = parts[name]
        waiting += [text.removeprefix(_LOCAL) for text in _references(parts[name])]
    return found
