"""What log records say of the actor and the message that they were made for, as attributes."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from ..._logs import FIELD_PREFIX, actor_fields
from ..._texts import escaped
from ...actors import actor_behind
from ...transports import Delivery, Envelope
from ._turn import Turn, current_turn

__all__ = ["batch_fields", "make_records_with_fields", "message_fields"]

_KEY = f"{FIELD_PREFIX}key"
_TOPIC = f"{FIELD_PREFIX}topic"
_MESSAGE_ID = f"{FIELD_PREFIX}message_id"
_MESSAGE_IDS = f"{FIELD_PREFIX}message_ids"
_MESSAGES = f"{FIELD_PREFIX}messages"
_ATTEMPT = f"{FIELD_PREFIX}attempt"
_MOST_IDS = 20
_LONGEST_TOPIC_SHOWN = 1_000
_LONGEST_ID_SHOWN = 200
_LONGEST_KEY_SHOWN = 200
_OWN_LOGGER = "spa_dat"


def make_records_with_fields() -> None:
    """Let `logging` set the fields in every record of the program, whoever logs.

    Whatever makes the records now goes on doing so. A message that logs nothing costs nothing: the
    running turn is looked at when a record is made.
    """
    factory = logging.getLogRecordFactory()
    if not isinstance(factory, _RecordFactory):
        logging.setLogRecordFactory(_RecordFactory(factory))


class _RecordFactory:
    """Makes records as another factory does, and adds the fields.

    Args:
        factory: the other one.
    """

    def __init__(self, factory: Any) -> None:
        self._factory = factory

    def __call__(self, name: str, *args: Any, **kwargs: Any) -> logging.LogRecord:
        record: logging.LogRecord = self._factory(name, *args, **kwargs)
        try:
            record.__dict__.update(_fields_now(name))
        except Exception:  # noqa: BLE001 (a line without fields is better than none)
            return record
        return record


def _fields_now(logger: str) -> Mapping[str, object]:
    turn = current_turn.get()
    if turn is not None and turn.active:
        return {**actor_fields(turn.actor), **_turn_fields(turn)}
    behind = actor_behind()
    if behind is None:
        return {}
    address, is_at_work = behind
    if not is_at_work and (logger == _OWN_LOGGER or logger.startswith(f"{_OWN_LOGGER}.")):
        # A connection that was opened in a handler is not the actor's.
        return {}
    return actor_fields(address)


def _turn_fields(turn: Turn) -> dict[str, object]:
    if turn.batch:
        return batch_fields(turn.batch, attempt=_attempts(turn.batch) + 1)
    if turn.delivery is not None:
        return message_fields(turn.delivery, attempt=turn.delivery.attempts + 1)
    return {} if turn.request is None else _envelope_fields(turn.request)


def message_fields(delivery: Delivery, attempt: int | None = None) -> dict[str, object]:
    """Return the attributes of a record that is about one message.

    Args:
        delivery: the message.
        attempt: which one it is about; None for the last one that has failed, if any has.
    """
    fields = _envelope_fields(delivery.envelope)
    # Only who receives knows what a route is; one to an actor without keys has none.
    key = getattr(delivery.route, "key_of", _no_key)(delivery.envelope)
    if key is not None:
        fields[_KEY] = escaped(key, _LONGEST_KEY_SHOWN)
    if number := delivery.attempts if attempt is None else attempt:
        fields[_ATTEMPT] = number
    return fields


def _no_key(envelope: Envelope) -> str | None:
    return None


def batch_fields(deliveries: Sequence[Delivery], attempt: int | None = None) -> dict[str, object]:
    """Return the attributes of a record that is about several messages.

    Args:
        deliveries: the messages, one at least. At most 20 of their ids are named.
        attempt: as for `message_fields`.
    """
    if len(deliveries) == 1:
        return message_fields(deliveries[0], attempt)
    fields: dict[str, object] = {_MESSAGES: len(deliveries)}
    first = deliveries[0].envelope.topic
    if all(delivery.envelope.topic == first for delivery in deliveries):
        fields[_TOPIC] = escaped(first, _LONGEST_TOPIC_SHOWN)
    ids = [delivery.envelope.identity for delivery in deliveries[:_MOST_IDS]]
    fields[_MESSAGE_IDS] = [escaped(one, _LONGEST_ID_SHOWN) for one in ids if one is not None]
    if number := _attempts(deliveries) if attempt is None else attempt:
        fields[_ATTEMPT] = number
    return fields


def _envelope_fields(envelope: Envelope) -> dict[str, object]:
    fields: dict[str, object] = {_TOPIC: escaped(envelope.topic, _LONGEST_TOPIC_SHOWN)}
    if (identity := envelope.identity) is not None:
        fields[_MESSAGE_ID] = escaped(identity, _LONGEST_ID_SHOWN)
    return fields


def _attempts(deliveries: Sequence[Delivery]) -> int:
    return min(delivery.attempts for delivery in deliveries)
