"""The catalogue: every metric of an application, and how it is read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

from ..._texts import escaped
from ..diagnostics._health import ActorHealth, Health
from ._conventions import system_of
from ._measurements import OTHER, Durations, Measurements

__all__ = [
    "ACTOR",
    "ATTRIBUTES",
    "CATALOGUE",
    "ERROR",
    "HANDLING",
    "OPERATION",
    "OWN",
    "SYSTEM",
    "TEMPLATE",
    "WAITING",
    "Metric",
    "Reading",
    "Values",
]

ACTOR = "spa_dat.actor"
BUS = "spa_dat.bus"
ERROR = "error.type"
EVENT = "spa_dat.event"
OPERATION = "messaging.operation.name"
OUTCOME = "spa_dat.outcome"
SYSTEM = "messaging.system"
TEMPLATE = "messaging.destination.template"
OWN = ("spa_dat.application", "spa_dat.instance")
"""The attributes that every metric has: which application, and which instance of it."""
ATTRIBUTES = (*OWN, ACTOR, BUS, ERROR, EVENT, OPERATION, OUTCOME, SYSTEM, TEMPLATE)

_EPHEMERAL = "ephemeral"
_MOST_EVENTS = 200
_LONGEST_EVENT = 100
_SUFFIXES = {"s": "_seconds", "By": "_bytes"}

Kind: TypeAlias = Literal["counter", "gauge", "histogram"]
Values: TypeAlias = Iterable[tuple[tuple[str, ...], float | Durations]]
"""The values of a metric, each with those of its attributes, in their order."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What all metrics of an application are read from at one moment.

    Attributes:
        health: the state of the application.
        measurements: what it has measured.
        stats: its counters.
        ephemeral: whether its name is a random one, which would be a new label each time.
    """

    health: Health
    measurements: Measurements
    stats: Mapping[str, int]
    ephemeral: bool

    @property
    def own(self) -> tuple[str, str]:
        """The values of the attributes that every metric has."""
        name = _EPHEMERAL if self.ephemeral else self.health.application
        return name, self.health.instance


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric.

    Attributes:
        name: as in OpenTelemetry.
        kind: what it is.
        unit: as in the conventions, in UCUM; empty for none.
        text: what it says, for people.
        attributes: its own, besides `OWN`.
        values: reads it.
    """

    name: str
    kind: Kind
    unit: str
    text: str
    attributes: tuple[str, ...]
    values: Callable[[Reading], Values]

    @property
    def prometheus_name(self) -> str:
        """The name at Prometheus, without the ``_total`` of a counter."""
        return label_of(self.name) + _SUFFIXES.get(self.unit, "")


def label_of(attribute: str) -> str:
    """Return the name of an attribute, or of a metric, as Prometheus can have it."""
    return attribute.replace(".", "_")


def _consumed(reading: Reading) -> Values:
    for one in reading.measurements.all_series():
        yield (one.actor, one.template, one.system, "receive"), one.consumed


def _sent(reading: Reading) -> Values:
    for (actor, system, error), number in reading.measurements.sent.copy().items():
        yield (actor, system, "send", error), number


def _handling(reading: Reading) -> Values:
    for one in reading.measurements.all_series():
        for error, durations in one.handling.copy().items():
            yield (one.actor, one.template, one.system, "process", error), durations


def _waiting(reading: Reading) -> Values:
    for one in reading.measurements.all_series():
        yield (one.actor, one.template, one.system), one.waiting


def _failures(reading: Reading) -> Values:
    for one in reading.measurements.all_series():
        for (outcome, error), number in one.failures.copy().items():
            yield (one.actor, one.template, one.system, outcome, error), number


def _events(reading: Reading) -> Values:
    events: Counter[str] = Counter()
    # The program's own are among them, which may have names that were never meant for this.
    for name, number in dict(reading.stats).items():
        if not isinstance(number, int | float):
            continue
        label = escaped(str(name), _LONGEST_EVENT)
        # Names that differ only in what is cut off are one, as no label may be there twice.
        events[label if label in events or len(events) < _MOST_EVENTS else OTHER] += number
    for label, number in events.items():
        yield (label,), number


def _of_actors(value: Callable[[ActorHealth], float | None]) -> Callable[[Reading], Values]:
    def values(reading: Reading) -> Values:
        for actor in reading.health.actors:
            number = value(actor)
            if number is not None:
                yield (actor.name,), number

    return values


def _age(actor: ActorHealth) -> float | None:
    # 0 while nothing is unsettled, so that rules need no case for nothing.
    return None if actor.receiving is None else actor.oldest_unsettled or 0.0


def _connected(reading: Reading) -> Values:
    for one in reading.health.connections:
        yield (one.bus, system_of(one.bus)), float(one.connected)


def _outbox(reading: Reading) -> Values:
    for one in reading.health.connections:
        if one.outbox is not None:
            yield (one.bus, system_of(one.bus)), one.outbox


def _lag(reading: Reading) -> Values:
    if reading.health.loop_lag is not None:
        yield (), reading.health.loop_lag


