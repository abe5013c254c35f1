"""Custom codecs: payload formats that an application brings along."""

from __future__ import annotations

import abc
from typing import Annotated, Any, NewType, get_args, get_origin

from ..._texts import quoted
from ...errors import ConfigurationError
from ._type_readers import is_union

__all__ = ["Codec", "check_codec", "codec_in"]


class Codec(abc.ABC):
    """A payload format of the application's own, such as Avro or Protobuf.

    It is named where it is used, and nowhere else is anything decoded by it: in the annotation of a
    handler's payload or reply, ``Annotated[Order, AvroCodec(schema)]``, in ``reply=`` of a request,
    and by ``codec=`` of a publish.

    Attributes:
        content_type: MIME type of its payloads. Whoever names the codec accepts payloads with this
            content type, whatever its parameters and case, and those without any.
    """

    content_type: str

    @abc.abstractmethod
    def encode(self, value: Any, /) -> bytes:
        """Return a value as a payload; whatever it raises becomes an `EncodeError`."""

    @abc.abstractmethod
    def decode(self, payload: bytes, kind: Any, /) -> Any:
        """Return a payload as a value; whatever it raises becomes a `DecodeError`.

        It runs on the event loop, once for each attempt.

        Args:
            payload: from anybody who may publish, so it has to be decoded as data only.
            kind: the annotated type, without the codec.
        """


def check_codec(where: str, codec: object) -> None:
    """Raise ConfigurationError unless it is an instance of a codec with a content type."""
    if isinstance(codec, type) and issubclass(codec, Codec):
        raise ConfigurationError(f"{where}: {codec.__name__} is a class: give an instance of it")
    if not isinstance(codec, Codec):
        raise ConfigurationError(
            f"{where}: {quoted(codec)} is no codec: give an instance of a class derived from"
            " spa_dat.Codec"
        )
    content_type = getattr(codec, "content_type", None)
    if not isinstance(content_type, str) or not content_type.partition(";")[0].strip():
        raise ConfigurationError(
            f"{where}: the content_type of {type(codec).__name__} is {quoted(content_type)}: give a"
            " MIME type, as in content_type = 'application/avro'"
        )


def codec_in(annotation: Any) -> Codec | None:
    """Return the codec that an annotation names; None if it names none.

    Raises:
        ConfigurationError: it names a class, or a codec without content type.
    """
    while True:
        if get_origin(annotation) is Annotated:
            for value in annotation.__metadata__:
                if isinstance(value, type) and issubclass(value, Codec):
                    check_codec("Annotated[...]", value)
                elif isinstance(value, Codec):
                    check_codec("Annotated[...]", value)
                    return value
            annotation = get_args(annotation)[0]
        elif isinstance(annotation, NewType):
            annotation = annotation.__supertype__
        elif hasattr(annotation, "__value__"):
            annotation = annotation.__value__
        elif is_union(annotation):
            rest = [part for part in get_args(annotation) if part is not type(None)]
            if len(rest) != 1:
                return None
            annotation = rest[0]
        else:
            return None
