"""Encoding values to payloads, and decoding payloads by content type and annotated type."""

from __future__ import annotations

import dataclasses
import enum
import functools
import inspect
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Generic, TypeVar, get_args

import msgspec

from ..._texts import LONGEST_REMEMBERED, describe, error_name, escaped, reason_of
from ...errors import ConfigurationError, DecodeError, EncodeError
from ...transports import Envelope, Tombstone
from ..options._custom_codecs import Codec
from ._constraints import foreign_constraint
from ._generics import type_variable_in
from ._pydantic import is_pydantic, to_builtins
from ._type_readers import (
    bare_type,
    check_codec_inside,
    codec_in,
    is_union,
    messagepack_reader,
    type_name,
    type_readers,
)

__all__ = [
    "BINARY",
    "JSON",
    "MESSAGEPACK",
    "TEXT",
    "Decoder",
    "PayloadFormat",
    "check_readable",
    "encode",
    "encode_as",
    "encode_with",
    "find_unencodable",
    "format_of",
    "has_format_of",
]

BINARY = "application/octet-stream"
# Without a charset: some receivers, FastStream among them, compare it as a whole. It is UTF-8 all
# the same, which on MQTT a property of its own says.
TEXT = "text/plain"
JSON = "application/json"
MESSAGEPACK = "application/msgpack"
_ALSO_MESSAGEPACK = (MESSAGEPACK, "application/x-msgpack", "application/vnd.msgpack")


class PayloadFormat(enum.Enum):
    """The formats that payloads are told apart by."""

    UNSTATED = "no content type"
    JSON = "JSON"
    TEXT = "text"
    BINARY = "binary"
    MESSAGEPACK = "MessagePack"
    OTHER = "something else"


def format_of(content_type: str | None) -> PayloadFormat:
    """Return the format that a content type stands for, whatever its parameters and case."""
    if content_type is not None and len(content_type) > LONGEST_REMEMBERED:
        return _read_format(content_type)
    return _remembered_format(content_type)


def _essence_of(content_type: str) -> str:
    return content_type.partition(";")[0].strip().lower()


def has_format_of(codec: Codec, content_type: object) -> bool:
    """Return whether a content type is that of a codec, whatever its parameters and case."""
    if not isinstance(content_type, str):
        return False
    own = codec.content_type
    return content_type == own or _essence_of(content_type) == _essence_of(own)


def _read_format(content_type: str | None) -> PayloadFormat:
    essence = "" if content_type is None else _essence_of(content_type)
    if not essence:
        return PayloadFormat.UNSTATED
    if essence in (JSON, "text/json") or essence.endswith("+json"):
        return PayloadFormat.JSON
    if essence.startswith("text/"):
        return PayloadFormat.TEXT
    if essence in _ALSO_MESSAGEPACK or essence.endswith("+msgpack"):
        return PayloadFormat.MESSAGEPACK
    return PayloadFormat.BINARY if essence == BINARY else PayloadFormat.OTHER


_remembered_format = functools.lru_cache(maxsize=256)(_read_format)


T = TypeVar("T")

_DEEPEST = 100
_RAW = (bytes, bytearray, memoryview)
# Members of an Enum are slow to look up.
_UNSTATED, _JSON, _TEXT = PayloadFormat.UNSTATED, PayloadFormat.JSON, PayloadFormat.TEXT
_MESSAGEPACK = PayloadFormat.MESSAGEPACK
_EMPTY_IS_NONE = (_UNSTATED, _JSON, _MESSAGEPACK)
_OFFENDING_VALUE = re.compile(r"^(Invalid (?:enum )?value) .*?((?: - at `[^`]*`)?)$", re.DOTALL)
_LONGEST_REASON = 300

# Sorted, so that equal values become equal bytes under every hash seed and at every attempt.
_to_json = msgspec.json.Encoder(order="deterministic", enc_hook=to_builtins).encode
_to_messagepack = msgspec.msgpack.Encoder(order="deterministic", enc_hook=to_builtins).encode
_to_unsorted_messagepack = msgspec.msgpack.Encoder(enc_hook=to_builtins).encode
_refuse_nan = json.JSONEncoder(allow_nan=False, check_circular=False).encode


