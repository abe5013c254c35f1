"""``spa-dat run --workers``: several processes of one application, and who looks after them."""

from __future__ import annotations

import enum
import signal
import sys
import time
from collections.abc import Sequence
from random import Random

from .._service_manager import ServiceManager
from .._texts import describe_exit
from ..actors._restart import RestartCounter, RestartPolicy
from ._child_link import Child
from ._child_processes import Processes, exit_code

__all__ = ["Workers"]

_FAILED = 1
_STARTS = RestartPolicy()
# However often: what has run is not given up. Who dies now and then comes back at once.
_PAUSES = RestartPolicy(intensity=sys.maxsize, period=10.0)
_HAS_LASTED = 1.0
_LOOK = 1.0
# Who looks so late has stood still as well, with the machine or the container.
_LATE = 5.0


class WorkerState(enum.Enum):
    """What a worker is doing."""

    AWAY = "it is not started yet, or waits to be started again"
    STARTING = "its process is there"
    RUNNING = "its application has started"
    DONE = "it has nothing left to do"


class Worker:
    """One of the processes, and those that take its place.

    Args:
        number: from 0.
        random: for the pauses before it is started again.

    Attributes:
        child: its process; None when there is none.
        since: when it came into its state.
        alive: when its event loop has given a sign of life for the last time.
        starts: how often it was started again.
        failed_starts: those of them in a row after which it did not run.
        pauses: after whatever end.
        is_hopeless: it says that it would only fail again.
        has_loop: its event loop gives signs of life.
    """

    def __init__(self, number: int, random: Random) -> None:
        self.number = number
        self.name = f"worker {number}"
        self.state = WorkerState.AWAY
        self.child: Child | None = None
        self.since = self.alive = time.monotonic()
        self.starts = 0
        self.failed_starts = RestartCounter(_STARTS, random)
        self.pauses = RestartCounter(_PAUSES, random)
        self.is_hopeless = False
        self.has_loop = False

    def enter(self, state: WorkerState) -> None:
        """Change the state."""
        self.state = state
        self.since = time.monotonic()
        if state is WorkerState.STARTING:
            self.is_hopeless = self.has_loop = False

    def sign_of_life(self) -> None:
        """Note that its event loop goes on."""
        self.has_loop = True
        self.alive = time.monotonic()


