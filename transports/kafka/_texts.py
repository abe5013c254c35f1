"""What the texts of a record may be."""

from __future__ import annotations

from ..._texts import quoted
from ...errors import ConfigurationError
from .._envelope import Envelope, named_texts

__all__ = ["RESERVED_NAMES", "check_message"]

RESERVED_NAMES = frozenset(
    {
        "content-type",
        "correlation_id",
        "reply_to",
        "ttl_ms",
        "ce_id",
        "ce_source",
        "ce_specversion",
        "ce_subject",
        "ce_time",
        "ce_type",
        "spa_reply_subject",
    }
)
"""Names of headers that stand for fields of the envelope."""


def check_message(envelope: Envelope) -> None:
    """Raise ConfigurationError when no record can have a text of the message besides its topics.

    A record takes any bytes as its key and as the value of a header, and so every text that UTF-8
    can carry. The error names the field, shows its value, and says what to do.
    """
    for what, text in named_texts(envelope):
        if text is not None:
            _check_text(text, what)
    for name, value in envelope.headers.items() if envelope.headers else ():
        if name in RESERVED_NAMES:
            raise ConfigurationError(
                f"header {name!r} belongs to the runtime on Kafka; choose another name"
            )
        _check_text(name, "name of a header")
        _check_text(value, f"header {quoted(name)}")


def _check_text(text: str, what: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ConfigurationError(
            f"{what}: {quoted(text)} contains half of a surrogate pair, which UTF-8 can not carry:"
            " use whole characters, or send it in the payload"
        ) from None
