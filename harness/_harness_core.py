"""The core of a harness in use: its world, and the test's own access to the buses."""

from __future__ import annotations

import asyncio
import dataclasses
from collections import Counter
from collections.abc import Callable
from typing import Any, get_args

import msgspec

from ..errors import ConfigurationError, RemoteError
from ..runtime.application._application import DistributedApplication, runs_of
from ..runtime.hosting._keyed_host import KeyedHost
from ..runtime.hosting._keyed_mailbox import KeyCell
from ..runtime.hosting._lane import Lane
from ..runtime.messaging._bus_connection import BusConnection
from ..runtime.messaging._outgoing_message import OutgoingMessage
from ..runtime.messaging._socket import Socket
from ..runtime.options._option_checks import check_seconds, is_number
from ..runtime.payloads._codec import Decoder, PayloadFormat, format_of
from ..runtime.routing._subscriptions import NoSubscription
from ..transports import (
    Envelope,
    Identity,
    MqttConfig,
    MqttProvider,
    SocketProvider,
    Surroundings,
    TopicFilter,
)
from ..transports._commit_steps import CommitStep
from ._errors import HandlerFailed
from ._faults import Faults
from .simulated._harness_bus import SimulatedBus
from .simulated._stand_ins import Profile
from .world._application_under_test import ApplicationUnderTest
from .world._world import World

__all__ = ["NAME", "NO_MORE", "HarnessCore", "check_options", "failure_classes", "plain"]

NAME = "harness"
"""The name of the harness itself on the buses."""
NO_MORE = "the harness is not in use any more: its block was left, or the test is over"
"""The error text for using it afterwards."""
_SOURCE = f"{NAME}/0/test"
_MOST_NAMED = 10
_PLAIN = Decoder.of(Any)
_TEXT = Decoder.of(str)


