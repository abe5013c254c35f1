"""The option ``offset_reset``: where a group that has committed nothing starts."""

from __future__ import annotations

from ..._moments import YEAR_1970, ZONE_MISSING, milliseconds, parse_moment, seconds_back
from ..._texts import quoted
from ...errors import ConfigurationError

__all__ = ["check_offset_reset", "start_time"]

_EARLIEST_OR_LATEST = ("earliest", "latest")


def check_offset_reset(value: object) -> None:
    """Check the option's value.

    Raises:
        ConfigurationError: it is not one of the values of the option.
    """
    wrong = f"option offset_reset={quoted(value)} of KafkaConfig: "
    remedy = (
        "give 'earliest', 'latest', a time with its zone such as '2026-11-27T09:00:00Z', or how far"
        " to go back, such as '90s', '30m', '1h' or '7d'"
    )
    if not isinstance(value, str):
        raise ConfigurationError(wrong + remedy)
    if value in _EARLIEST_OR_LATEST or seconds_back(value) is not None:
        return
    try:
        moment = parse_moment(value)
    except (ValueError, OverflowError):
        raise ConfigurationError(wrong + remedy) from None
    if moment.tzinfo is None:
        raise ConfigurationError(f"{wrong}{ZONE_MISSING}")
    if moment < YEAR_1970:
        raise ConfigurationError(f"{wrong}no record is older than 1970: give 'earliest'")


def start_time(offset_reset: str, now: float) -> int | None:
    """Return the time from which on records are read, in milliseconds since 1970 (UTC).

    Args:
        offset_reset: the option's value, which has been checked.
        now: seconds since 1970 (UTC).

    Returns:
        the time; None if it is ``earliest`` or ``latest``.
    """
    if offset_reset in _EARLIEST_OR_LATEST:
        return None
    back = seconds_back(offset_reset)
    if back is not None:
        return max(int((now - back) * 1000), 0)
    return milliseconds(parse_moment(offset_reset))
