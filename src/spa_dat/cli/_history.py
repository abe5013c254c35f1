"""Writes down what topics of a cluster hold, for ``spa-dat record`` and ``spa-dat replay``."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial

from .._moments import milliseconds
from ..errors import ConfigurationError
from ..runtime.recording._recording_format import Receipt
from ..runtime.recording._recording_writer import RecordingWriter
from ..transports import Envelope, KafkaConfig
from ._broker_client import broker_at, run_client

__all__ = ["write_history"]

_LOOK_AGAIN = 0.01


def write_history(
    url: str,
    topics: Sequence[str],
    writer: RecordingWriter,
    *,
    since: datetime,
    until: datetime | None,
    limit: int | None = None,
) -> None:
    """Write the messages that topics hold, from one time to another, to a file.

    Args:
        url: of the cluster.
        topics: filters.
        writer: of the file; it is opened and closed.
        since: the time from which on.
        until: the time until which; None for what is there now.
        limit: the most messages.

    Raises:
        ConfigurationError: the bus keeps nothing, an option is wrong, or there are no messages.
        TransportError: the cluster cannot be reached or read.
    """
    if not topics:
        raise ConfigurationError("reading again needs topics: give for example --topic 'plant/#'")
    if until is not None and until <= since:
        raise ConfigurationError(
            f"--until {_told(until)} is not after --since {_told(since)}: give a later time"
        )
    provider = broker_at(url)
    config = provider.config
    if not isinstance(config, KafkaConfig):
        raise ConfigurationError(
            f"{provider.address} keeps no messages that could be read again: leave out --since and"
            " --until, or give the address of a Kafka cluster"
        )
    writer.open()
    try:
        run_client(_write(config, topics, writer, since, until, limit))
    except BaseException:
        writer.close()
        writer.discard_if_new_and_empty()
        raise
    writer.close()
    if not writer.recorded and not writer.skipped and writer.problem is None:
        writer.discard_if_new_and_empty()
        end = "" if until is None else f" until {_told(until)}"
        raise ConfigurationError(
            f"there are no messages on {', '.join(map(repr, topics))} at {config.address} since"
            f" {_told(since)}{end}"
        )


async def _write(
    config: KafkaConfig,
    topics: Sequence[str],
    writer: RecordingWriter,
    since: datetime,
    until: datetime | None,
    limit: int | None,
) -> None:
    # The client library takes time to import.
    from ..transports.kafka.consuming._history import read_history

    history = read_history(
        config,
        topics,
        since=milliseconds(since),
        until=None if until is None else milliseconds(until),
    )
    count = 0
    async with contextlib.aclosing(history):
        async for at, envelope in history:
            writer.write(envelope, partial(_receipt, at=at, bus=config.address))
            count += envelope.left_out is None
            if count == limit or writer.problem is not None:
                return
            while writer.is_behind:  # noqa: ASYNC110 (its thread knows nothing of the event loop)
                await asyncio.sleep(_LOOK_AGAIN)


def _receipt(envelope: Envelope, *, at: float, bus: str) -> Receipt:
    return Receipt.of(envelope, at=at, bus=bus)


def _told(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat().replace("+00:00", "Z")