class HarnessCore:
    """A world with applications in it, and the test's own access to their buses.

    Args:
        world: a new world.
        applications: the applications under test.

    Attributes:
        closed: whether it was closed, so that nothing can happen any more.
    """

    def __init__(self, world: World, applications: tuple[DistributedApplication, ...]) -> None:
        self.world = world
        self._environment = world.environment(world.seed)
        self._buses: dict[str, BusConnection] = {}
        self._applications = applications
        self._replayed: Counter[object] = Counter()
        self._return: asyncio.TimerHandle | None = None
        self.closed = False

    async def open(self) -> None:
        """Start the applications; raise what they raise."""
        for application in self._applications:
            self.world.add(application)
            for provider in runs_of(application).providers:
                if provider.address not in self._buses:
                    self._buses[provider.address] = BusConnection(
                        self.world.stand_in(_without_will(provider)),
                        Surroundings(Identity(NAME, ephemeral=True), self._environment),
                    )
        for connection in self._buses.values():
            await connection.start()
        for tested in self.world.tested:
            await tested.prepare()
        for tested in self.world.tested:
            tested.begin()
        self.world.begin()

    async def close(self) -> None:
        """Stop the applications, the last one first."""
        for tested in reversed(self.world.tested):
            tested.returns = False
            await tested.stop()
        for connection in self._buses.values():
            await connection.bus.close()

    def close_world(self) -> None:
        """Release everything; what happened can still be read."""
        self.closed = True
        self.world.close()

    def soon(self, function: Callable[..., object], *args: Any) -> None:
        """Call a function as soon as time passes."""
        if self.closed:
            raise ConfigurationError(NO_MORE)
        self.world.loop.call_soon(function, *args, context=self.world.outside)

    # Input to the applications.

    def publish(self, message: OutgoingMessage, bus: str | None, id: str | None = None) -> None:
        """Publish a message from outside, as soon as time passes."""
        connection = self._connection(bus)
        envelope = connection.envelope(_SOURCE, message)
        if id is not None:
            envelope = msgspec.structs.replace(envelope, id=id)
        # No broker would accept it from anybody.
        connection.provider.check_message(envelope)
        simulated = self.world.buses[connection.provider.address]
        simulated.check(envelope)
        self.soon(simulated.inject, envelope)

    def replayed(self, envelope: Envelope) -> None:
        """Note a replayed envelope, which does not count as published in this test."""
        self._replayed[_what(envelope)] += 1

    def socket(self, bus: str | None) -> Socket:
        """Return a socket of the test itself."""
        return Socket(self._connection(bus), _SOURCE, NoSubscription())

    def answered(self, topic: str, answer: RemoteError) -> None:
        """See `ActorMonitor.answered`."""
        self.world.monitor.answered(_SOURCE, topic, answer)

    def _connection(self, bus: str | None) -> BusConnection:
        if bus is None:
            for application in self._applications:
                provider = runs_of(application).settings.provider
                if provider is not None:
                    return self._buses[provider.address]
            return next(iter(self._buses.values()))
        if bus not in self._buses:
            raise ConfigurationError(
                f"bus {bus!r} is not in use; there are: {', '.join(self._buses)}"
            )
        return self._buses[bus]

    def connection_or_default(self, bus: str | None) -> BusConnection:
        """Return the test's access to a bus; to the default one if that bus is not in use."""
        return self._buses[bus] if bus in self._buses else self._connection(None)

    # What happens to the applications.

    def cut(self, actor: str | None, lose_session: bool) -> None:
        """See `HarnessBase.cut`."""
        found = [
            (bus, client)
            for bus in self.world.simulated_buses("cut()")
            for client in bus.clients()
            if not client.startswith(f"{NAME}.")
            and (actor is None or client.split(".", 2)[2:] == [actor])
        ]
        if not found and actor is not None:
            raise ConfigurationError(f"there is no connection of actor {actor!r} to cut")
        for bus, client in found:
            self.soon(_cut, bus, client, lose_session)

    def outage(self, seconds: float) -> None:
        """See `HarnessBase.outage`."""
        world = self.world
        buses = world.simulated_buses("outage()")
        if not is_number(seconds) or not 0 < seconds < float("inf"):
            raise ConfigurationError(f"outage({seconds!r}): give a number of seconds above 0")
        for bus in buses:
            self.soon(bus.go_away)
        end = world.loop.time() + seconds
        if self._return is not None:
            end = max(end, self._return.when())
            self._return.cancel()
        self._return = world.loop.call_at(end, self._come_back, context=world.outside)

    def _come_back(self) -> None:
        self._return = None
        for bus in self.world.simulated_buses("outage()"):
            bus.come_back()

    def rebalance(self) -> None:
        """See `HarnessBase.rebalance`."""
        for bus in self.world.simulated_buses("rebalance()"):
            self.soon(bus.rebalance)

    def compact(self) -> None:
        """See `HarnessBase.compact`."""
        for bus in self.world.simulated_buses("compact()"):
            self.soon(bus.compact)

    def crash(self, application: DistributedApplication | None, at: CommitStep | None) -> None:
        """See `HarnessBase.crash`."""
        self.world.check_simulated("crash()")
        if at is None:
            for tested in self.tested(application):
                self.soon(tested.kill)
            return
        if at not in get_args(CommitStep):
            names = ", ".join(map(repr, get_args(CommitStep)))
            raise ConfigurationError(f"crash(at={at!r}): give one of {names}, or None for at once")
        steps = {
            tested: {step for lane in tested.lanes for step in lane.commit_steps}
            for tested in self.tested(application)
        }
        able = [tested for tested, its in steps.items() if at in its]
        if not able:
            its = set[CommitStep]().union(*steps.values())
            known = [step for step in get_args(CommitStep) if step in its]
            why = "no actor is durable or has exactly_once, so nothing is committed"
            if known:
                why = f"there are only the steps {', '.join(map(repr, known))} on this bus"
            raise ConfigurationError(f"crash(at={at!r}): {why}")
        for tested in able:
            tested.crash_at = at

    def check_crashes(self) -> None:
        """Raise HandlerFailed if an application was to crash at a step that it never reached."""
        for tested in self.world.tested:
            if tested.crash_at is not None:
                raise HandlerFailed(
                    f"application {tested.name} was to crash at {tested.crash_at!r}, and no message"
                    " of an actor that is durable or exactly_once has reached that"
                )

    def restart_actor(self, actor: str, application: DistributedApplication | None) -> None:
        """See `HarnessBase.restart_actor`."""
        self.world.check_simulated("restart_actor()")
        for lane in self.lanes(actor, application):
            if lane.spec.kind == "producer":
                raise ConfigurationError(f"{actor!r} is a producer, which has nothing to restart")
            self.world.restart_actor(lane)

    async def restart(self, application: DistributedApplication | None) -> None:
        """See `Harness.restart`."""
        await self.stop(application)
        for tested in self.tested(application):
            await tested.prepare()
        for tested in self.tested(application):
            tested.begin()

    async def stop(self, application: DistributedApplication | None) -> None:
        """See `Harness.stop`."""
        for tested in self.tested(application):
            tested.returns = False
            await tested.stop()

    # Output of the applications.

    def taken(self, pattern: str) -> list[Envelope]:
        """Return what applications have published to topics that match a filter."""
        filter_ = TopicFilter.parse(pattern)
        replayed = self._replayed.copy()
        taken = []
        for envelope in self.world.published(reserved=pattern.startswith("_spa")):
            what = _what(envelope)
            if replayed[what]:
                replayed[what] -= 1
            elif envelope.source != _SOURCE and filter_.matches(envelope.topic):
                taken.append(envelope)
        return taken

    def tested(self, application: DistributedApplication | None) -> list[ApplicationUnderTest]:
        """Return the given application, or all of them for None."""
        all_tested = self.world.tested
        if application is None:
            return all_tested
        for tested in all_tested:
            if tested.application is application:
                return [tested]
        raise ConfigurationError(f"{application!r} is not in this harness")

    def lanes(self, actor: str, application: DistributedApplication | None) -> list[Lane]:
        """Return all lanes of an actor."""
        all_tested = self.tested(application)
        for tested in all_tested:
            lanes = [lane for lane in tested.lanes if lane.actor_name == actor]
            if lanes:
                return lanes
        names = dict.fromkeys(lane.actor_name for tested in all_tested for lane in tested.lanes)
        raise ConfigurationError(
            f"there is no actor {actor!r}; there are: {', '.join(names) or 'none'}"
        )

    def _host(self, actor: str, application: DistributedApplication | None) -> KeyedHost:
        host = self.lanes(actor, application)[0].runner.keyed
        if host is None:
            raise ConfigurationError(f"actor {actor!r} has no per=, so it has no keys")
        return host

    def _cell(self, host: KeyedHost, key: str) -> KeyCell:
        cell = host.mailbox.cells.get(key)
        if cell is None or not cell.active:
            known = [repr(other) for other in _active(host)[:_MOST_NAMED]]
            raise ConfigurationError(
                f"key {key!r} of actor {host.actor_name!r} has no state; of {host.keys} keys the"
                f" first are: {', '.join(known) or 'none'}"
            )
        return cell

    def keys(self, actor: str, application: DistributedApplication | None) -> list[str]:
        """See `HarnessBase.keys`."""
        return _active(self._host(actor, application))

    def passivate(
        self, actor: str, key: str | None, application: DistributedApplication | None
    ) -> None:
        """See `HarnessBase.passivate`."""
        host = self._host(actor, application)
        for one in _active(host) if key is None else [key]:
            self.soon(_let_go, host, self._cell(host, one))

    def state(self, actor: str, application: DistributedApplication | None, key: str | None) -> Any:
        """See `HarnessBase.state`."""
        if key is not None:
            host = self._host(actor, application)
            cell = self._cell(host, key)
            return cell.instance if host.options.state is None else host.state_of(cell)
        if self.lanes(actor, application)[0].runner.keyed is not None:
            raise ConfigurationError(
                f"actor {actor!r} has a state for each key: give key=, one of keys({actor!r})"
            )
        states = [
            lane.state if lane.options.state is not None else lane.latest_instance
            for lane in self.lanes(actor, application)
        ]
        return states[0] if len(states) == 1 else states