class Workers:
    """Runs an application in several processes until a signal, or until one is given up.

    A worker that dies is started again, after a pause that doubles with each time. One that does
    not get as far as running, or not for a second, is given up after as many attempts as an actor,
    and all others are stopped.

    The first worker is started alone, until it has imported the application: what is wrong with
    that is said once.

    Args:
        arguments: of the command.
        count: how many there are.
        timeout: seconds after which a worker that stands still is replaced; 0 for never.
        as_json: whether all lines of the log are JSON.
    """

    def __init__(
        self, arguments: Sequence[str], count: int, timeout: float, *, as_json: bool = False
    ) -> None:
        self._arguments = arguments
        self._timeout = timeout
        self._processes = Processes(self, as_json=as_json)
        self._manager = ServiceManager(self._processes.call_later, self._processes.say)
        self._has_started = False
        random = Random()
        self._workers = [Worker(number, random) for number in range(count)]
        self._is_loaded = False
        self._stopping = False
        self._code = 0
        self._looked = time.monotonic()

    def run(self) -> int:
        """Run the application; returns the exit code.

        0 after a stop in good order of all workers, and when none has anything left to do; 1 when
        one was given up. Otherwise that of the first worker that has ended with another one.
        """
        self._processes.call_later(0.0, lambda: self._start(self._workers[0]))
        self._processes.call_later(_LOOK, self._look)
        return self._processes.run()

    def _start(self, worker: Worker) -> None:
        if self._stopping:
            return
        worker.enter(WorkerState.STARTING)
        try:
            worker.child = self._processes.start(
                self._arguments,
                number=worker.number,
                count=len(self._workers),
                again=worker.starts > 0,
                name=worker.name,
            )
        except OSError as error:
            self._failed(worker, f"cannot be started: {error.strerror or error}")

    def reported(self, child: Child, report: str) -> None:
        """See `Owner.reported`."""
        worker = self._worker_of(child)
        if report == "alive":
            worker.sign_of_life()
        elif report == "loaded":
            self._loaded()
        elif report == "running":
            worker.enter(WorkerState.RUNNING)
            self._started()
        elif report == "hopeless":
            worker.is_hopeless = True
        elif report == "done":
            worker.enter(WorkerState.DONE)

    def _loaded(self) -> None:
        if not self._is_loaded:
            self._is_loaded = True
            for worker in self._workers[1:]:
                self._start(worker)

    def _started(self) -> None:
        away = (WorkerState.AWAY, WorkerState.STARTING)
        if not self._has_started and all(one.state not in away for one in self._workers):
            self._has_started = True
            self._manager.ready()

    def ended(self, child: Child, code: int) -> None:
        """See `Owner.ended`."""
        worker = self._worker_of(child)
        worker.child = None
        if self._stopping:
            # Whoever still imports its application does not handle signals yet.
            if self._code == 0 and code != -signal.SIGTERM:
                self._code = exit_code(code)
        elif not self._is_loaded:
            if code <= 0:
                # It has had no opportunity to say why.
                self._processes.say(
                    f"{worker.name} {describe_exit(code)} while it was importing the application"
                )
            self._give_up(exit_code(code) or _FAILED)
        elif worker.state is WorkerState.DONE and code == 0:
            self._processes.say(f"{worker.name} has nothing left to do")
        else:
            self._failed(worker, describe_exit(code))
        self._end_with_the_last()

    def _failed(self, worker: Worker, how: str) -> None:
        lasted = time.monotonic() - worker.since if worker.state is WorkerState.RUNNING else 0.0
        worker.enter(WorkerState.AWAY)
        now, failure = time.monotonic(), RuntimeError(how)
        pause = worker.pauses.next_delay(failure, now)
        if lasted >= _HAS_LASTED:
            worker.failed_starts = RestartCounter(_STARTS, Random())
        elif worker.failed_starts.next_delay(failure, now) is None:
            self._give_up_over(worker, how, f"after {_STARTS.intensity} restarts in a row")
            return
        if worker.is_hopeless:
            self._give_up_over(worker, how, "because it would only do so again")
            return
        assert pause is not None
        self._processes.say(f"{worker.name} {how}; it is started again in {pause:.1f} s")
        worker.starts += 1
        self._processes.call_later(pause, lambda: self._start(worker))

    def _give_up_over(self, worker: Worker, how: str, why: str) -> None:
        others = "; stopping the others" if len(self._workers) > 1 else ""
        self._processes.say(f"{worker.name} {how}; it is given up {why}{others}")
        self._give_up(_FAILED)

    def _give_up(self, code: int) -> None:
        self._code = code
        self._stopping = True
        self._manager.stopping()
        self._processes.stop_all()
        self._end_with_the_last()

    def stop(self) -> None:
        """See `Owner.stop`."""
        self._stopping = True
        self._manager.stopping()
        self._end_with_the_last()

    def _end_with_the_last(self) -> None:
        if any(worker.child is not None for worker in self._workers):
            return
        if self._stopping or all(worker.state is WorkerState.DONE for worker in self._workers):
            self._processes.end(self._code)

    def _look(self) -> None:
        """Replace workers that stand still."""
        now = time.monotonic()
        # Those that nobody reads wait for that, which is not their fault.
        excused = now - self._looked > _LATE or self._processes.outputs.is_full
        self._looked = now
        self._processes.call_later(_LOOK, self._look)
        for worker in self._workers:
            if excused or worker.child is None or not worker.has_loop:
                worker.alive = now
            elif self._timeout and now - worker.alive > self._timeout and not self._stopping:
                self._processes.say(
                    f"{worker.name} hangs: its event loop has given no sign of life for"
                    f" {now - worker.alive:.0f} s; killing process {worker.child.pid}"
                )
                worker.child.send(signal.SIGKILL)
                worker.alive = now

    def _worker_of(self, child: Child) -> Worker:
        return next(worker for worker in self._workers if worker.child is child)