def encode(value: object) -> tuple[bytes, str | None]:
    """Return a value's payload and content type.

    Bytes are sent as they are (``application/octet-stream``), a str in UTF-8 as ``text/plain``,
    None and a `Tombstone` as an empty payload without content type, and everything else as JSON.

    Raises:
        EncodeError: the value, or something in it, cannot be represented in JSON; neither can nan
            and the infinities.
    """
    if type(value) is bytes:
        return value, BINARY
    if value is None or isinstance(value, Tombstone):
        return b"", None
    if isinstance(value, _RAW):
        return bytes(value), BINARY
    if isinstance(value, str):
        try:
            return value.encode(), TEXT
        except UnicodeEncodeError as error:
            raise EncodeError(f"the text cannot be encoded as UTF-8: {error.reason}") from error
    if value is Tombstone:
        raise EncodeError("Tombstone is a class: give an instance of it, Tombstone()")
    return _encode_json(value), JSON


def encode_as(value: object, content_type: str) -> bytes:
    """Return a value's payload for a content type that the sender has named.

    If that is MessagePack, everything is encoded so, except bytes, which are sent as they are in
    any case, and a `Tombstone`. All other content types are taken for what `encode` makes of it.

    Raises:
        EncodeError: as `encode` does.
    """
    if (
        content_type == JSON
        or not isinstance(content_type, str)
        or format_of(content_type) is not _MESSAGEPACK
        or isinstance(value, (*_RAW, Tombstone))
        or value is Tombstone
    ):
        return encode(value)[0]
    return _encode_messagepack(value)


def encode_with(codec: Codec, value: object) -> bytes:
    """Return a value's payload in a format of the application's own.

    Raises:
        EncodeError: the codec has raised something, or has returned something else than bytes.
    """
    name = type(codec).__name__
    try:
        payload: object = codec.encode(value)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise EncodeError(
            f"{name} cannot encode a payload of type {type_name(type(value))}: {reason_of(error)}"
        ) from error
    if not isinstance(payload, _RAW):
        raise EncodeError(
            f"{name}.encode() returned {type_name(type(payload))}: it has to return bytes"
        )
    return bytes(payload)


def _encode_messagepack(original: object) -> bytes:
    value: Any = original
    try:
        if is_pydantic(type(value)):
            value = to_builtins(value)
        try:
            return _to_messagepack(value)
        except TypeError:
            # The sorting encoder accepts only str as keys.
            return _to_unsorted_messagepack(value)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # noqa: BLE001 (hooks of the user's types may raise anything)
        found = find_unencodable(value)
        what = reason_of(error) if found is None else f"{found[1]} at `{found[0]}`"
        raise EncodeError(
            f"a payload of type {type_name(type(original))} cannot be encoded as MessagePack:"
            f" {what}; give str, numbers, dict, list, a dataclass, a msgspec.Struct or a pydantic"
            " model"
        ) from (error if found is None else None)


def _encode_json(original: object) -> bytes:
    value: Any = original
    try:
        if is_pydantic(type(value)):
            value = to_builtins(value)
        try:
            data = _to_json(value)
        except TypeError:
            # The sorting encoder accepts only str as keys.
            if find_unencodable(value) is not None:
                raise
            data = _to_json(_builtins(value))
        # nan and the infinities became null.
        if b"null" in data:
            _refuse_nan(_builtins(value))
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # noqa: BLE001 (hooks of the user's types may raise anything)
        found = find_unencodable(value)
        what = reason_of(error)
        if found is not None:
            what = f"{found[1]} at `{found[0]}`"
        raise EncodeError(
            f"a payload of type {type_name(type(original))} cannot be encoded as JSON: {what};"
            " give bytes, str, numbers, dict, list, a dataclass, a msgspec.Struct or a pydantic"
            " model"
        ) from (error if found is None else None)
    return data


def _builtins(value: Any) -> Any:
    return msgspec.to_builtins(value, str_keys=True, enc_hook=to_builtins, order="deterministic")


def check_readable(envelope: Envelope, allowed: int) -> None:
    """Raise DecodeError if a received message has a flaw, or more than ``allowed`` bytes."""
    size = len(envelope.payload) if envelope.left_out is None else envelope.left_out.size
    if size > allowed:
        raise DecodeError(
            f"the payload has {size} bytes, {allowed} are allowed: send less, or raise the option"
            " 'max_received' of the bus"
        )
    if envelope.left_out is not None:
        raise DecodeError("the headers are too large to be accepted")
    if envelope.flaw is not None:
        raise DecodeError(envelope.flaw)


