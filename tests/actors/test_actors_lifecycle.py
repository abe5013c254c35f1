"""Start, restart, stop and the names of actors."""

from __future__ import annotations

import asyncio
import gc
import math
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pykka
import pytest

from spa_dat._environment import Environment
from spa_dat.actors import Actor, ActorRef, ActorSystem, Mailbox, RestartPolicy
from spa_dat.errors import ActorStopped, ConfigurationError, DeadlockDetected, RestartLimitReached
from support.waiting import eventually


class Life(Actor):
    """Writes down what happens to it; fails to start as often as it is told."""

    def __init__(self, log: list[str], failing: int = 0) -> None:
        self.log = log
        self.failing = failing

    async def on_start(self) -> None:
        starts = sum(entry.startswith("start") for entry in self.log)
        self.log.append(f"start {starts}")
        if starts < self.failing:
            raise OSError(f"no start {starts}")

    async def on_stop(self) -> None:
        self.log.append("stop")

    async def on_receive(self, message: Any) -> Any:
        if isinstance(message, asyncio.Event):
            await message.wait()
            return None
        self.log.append(message)
        return message


async def test_hooks_run_around_the_messages() -> None:
    log: list[str] = []
    system = ActorSystem()
    ref = system.spawn(lambda: Life(log))
    ref.tell("a")
    await system.stop(ref)
    assert log == ["start 0", "a", "stop"]
    assert not ref.is_alive
    await ref.stop()


async def test_plain_hooks_run_too() -> None:
    log: list[str] = []

    class Plain(Actor):
        def on_start(self) -> None:
            log.append("start")

        def on_stop(self) -> None:
            log.append("stop")

    system = ActorSystem()
    ref = system.spawn(Plain)
    await system.started(ref)
    await ref.stop()
    assert log == ["start", "stop"]


def test_stopping_again_is_harmless_on_another_event_loop_and_in_another_thread() -> None:
    refs: list[ActorRef[Actor]] = []

    async def live() -> None:
        system = ActorSystem()
        refs.append(system.spawn(lambda: Life([])))
        await system.started(refs[0])
        await refs[0].stop()

    async def stop_again() -> None:
        await refs[0].stop()

    asyncio.run(live())
    asyncio.run(stop_again())
    with ThreadPoolExecutor(1) as threads:
        threads.submit(asyncio.run, stop_again()).result()


async def test_stop_handles_earlier_messages_and_refuses_later_ones() -> None:
    log: list[str] = []
    system = ActorSystem()
    ref = system.spawn(lambda: Life(log), name="target")
    gate = asyncio.Event()
    ref.tell(gate)
    ref.tell("before")
    asked = asyncio.create_task(ref.ask("asked before"))
    await asyncio.sleep(0)
    stopping = asyncio.create_task(ref.stop())
    await asyncio.sleep(0)
    with pytest.raises(ActorStopped, match="'target'"):
        ref.tell("after")
    with pytest.raises(ActorStopped, match="'target'"):
        await ref.ask("after")
    with pytest.raises(ActorStopped, match="'target'"):
        await ref.send("after")
    gate.set()
    assert await asked == "asked before"
    await stopping
    assert log == ["start 0", "before", "asked before", "stop"]
    with pytest.raises(ActorStopped):
        await ref.ask("long after")


async def test_stop_without_draining_answers_and_hands_back_what_is_left(
    caplog: pytest.LogCaptureFixture,
) -> None:
    log: list[str] = []
    leftover: list[list[Any]] = []
    system = ActorSystem()
    mailbox = Mailbox()

    async def receive(instance: Life, item: Any) -> None:
        raise AssertionError("nothing foreign may be handled here")

    ref = system.spawn(
        lambda: Life(log), mailbox=mailbox, receive=receive, leftover=leftover.append
    )
    gate = asyncio.Event()
    ref.tell(gate)
    await eventually(mailbox.empty)
    mailbox.force(1)
    ref.tell("left")
    mailbox.force(2)
    asked = asyncio.create_task(ref.ask("asked"))
    await eventually(lambda: len(mailbox) == 4)
    stopping = asyncio.create_task(ref.stop(drain=False))
    await asyncio.sleep(0)
    gate.set()
    await stopping
    with pytest.raises(ActorStopped):
        await asked
    assert leftover == [[1, 2]]
    assert log == ["start 0", "stop"]
    assert "1 messages unhandled" in caplog.text


