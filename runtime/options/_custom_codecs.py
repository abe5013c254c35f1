"""Custom codecs: payload formats that an application brings along."""

from __future__ import annotations

import abc
import functools
import inspect
from typing import Any

from ..._texts import quoted
from ...errors import ConfigurationError

__all__ = ["Codec", "check_codec"]


class Codec(abc.ABC):
    """A payload format of the application's own, such as Avro or Protobuf.

    It is named where it is used, and applies nowhere else: by ``codec=`` of an application, of an
    actor or of a publish; in the annotation of a handler's payload or reply,
    ``Annotated[Order, AvroCodec(schema)]``, in the types of a `Topic`, and in ``reply=`` of a
    request. For one message the closest counts: the publish, the topic or the annotation, the
    actor, the application.

    Attributes:
        content_type: MIME type of its payloads. Who names the codec in an annotation accepts
            payloads with this content type, whatever its parameters and case, and those without
            any; ``codec=`` of an application or an actor adds this content type to the others.
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
    method = _async_method(type(codec))
    if method is not None:
        raise ConfigurationError(
            f"{where}: {type(codec).__name__}.{method} is 'async': define it with 'def'; what it"
            " needs from elsewhere, such as a schema, is fetched before"
        )


@functools.lru_cache(maxsize=256)
def _async_method(kind: type[Codec]) -> str | None:
    for method in ("encode", "decode"):
        if inspect.iscoroutinefunction(getattr(kind, method)):
            return method
    return None