class Decoder(Generic[T]):
    """Decodes payloads to one type. Made once, with `Decoder.of`, and used for every message.

    Attributes:
        annotation: the type as written.
        is_identity: whether `decode` returns the payload bytes themselves.
    """

    __slots__ = (
        "_optional",
        "_read_json",
        "_read_messagepack",
        "_read_other",
        "_read_text",
        "_read_unstated",
        "annotation",
        "is_identity",
    )

    def __init__(
        self,
        annotation: Any,
        *,
        optional: bool,
        json: Callable[[bytes], T],
        text: Callable[[bytes], T],
        unstated: Callable[[bytes], T],
        other: Callable[[bytes], T] | None = None,
        messagepack: Callable[[bytes], T] | None = None,
        is_identity: bool = False,
    ) -> None:
        self.annotation: Any = annotation
        self.is_identity: bool = is_identity
        self._optional = optional
        self._read_json = json
        self._read_text = text
        self._read_unstated = unstated
        self._read_other = other
        # Made when it is needed for the first time, if not given.
        self._read_messagepack = messagepack

    @staticmethod
    def of(annotation: Any, codec: Codec | None = None) -> Decoder[Any]:
        """Return the decoder for a type annotation.

        Args:
            annotation: the type.
            codec: decodes payloads of its content type, unless the annotation names a codec or
                asks for raw bytes.

        Raises:
            ConfigurationError: payloads cannot be decoded to that type.
        """
        try:
            return _remembered(annotation, codec)
        except TypeError:
            # Annotated may contain something unhashable, and so may the codec.
            return _make(annotation, codec)

    def decode(self, payload: bytes, content_type: str | None = None) -> T:
        """Return the payload as a value of the type.

        The content type tells JSON, MessagePack and text apart. Without one, bytes and str take the
        payload as it is, and everything else is decoded as JSON. A payload with any other content
        type only fits bytes, and Any, which then gets bytes. Values in JSON and MessagePack are
        never coerced (``"1"`` is not an int); text, which has no types, is parsed as the type asked
        for.

        Raises:
            DecodeError: the payload does not fit the type; says what is wrong and where, without
                quoting the payload.
        """
        if self.is_identity:
            return payload  # type: ignore[return-value]
        if content_type is None:
            form = _UNSTATED
        else:
            # Most payloads, without the cost of a call.
            form = _JSON if content_type == JSON else format_of(content_type)
        if not payload and self._optional and form in _EMPTY_IS_NONE:
            return None  # type: ignore[return-value]
        # Code of the user's types runs here, which may raise anything.
        try:
            if form is _JSON:
                return self._read_json(payload)
            if form is _UNSTATED:
                return self._read_unstated(payload)
            if form is _TEXT:
                return self._read_text(payload)
            if form is _MESSAGEPACK:
                if self._read_messagepack is None:
                    self._read_messagepack = messagepack_reader(self.annotation)
                return self._read_messagepack(payload)
            if self._read_other is not None:
                return self._read_other(payload)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            raise self._refusal(payload, content_type, _reason(error)) from error
        raise self._refusal(
            payload,
            content_type,
            "only bytes accept that content type; the sender has to publish the value itself, or to"
            " say with content_type= what the bytes are",
        )

    def _refusal(self, payload: bytes, content_type: str | None, why: str) -> DecodeError:
        if not payload:
            why = "it is empty"
        stated = "no content type"
        if content_type is not None:
            stated = f"content type {content_type[:80]!r}"
        name = self._type_shown()
        size = len(payload)
        return DecodeError(f"the payload ({size} bytes, {stated}) does not fit {name}: {why}")

    def _type_shown(self) -> str:
        return type_name(self.annotation)

    def __repr__(self) -> str:
        return f"<Decoder {self._type_shown()}>"


class _CodecDecoder(Decoder[Any]):
    """Decodes payloads of one content type with the codec that an annotation names."""

    __slots__ = ("_codec", "_essence", "_kind", "_takes_none")

    def __init__(self, annotation: Any, kind: Any, codec: Codec, *, optional: bool) -> None:
        def read(payload: bytes) -> Any:
            return codec.decode(payload, kind)

        super().__init__(annotation, optional=optional, json=read, text=read, unstated=read)
        self._codec = codec
        self._kind = kind
        self._essence = _essence_of(codec.content_type)
        self._takes_none = optional or kind in (Any, object)

    def _type_shown(self) -> str:
        # Without the codec, which would show its address.
        return type_name(self._kind)

    def decode(self, payload: bytes, content_type: str | None = None) -> Any:
        """See `Decoder.decode`; only payloads of the codec, and those without content type, fit."""
        if content_type is None:
            if not payload and self._optional:
                return None
        elif _essence_of(content_type) != self._essence:
            why = f"only {self._codec.content_type!r} is accepted here"
            raise self._refusal(payload, content_type, why)
        try:
            value = self._codec.decode(payload, self._kind)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            raise self._refusal(payload, content_type, _reason(error)) from error
        if value is None and not self._takes_none:
            why = f"{type(self._codec).__name__}.decode() returned None: is a 'return' missing?"
            raise self._refusal(payload, content_type, why)
        return value


