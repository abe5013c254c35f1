"""The states of durable keys while the application is running, and the thread that commits them."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from ..._environment import Environment
from ..._limited_log import LimitedLog
from ..._logs import get_logger
from ..._texts import describe, quoted
from ...actors import ThreadWorker
from ...errors import (
    ActorStopped,
    OutboxFull,
    SpaDatError,
    StateConflict,
    StateLost,
    StateNotWritten,
)
from ...transports import Bus, Delivery, Envelope, on_failure
from ...transports._commit_steps import Reached
from ...transports._state_store import (
    Change,
    Handled,
    MessageIdentity,
    StateStore,
    StoredKey,
)
from ..diagnostics._stacks import frames_of_thread, place
from ..diagnostics._unclean_stop import GivenUp
from ..messaging._bus_connection import BusConnection
from ._committed_messages import CommittedMessages, SentOutputs, left_of

__all__ = ["DurableStates", "Known", "post_with_room"]

T = TypeVar("T")
_log = get_logger("spa_dat")
_TRIM_EVERY = 3_600.0
_MOST_IN_A_COMMIT = 1_000
# Seconds for which a failure counts as still there unless a later attempt succeeds.
_TRIED_WITHIN = 60.0
# Seconds after which something that the bus had no room for is tried again.
_AGAIN = 0.1
# Seconds for which a store may be at work without being in trouble.
_LONG = 10.0
# Seconds for which the end of an application waits for a store that it has given up.
_PATIENCE = 1.0


@dataclass(frozen=True, slots=True)
class Known:
    """What a store knows before a message is handled.

    Attributes:
        stored: of its key; None if there is nothing, or it was not asked for.
        handled: what is known of the message, if it was handled before.
        reused: whether another message with its id was handled.
    """

    stored: StoredKey | None
    handled: Handled | None
    reused: bool


@dataclass(frozen=True, slots=True)
class _Question:
    ask: Callable[[StateStore], Any]
    answer: asyncio.Future[Any]


@dataclass(frozen=True, slots=True)
class _Commit:
    change: Change
    done: asyncio.Future[int]


class DurableStates:
    """Loads and commits the states of an application's durable keys.

    One thread does so. Whatever waits is committed together as soon as the thread is free: no
    timer makes anybody wait for more.

    Args:
        open_store: opens the store; called in the thread.
        environment: the clock.
        fatal: called with what makes it impossible to go on.
        inline: whether to work in the event loop instead of a thread, so that virtual time repeats.
        reached: see `Settings.reached`.

    Attributes:
        reached: likewise.
        log: where what is wrong with many messages is logged.
    """

    def __init__(
        self,
        open_store: Callable[[], StateStore],
        environment: Environment,
        fatal: Callable[[BaseException], None],
        *,
        inline: bool,
        reached: Reached | None = None,
    ) -> None:
        self.reached = reached
        self._open_store = open_store
        self._now = environment.now
        self._fatal = fatal
        self._loop = asyncio.get_running_loop()
        self._thread = None if inline else ThreadWorker("states")
        self._store: StateStore | None = None
        self._closed = False
        # Since when the store is at work, in loop time; None if it is not.
        self._at_work_since: float | None = None
        self._watching: asyncio.TimerHandle | None = None
        self._questions: list[_Question] = []
        self._commits: deque[_Commit] = deque()
        self._committed = CommittedMessages()
        self._working: asyncio.Future[None] | None = None
        self._problem: BaseException | None = None
        self.log: LimitedLog = LimitedLog(_log)
        self._trimmed = self._loop.time()
        # What the last reading and writing have failed with, and when, in loop time.
        self._failures: dict[str, tuple[StateNotWritten, float]] = {}

    @property
    def trouble(self) -> str | None:
        """What states cannot be read or written for; None if they can, as far as is known."""
        since = self._at_work_since
        if since is not None and self._loop.time() >= since + _LONG:
            return self._about_slowness(since)
        for failure, when in self._failures.values():
            # Who needs it tries again and again; without that nobody learns when it is over.
            if self._loop.time() < when + _TRIED_WITHIN:
                return str(failure)
        return None

    async def open(self, connections: Mapping[str, BusConnection]) -> None:
        """Open the store, and publish what an earlier run has committed but not sent.

        Args:
            connections: the bus of each durable actor, by its name.

        Raises:
            ConfigurationError: the store cannot be used; it is left as it is.
        """
        store = await self._in_thread(self._opened)
        unsent = await self._in_thread(store.unsent)
        for handled in unsent:
            connection = connections.get(handled.actor)
            if connection is None:
                self.log.warning(
                    "actor %r has left %d messages that were not sent, and is not there any more",
                    handled.actor,
                    len(handled.outputs),
                )
                continue
            await self._send_left(handled, connection)
        await self._in_thread(lambda: store.trim(self._now()))

    def _opened(self) -> StateStore:
        # Whoever has asked for it may be gone when it is open.
        store = self._store = self._open_store()
        if self._closed:
            # Nobody waits for it any more, and somebody else may.
            store.close()
        return store

    async def _send_left(self, handled: Handled, connection: BusConnection) -> None:
        outputs = self.outputs_of(handled, connection)

        def post(envelope: Envelope) -> asyncio.Future[None]:
            posted = connection.bus.post(envelope)
            on_failure(posted, self._not_sent)
            return posted

        try:
            await post_with_room(outputs, connection.bus, post)
        except SpaDatError as error:
            # If the message comes again it becomes a dead letter.
            self._tell_not_sent(describe(error))
        self._committed.watch(handled.number, None)

    def _not_sent(self, posted: asyncio.Future[None]) -> None:
        error = None if posted.cancelled() else posted.exception()
        self._tell_not_sent("the bus was closed" if error is None else describe(error))

    def _tell_not_sent(self, why: str) -> None:
        self.log.warning("a message that an earlier run has left was not sent: %s", why)

    def outputs_of(self, handled: Handled, connection: BusConnection) -> SentOutputs:
        """Return what a message that was handled before has published, as far as it is not sent."""
        left = left_of(handled, self._now())
        expired = len(handled.outputs) - len(left)
        if expired:
            connection.surroundings.stats["publishes.expired"] += expired
        return self._committed.outputs_of(handled.number, left)

    def new_outputs(self, number: int, outputs: Sequence[Envelope]) -> SentOutputs:
        """Return what a message that was committed just now has published."""
        return self._committed.outputs_of(number, outputs)

    def look_up(
        self, actor: str, key: str | None, message: MessageIdentity | None
    ) -> asyncio.Future[Known]:
        """Return what is known of a key, unless it is None, and of a message."""
        return self.ask(lambda store: _known(store, actor, key, message))

    def ask(self, question: Callable[[StateStore], T]) -> asyncio.Future[T]:
        """Return what a question to the store is answered with, after what is being committed.

        Args:
            question: called in the thread.
        """
        answer: asyncio.Future[T] = self._loop.create_future()
        self._questions.append(_Question(question, answer))
        self._go_on()
        return answer

    def commit(self, change: Change) -> asyncio.Future[int]:
        """Return a future that is done when the change would survive a loss of power.

        It raises StateNotWritten if nothing was written, and StateConflict if that is because
        somebody else has changed the key.
        """
        done: asyncio.Future[int] = self._loop.create_future()
        self._commits.append(_Commit(change, done))
        self._go_on()
        return done

    def watch(self, number: int, delivery: Delivery) -> None:
        """Note, from now on, when the outputs of a message are done with, and it is itself."""
        self._committed.watch(number, delivery)

    def done_with(self, number: int) -> None:
        """Note that nothing depends any more on a change that was made for no message."""
        self._committed.acknowledged.append(number)

    async def close(self, timeout: float, given_up: GivenUp) -> None:
        """Finish what is being committed, and release the store; give it up after a time.

        Args:
            timeout: seconds.
            given_up: is told if the store is still at work then.
        """
        until = self._loop.time() + timeout
        working = self._working
        while working is not None and await self._ended(working, until):
            working = self._working
        store = self._store
        if store is not None and working is None:
            self._store = None
            sent, acknowledged = self._committed.take()
            working = asyncio.ensure_future(
                self._in_thread(lambda: _last(store, sent, acknowledged))
            )
            if await self._ended(working, until):
                working = None
        if working is not None:
            given_up.thread("the store of states", self._place or "in code of its own")
            # Nobody is left to look at it.
            working.add_done_callback(lambda it: it.cancelled() or it.exception())
        self.abandon()

    async def _ended(self, working: asyncio.Future[None], until: float) -> bool:
        """Wait for something until a loop time; return whether it has ended."""
        await asyncio.wait((working,), timeout=max(until - self._loop.time(), 0.0))
        return working.done()

    def abandon(self) -> None:
        """Release it as it is."""
        self._closed = True
        if self._watching is not None:
            self._watching.cancel()
        store, self._store = self._store, None
        if self._thread is None:
            if store is not None:
                store.close()
        elif store is None:
            self._thread.abandon()
        else:
            # It may be at work in its thread, and has only one; and it may never be ready.
            closed = threading.Event()
            self._thread.abandon(partial(_close, store, closed))
            closed.wait(_PATIENCE)
        self._refuse(ActorStopped("the application has ended, and keeps no more states"))

    async def _in_thread(self, work: Callable[[], T]) -> T:
        if self._thread is None:
            return work()
        return await self._thread.run(work)

    def _go_on(self) -> None:
        if self._working is not None:
            return
        if self._problem is not None or self._store is None:
            problem = self._problem or ActorStopped("the application keeps no more states")
            self._loop.call_soon(self._refuse, problem)
            return
        self._working = asyncio.ensure_future(self._work(self._store))

    async def _work(self, store: StateStore) -> None:
        questions: list[_Question] = []
        commits: list[_Commit] = []
        try:
            # Whoever runs now may still have something for the same transaction.
            await asyncio.sleep(0)
            while self._questions or self._commits:
                questions, self._questions = self._questions, []
                taken = min(len(self._commits), _MOST_IN_A_COMMIT)
                commits = [self._commits.popleft() for _ in range(taken)]
                await self._at_once(store, questions, commits)
        except BaseException as error:  # noqa: BLE001 (whoever waits has to learn of it)
            self._problem = error
            self._questions[:0] = questions
            self._commits.extendleft(reversed(commits))
            self._refuse(error)
            if not self._closed:
                self._fatal(error)
        finally:
            self._working = None

    async def _at_once(
        self,
        store: StateStore,
        questions: Sequence[_Question],
        commits: Sequence[_Commit],
    ) -> None:
        sent, acknowledged = self._committed.take()
        if self.reached is not None and (sent or acknowledged):
            await self.reached("acknowledged")
        changes = [one.change for one in commits]
        trim = self._loop.time() >= self._trimmed + _TRIM_EVERY

        def work() -> tuple[list[Any], Sequence[int | None] | Exception]:
            numbers: Sequence[int | None] | Exception = ()
            if changes or sent or acknowledged:
                try:
                    numbers = _numbers(changes, store.commit(changes, sent, acknowledged))
                    if trim:
                        store.trim(self._now())
                except Exception as error:  # noqa: BLE001 (each has to learn of it)
                    numbers = _as_not_written(error)
            return [_answer(store, one.ask) for one in questions], numbers

        self._at_work_since = self._loop.time()
        self._watch_store()
        try:
            answers, numbers = await self._in_thread(work)
        finally:
            self._at_work_since = None
        if trim:
            self._trimmed = self._loop.time()
        self._note_failure("write", (numbers,) if changes or sent or acknowledged else ())
        self._note_failure("read", answers)
        if isinstance(numbers, Exception):
            self._committed.give_back(sent, acknowledged)
        else:
            self._committed.noted((*sent, *acknowledged))
        for index, commit in enumerate(commits):
            if commit.done.done():
                continue
            if isinstance(numbers, Exception):
                commit.done.set_exception(numbers)
            elif (number := numbers[index]) is None:
                commit.done.set_exception(_conflict(commit.change))
            else:
                commit.done.set_result(number)
        for question, answer in zip(questions, answers, strict=True):
            if question.answer.done():
                continue
            if isinstance(answer, Exception):
                question.answer.set_exception(answer)
            else:
                question.answer.set_result(answer)
        if isinstance(numbers, StateLost):
            raise numbers

    @property
    def _place(self) -> str | None:
        """Where the store is in its thread."""
        return None if self._thread is None else place(frames_of_thread(self._thread.ident))

    def _about_slowness(self, since: float) -> str:
        seconds, where = self._loop.time() - since, self._place or "in code of its own"
        return f"the store of states has been at work for {seconds:.0f} s: {where}"

    def _watch_store(self) -> None:
        """Have it told if the store is at work for long; one timer looks."""
        if self._watching is None and self._thread is not None:
            self._watching = self._loop.call_later(_LONG, self._look_at_store)

    def _look_at_store(self) -> None:
        self._watching, since = None, self._at_work_since
        if since is None:
            return
        if self._loop.time() >= since + _LONG:
            self.log.warning("%s; messages of durable keys wait", self._about_slowness(since))
        self._watch_store()

    def _note_failure(self, what: str, results: Sequence[object]) -> None:
        """Note whether something that was tried has failed; without results nothing was."""
        if results:
            self._failures.pop(what, None)
        for result in results:
            if isinstance(result, StateNotWritten):
                self._failures[what] = result, self._loop.time()

    def _refuse(self, error: BaseException) -> None:
        questions, self._questions = self._questions, []
        commits, self._commits = self._commits, deque()
        waiting: list[asyncio.Future[Any]] = [one.answer for one in questions]
        waiting.extend(one.done for one in commits)
        for future in waiting:
            if not future.done():
                future.set_exception(error)
                # Whoever waited may be gone.
                future.exception()


async def post_with_room(
    outputs: SentOutputs, bus: Bus, post: Callable[[Envelope], asyncio.Future[None]]
) -> None:
    """Post what is left of a message's outputs, as soon as there is room for each; raise as post.

    Args:
        outputs: those of one message.
        bus: what has to have room.
        post: posts on it.
    """
    while True:
        await bus.room()
        try:
            outputs.post(post)
        except OutboxFull:
            # There may be room for others and not for this one, or others were faster.
            await asyncio.sleep(_AGAIN)
        else:
            return


def _answer(store: StateStore, question: Callable[[StateStore], Any]) -> Any:
    try:
        return question(store)
    except Exception as error:  # noqa: BLE001 (whoever asks has to learn of it)
        return _as_not_written(error)


def _numbers(changes: Sequence[Change], returned: Any) -> Sequence[int | None]:
    """Return what a store has returned for changes; raise TypeError if it is not one for each."""
    numbers: list[int | None] = list(returned)
    if len(numbers) != len(changes):
        raise TypeError(
            f"commit() has returned {len(numbers)} numbers for {len(changes)} changes: return one"
            " for each, or None for a conflict"
        )
    return numbers


def _as_not_written(error: Exception) -> Exception:
    """Return what a store has raised, so that the message is tried again, whatever it is.

    If it was written nevertheless that shows when the key is loaded again.
    """
    if isinstance(error, SpaDatError):
        return error
    failed = StateNotWritten(f"the store of states has failed: {describe(error)}")
    failed.__cause__ = error
    return failed


def _known(
    store: StateStore, actor: str, key: str | None, message: MessageIdentity | None
) -> Known:
    stored = None if key is None else store.load(actor, (key,)).get(key)
    if not isinstance(stored, StoredKey | None):
        raise TypeError(f"load() has returned {quoted(stored, 200)} for a key: return a StoredKey")
    if stored is not None and not isinstance(stored.value, bytes):
        raise TypeError(
            f"load() has returned {quoted(stored.value, 200)} as the value of a key: return bytes"
        )
    found = False if message is None else store.find(message)
    if isinstance(found, Handled):
        return Known(stored, found, reused=False)
    return Known(stored, None, reused=found)


def _conflict(change: Change) -> StateConflict:
    return StateConflict(
        f"key {quoted(change.key, 200)} of actor {change.actor!r} was changed by somebody else"
        " since it was loaded: only one program may keep its states"
    )


def _close(store: StateStore, closed: threading.Event) -> None:
    try:
        store.close()
    finally:
        closed.set()


def _last(store: StateStore, sent: Sequence[int], acknowledged: Sequence[int]) -> None:
    try:
        if sent or acknowledged:
            store.commit((), sent, acknowledged)
    except Exception as error:  # noqa: BLE001 (it is done again after the next start)
        _log.warning("what was sent could not be noted: %s", describe(error))
    finally:
        store.close()
