"""Checks of the options of actors."""

from __future__ import annotations

import sys
from typing import Any

from ..._texts import quoted
from ...actors import Overflow
from ...errors import ConfigurationError
from ._state import is_factory

__all__ = [
    "LARGEST_WINDOW",
    "LARGEST_WINDOW_BYTES",
    "check_batch",
    "check_concurrency",
    "check_count",
    "check_placement",
    "check_seconds",
    "is_number",
]

LARGEST_WINDOW = 65535
"""The largest receive maximum in MQTT."""
LARGEST_WINDOW_BYTES = 2**40
_MOST_LANES = 1000
_MOST_PROCESSES = 256


def is_number(value: object) -> bool:
    """Whether a value is an int or a float; True and False do not count."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def check_count(owner: str, option: str, value: object, most: int) -> None:
    """Raise ConfigurationError unless a value is a whole number from 1 to ``most``."""
    if not _is_count(value, most):
        raise ConfigurationError(
            f"{owner}: {option}={value!r}: give a whole number from 1 to {most}"
        )


def check_seconds(owner: str, option: str, seconds: float, *, zero: bool = False) -> None:
    """Raise ConfigurationError unless a time is finite and more than 0; ``zero`` allows 0."""
    # An int may be larger than any float.
    fits = is_number(seconds) and 0 <= seconds <= sys.float_info.max
    if not fits or (seconds == 0 and not zero):
        least = "0 or more" if zero else "more than 0"
        raise ConfigurationError(f"{owner}: {option}={quoted(seconds)}: give seconds, {least}")


def check_concurrency(
    owner: str, concurrency: int, key: str | None, overflow: Overflow, state: Any, lanes: int
) -> None:
    """Raise ConfigurationError for an impossible number of lanes, or a key without a use.

    Args:
        owner: in words.
        concurrency: the option.
        key: the option.
        overflow: the option.
        state: the option.
        lanes: how many messages are handled at a time at least, in other processes too.
    """
    if not _is_count(concurrency, _MOST_LANES):
        raise ConfigurationError(
            f"{owner}: concurrency={concurrency!r}: give a whole number from 1 to {_MOST_LANES}"
        )
    if key is not None and lanes == 1 and overflow is not Overflow.LATEST_BY_KEY:
        raise ConfigurationError(
            f"{owner}: key={key!r} has no effect: it goes with concurrency=n or processes=n, n more"
            " than 1, or with overflow=Overflow.LATEST_BY_KEY"
        )
    if concurrency > 1 and state is not None and not is_factory(state):
        raise ConfigurationError(
            f"{owner}: state={state!r} is one value for {concurrency} lanes, each of which needs a"
            " state of its own; give a factory, for example a class or a lambda"
        )


def check_placement(owner: str, placement: object, processes: object) -> None:
    """Raise ConfigurationError for a placement or a number of processes that cannot be."""
    if placement not in (None, "process"):
        raise ConfigurationError(
            f"{owner}: placement={quoted(placement)}: give 'process', or None for the process of"
            " the application"
        )
    if not _is_count(processes, _MOST_PROCESSES):
        raise ConfigurationError(
            f"{owner}: processes={quoted(processes)}: give a whole number from 1 to"
            f" {_MOST_PROCESSES}"
        )
    if processes != 1 and placement is None:
        raise ConfigurationError(
            f"{owner}: processes={processes!r} has no effect without placement='process'"
        )


def check_batch(owner: str, batch: tuple[int, float] | None, window: int | None) -> None:
    """Raise ConfigurationError unless ``batch`` is None, or a number of messages and a time."""
    if batch is None:
        return
    if not isinstance(batch, tuple) or len(batch) != 2 or not _is_count(batch[0], LARGEST_WINDOW):
        raise ConfigurationError(
            f"{owner}: batch={batch!r}: give a number of messages, 1 to {LARGEST_WINDOW}, and"
            " seconds, as in batch=(100, 0.5)"
        )
    size, seconds = batch
    check_seconds(owner, "batch seconds", seconds, zero=True)
    if window is not None and window < size:
        raise ConfigurationError(
            f"{owner}: window={window} is less than the {size} messages of a batch, which could"
            " never be complete; give a larger window, or none"
        )


def _is_count(value: object, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= most