async def test_messages_told_before_an_early_stop_are_handled() -> None:
    log: list[str] = []
    system = ActorSystem()
    ref = system.spawn(lambda: Life(log))
    ref.tell("a")
    ref._cell.request_stop(drain=True)
    await ref.stop()
    assert log == ["start 0", "a", "stop"]


async def test_an_actor_may_stop_itself() -> None:
    class Mortal(Actor):
        async def on_receive(self, message: str) -> str:
            if message == "await":
                await self.actor_ref.stop()
            else:
                self.stop()
            return "bye"

    system = ActorSystem()
    for way in ("await", "call"):
        ref = system.spawn(Mortal)
        assert await ref.ask(way) == "bye"
        assert not ref.is_alive
        await ref.stop()
    assert len(system) == 0


async def test_stopping_the_one_who_waits_for_us_is_only_requested() -> None:
    class Asker(Actor):
        async def on_receive(self, message: ActorRef[Any]) -> Any:
            return await message.ask(self.actor_ref)

    class Stopper(Actor):
        async def on_receive(self, message: ActorRef[Any]) -> str:
            await message.stop()
            return "requested"

    system = ActorSystem()
    asker, stopper = system.spawn(Asker), system.spawn(Stopper)
    assert await asker.ask(stopper) == "requested"
    assert not asker.is_alive
    await system.stop_all(timeout=10)


@pytest.mark.virtual
async def test_a_failing_start_is_repeated_with_a_new_instance_and_messages_kept() -> None:
    log: list[str] = []
    instances: list[Life] = []
    seen: list[tuple[str, str]] = []
    system = ActorSystem(
        environment=Environment(seed=1),
        on_failure=lambda ref, error, where: seen.append((repr(error), where)),
    )

    def make() -> Life:
        instances.append(Life(log, failing=2))
        return instances[-1]

    begin = asyncio.get_running_loop().time()
    ref = system.spawn(make)
    ref.tell("kept")
    await system.started(ref)
    assert await ref.ask("later") == "later"
    assert log == ["start 0", "start 1", "start 2", "kept", "later"]
    assert len(instances) == 3
    assert seen == [
        ("OSError('no start 0')", "on_start"),
        ("OSError('no start 1')", "on_start"),
    ]
    waited = asyncio.get_running_loop().time() - begin
    assert 0.15 <= waited <= 0.3, "0.1 and 0.2 s, each shortened by at most a half"
    await ref.stop()


@pytest.mark.virtual
async def test_too_many_failing_starts_stop_the_actor_for_good() -> None:
    log: list[str] = []
    wheres: list[str] = []
    system = ActorSystem(on_failure=lambda ref, error, where: wheres.append(where))
    ref = system.spawn(
        lambda: Life(log, failing=99), name="hopeless", restart=RestartPolicy(intensity=3)
    )
    asked = asyncio.create_task(ref.ask("x"))
    waiting = asyncio.create_task(system.started(ref))
    with pytest.raises(RestartLimitReached, match=r"'hopeless'.*3 restarts.*no start 3") as caught:
        await waiting
    assert isinstance(caught.value.__cause__, OSError)
    with pytest.raises(ActorStopped):
        await asked
    with pytest.raises(RestartLimitReached):
        await system.started(ref)
    assert log == ["start 0", "start 1", "start 2", "start 3"]
    assert wheres == ["on_start"] * 4 + ["restart"]
    assert len(system) == 0
    with pytest.raises(ActorStopped):
        ref.tell("x")


@pytest.mark.virtual
async def test_restarts_long_ago_do_not_count() -> None:
    log: list[str] = []
    system = ActorSystem()
    policy = RestartPolicy(intensity=2, period=3.9, backoff_min=4.0, backoff_max=4.0)
    ref = system.spawn(lambda: Life(log, failing=6), restart=policy)
    await system.started(ref)
    assert len(log) == 7
    await ref.stop()


@pytest.mark.virtual
async def test_stop_ends_the_wait_for_a_restart() -> None:
    log: list[str] = []
    system = ActorSystem()
    policy = RestartPolicy(backoff_min=1000.0, backoff_max=1000.0)
    ref = system.spawn(lambda: Life(log, failing=1), restart=policy)
    asked = asyncio.create_task(ref.ask("x", timeout=5000.0))
    started = asyncio.create_task(system.started(ref))
    await eventually(lambda: len(log) == 1)
    begin = asyncio.get_running_loop().time()
    await ref.stop()
    assert asyncio.get_running_loop().time() - begin < 100
    assert log == ["start 0"]
    for task in (asked, started):
        with pytest.raises(ActorStopped):
            await task


