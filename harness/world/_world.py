"""The world of a harness: an event loop, buses, applications under test, and who looks on."""

from __future__ import annotations

import abc
import asyncio
from collections.abc import Callable, Coroutine, Iterator
from contextvars import Context
from typing import TYPE_CHECKING, Any, TypeVar

from ..._busy_threads import BusyThread
from ..._environment import Environment
from ...runtime.application._application import DistributedApplication
from ...transports import Envelope, SocketProvider, is_reserved
from .._trace import Trace
from ._actor_monitor import ActorMonitor
from ._application import ApplicationUnderTest

if TYPE_CHECKING:
    from ...runtime.hosting._lane import Lane
    from ..simulated._stand_ins import HarnessBus
    from ._application import Life

__all__ = ["World"]

T = TypeVar("T")


class World(abc.ABC):
    """Applications on one event loop, which runs only while the test waits for something.

    Args:
        seed: of everything random.
        loop: the event loop.
        start: its time at the beginning.

    Attributes:
        outside: the context of what belongs to no application.
        trace: what happened.
        watch: what the actors do, and what has failed.
        buses: in place of those of the applications, by their address.
        tested: the applications.
        taken: what the buses have taken from applications.
        problems: for `take_problems`.
    """

    def __init__(self, seed: int, loop: asyncio.AbstractEventLoop, start: float) -> None:
        self.seed = seed
        self.loop = loop
        self.outside = Context()
        self.trace = Trace(loop, start)
        self.monitor = ActorMonitor(loop, self.trace)
        self.buses: dict[str, HarnessBus] = {}
        self.tested: list[ApplicationUnderTest] = []
        self.taken: list[Envelope] = []
        self.problems: list[str] = []
        self._start = start

    @property
    def elapsed(self) -> float:
        """Seconds since the start, on the loop's clock."""
        return self.loop.time() - self._start

    def note(self, envelope: Envelope) -> None:
        """A bus has taken a message."""
        self.trace.add(envelope.source or "somebody", "publish", envelope.topic, envelope.id)
        self.taken.append(envelope)

    def published(self, *, reserved: bool) -> Iterator[Envelope]:
        """What was published; to the runtime's own topics, or to all others."""
        return (envelope for envelope in self.taken if is_reserved(envelope.topic) is reserved)

    def add(self, application: DistributedApplication) -> None:
        """Take an application in, not started."""
        self.tested.append(ApplicationUnderTest(self, application, len(self.tested) + 1))

    def spawn(self, coroutine: Coroutine[Any, Any, T], context: Context) -> asyncio.Task[T]:
        """Run a coroutine in a context."""
        return self.loop.create_task(coroutine, context=context)

    def free(self, function: Callable[..., T], *args: Any) -> T:
        """Call a function so that what it starts belongs to no application."""
        return self.outside.copy().run(function, *args)

    @abc.abstractmethod
    def stand_in(self, provider: SocketProvider) -> SocketProvider:
        """What an application uses in place of a provider."""

    @abc.abstractmethod
    def environment(self, seed: int) -> Environment:
        """Time, randomness and identifiers for an application."""

    @abc.abstractmethod
    def check_simulated(self, what: str) -> None:
        """Raise NotSimulated where ``what`` cannot be had."""

    @abc.abstractmethod
    def begin(self) -> None:
        """All applications have started."""

    @abc.abstractmethod
    def end(self) -> None:
        """The applications are going to be stopped."""

    @abc.abstractmethod
    def announce(self, name: str, place: str) -> BusyThread:
        """Work that a thread of the program's own has; things are not at rest before its end."""

    def take_problems(self) -> list[str]:
        """What has to be told to who writes the test, each once."""
        taken, self.problems[:] = self.problems[:], []
        return taken

    def look_for_lost_failures(self) -> None:  # noqa: B027 (only a simulated world knows of them)
        """Let the watch know of tasks that failed, and that nobody has asked for it."""

    @abc.abstractmethod
    def silence(self, life: Life) -> None:
        """Nothing of this life happens any more."""

    @abc.abstractmethod
    def restart_actor(self, lane: Lane) -> None:
        """Let an actor lose what it has, as soon as time goes by."""

    @abc.abstractmethod
    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run the loop until the coroutine has ended."""

    @abc.abstractmethod
    async def settled(self) -> None:
        """Wait until nothing moves.

        Raises:
            NotSettled: that does not happen; says why.
        """

    @abc.abstractmethod
    async def advanced(self, seconds: float) -> None:
        """Let so much time go by, and work off what is due then."""

    @abc.abstractmethod
    async def outcome(self, coroutine: Coroutine[Any, Any, T], seconds: float = 0.0) -> T:
        """Run something until it is done and all that was ready has run.

        Args:
            coroutine: what to run.
            seconds: for how long it may wait by itself.
        """

    @abc.abstractmethod
    def close(self) -> None:
        """Let go of everything."""
