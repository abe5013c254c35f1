"""What users do wrong with the harness, and how they hear of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from spa_dat import DistributedApplication, RetryPolicy, Socket
from spa_dat.errors import ConfigurationError
from spa_dat.testing import Faults, HandlerFailed, Harness, explore

ADDRESSES = ("mqtt://broker", "kafka://broker")


def forwarding(address: str = "mqtt://broker") -> DistributedApplication:
    app = DistributedApplication(address, name="app")

    @app.application("in")
    async def forward(payload: int, socket: Socket) -> None:
        await socket.publish("out", payload)

    return app


@pytest.mark.parametrize("address", ADDRESSES)
def test_equal_applications_run_in_two_harnesses_at_once(address: str) -> None:
    with Harness(forwarding(address)) as first, Harness(forwarding(address)) as second:
        first.publish("in", 1)
        second.publish("in", 2)
        second.settle()
        first.settle()
        assert first.published("out") == [1]
        assert second.published("out") == [2]


def test_equal_applications_in_one_harness_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="already running on"):
        Harness(forwarding(), forwarding()).__enter__()


@pytest.mark.parametrize(
    "options",
    [
        {"seed": "17"},
        {"profile": "rabbit"},
        {"faults": True},
        {"grace": "5"},
        {"patience": -1},
        {"limit": None},
        {"allow_failures": "LookupError"},
        {"allow_failures": [LookupError]},
        {"allow_failures": LookupError("no class")},
    ],
    ids=str,
)
def test_a_wrong_option_is_named(options: dict[str, Any]) -> None:
    (name,) = options
    with pytest.raises(ConfigurationError, match=name):
        Harness(forwarding(), **options)


@pytest.mark.parametrize("kinds", [(), ("LookupError",)], ids=str)
def test_an_expected_failure_is_a_class(kinds: tuple[Any, ...]) -> None:
    with Harness(forwarding()) as harness, pytest.raises(ConfigurationError, match="class"):
        harness.expect_failure(*kinds)


def test_seconds_are_a_number() -> None:
    wrong: Any = "1"
    with Harness(forwarding()) as harness, pytest.raises(ConfigurationError, match="seconds"):
        harness.advance(wrong)


@pytest.mark.parametrize(
    "use",
    [
        lambda harness: harness.settle(),
        lambda harness: harness.publish("in", 1),
        lambda harness: harness.crash(),
    ],
)
def test_using_it_after_its_end_is_named(use: Callable[[Harness], None]) -> None:
    with Harness(forwarding()) as harness:
        pass
    with pytest.raises(ConfigurationError, match="not in use any more"):
        use(harness)


def test_an_async_scenario_is_not_taken_for_one_that_passes() -> None:
    async def scenario(seed: int) -> None:
        raise AssertionError(f"seed {seed}")

    with pytest.raises(ConfigurationError, match="with def instead of async def"):
        explore(scenario, seeds=3)


@pytest.mark.parametrize("address", ADDRESSES)
def test_what_pytest_raises_in_a_handler_is_its_failure(address: str) -> None:
    app = DistributedApplication(address, name="app")

    @app.application("in", retry=RetryPolicy(attempts=1))
    async def judge(payload: int) -> None:
        pytest.fail(f"{payload} is too much")

    def use() -> None:
        with Harness(app) as harness:
            harness.publish("in", 7)
            harness.settle()

    with pytest.raises(HandlerFailed, match="7 is too much") as raised:
        use()
    assert isinstance(raised.value.__cause__, pytest.fail.Exception)


def test_an_application_that_faults_keep_from_starting_is_started_once_more() -> None:
    def scenario(seed: int) -> None:
        app = DistributedApplication("kafka://broker?start_timeout=1", name="app")

        @app.application("in")
        async def forward(payload: int, socket: Socket) -> None:
            await socket.publish("out", payload)

        with Harness(app, seed=seed, faults=Faults(drop=0.2, crash=0.02)) as harness:
            harness.publish("in", 1)
            harness.settle()
            assert set(harness.published("out")) == {1}

    explore(scenario, seeds=20)


@pytest.mark.parametrize("how", ["stops the event loop", "cancels all tasks"])
def test_code_that_ends_what_the_test_stands_on_is_named(how: str) -> None:
    app = DistributedApplication("mqtt://broker", name="app")

    @app.application("in")
    async def handle(payload: int) -> None:
        if how == "stops the event loop":
            asyncio.get_running_loop().stop()
            return
        for task in asyncio.all_tasks():
            if task is not asyncio.current_task():
                task.cancel()

    def use() -> None:
        with Harness(app) as harness:
            harness.publish("in", 1)
            harness.settle()

    with pytest.raises(HandlerFailed, match="the application under test has"):
        use()
