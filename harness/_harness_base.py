"""Inputs that a test gives, and results that it reads, without time going by."""

from __future__ import annotations

from collections import Counter
from typing import Any, TypeVar, Unpack, overload

from .._busy_threads import BusyThread, place_of_caller
from ..errors import ConfigurationError
from ..runtime.application._application import DistributedApplication
from ..runtime.messaging._message import Message, PublishOptions, outgoing_message
from ..runtime.payloads._codec import Decoder
from ._core import HarnessCore, failure_classes, plain
from ._dead_letter import DeadLetter
from .world._actor_monitor import Failure

__all__ = ["HarnessBase"]

T = TypeVar("T")


class HarnessBase:
    """What a test puts into its applications and sees of them, without time going by."""

    @property
    def _core(self) -> HarnessCore:
        raise NotImplementedError

    def publish(
        self,
        topic: str,
        payload: object = None,
        *,
        id: str | None = None,
        bus: str | None = None,
        **options: Unpack[PublishOptions],
    ) -> None:
        """Put in a message from outside; it moves once time does: `settle`, `advance`.

        Args:
            topic: where to.
            payload: as for `Socket.publish`.
            id: of the message, for tests with ids of your own; None for a new one.
            bus: address of the bus; by default the applications' default one.
            options: as for `Socket.publish`; see `PublishOptions`.

        Raises:
            ConfigurationError: the topic or an option is wrong, or the bus is not in use.
            EncodeError: the payload cannot be written.
        """
        message = outgoing_message("publish", topic, payload, options)
        self._core.publish(message, bus, id)

    @overload
    def published(self, pattern: str = "#") -> list[Any]: ...

    @overload
    def published(self, pattern: str = "#", *, type: type[T]) -> list[T]: ...

    def published(self, pattern: str = "#", *, type: Any = None) -> list[Any]:
        """Payloads of what the applications have published so far, in order.

        What the bus has taken counts: a message that was sent again, because its confirmation got
        lost, stands there twice.

        Args:
            pattern: a filter; ``#`` leaves out what the runtime itself sends under ``_spa/``.
            type: the type to read them as. None for what the content type says: str for text,
                what JSON has, bytes for all else, None for nothing.

        Raises:
            DecodeError: a payload does not fit the type.
        """
        envelopes = self._core.taken(pattern)
        if type is None:
            return [plain(envelope) for envelope in envelopes]
        decode = Decoder.of(type).decode
        return [decode(envelope.payload, envelope.content_type) for envelope in envelopes]

    @overload
    def messages(self, pattern: str = "#") -> list[Message[Any]]: ...

    @overload
    def messages(self, pattern: str = "#", *, type: type[T]) -> list[Message[T]]: ...

    def messages(self, pattern: str = "#", *, type: Any = None) -> list[Message[Any]]:
        """As `published`, with topics, ids, headers and all."""
        payloads = self.published(pattern, type=type)
        return [
            Message.of(envelope, payload)
            for envelope, payload in zip(self._core.taken(pattern), payloads, strict=True)
        ]

    def state(self, actor: str, application: DistributedApplication | None = None) -> Any:
        """The state that an actor has, or had last.

        For an actor class without ``state`` that is its instance; for an actor with several lanes
        a list of what each has.

        Args:
            actor: its name.
            application: where it is; None for the first application that has such an actor.

        Raises:
            ConfigurationError: there is none; says which there are.
        """
        return self._core.state(actor, application)

    def dead_letters(self) -> list[DeadLetter]:
        """The messages that were given up, oldest first."""
        return [
            DeadLetter.of(letter)
            for bus in self._core.world.buses.values()
            for letter in bus.letters()
        ]

    @property
    def failures(self) -> list[Failure]:
        """All that failed in the applications so far, expected or not."""
        return list(self._core.world.monitor.failures)

    @property
    def stats(self) -> Counter[str]:
        """The counters of all applications, added up."""
        total: Counter[str] = Counter()
        for tested in self._core.world.tested:
            total.update(tested.stats)
        return total

    @property
    def trace(self) -> str:
        """All that happened, an event a line: seconds, who, what, topic, message id.

        The same applications, test and seed give the same trace, in any process. Left out of that
        promise are threads that the program starts by itself, real sockets, and what code does with
        the real clock, its own random numbers, or the order of sets.
        """
        return "\n".join(self._core.world.trace.lines()) + "\n"

    @property
    def time(self) -> float:
        """Virtual seconds since the start."""
        return self._core.world.elapsed

    def expect_failure(self, *kinds: type[BaseException]) -> None:
        """From now on errors of these classes do not fail the test; but their absence will.

        Args:
            kinds: classes of what handlers, producers and the like raise.

        Raises:
            ConfigurationError: none is given, or something that is no class of errors.
        """
        if not kinds:
            raise ConfigurationError("expect_failure(): say which class of errors is to be raised")
        self._core.world.monitor.expect(failure_classes("expect_failure", kinds))

    def busy_thread(self, name: str = "work in a thread") -> BusyThread:
        """Announce that a thread of the program's own has work, from now until its end.

        Time stands still, and nothing is at rest, until `BusyThread.end` is called or the ``with``
        block of what this returns is left; both may happen in any thread. What the thread has
        called on the event loop by then is done first. Where it takes more than ``grace`` real
        seconds without anything happening, `settle` and the like raise NotSettled.

        Args:
            name: of the work, for errors.
        """
        return self._core.world.announce(name, place_of_caller(2))

    def cut(self, actor: str | None = None, *, lose_session: bool = False) -> None:
        """Cut connections to the bus, at once; they are made again after the usual backoff.

        Args:
            actor: whose subscription; None for all connections of all applications.
            lose_session: the broker also forgets the subscriptions, and what it kept for them. On
                Kafka the group puts the member out, and nothing is lost: it has to join anew, and
                gets again what it had not committed.

        Raises:
            ConfigurationError: no such connection is there.
        """
        self._core.cut(actor, lose_session)

    def lose_session(self, actor: str | None = None) -> None:
        """`cut` with ``lose_session``."""
        self.cut(actor, lose_session=True)

    def outage(self, seconds: float) -> None:
        """Let the brokers be away: all connections are cut, and new ones are refused.

        What the test publishes meanwhile is there when they are back.

        Args:
            seconds: of virtual time.

        Raises:
            ConfigurationError: that is no number above 0.
        """
        self._core.outage(seconds)

    def rebalance(self) -> None:
        """Let the bus hand out its partitions anew (Kafka)."""
        self._core.rebalance()

    def crash(self, application: DistributedApplication | None = None) -> None:
        """Kill an application, as ``kill -9`` does: nothing of it runs or is sent any more.

        Its state is gone; the broker keeps what it keeps. State that was given as one value, and
        not as a factory, is the test's own and stays. Use ``restart`` to start it again.

        Args:
            application: None for all.
        """
        self._core.crash(application)

    def restart_actor(self, actor: str, application: DistributedApplication | None = None) -> None:
        """Let an actor lose instance, state and thread, and start again.

        It begins anew with the message that it was working on. Not for producers.

        Args:
            actor: its name.
            application: as for `state`.

        Raises:
            ConfigurationError: there is none, or it is a producer.
        """
        self._core.restart_actor(actor, application)