@pytest.mark.virtual
async def test_a_constructor_that_fails_in_a_restart_counts_like_a_failing_start() -> None:
    log: list[str] = []
    made = 0

    def make() -> Life:
        nonlocal made
        made += 1
        if made == 2:
            raise OSError("second instance")
        return Life(log, failing=1)

    system = ActorSystem()
    ref = system.spawn(make)
    await system.started(ref)
    assert made == 3
    await ref.stop()


async def test_a_constructor_that_fails_at_first_raises_in_spawn() -> None:
    system = ActorSystem()
    with pytest.raises(TypeError):
        system.spawn(lambda: Life())  # type: ignore[call-arg]
    assert len(system) == 0


async def test_a_mailbox_is_free_again_when_the_constructor_fails() -> None:
    system = ActorSystem()
    mailbox = Mailbox()
    with pytest.raises(ZeroDivisionError):
        system.spawn(lambda: Life([str(1 // 0)]), name="a", mailbox=mailbox)
    ref = system.spawn(Actor, name="a", mailbox=mailbox)
    await ref.stop()


async def test_an_actor_cancelled_before_its_first_step_ends_properly() -> None:
    system = ActorSystem()
    ref = system.spawn(Actor, name="a")
    asked = asyncio.create_task(ref.ask("x"))
    ref._cell.task.cancel()
    with pytest.raises(ActorStopped):
        await asked
    assert len(system) == 0
    assert not ref.is_alive


async def test_an_actor_may_stop_all_the_others() -> None:
    system = ActorSystem()

    class Last(Actor):
        async def on_receive(self, message: Any) -> int:
            await system.stop_all(timeout=10)
            return len(system)

    others = [system.spawn(Actor) for _ in range(3)]
    last = system.spawn(Last)
    assert await last.ask("now") == 1
    await last.stop()
    assert not any(ref.is_alive for ref in others)


async def test_a_failing_on_stop_is_reported_and_the_actor_has_stopped() -> None:
    class Stubborn(Actor):
        def on_stop(self) -> None:
            raise OSError("no stop")

    seen: list[str] = []
    system = ActorSystem(on_failure=lambda ref, error, where: seen.append(where))
    ref = system.spawn(Stubborn)
    await ref.stop()
    assert seen == ["on_stop"]
    assert len(system) == 0


async def test_started_from_inside_on_start_is_refused() -> None:
    system = ActorSystem()

    class Impatient(Actor):
        async def on_start(self) -> None:
            with pytest.raises(DeadlockDetected):
                await system.started(self.actor_ref)

    ref = system.spawn(Impatient)
    await system.started(ref)
    await ref.stop()


async def test_the_registry_knows_the_living_in_order() -> None:
    system = ActorSystem()
    refs = [system.spawn(Actor, name=name) for name in "cab"]
    numbered = system.spawn(Actor)
    assert list(system) == [*refs, numbered]
    assert len(system) == 4
    assert system.get("a") is refs[1]
    await refs[1].stop()
    assert system.get("a") is None
    again = system.spawn(Actor, name="a")
    assert system.get("a") is again
    await system.stop_all(timeout=10)
    assert len(system) == 0


async def test_names_and_mailboxes_are_taken_once() -> None:
    system = ActorSystem()
    mailbox = Mailbox()
    ref = system.spawn(Actor, name="a", mailbox=mailbox)
    with pytest.raises(ConfigurationError, match="'a' is taken"):
        system.spawn(Actor, name="a")
    with pytest.raises(ConfigurationError, match="already in use by actor 'a'"):
        system.spawn(Actor, name="b", mailbox=mailbox)
    with pytest.raises(ConfigurationError, match="is empty"):
        system.spawn(Actor, name="")
    with pytest.raises(ConfigurationError, match="is not an Actor"):
        system.spawn(object)  # type: ignore[type-var]
    instance = Actor()
    other = system.spawn(lambda: instance)
    with pytest.raises(ConfigurationError, match="is already running"):
        system.spawn(lambda: instance)
    assert list(system) == [ref, other]
    await system.stop_all(timeout=10)


@pytest.mark.parametrize(
    "wrong",
    [
        {"intensity": -1},
        {"period": -1.0},
        {"backoff_min": 20.0},
        *(
            {name: value}
            for name in ("intensity", "period", "backoff_min", "backoff_max")
            for value in (math.nan, math.inf)
        ),
    ],
)
def test_a_wrong_restart_policy_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(wrong))):
        RestartPolicy(**wrong)


@pytest.mark.virtual
async def test_stop_all_cancels_what_does_not_end_in_time(
    caplog: pytest.LogCaptureFixture,
) -> None:
    log: list[str] = []
    seen: list[str] = []
    system = ActorSystem(name="plant", on_failure=lambda ref, error, where: seen.append(where))
    hung = system.spawn(lambda: Life(log), name="hung")
    quick = system.spawn(lambda: Life(log), name="quick")
    asked = asyncio.create_task(hung.ask(asyncio.Event(), timeout=1000.0))
    quick.tell("done")
    await asyncio.sleep(0)
    await system.stop_all(timeout=5.0)
    with pytest.raises(ActorStopped):
        await asked
    assert sorted(log) == ["done", "start 0", "start 1", "stop", "stop"]
    assert "plant/hung" in caplog.text
    assert "plant/quick" not in caplog.text
    assert seen == []


async def test_global_registration_is_opt_in_and_ends_with_the_actor() -> None:
    system = ActorSystem()
    hidden = system.spawn(Actor)
    shown = system.spawn(Actor, register_globally=True)
    registered = pykka.ActorRegistry.get_all()
    assert shown.pykka in registered
    assert hidden.pykka not in registered
    await system.stop_all(timeout=10)
    assert pykka.ActorRegistry.get_all() == []


async def test_an_idle_actor_does_not_hold_its_last_message() -> None:
    class Thing:
        pass

    handled: list[str] = []

    class Holder(Actor):
        async def on_receive(self, message: Any) -> None:
            handled.append("message")

    system = ActorSystem()
    ref = system.spawn(Holder)
    thing = Thing()
    weak = weakref.ref(thing)
    ref.tell(thing)
    del thing
    await eventually(lambda: handled)
    await asyncio.sleep(0)
    gc.collect()
    assert weak() is None
    await ref.stop()


async def test_a_stopped_actor_does_not_hold_its_state() -> None:
    system = ActorSystem()
    ref = system.spawn(lambda: Life([]))
    weak = weakref.ref(ref._cell.instance)
    await ref.stop()
    await asyncio.sleep(0)
    gc.collect()
    assert weak() is None


async def test_a_paused_actor_leaves_its_mailbox_alone_until_it_goes_on() -> None:
    log: list[str] = []
    system = ActorSystem()
    ref = system.spawn(lambda: Life(log))
    await system.started(ref)
    for _ in range(2):
        # Once at work, once idle.
        system.pause(ref)
        system.pause(ref)
        answer = ref.ask("a")
        for _ in range(10):
            await asyncio.sleep(0)
        assert log[-1] != "a"
        system.resume(ref)
        assert await answer == "a"
        log.append("-")
    system.pause(ref)
    system.resume(ref)
    assert await ref.ask("b") == "b"
    system.pause(ref)
    ref.tell("c")
    # A stop ends the pause, and handles what is left.
    await system.stop(ref)
    system.pause(ref)
    assert log == ["start 0", "a", "-", "a", "-", "b", "c", "stop"]


async def test_a_paused_actor_can_be_killed() -> None:
    log: list[str] = []
    system = ActorSystem()
    ref = system.spawn(lambda: Life(log))
    await system.started(ref)
    system.pause(ref)
    ref.tell("a")
    await asyncio.sleep(0)
    assert await system.kill(ref) is None
    assert log == ["start 0", "stop"]


async def test_an_actor_begins_afresh_between_two_messages() -> None:
    log: list[str] = []
    system = ActorSystem()
    ref = system.spawn(lambda: Life(log))
    assert not system.begin_afresh(ref), "it is starting"
    await system.started(ref)
    go_on = asyncio.Event()
    ref.tell(go_on)
    ref.tell("a")
    await asyncio.sleep(0)
    assert system.begin_afresh(ref)
    await asyncio.sleep(0)
    assert log == ["start 0"], "in the middle of a message"
    go_on.set()
    await eventually(lambda: "a" in log)
    # Idle.
    assert system.begin_afresh(ref)
    await eventually(lambda: "start 2" in log)
    # Paused, which it stays.
    system.pause(ref)
    ref.tell("b")
    assert system.begin_afresh(ref)
    await eventually(lambda: "start 3" in log)
    assert "b" not in log
    system.resume(ref)
    await system.stop(ref)
    assert not system.begin_afresh(ref)
    starts = ["start 0", "stop", "start 1", "a", "stop", "start 2", "stop", "start 3"]
    assert log == [*starts, "b", "stop"]
