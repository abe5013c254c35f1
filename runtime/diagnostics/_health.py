"""The health of an application: what can be told about it at one moment."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from types import MappingProxyType
from typing import Any, Literal, TypeAlias

__all__ = [
    "ActorHealth",
    "ConnectionHealth",
    "Health",
    "HealthState",
    "StalledCall",
    "reasons_not_ready",
]

HealthState: TypeAlias = Literal["starting", "ready", "degraded", "failed", "stopping", "ended"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StalledCall:
    """A call of the user's code that has been running for longer than ``slow_after``.

    Attributes:
        where: the function and the line that it is at.
        seconds: for how long it has been running.
    """

    where: str
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ActorHealth:
    """One registered actor, with all its lanes.

    Attributes:
        name: the actor's.
        bus: the address of its bus, without secrets.
        receiving: whether it is connected, and its filters are in force; None for an actor
            that has none.
        stopped: whether it has nothing more to do, because it has stopped or its producer is done.
        mailbox: messages that wait in its mailbox.
        mailbox_bytes: bytes of their payloads.
        in_work: messages of its subscription that it has begun with and not settled: handled, about
            to be tried again, or waiting for what they have posted. Messages at QoS 0, and those
            that are read on Kafka without a group, are not counted. If actors share a
            subscription, it counts for all of them.
        attempts: calls of its code that go on now; None for code in child processes.
        oldest_unsettled: seconds since the oldest message that is not settled arrived, up to 2
            seconds less than it was; None if there is none. It leaves out what `in_work` does.
        stalled: calls that have been running for too long.
        dead_letters: how many it has stored in this run, without those that were replayed since, or
            discarded through the application.
        dead_letter_limit: how many of them it may have; at the next one it stops taking messages.
        lag: messages on Kafka after those that it has settled, according to the cluster's latest
            response; None where that is not known. If actors share a subscription, it counts for
            all of them.
        paused: whether `DistributedApplication.pause` has paused it.
        keys: how many keys have a state, or something that waits; None for an actor without
            ``per``.
    """

    name: str
    bus: str
    receiving: bool | None
    stopped: bool
    mailbox: int
    mailbox_bytes: int
    in_work: int
    attempts: int | None
    oldest_unsettled: float | None
    stalled: tuple[StalledCall, ...]
    dead_letters: int
    dead_letter_limit: int
    lag: int | None
    paused: bool = False
    keys: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionHealth:
    """The connection of an application to one bus, for what it publishes.

    Attributes:
        bus: the address, without secrets.
        connected: whether there is a connection now.
        connected_for: seconds since it was made; None if there is none, or it is not known.
        outbox: publishes that are waiting for the broker's confirmation, or to be sent; None if it
            is not known.
    """

    bus: str
    connected: bool
    connected_for: float | None
    outbox: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """What `DistributedApplication.health` returns: the state of an application at one moment.

    Attributes:
        application: its name.
        instance: which of its instances this is.
        state: ``starting``; ``ready``, without a problem; ``degraded``, running with problems;
            ``failed``, if it stops, or has ended, because of an error; ``stopping``; ``ended``,
            also before the first start, and in a process that was forked off from the one that
            runs it.
        problems: what is wrong, in words, by actor, address of a bus, or application.
        actors: the actors, in the order of registration; none once it has ended.
        connections: the buses in use.
        loop_lag: seconds that the event loop needed to respond when it was last asked, or for which
            it has not responded; None if nobody asks (``blocked_after=None``, or virtual time).
    """

    application: str
    instance: str
    state: HealthState
    problems: Mapping[str, str]
    actors: tuple[ActorHealth, ...] = ()
    connections: tuple[ConnectionHealth, ...] = ()
    loop_lag: float | None = None

    def __post_init__(self) -> None:
        """Keep a copy of the problems that cannot be changed."""
        object.__setattr__(self, "problems", MappingProxyType(dict(self.problems)))

    @property
    def reasons_not_ready(self) -> dict[str, str]:
        """Why it cannot be given work, in words as `problems`; empty if it is `ready`."""
        away = [each.bus for each in self.connections if not each.connected]
        deaf = [
            actor.name for actor in self.actors if actor.receiving is False and not actor.stopped
        ]
        return reasons_not_ready(self.state, self.problems, away, deaf)

    @property
    def ready(self) -> bool:
        """Whether it runs, is connected, and its filters are in force, whatever else is wrong."""
        return not self.reasons_not_ready

    def as_dict(self) -> dict[str, Any]:
        """Return it as dicts, lists, texts and numbers, for JSON."""
        return {each.name: _plain(getattr(self, each.name)) for each in fields(self)}


def reasons_not_ready(
    state: HealthState, problems: Mapping[str, str], away: Iterable[str], deaf: Iterable[str]
) -> dict[str, str]:
    """Return why an application cannot be given work, in words; empty if it can.

    Args:
        state: the application's.
        problems: what is wrong with it.
        away: the addresses of buses without a connection.
        deaf: the names of actors that should receive messages and do not.
    """
    if state not in ("ready", "degraded"):
        return dict(problems)
    found = dict.fromkeys(away, "there is no connection")
    found |= dict.fromkeys(deaf, "it receives no messages")
    return {name: problems.get(name, text) for name, text in found.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if is_dataclass(value):
        return {each.name: _plain(getattr(value, each.name)) for each in fields(value)}
    return value
