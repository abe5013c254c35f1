"""Checks of options and names of actors and applications."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from ..._logs import get_logger
from ..._moments import YEAR_1970, ZONE_MISSING, parse_moment
from ..._texts import quoted
from ...actors import Overflow
from ...errors import ConfigurationError
from ...transports import SocketProvider, TopicFilter
from ...transports._wire_formats import WIRES
from ._state_factory import is_factory

__all__ = [
    "LARGEST_WINDOW",
    "LARGEST_WINDOW_BYTES",
    "MOST_HOT",
    "check_batch",
    "check_concurrency",
    "check_count",
    "check_lanes",
    "check_name",
    "check_per",
    "check_placement",
    "check_retained",
    "check_seconds",
    "check_wire",
    "is_number",
    "parse_filters",
    "parse_reply_topics",
    "parse_rewind_to",
]

LARGEST_WINDOW = 65535
"""The largest receive maximum in MQTT."""
LARGEST_WINDOW_BYTES = 2**40
_MOST_LANES = 1000
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}\Z")
_MOST_PROCESSES = 256
_FOREIGN_WILDCARD = re.compile(r"\*{1,2}|>|:\w+|<\w+>|.+\.(\*{1,2}|>)")
_log = get_logger("spa_dat")
MOST_HOT = 1_000_000_000
"""What `hot` may be at the most."""


def is_number(value: object) -> bool:
    """Return whether a value is an int or a float; True and False do not count."""
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


def check_lanes(owner: str, concurrency: int) -> None:
    """Raise ConfigurationError for an impossible number of lanes."""
    if not _is_count(concurrency, _MOST_LANES):
        raise ConfigurationError(
            f"{owner}: concurrency={concurrency!r}: give a whole number from 1 to {_MOST_LANES}"
        )


def check_concurrency(
    owner: str, concurrency: int, key: str | None, overflow: Overflow, state: Any, lanes: int
) -> None:
    """Raise ConfigurationError for lanes with one value as their state, or a key without a use.

    Args:
        owner: in words.
        concurrency: the option.
        key: the option.
        overflow: the option.
        state: the option.
        lanes: how many messages are handled at a time at least, in other processes too.
    """
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


_WHY_NOT_WITH_PER = {
    "key": "the capture is the key of its messages",
    "batch": "each call gets one message of one key",
    "placement": "the states of its keys are in the process of the application",
    "overflow": "a message that is dropped would be missing in the state of its key",
}


def check_per(
    owner: str, per: object, others: Mapping[str, bool], state: Any, hot: object, idle: Any
) -> None:
    """Raise ConfigurationError for a ``per`` that cannot be, or options that do not go with it.

    Args:
        owner: in words.
        per: the option.
        others: options that have no use with it, and whether each was given.
        state: the option.
        hot: the option.
        idle: the option.
    """
    if per is None:
        for name, value in (("hot", hot), ("idle", idle)):
            if value is not None:
                raise ConfigurationError(
                    f"{owner}: {name}={quoted(value)} has no effect without per=, the capture whose"
                    " values have a state each"
                )
        return
    if not isinstance(per, str) or not per:
        raise ConfigurationError(f"{owner}: per={quoted(per)}: give the name of a capture")
    for name, given in others.items():
        if given:
            raise ConfigurationError(
                f"{owner}: {name}= does not go with per={quoted(per)}: {_WHY_NOT_WITH_PER[name]};"
                " remove one of them"
            )
    if state is not None and not is_factory(state):
        raise ConfigurationError(
            f"{owner}: state={state!r} is one value for all keys, each of which needs a state of"
            " its own; give a factory, for example a class or a lambda"
        )
    if hot is not None:
        check_count(owner, "hot", hot, MOST_HOT)
    if idle is not None:
        check_seconds(owner, "idle", idle)


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


def check_retained(owner: str, retained: object, deliver: object) -> None:
    """Raise ConfigurationError for an unknown ``retained``, or one that ``deliver`` prevents."""
    if retained not in ("new", "always", "never"):
        raise ConfigurationError(
            f"{owner}: retained={quoted(retained)}: give 'new', 'always' or 'never'"
        )
    if retained == "always" and deliver == "share":
        raise ConfigurationError(
            f"{owner}: retained='always' has no effect with deliver='share': brokers send no"
            " retained messages to instances that share them; give deliver='all'"
        )


def check_wire(owner: str, wire: object, provider: SocketProvider | None) -> None:
    """Raise ConfigurationError unless a format exists, and the bus has it.

    Args:
        owner: in words.
        wire: the option; not None.
        provider: the bus; None if it is not known.
    """
    if wire not in WIRES:
        raise ConfigurationError(
            f"{owner}: wire={quoted(wire)}: give one of {', '.join(map(repr, WIRES))}, or None for"
            " the format of the bus"
        )
    if provider is not None and wire not in provider.wires:
        raise ConfigurationError(
            f"{owner}: wire={wire!r}: the bus at {provider.address} has only"
            f" {', '.join(map(repr, provider.wires))}; use another bus, or leave it out"
        )


def parse_rewind_to(owner: str, value: object) -> datetime:
    """Return the moment that ``rewind_to`` means; raises ConfigurationError if it means none."""
    wrong = f"{owner}: rewind_to={quoted(str(value) if isinstance(value, datetime) else value)}: "
    try:
        moment = parse_moment(value) if isinstance(value, str) else value
    except (ValueError, OverflowError):
        moment = None
    if not isinstance(moment, datetime):
        raise ConfigurationError(
            f"{wrong}give a time with its zone, such as '2026-11-27T09:00:00Z', or a datetime; not"
            " a while to go back, which would be another time at each start"
        )
    if moment.tzinfo is None:
        raise ConfigurationError(f"{wrong}{ZONE_MISSING}")
    if moment < YEAR_1970:
        raise ConfigurationError(f"{wrong}no record is older than 1970")
    return moment


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


def check_name(what: str, name: str, advice: str = "") -> str:
    """Raise ConfigurationError unless ``name`` may name an application, an instance or an actor.

    Args:
        what: what it names, for the error.
        name: what was given.
        advice: where to give another one, as the end of the error.
    """
    if not isinstance(name, str) or not _NAME.match(name):
        raise ConfigurationError(
            f"{what} {name!r}: use 1 to 64 of the characters A-Z, a-z, 0-9, _ and -{advice}"
        )
    return name


def parse_filters(owner: str, topics: str | Sequence[str]) -> tuple[TopicFilter, ...]:
    """Return the filters of a registration, in order.

    Raises:
        ConfigurationError: there is none, or one is given twice or is not valid.
    """
    if not isinstance(topics, Iterable):
        raise ConfigurationError(f"{owner}: topics {topics!r}: give one filter or several")
    texts = (topics,) if isinstance(topics, str) else tuple(topics)
    if not texts:
        raise ConfigurationError(f"{owner}: no topics; give one filter or several")
    parsed: dict[str, TopicFilter] = {}
    for text in texts:
        if not isinstance(text, str):
            raise ConfigurationError(
                f"{owner}: topic {text!r} is {type(text).__name__}; give a str"
            )
        filter_ = TopicFilter.parse(text)
        for level in text.split("/"):
            if _FOREIGN_WILDCARD.fullmatch(level):
                _log.warning(
                    "%s: filter %s: %s is no wildcard, and matches only itself: '+' matches one"
                    " level, {name} one that the handler gets, and '#' all levels below",
                    owner,
                    quoted(text),
                    quoted(level),
                )
        earlier = parsed.setdefault(filter_.pattern, filter_)
        if earlier is not filter_:
            raise ConfigurationError(
                f"{owner}: filters {earlier.text!r} and {text!r} match the same topics; remove one"
            )
    return tuple(parsed.values())


def parse_reply_topics(owner: str, topics: str | Sequence[str]) -> tuple[TopicFilter, ...]:
    """Return the filters of ``reply_topics``; an empty sequence allows no topic.

    Raises:
        ConfigurationError: one is not a valid filter.
    """
    if not isinstance(topics, str) and isinstance(topics, Iterable) and not tuple(topics):
        return ()
    return parse_filters(f"{owner}: reply_topics" if owner else "reply_topics", topics)
