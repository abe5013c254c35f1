"""The monitor of the actors: what they are doing, and what has failed in them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ..._texts import describe, error_name
from ...errors import RemoteError
from ...runtime.hosting._actor_observer import Receive
from ...runtime.hosting._lane import Lane
from ...runtime.options._retry_policy import Reject, Retry
from ...transports import Delivery, Envelope
from .._errors import HandlerFailed, NotSettled
from .._trace import Trace

__all__ = ["Activity", "ActorMonitor", "Failure"]

_ANSWERED = ("handler", "answer", "payload")


@dataclass(frozen=True)
class Failure:
    """Something that failed in an application.

    Attributes:
        actor: ``application/instance/actor``.
        where: what failed: ``handler``, ``answer`` (a request was answered with this
            `RemoteError`), ``payload`` (it did not match the type), ``post`` (refused by the
            broker), ``timer``, ``producer``, ``on_start``, ``on_stop``, ``task`` ...
        error: what was raised.
        topic: the topic of the message concerned; None if there was none.
        message_id: the id of that message.
    """

    actor: str
    where: str
    error: BaseException
    topic: str | None = None
    message_id: str | None = None

    def __str__(self) -> str:
        about = "" if self.topic is None else f" on {self.topic!r}"
        try:
            text = str(self.error)
        except BaseException:  # noqa: BLE001 (the class may be anybody's)
            text = describe(self.error)
        return f"{self.where} of {self.actor}{about}: {error_name(self.error)}: {text}"


class Activity:
    """What one actor is working on.

    Attributes:
        lane: the lane of the actor.
        item: what it took from its mailbox.
        since: when it began, on the loop's clock.
        task: the task of the lane.
    """

    __slots__ = ("item", "lane", "since", "task")

    def __init__(self, lane: Lane, item: Any, since: float) -> None:
        self.lane = lane
        self.item = item
        self.since = since
        self.task = asyncio.current_task()

    @property
    def counts(self) -> bool:
        """Whether `settle` waits for it; a producer that runs once may run forever."""
        spec = self.lane.spec
        return spec.kind != "producer" or spec.options.every is not None

    @property
    def topic(self) -> str | None:
        """The topic of the message; None if it is working on something else."""
        return self.item.envelope.topic if isinstance(self.item, Delivery) else None


class ActorMonitor:
    """Observes everything that actors do; an `Observer`.

    Attributes:
        failures: everything that failed, in order.
        troubles: the last reason why an actor could not proceed, by its address.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, trace: Trace) -> None:
        self._loop = loop
        self._trace = trace
        self._work: dict[Lane, Activity] = {}
        self._allowed: list[type[BaseException]] = [Reject, Retry]
        self._expected: dict[type[BaseException], bool] = {}
        self._reported = 0
        # Ids of requests that failed with an error that the test received.
        self._answered: set[str | None] = set()
        self._asked: list[tuple[Failure, Envelope]] = []
        self.failures: list[Failure] = []
        self.troubles: dict[str, str] = {}

    # Observer.

    def receiving(self, lane: Lane, receive: Receive) -> Receive:
        """See `Observer.receiving`."""
        work, address, add = self._work, lane.address, self._trace.add

        async def watched(instance: Any, item: Any) -> None:
            if isinstance(item, Delivery):
                add(address, "receive", item.envelope.topic, item.envelope.id)
            else:
                add(address, "wake")
            mine = Activity(lane, item, self._loop.time())
            work[lane] = mine
            try:
                await receive(instance, item)
            finally:
                if work.get(lane) is mine:
                    del work[lane]

        return watched

    def collected(self, lane: Lane, batch: Sequence[Delivery]) -> None:
        """See `Observer.collected`."""
        for delivery in batch:
            envelope = delivery.envelope
            self._trace.add(lane.address, "receive", envelope.topic, envelope.id)

    def failed(
        self, actor: str, where: str, error: BaseException, envelope: Envelope | None
    ) -> None:
        """See `Observer.failed`."""
        topic = None if envelope is None else envelope.topic
        identifier = None if envelope is None else envelope.identity
        self._trace.add(actor, "failed", f"{where} {error_name(error)}", identifier)
        failure = Failure(actor, where, error, topic, identifier)
        self.failures.append(failure)
        if envelope is not None and envelope.response_topic is not None:
            self._asked.append((failure, envelope))

    def troubled(self, actor: str, reason: str) -> None:
        """See `Observer.troubled`."""
        self.troubles[actor] = reason

    # For the harness.

    def work(self) -> Iterator[Activity]:
        """Iterate over everything that is being worked on."""
        return iter(tuple(self._work.values()))

    def work_of(self, lane: Lane) -> Activity | None:
        """Return what a lane is working on; None if it is idle."""
        return self._work.get(lane)

    def forget(self, lane: Lane) -> None:
        """Forget what a lane was working on."""
        self._work.pop(lane, None)

    def allow(self, kinds: tuple[type[BaseException], ...]) -> None:
        """Tolerate failures of these classes."""
        self._allowed.extend(kinds)

    def expect(self, kinds: tuple[type[BaseException], ...]) -> None:
        """Tolerate failures of these classes, and require each of them."""
        for kind in kinds:
            self._expected[kind] = False

    def answered(self, source: str, topic: str, answer: RemoteError) -> None:
        """Note that the test received an error as the answer to its request, and so knows of it.

        Args:
            source: the source of the request.
            topic: where it was sent.
            answer: the error; what failed becomes its cause.
        """
        for failure, envelope in self._asked:
            if (envelope.source, envelope.topic) == (source, topic):
                self._answered.add(failure.message_id)
                answer.__cause__ = failure.error
        self._asked.clear()

    def check(self) -> None:
        """Raise HandlerFailed for new failures that nobody expected."""
        __tracebackhide__ = True
        new = self.failures[self._reported :]
        self._reported = len(self.failures)
        # Of several attempts at a message, the last one says enough.
        last: dict[tuple[str, str | None, int], Failure] = {}
        for failure in new:
            if not self._is_expected(failure):
                unique = 0 if failure.message_id is not None else id(failure)
                last[failure.actor, failure.message_id, unique] = failure
        unexpected = list(last.values())
        if not unexpected:
            return
        text = "\n".join(str(failure) for failure in unexpected)
        errors = [failure.error for failure in unexpected]
        hint = "if the test expects this, say so with expect_failure()"
        cause = errors[0]
        if len(errors) > 1:
            cause = BaseExceptionGroup(f"{len(errors)} failures", errors)
        raise HandlerFailed(f"{text}\n({hint})") from cause

    def explain(self, stuck: NotSettled) -> None:
        """Add failures to it that may be the reason, such as an actor that has ended."""
        for failure in self.failures[self._reported :]:
            if not self._is_expected(failure):
                stuck.add_note(f"this had failed before: {failure}")
                stuck.__cause__ = stuck.__cause__ or failure.error

    def check_expected(self) -> None:
        """Raise HandlerFailed for an expected failure that did not happen."""
        __tracebackhide__ = True
        missing = [kind.__name__ for kind, seen in self._expected.items() if not seen]
        if missing:
            raise HandlerFailed(f"nothing raised {', '.join(missing)}, which the test expected")

    def _is_expected(self, failure: Failure) -> bool:
        for kind in self._expected:
            if isinstance(failure.error, kind):
                self._expected[kind] = True
                return True
        if failure.where in _ANSWERED and failure.message_id in self._answered:
            return True
        # The requester gets the error, and decides whether that is a failure.
        return failure.where == "answer" or isinstance(failure.error, tuple(self._allowed))