def _active(host: KeyedHost) -> list[str]:
    return [key for key, cell in host.mailbox.cells.items() if cell.active]


def _let_go(host: KeyedHost, cell: KeyCell) -> None:
    if host.is_at_rest(cell):
        host.let_go(cell)


def _cut(bus: SimulatedBus, client: str, lose_session: bool) -> None:
    if client in bus.clients():
        bus.cut(client, lose_session=lose_session)


def _what(envelope: Envelope) -> object:
    return envelope.topic, envelope.id, envelope.source, envelope.payload


def plain(envelope: Envelope) -> Any:
    """Decode a payload as its content type says: str, bytes, or what JSON gives."""
    form = format_of(envelope.content_type)
    if form in (PayloadFormat.JSON, PayloadFormat.MESSAGEPACK):
        return _PLAIN.decode(envelope.payload, envelope.content_type)
    if form is PayloadFormat.TEXT:
        return _TEXT.decode(envelope.payload, envelope.content_type)
    return envelope.payload or None if form is PayloadFormat.UNSTATED else envelope.payload


def check_options(
    *,
    seed: int,
    profile: Profile | None,
    faults: Faults | None,
    grace: float,
    patience: float,
    limit: int,
) -> None:
    """Raise ConfigurationError for an invalid option; see `Harness`."""
    if not isinstance(seed, int):
        raise ConfigurationError(f"Harness: seed={seed!r}: give a whole number")
    if profile is not None and profile not in get_args(Profile):
        names = " or ".join(map(repr, get_args(Profile)))
        raise ConfigurationError(f"Harness: profile={profile!r}: give {names}, or None")
    if faults is not None and not isinstance(faults, Faults):
        raise ConfigurationError(
            f"Harness: faults={faults!r}: give Faults, for example Faults.all(), or None"
        )
    check_seconds("Harness", "grace", grace)
    check_seconds("Harness", "patience", patience)
    if not isinstance(limit, int) or limit < 1:
        raise ConfigurationError(f"Harness: limit={limit!r}: give a number of messages, 1 or more")


def failure_classes(what: str, given: object) -> tuple[type[BaseException], ...]:
    """Return an exception class, or a tuple of them, as a tuple; else raise ConfigurationError."""
    kinds = given if isinstance(given, tuple) else (given,)
    for kind in kinds:
        if not isinstance(kind, type) or not issubclass(kind, BaseException):
            raise ConfigurationError(
                f"{what}: {kind!r} is not an exception class; give one such as LookupError"
            )
    return kinds


def _without_will(provider: SocketProvider) -> SocketProvider:
    """Return the provider for the test's own connection, of which nothing is said on the bus."""
    config = provider.config
    if not isinstance(config, MqttConfig) or config.will is None:
        return provider
    return MqttProvider(dataclasses.replace(config, will=None))
