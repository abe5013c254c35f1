"""The world of a harness: an event loop, buses, applications under test, and their monitor."""

from __future__ import annotations

import abc
import asyncio
import shutil
import tempfile
import weakref
from collections.abc import Callable, Collection, Coroutine, Iterator, Mapping
from contextvars import Context
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from ..._busy_threads import BusyThread
from ..._environment import Environment
from ...runtime.application._application import DistributedApplication
from ...transports import Envelope, SocketProvider, is_reserved
from .._trace import Trace
from ._actor_monitor import ActorMonitor
from ._application_under_test import ApplicationUnderTest

if TYPE_CHECKING:
    from ...runtime.hosting._lane import Lane
    from ...transports._outbox_options import OutboxFile
    from ..simulated._harness_bus import HarnessBus, SimulatedBus
    from ._application_under_test import Life

__all__ = ["World"]

T = TypeVar("T")


class World(abc.ABC):
    """Applications on one event loop, which runs only while the test waits for something.

    Args:
        seed: the seed of all randomness.
        loop: the event loop.
        start: the time on its clock at the beginning.

    Attributes:
        outside: the context of code that belongs to no application.
        trace: what happened.
        monitor: what the actors are doing, and what has failed.
        buses: the stand-ins for the buses of the applications, by address.
        tested: the applications.
        taken: the messages that the buses have accepted.
        problems: for `take_problems`.
    """

    buses: Mapping[str, HarnessBus]

    def __init__(self, seed: int, loop: asyncio.AbstractEventLoop, start: float) -> None:
        self.seed = seed
        self.loop = loop
        self.outside = Context()
        self.trace = Trace(loop, start)
        self.monitor = ActorMonitor(loop, self.trace)
        self.tested: list[ApplicationUnderTest] = []
        self.taken: list[Envelope] = []
        self.problems: list[str] = []
        self._start = start
        self._folder: str | None = None

    @property
    def elapsed(self) -> float:
        """Seconds since the start, on the loop's clock."""
        return self.loop.time() - self._start

    def note(self, envelope: Envelope) -> None:
        """Note a message that a bus has accepted."""
        self.trace.add(envelope.source or "somebody", "publish", envelope.topic, envelope.id)
        self.taken.append(envelope)

    def published(self, *, reserved: bool) -> Iterator[Envelope]:
        """Return what was published, either to the runtime's own topics or to all others."""
        return (envelope for envelope in self.taken if is_reserved(envelope.topic) is reserved)

    def add(self, application: DistributedApplication) -> None:
        """Add an application, without starting it."""
        self.tested.append(ApplicationUnderTest(self, application, len(self.tested) + 1))

    def spawn(self, coroutine: Coroutine[Any, Any, T], context: Context) -> asyncio.Task[T]:
        """Run a coroutine in a context."""
        return self.loop.create_task(coroutine, context=context)

    def free(self, function: Callable[..., T], *args: Any) -> T:
        """Call a function so that what it starts belongs to no application."""
        return self.outside.copy().run(function, *args)

    def outbox_of(self, outbox: OutboxFile | None) -> OutboxFile | None:
        """Return the same with a folder that lasts as long as the world."""
        if outbox is None:
            return None
        if self._folder is None:
            self._folder = tempfile.mkdtemp(prefix="spa-dat-outbox-")
            weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        return replace(outbox, folder=self._folder)

    @abc.abstractmethod
    def stand_in(self, provider: SocketProvider) -> SocketProvider:
        """Return what an application uses in place of a provider."""

    @abc.abstractmethod
    def environment(self, seed: int) -> Environment:
        """Return the time, randomness and identifiers for an application."""

    @abc.abstractmethod
    def simulated_buses(self, what: str) -> Collection[SimulatedBus]:
        """Return the buses to which ``what`` is to be done.

        Raises:
            NotSimulated: they are real.
        """

    @abc.abstractmethod
    def check_simulated(self, what: str) -> None:
        """Raise NotSimulated if this world does not support ``what``."""

    @abc.abstractmethod
    def begin(self) -> None:
        """Let faults strike: all applications have started."""

    @abc.abstractmethod
    def end(self) -> None:
        """Let no more faults strike: the applications are about to be stopped."""

    def crashes_in_commit(self) -> float | None:
        """Decide whether an application crashes now; return after how many seconds it is back."""
        return None

    @abc.abstractmethod
    def announce(self, name: str, place: str) -> BusyThread:
        """Announce work in a thread of the program's own; nothing is settled before it ends."""

    def take_problems(self) -> list[str]:
        """Return the new warnings for the author of the test, and forget them."""
        taken, self.problems[:] = self.problems[:], []
        return taken

    def look_for_lost_failures(self) -> None:  # noqa: B027 (only a simulated world knows of them)
        """Report tasks to the monitor whose failure nobody has retrieved."""

    @abc.abstractmethod
    def silence(self, life: Life) -> None:
        """Stop everything that belongs to a life that was killed."""

    @abc.abstractmethod
    def restart_actor(self, lane: Lane) -> None:
        """Crash a lane as soon as time passes; it starts again."""

    @abc.abstractmethod
    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run the loop until a coroutine has ended."""

    @abc.abstractmethod
    async def settled(self) -> None:
        """Wait until all is settled.

        Raises:
            NotSettled: that does not happen; says why.
        """

    @abc.abstractmethod
    async def advanced(self, seconds: float) -> None:
        """Let so many seconds pass, and do all that is due by then."""

    @abc.abstractmethod
    async def outcome(self, coroutine: Coroutine[Any, Any, T], seconds: float = 0.0) -> T:
        """Run a coroutine until it is done and all that was ready has run; return its result.

        Args:
            coroutine: the coroutine.
            seconds: how long it may wait by itself, in addition to the patience.
        """

    @abc.abstractmethod
    def close(self) -> None:
        """Release everything."""
