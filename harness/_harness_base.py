"""The methods of a harness during which no time passes: inputs, faults, and results."""

from __future__ import annotations

from collections import Counter
from typing import Any, TypeVar, Unpack, overload

from .._busy_threads import BusyThread, place_of_caller
from ..errors import ConfigurationError
from ..runtime.application._application import DistributedApplication
from ..runtime.messaging._message import Message
from ..runtime.messaging._outgoing_message import PublishOptions, outgoing_message
from ..runtime.messaging._typed_topic import P, Topic, address_meant, filter_meant
from ..runtime.payloads._codec import Decoder
from ..transports._commit_steps import CommitStep
from ._dead_letter import DeadLetter
from ._harness_core import HarnessCore, failure_classes, plain
from .world._actor_monitor import Failure

__all__ = ["HarnessBase"]

T = TypeVar("T")


class HarnessBase:
    """The methods of `Harness` and `AsyncHarness` during which no time passes."""

    @property
    def _core(self) -> HarnessCore:
        raise NotImplementedError

    @overload
    def publish(
        self,
        topic: Topic[P, Any],
        payload: P,
        *,
        id: str | None = None,
        bus: str | None = None,
        **options: Unpack[PublishOptions],
    ) -> None: ...

    @overload
    def publish(
        self,
        topic: str,
        payload: object = None,
        *,
        id: str | None = None,
        bus: str | None = None,
        **options: Unpack[PublishOptions],
    ) -> None: ...

    def publish(
        self,
        topic: str | Topic[Any, Any],
        payload: object = None,
        *,
        id: str | None = None,
        bus: str | None = None,
        **options: Unpack[PublishOptions],
    ) -> None:
        """Publish a message from outside; it moves once time passes: in `settle`, `advance`.

        Args:
            topic: where to send it.
            payload: as for `Socket.publish`.
            id: the id of the message; None for a new one.
            bus: the address of the bus; None for the default bus of the applications.
            options: as for `Socket.publish`; see `PublishOptions`.

        Raises:
            ConfigurationError: the topic or an option is wrong, or the bus is not in use.
            EncodeError: the payload cannot be encoded.
        """
        if isinstance(topic, Topic) and topic.codec is not None:
            options.setdefault("codec", topic.codec)
        message = outgoing_message("publish", address_meant(topic), payload, options)
        self._core.publish(message, bus, id)

    @overload
    def published(self, pattern: Topic[P, Any]) -> list[P]: ...

    @overload
    def published(self, pattern: str = "#") -> list[Any]: ...

    @overload
    def published(self, pattern: str | Topic[Any, Any] = "#", *, type: type[T]) -> list[T]: ...

    def published(self, pattern: str | Topic[Any, Any] = "#", *, type: Any = None) -> list[Any]:
        """Return the payloads of what the applications have published so far, in order.

        These are the messages that the bus has accepted: one that was sent again because its
        confirmation was lost is there twice.

        Args:
            pattern: a filter; ``#`` leaves out what the runtime itself sends under ``_spa/``.
            type: the type to decode them to; by default that of a `Topic`. Without one, what the
                content type says: str for text, the value of JSON, bytes for everything else, None
                for an empty payload.

        Raises:
            DecodeError: a payload does not match the type.
        """
        envelopes = self._core.taken(filter_meant(pattern))
        if type is None and isinstance(pattern, Topic) and pattern.payload is not Any:
            type = pattern.payload
        if type is None:
            return [plain(envelope) for envelope in envelopes]
        decode = Decoder.of(type).decode
        return [decode(envelope.payload, envelope.content_type) for envelope in envelopes]

    @overload
    def messages(self, pattern: Topic[P, Any]) -> list[Message[P]]: ...

    @overload
    def messages(self, pattern: str = "#") -> list[Message[Any]]: ...

    @overload
    def messages(
        self, pattern: str | Topic[Any, Any] = "#", *, type: type[T]
    ) -> list[Message[T]]: ...

    def messages(
        self, pattern: str | Topic[Any, Any] = "#", *, type: Any = None
    ) -> list[Message[Any]]:
        """Return the same as `published`, as messages with topics, ids and headers."""
        payloads: list[Any] = self.published(pattern, type=type)
        envelopes = self._core.taken(filter_meant(pattern))
        return [
            Message.of(envelope, payload)
            for envelope, payload in zip(envelopes, payloads, strict=True)
        ]

    def state(
        self,
        actor: str,
        application: DistributedApplication | None = None,
        *,
        key: str | None = None,
    ) -> Any:
        """Return the state that an actor has, or had last.

        For an actor class without ``state`` that is its instance; for an actor with several lanes
        it is a list of the states of all lanes.

        Args:
            actor: the name of the actor.
            application: its application; None for the first one that has such an actor.
            key: for an actor with ``per``, the key whose state is wanted.

        Raises:
            ConfigurationError: there is no such actor, the text names those there are; or ``key``
                has no state, or is missing, or the actor has none.
        """
        return self._core.state(actor, application, key)

    def keys(self, actor: str, application: DistributedApplication | None = None) -> list[str]:
        """Return the keys that have a state, in the order in which they first had one.

        Args:
            actor: the name of an actor with ``per``.
            application: its application; None for the first one that has such an actor.

        Raises:
            ConfigurationError: there is no such actor, or it has no ``per``.
        """
        return self._core.keys(actor, application)

    def passivate(
        self,
        actor: str,
        key: str | None = None,
        application: DistributedApplication | None = None,
    ) -> None:
        """Have states of keys go as soon as time passes, as ``hot=`` and ``idle=`` do.

        Those stay in which something waits, runs, or is not settled.

        Args:
            actor: the name of an actor with ``per``.
            key: the key whose state is to go; None for all.
            application: its application; None for the first one that has such an actor.

        Raises:
            ConfigurationError: there is no such actor, or it has no ``per``; or ``key`` has no
                state.
        """
        self._core.passivate(actor, key, application)

    def dead_letters(self) -> list[DeadLetter]:
        """Return the messages that were given up, oldest first."""
        return [
            DeadLetter.of(letter)
            for bus in self._core.world.buses.values()
            for letter in bus.letters()
        ]

    @property
    def failures(self) -> list[Failure]:
        """Everything that failed in the applications so far, expected or not."""
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
        """Everything that happened, one event a line: seconds, who, what, topic, message id.

        The same applications, test and seed give the same trace in any process. That does not hold
        for threads that the program starts itself, for real sockets, and for code that uses the
        real clock, random numbers of its own, or the order of sets.
        """
        return "\n".join(self._core.world.trace.lines()) + "\n"

    @property
    def time(self) -> float:
        """Virtual seconds since the start."""
        return self._core.world.elapsed

    def expect_failure(self, *kinds: type[BaseException]) -> None:
        """Expect errors of these classes from now on: their absence fails the test, they do not.

        Args:
            kinds: classes of errors that handlers, producers and the like raise.

        Raises:
            ConfigurationError: none is given, or something that is not an exception class.
        """
        if not kinds:
            raise ConfigurationError("expect_failure(): give the class of the expected error")
        self._core.world.monitor.expect(failure_classes("expect_failure", kinds))

    def busy_thread(self, name: str = "work in a thread") -> BusyThread:
        """Announce that a thread of the program's own has work, from now until its end.

        Time stands still, and nothing counts as settled, until `BusyThread.end` is called or the
        ``with`` block of the result is left; both may happen in any thread. What the thread has
        called on the event loop by then is done first. If more than ``grace`` real seconds pass
        without anything happening, `settle` and the like raise NotSettled.

        Args:
            name: the name of the work, for error messages.
        """
        return self._core.world.announce(name, place_of_caller(2))

    def cut(self, actor: str | None = None, *, lose_session: bool = False) -> None:
        """Cut connections to the bus at once; they are made again after the usual backoff.

        Args:
            actor: whose connection to cut; None for all connections of all applications, also if
                there are none at the moment.
            lose_session: let the broker also forget the subscriptions, and what it kept for them.
                On Kafka the group removes the member, and nothing is lost: it has to rejoin, and
                receives again what it had not committed.

        Raises:
            ConfigurationError: the actor has no connection.
        """
        self._core.cut(actor, lose_session)

    def lose_session(self, actor: str | None = None) -> None:
        """Call `cut` with ``lose_session``."""
        self.cut(actor, lose_session=True)

    def outage(self, seconds: float) -> None:
        """Take the brokers away: cut all connections, and refuse new ones.

        What the test publishes meanwhile is there when they are back.

        Args:
            seconds: how long, in virtual time.

        Raises:
            ConfigurationError: ``seconds`` is not a number above 0.
        """
        self._core.outage(seconds)

    def rebalance(self) -> None:
        """Make all groups reassign their partitions (Kafka)."""
        self._core.rebalance()

    def compact(self) -> None:
        """Compact all topics with ``cleanup.policy=compact`` (Kafka).

        Of the records with the same key only the last one is left. A tombstone goes the next time,
        if ``delete.retention.ms`` is over.
        """
        self._core.compact()

    def crash(
        self, application: DistributedApplication | None = None, *, at: CommitStep | None = None
    ) -> None:
        """Kill an application, like ``kill -9``: nothing of it runs or is sent any more.

        Its state is gone; the broker keeps what it would keep. State that was given as a value, and
        not as a factory, belongs to the test and stays. Use ``restart`` to start it again.

        With ``at`` it is not killed now, but once when the next message of a durable actor has
        reached a step: ``handled``, its handler has succeeded, and nothing is committed;
        ``committed``, it is, and nothing of what it has published is sent; ``published``, that is
        confirmed, and the message is not acknowledged; ``acknowledged``, it is, and the store does
        not know of either, which it learns with the next message.

        On Kafka, also for actors with ``exactly_once``, the steps are ``handled``, nothing of the
        transaction is sent; ``sent``, the records of states and outputs are, and no offset is;
        ``offsets``, these are, too, and the transaction is open; ``committed``, it has ended, and
        neither are replies sent, nor are the states in the snapshot.

        Args:
            application: None for all; with ``at`` for all that have such actors.
            at: the step.

        Raises:
            ConfigurationError: there is no such step, or not on this bus, or no such actor.
        """
        self._core.crash(application, at)

    def restart_actor(self, actor: str, application: DistributedApplication | None = None) -> None:
        """Make an actor lose its instance, state and thread, and start again.

        It starts over with the message that it was working on. Not for producers.

        Args:
            actor: the name of the actor.
            application: as for `state`.

        Raises:
            ConfigurationError: there is no such actor, or it is a producer.
        """
        self._core.restart_actor(actor, application)
