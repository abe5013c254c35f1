"""The settings of topics: which ones a cluster knows, and what they may be."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType

from ._errors import ErrorCode, RequestRefused

__all__ = ["checked_settings"]

_POLICY = "cleanup.policy"
_POLICIES = ("compact", "delete")
# With the least value.
_NUMBERS: Mapping[str, int] = MappingProxyType(
    {
        "compression.gzip.level": -1,
        "compression.lz4.level": 1,
        "compression.zstd.level": -131_072,
        "delete.retention.ms": 0,
        "file.delete.delay.ms": 0,
        "flush.messages": 1,
        "flush.ms": 0,
        "index.interval.bytes": 0,
        "local.retention.bytes": -2,
        "local.retention.ms": -2,
        "max.compaction.lag.ms": 1,
        "max.message.bytes": 0,
        "message.timestamp.after.max.ms": 0,
        "message.timestamp.before.max.ms": 0,
        "min.compaction.lag.ms": 0,
        "min.insync.replicas": 1,
        "retention.bytes": -(1 << 63),
        "retention.ms": -1,
        "segment.bytes": 14,
        "segment.index.bytes": 4,
        "segment.jitter.ms": 0,
        "segment.ms": 1,
    }
)
_OTHERS = frozenset(
    {
        _POLICY,
        "compression.type",
        "follower.replication.throttled.replicas",
        "leader.replication.throttled.replicas",
        "message.timestamp.type",
        "min.cleanable.dirty.ratio",
        "preallocate",
        "remote.log.copy.disable",
        "remote.log.delete.on.disable",
        "remote.storage.enable",
        "unclean.leader.election.enable",
    }
)


def checked_settings(settings: Iterable[tuple[str, str | None]]) -> dict[str, str]:
    """Return the settings of a new topic by name.

    Raises:
        RequestRefused: there is no such setting, or its value is not allowed; in a broker's words.
    """
    found: dict[str, str] = {}
    for name, value in settings:
        if value is None:
            raise _refused(f"Null value not supported for topic configs: {name}")
        if name not in _NUMBERS and name not in _OTHERS:
            raise _refused(f"Unknown topic config name: {name}")
        found[name] = value
        problem = _problem(name, value.strip())
        if problem is not None:
            raise _refused(f"Invalid value {value} for configuration {name}: {problem}")
    return found


def _problem(name: str, value: str) -> str | None:
    if name == _POLICY:
        policies = [policy.strip() for policy in value.split(",")] if value else []
        if not all(policy in _POLICIES for policy in policies):
            return f"String must be one of: {', '.join(_POLICIES)}"
    elif name in _NUMBERS:
        try:
            number = int(value)
        except ValueError:
            return "Not a number"
        if number < _NUMBERS[name]:
            return f"Value must be at least {_NUMBERS[name]}"
    return None


def _refused(text: str) -> RequestRefused:
    return RequestRefused(ErrorCode.INVALID_CONFIG, text)