def _ready(reading: Reading) -> Values:
    yield (), float(reading.health.ready)


def _problems(reading: Reading) -> Values:
    yield (), len(reading.health.problems)


HANDLING = Metric(
    "messaging.process.duration",
    "histogram",
    "s",
    "how long one attempt of a handler took, at a message or at a batch",
    (ACTOR, TEMPLATE, SYSTEM, OPERATION, ERROR),
    _handling,
)
WAITING = Metric(
    "spa_dat.mailbox.wait.duration",
    "histogram",
    "s",
    "how long a message waited for its first attempt, from its arrival in the program",
    (ACTOR, TEMPLATE, SYSTEM),
    _waiting,
)
CATALOGUE = (
    Metric(
        "messaging.client.consumed.messages",
        "counter",
        "{message}",
        "messages that an actor has started on; a message delivered again counts again",
        (ACTOR, TEMPLATE, SYSTEM, OPERATION),
        _consumed,
    ),
    Metric(
        "messaging.client.sent.messages",
        "counter",
        "{message}",
        "publishes, requests and replies that were sent, or could not be sent",
        (ACTOR, SYSTEM, OPERATION, ERROR),
        _sent,
    ),
    HANDLING,
    WAITING,
    Metric(
        "spa_dat.messages.failed",
        "counter",
        "{message}",
        "messages that were not handled, by what became of them",
        (ACTOR, TEMPLATE, SYSTEM, OUTCOME, ERROR),
        _failures,
    ),
    Metric(
        "spa_dat.dead_letters",
        "gauge",
        "{message}",
        "dead letters that the actor has stored in this run and that nobody has dealt with yet",
        (ACTOR,),
        _of_actors(lambda actor: actor.dead_letters),
    ),
    Metric(
        "spa_dat.dead_letters.limit",
        "gauge",
        "{message}",
        "how many of them it may have; at the next one it stops taking messages",
        (ACTOR,),
        _of_actors(lambda actor: actor.dead_letter_limit),
    ),
    Metric(
        "spa_dat.events",
        "counter",
        "{event}",
        "the application's counters, as in `app.stats`",
        (EVENT,),
        _events,
    ),
    Metric(
        "spa_dat.mailbox.messages",
        "gauge",
        "{message}",
        "messages waiting in the actor's mailbox",
        (ACTOR,),
        _of_actors(lambda actor: actor.mailbox),
    ),
    Metric(
        "spa_dat.mailbox.size",
        "gauge",
        "By",
        "bytes of the payloads in the actor's mailbox",
        (ACTOR,),
        _of_actors(lambda actor: actor.mailbox_bytes),
    ),
    Metric(
        "spa_dat.keys",
        "gauge",
        "{key}",
        "keys of an actor with `per=` that have a state, or something that waits",
        (ACTOR,),
        _of_actors(lambda actor: actor.keys),
    ),
    Metric(
        "spa_dat.unsettled.messages",
        "gauge",
        "{message}",
        "messages that the actor has started on and not settled",
        (ACTOR,),
        _of_actors(lambda actor: actor.in_work),
    ),
    Metric(
        "spa_dat.unsettled.age",
        "gauge",
        "s",
        "how long ago the oldest unsettled message arrived; 0 if there is none",
        (ACTOR,),
        _of_actors(_age),
    ),
    Metric(
        "spa_dat.calls.stalled",
        "gauge",
        "{call}",
        "calls of the actor's code that have been running for too long",
        (ACTOR,),
        _of_actors(lambda actor: len(actor.stalled)),
    ),
    Metric(
        "spa_dat.actor.receiving",
        "gauge",
        "",
        "1 if the actor is connected and its filters are in force, otherwise 0",
        (ACTOR,),
        _of_actors(lambda actor: None if actor.receiving is None else float(actor.receiving)),
    ),
    Metric(
        "spa_dat.consumer.lag",
        "gauge",
        "{message}",
        "records on Kafka after those that the actor has settled, as last reported by the cluster",
        (ACTOR,),
        _of_actors(lambda actor: actor.lag),
    ),
    Metric(
        "spa_dat.bus.connected",
        "gauge",
        "",
        "1 if the connection for publishing on the bus is up, otherwise 0",
        (BUS, SYSTEM),
        _connected,
    ),
    Metric(
        "spa_dat.outbox.messages",
        "gauge",
        "{message}",
        "publishes that are not confirmed yet",
        (BUS, SYSTEM),
        _outbox,
    ),
    Metric(
        "spa_dat.event_loop.lag",
        "gauge",
        "s",
        "how long the event loop took to respond, or how long it has not responded",
        (),
        _lag,
    ),
    Metric(
        "spa_dat.application.ready",
        "gauge",
        "",
        "1 if the application is ready, as in `/readyz`, otherwise 0",
        (),
        _ready,
    ),
    Metric(
        "spa_dat.application.problems",
        "gauge",
        "{problem}",
        "how many problems `app.problems` has",
        (),
        _problems,
    ),
)
"""All metrics."""