class _DecoderBesideOthers(_CodecDecoder):
    """Decodes payloads of one content type with the actor's codec, and all others as ever."""

    __slots__ = ("_codec_content_type", "_decode_others")

    def __init__(self, annotation: Any, codec: Codec, others: Decoder[Any]) -> None:
        bare, optional = bare_type(annotation)
        super().__init__(annotation, bare, codec, optional=optional)
        self._codec_content_type = codec.content_type
        self._decode_others = others.decode

    def decode(self, payload: bytes, content_type: str | None = None) -> Any:
        """See `Decoder.decode`; payloads of the codec fit as well."""
        if content_type is None or (
            content_type != self._codec_content_type and _essence_of(content_type) != self._essence
        ):
            return self._decode_others(payload, content_type)
        return super().decode(payload, content_type)


def _no_payload(annotation: Any, error: Exception) -> str:
    """Return why a type cannot be that of a payload, and what to do."""
    what = f"{type_name(annotation)} cannot be the type of a payload:"
    if isinstance(error, NameError):
        return (
            f"{what} an annotation in it cannot be resolved ({error}); define what it names at the"
            " top level of the module and not in a function, and import it not only for type"
            " checking"
        )
    if any(
        base.__module__.startswith("pydantic.v1.") for base in getattr(annotation, "__mro__", ())
    ):
        return (
            f"{what} it is a model of pydantic.v1; derive it from pydantic.BaseModel of version 2"
        )
    return (
        f"{what} {error}; use bytes, str, int, float, bool, None, dict, list, a dataclass, a"
        " TypedDict, a msgspec.Struct or a pydantic model"
    )


def _make(annotation: Any, default: Codec | None = None) -> Decoder[Any]:
    bare, optional = bare_type(annotation)
    codec = codec_in(annotation)
    if codec is not None:
        return _CodecDecoder(annotation, bare, codec, optional=optional)
    check_codec_inside(annotation)
    if default is not None and not any(bare is raw for raw in _RAW):
        return _make_beside_others(annotation, default)
    variable = type_variable_in(annotation)
    if variable is not None:
        raise ConfigurationError(
            f"{type_name(annotation)} cannot be the type of a payload: nothing says what the type"
            f" variable {variable.__name__} stands for; derive from the generic class with an"
            f" argument, as in class Boiler(Base[Reading]), or use a concrete type"
        )
    if any(bare is raw for raw in _RAW):
        return _raw_decoder(annotation, bare, optional)
    members = [bare_type(part)[0] for part in get_args(bare)] if is_union(bare) else [bare]
    try:
        if any(raw in members for raw in _RAW):
            raise TypeError("a payload is either raw bytes or decoded; ask for bytes alone")
        read_json, parse = type_readers(Any if bare is object else annotation)
    except Exception as error:
        raise ConfigurationError(_no_payload(annotation, error)) from error

    def read_text(payload: bytes) -> Any:
        text = payload.decode()
        return text if annotation is str else parse(text)

    def read_json_or_text(payload: bytes) -> Any:
        try:
            return read_json(payload)
        except msgspec.ValidationError:
            raise
        except msgspec.DecodeError:
            return read_text(payload)

    def read_none(payload: bytes) -> Any:
        return read_json(payload or b"null")

    if bare is type(None):
        return Decoder(
            annotation, optional=True, json=read_none, text=read_none, unstated=read_none
        )
    if bare in (Any, object):
        return Decoder(
            annotation,
            optional=True,
            json=read_json,
            text=read_text,
            unstated=read_json,
            other=bytes,
        )
    unstated = read_json
    if bare is str:
        unstated = read_text
    elif str in members:
        unstated = read_json_or_text
    return Decoder(annotation, optional=optional, json=read_json, text=read_text, unstated=unstated)


