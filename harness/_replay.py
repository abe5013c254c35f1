"""Replaying: puts recorded messages into applications under test."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from os import PathLike
from typing import NamedTuple, TypeAlias

import msgspec

from .._texts import quoted
from ..errors import ConfigurationError, MessageError, TransportError
from ..runtime.hosting._actor_runner import ActorRunner
from ..runtime.messaging._bus_connection import BusConnection
from ..runtime.recording._recording_format import Receipt
from ..runtime.recording._recording_reader import read_recording
from ..runtime.routing._routed_deliveries import Route
from ..transports import Delivery, Envelope, is_reserved
from ._harness_core import HarnessCore
from .simulated._harness_bus import HarnessBus
from .world._application_under_test import ApplicationUnderTest

__all__ = ["replay"]

_AT_ONCE = 1000

_Lines: TypeAlias = Iterable[tuple[int, Receipt]]
_Who: TypeAlias = tuple[str | None, str | None, str | None]


class _ReplayStep(NamedTuple):
    """One message to put in.

    Attributes:
        number: the number of its line.
        at: when it was recorded, in seconds.
        put_in: puts it in.
    """

    number: int
    at: float
    put_in: Callable[[], None]


async def replay(
    core: HarnessCore,
    file: str | PathLike[str],
    *,
    actor: str | None,
    keep_times: bool,
    keep_own: bool,
) -> int:
    """See `Harness.replay`."""
    lines = list(read_recording(file))
    if actor is None:
        steps = list(_through_the_buses(core, file, lines, keep_own=keep_own))
    else:
        steps = list(_right_at(core, file, lines, actor))
    before: _ReplayStep | None = None
    for count, step in enumerate(steps, 1):
        if keep_times and before is not None and step.at > before.at:
            await core.world.advanced(step.at - before.at)
        try:
            core.world.outside.copy().run(step.put_in)
        except (ConfigurationError, MessageError, TransportError) as error:
            raise ConfigurationError(
                f"recording {str(file)!r}, line {step.number}: {error}"
            ) from error
        before = step
        if not keep_times and not count % _AT_ONCE:
            await core.world.settled()
    await core.world.settled()
    return len(steps)


# Through the buses.


def _through_the_buses(
    core: HarnessCore, file: str | PathLike[str], lines: _Lines, *, keep_own: bool
) -> Iterator[_ReplayStep]:
    recorded = {_who(receipt) for _, receipt in lines}
    fed = _who_gets_what_a_bus_brought(core, lines)
    reached: Counter[tuple[_Who, object]] = Counter()
    put_in: Counter[object] = Counter()
    for number, receipt in lines:
        runner = _runner_of(core, receipt)
        if runner is None:
            _refuse_unwanted(core, file, number, receipt)
        if not keep_own and _is_sent_again(core, receipt, recorded, fed):
            continue
        envelope = receipt.envelope
        what = _what(envelope)
        who = _who(receipt)
        reached[who, what] += 1
        # If several actors received it, it was still one message.
        if reached[who, what] <= put_in[what]:
            continue
        put_in[what] += 1
        connection = (
            runner.connection if runner is not None else core.connection_or_default(receipt.bus)
        )
        yield _ReplayStep(
            number, receipt.at, partial(_inject, core, connection.provider.address, envelope)
        )


def _who(receipt: Receipt) -> _Who:
    return receipt.application, receipt.instance, receipt.actor


def _what(envelope: Envelope) -> object:
    """Return what identifies a message; without an id it is everything that the sender sets."""
    if envelope.identity is not None:
        return envelope.topic, envelope.identity
    return (
        envelope.topic,
        envelope.payload,
        envelope.content_type,
        envelope.key,
        envelope.time,
        envelope.correlation,
        tuple(envelope.headers.items()),
    )


def _who_gets_what_a_bus_brought(core: HarnessCore, lines: _Lines) -> set[ActorRunner]:
    """Return the actors that receive messages which were recorded on a bus."""
    topics = {receipt.topic for _, receipt in lines if receipt.actor is None}
    return {
        runner
        for tested in core.world.tested
        for runner in _runners(tested)
        if any(_route(tested, runner, topic) is not None for topic in topics)
    }


def _is_sent_again(
    core: HarnessCore, receipt: Receipt, recorded: set[_Who], fed: set[ActorRunner]
) -> bool:
    """Tell whether the applications send it themselves, since its cause is in the recording."""
    if receipt.actor is None and is_reserved(receipt.topic):
        # Replies and dead letters: nobody waits for them any more.
        return True
    sender = tuple((receipt.source or "").split("/"))
    if len(sender) != 3:
        return False
    runner = _find(core, sender[0], sender[2])
    if runner is None or runner.spec.kind == "producer":
        return False
    return sender in recorded or (receipt.actor is None and runner in fed)


def _refuse_unwanted(
    core: HarnessCore, file: str | PathLike[str], number: int, receipt: Receipt
) -> None:
    if receipt.actor is None:
        return
    runners = [runner for tested in core.world.tested for runner in _runners(tested)]
    if is_reserved(receipt.topic) or not any(
        runner.connection.takes(receipt.topic) for runner in runners
    ):
        names = dict.fromkeys(runner.name for runner in runners)
        raise ConfigurationError(
            f"recording {str(file)!r}, line {number}: there is no actor"
            f" {quoted(receipt.actor)}, and no other one for topic {quoted(receipt.topic)}; there"
            f" are: {', '.join(names) or 'none'}"
        )


def _inject(core: HarnessCore, bus: str, envelope: Envelope) -> None:
    connection = core.connection_or_default(bus)
    fresh = _with_own_reply_address(envelope, connection)
    fresh = msgspec.structs.replace(
        fresh, id=envelope.identity, redelivered=False, partition=None, offset=None
    )
    simulated = core.world.buses[connection.provider.address]
    if not fresh.topic.startswith("$"):
        # Nobody but a broker can publish to its own topics.
        fresh = _checked(simulated, fresh)
    core.replayed(fresh)
    simulated.inject(fresh)


def _checked(simulated: HarnessBus, envelope: Envelope) -> Envelope:
    """Return a message as the bus carries it; raise ConfigurationError if it carries none such."""
    try:
        simulated.check(envelope)
    except ConfigurationError:
        if envelope.response_topic is None:
            raise
        # Strangers ask for replies anywhere, and handlers see no address that cannot be used.
        envelope = msgspec.structs.replace(envelope, response_topic=None)
        simulated.check(envelope)
    return envelope


def _with_own_reply_address(envelope: Envelope, connection: BusConnection) -> Envelope:
    """Send its reply to the harness instead: the requester does not wait for it any more."""
    if envelope.response_topic is None or not is_reserved(envelope.response_topic):
        return envelope
    correlation = connection.surroundings.environment.token()
    return msgspec.structs.replace(
        envelope,
        response_topic=connection.bus.reply_address(correlation),
        correlation=correlation.encode("ascii"),
    )


# Right at an actor.


def _right_at(
    core: HarnessCore, file: str | PathLike[str], lines: _Lines, actor: str
) -> Iterator[_ReplayStep]:
    core.lanes(actor, None)
    for number, receipt in lines:
        if receipt.actor not in (None, actor):
            continue
        tested, runner = _runner(core, receipt.application, actor)
        if tested.life is None:
            raise _does_not_run(tested, actor)
        if _route(tested, runner, receipt.topic) is not None:
            put_in = partial(_hand_over, core, tested, actor, receipt.envelope)
            yield _ReplayStep(number, receipt.at, put_in)
        elif receipt.actor is not None:
            raise ConfigurationError(
                f"recording {str(file)!r}, line {number}: actor {actor!r} has no declared filter"
                f" for topic {quoted(receipt.topic)}; remove the line, or replay without actor="
            )


def _hand_over(
    core: HarnessCore, tested: ApplicationUnderTest, actor: str, envelope: Envelope
) -> None:
    runner = _runner_in(tested, actor)
    route = None if runner is None else _route(tested, runner, envelope.topic)
    if runner is None or route is None or tested.life is None:
        raise _does_not_run(tested, actor)
    connection = runner.connection
    # Its epoch is before all others: the bus does not have it, and will not send it again.
    delivery = Delivery(
        _with_own_reply_address(envelope, core.connection_or_default(connection.provider.address)),
        epoch=-1,
        token=0,
    )
    route.router.put_in(delivery, route)


def _does_not_run(tested: ApplicationUnderTest, actor: str) -> ConfigurationError:
    return ConfigurationError(
        f"{tested.name}/{actor} is not running and cannot receive messages; start it with restart()"
    )


def _route(tested: ApplicationUnderTest, runner: ActorRunner, topic: str) -> Route | None:
    assert tested.run is not None
    routes = tested.run.routes_to(runner)
    return next((route for route in routes if route.filter.matches(topic)), None)


# Actors by name.


def _runner_of(core: HarnessCore, receipt: Receipt) -> ActorRunner | None:
    return None if receipt.actor is None else _find(core, receipt.application, receipt.actor)


def _find(core: HarnessCore, application: str | None, actor: str) -> ActorRunner | None:
    found = [runner for _, runner in _all_named(core, application, actor)]
    return found[0] if found else None


def _runner(
    core: HarnessCore, application: str | None, actor: str
) -> tuple[ApplicationUnderTest, ActorRunner]:
    return next(_all_named(core, application, actor))


def _all_named(
    core: HarnessCore, application: str | None, actor: str
) -> Iterator[tuple[ApplicationUnderTest, ActorRunner]]:
    """Yield actors of that name, those of the named application first; a test may rename it."""
    all_tested = core.world.tested
    for tested in sorted(all_tested, key=lambda tested: tested.application.name != application):
        runner = _runner_in(tested, actor)
        if runner is not None:
            yield tested, runner


def _runner_in(tested: ApplicationUnderTest, actor: str) -> ActorRunner | None:
    return next((runner for runner in _runners(tested) if runner.name == actor), None)


def _runners(tested: ApplicationUnderTest) -> Iterable[ActorRunner]:
    return () if tested.run is None else tested.run.actors