def _make_beside_others(annotation: Any, codec: Codec) -> Decoder[Any]:
    try:
        return _DecoderBesideOthers(annotation, codec, _make(annotation))
    except ConfigurationError:
        bare, optional = bare_type(annotation)
        if not _is_foreign(annotation, bare):
            raise
    # As if the annotation named the codec, which alone knows the type.
    return _CodecDecoder(annotation, bare, codec, optional=optional)


def _is_foreign(annotation: Any, bare: Any) -> bool:
    """Return whether nothing but a codec can know a type that has no decoder.

    Otherwise something about it is wrong: a type variable, a constraint, raw bytes in a union.
    """
    members = [bare_type(part)[0] for part in get_args(bare)] if is_union(bare) else [bare]
    if any(raw in members for raw in _RAW):
        return False
    if type_variable_in(annotation) is not None or foreign_constraint(annotation) is not None:
        return False
    try:
        _make(bare)
    except ConfigurationError:
        return True
    return False


_remembered = functools.lru_cache(maxsize=512)(_make)


def _raw_decoder(annotation: Any, bare: Any, optional: bool) -> Decoder[Any]:
    convert: Callable[[bytes], Any] = bare
    if annotation is not bare:
        foreign = foreign_constraint(annotation)
        if foreign is not None:
            raise ConfigurationError(
                f"{type_name(annotation)} cannot be the type of a payload: {foreign} is not"
                " checked for raw bytes; write it with msgspec.Meta, as in"
                " Annotated[bytes, msgspec.Meta(max_length=9)]"
            )

        # Length limits in Annotated.
        def convert(payload: bytes) -> Any:
            return msgspec.convert(payload, annotation)

    return Decoder(
        annotation,
        optional=optional,
        json=convert,
        text=convert,
        unstated=convert,
        other=convert,
        messagepack=convert,
        is_identity=annotation is bytes,
    )


def _reason(error: BaseException) -> str:
    if isinstance(error, UnicodeDecodeError):
        return f"it is not UTF-8: {error.reason} at byte {error.start}"
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    text = _OFFENDING_VALUE.sub(r"\1\2", describe(error))
    if not isinstance(error, ValueError):
        text = f"{error_name(error)}: {text}"
    # The text quotes names of fields, which the sender has chosen.
    return escaped(text, _LONGEST_REASON)


def find_unencodable(value: Any, path: str = "$", depth: int = 0) -> tuple[str, str] | None:
    """Return path and description of the first part that JSON cannot represent; None if none."""
    if isinstance(value, float) and not math.isfinite(value):
        return path, f"the float {value}, which JSON does not have"
    if depth == _DEEPEST:
        return path, f"a value nested deeper than {_DEEPEST} levels, or one that contains itself"
    parts = _parts(value, path)
    if parts is None:
        return _leaf(value, path)
    for part_path, part in parts:
        found = find_unencodable(part, part_path, depth + 1)
        if found is not None:
            return found
    return None


def _parts(value: Any, path: str) -> Iterator[tuple[str, Any]] | None:
    if isinstance(value, Mapping):
        return _entries(value, path)
    if isinstance(value, list | tuple | set | frozenset):
        return ((f"{path}[{index}]", part) for index, part in enumerate(value))
    if is_pydantic(type(value)):
        try:
            return iter([(path, to_builtins(value))])
        except ValueError:
            return None
    names: tuple[str, ...] | None = None
    if isinstance(value, msgspec.Struct):
        names = value.__struct_fields__
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = tuple(field.name for field in dataclasses.fields(value))
    if names is None:
        return None
    return ((f"{path}.{name}", getattr(value, name)) for name in names if hasattr(value, name))


def _entries(value: Mapping[Any, Any], path: str) -> Iterator[tuple[str, Any]]:
    for key, part in value.items():
        yield f"{path}.keys()", key
        yield (f"{path}.{key}" if isinstance(key, str) else f"{path}[{key!r:.40}]"), part


def _leaf(value: Any, path: str) -> tuple[str, str] | None:
    try:
        msgspec.json.encode(value)
    except UnicodeEncodeError:
        return path, "a str with a lone surrogate, which UTF-8 does not have"
    except Exception:  # noqa: BLE001  (whatever the encoder makes of it, it cannot be encoded)
        if inspect.iscoroutine(value):
            return path, f"a coroutine ({value.__qualname__}): an `await` is missing"
        kind = type(value)
        return path, f"a value of type {kind.__module__}.{kind.__qualname__}"
    return None
