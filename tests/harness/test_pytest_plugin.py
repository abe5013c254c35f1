"""The pytest plugin, as its users see it."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from spa_dat import DistributedApplication, Reject, Socket
from spa_dat.testing import Harness, HarnessFactory, Kafka, Mosquitto

pytest_plugins = ["pytester"]

_PLANT = """
    import asyncio
    import pytest
    from spa_dat import DistributedApplication, Socket

    def plant(name="plant"):
        app = DistributedApplication("mqtt://broker.example", name=name)

        @app.application("plant/{machine}/temperature", state=list)
        async def watch(payload: float, machine: str, state: list, socket: Socket) -> None:
            if payload < 0:
                raise ValueError(f"{payload} cannot be")
            state.append(payload)
            await socket.publish("plant/alarms", f"{machine}: {payload}")

        @app.application("plant/limit")
        async def limit(payload: float) -> float:
            return payload * 2

        return app
"""

Run = Callable[..., pytest.RunResult]


# pytester gives each test a home of its own.
_CACHE = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")


@pytest.fixture
def run(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a user's tests in a separate process, with an application in front of them."""
    monkeypatch.setenv("XDG_CACHE_HOME", _CACHE)

    def run(text: str, *arguments: str) -> pytest.RunResult:
        pytester.makepyfile(textwrap.dedent(_PLANT) + textwrap.dedent(text))
        # A third of a start is what imports Hypothesis, which these tests do not use.
        plugins = ("-p", "no:cacheprovider", "-p", "no:hypothesispytest")
        return pytester.runpytest_subprocess(*plugins, *arguments, timeout=140)

    return run


def test_plain_and_async_tests_use_the_same_harness(run: Run) -> None:
    result = run(
        """
        from spa_dat.testing import AsyncHarness

        def check(h):
            h.publish("plant/oven/temperature", 95.0)
            h.settle()
            assert h.published("plant/alarms") == ["oven: 95.0"]
            assert h.state("watch") == [95.0]
            assert h.request("plant/limit", 2.0, reply=float) == 4.0

        def test_plain(harness):
            check(harness(plant()))

        async def test_async(harness):
            await asyncio.sleep(0)
            check(harness(plant()))

        @pytest.fixture
        def started(harness):
            return harness(plant())

        async def test_async_with_a_fixture(started):
            check(started)

        def test_in_a_block(harness):
            with harness(plant()) as h:
                check(h)
            assert h.published() == ["oven: 95.0"]

        async def test_awaited(harness):
            async with harness(plant()) as h:
                assert isinstance(h, AsyncHarness)
                h.publish("plant/oven/temperature", 95.0)
                await h.settle()
                assert h.state("watch") == [95.0]

        class TestMethods:
            async def test_two_at_once(self, harness):
                one, other = harness(plant()), harness(plant("other"))
                check(one)
                assert other.state("watch") == []
        """,
    )
    result.assert_outcomes(passed=6)


def test_what_went_wrong_fails_the_test_also_without_settling(run: Run) -> None:
    result = run(
        """
        def test_plain(harness):
            harness(plant()).publish("plant/oven/temperature", -1.0)

        async def test_async(harness):
            harness(plant()).publish("plant/oven/temperature", -1.0)

        @pytest.mark.xfail(strict=True)
        def test_expected(harness):
            harness(plant()).publish("plant/oven/temperature", -1.0)

        @pytest.mark.spa_dat(allow_failures=ValueError)
        def test_allowed(harness):
            harness(plant()).publish("plant/oven/temperature", -1.0)
        """,
    )
    result.assert_outcomes(failed=2, xfailed=1, passed=1)
    result.stdout.fnmatch_lines(["*raise ValueError*", "*HandlerFailed: handler of plant/0/watch*"])
    for module in ("_harness", "_watch", "_fixture"):
        result.stdout.no_fnmatch_line(f"*{module}.py:*: in *")


def test_a_failure_shows_seed_events_and_how_to_replay_it(run: Run) -> None:
    result = run(
        """
        @pytest.mark.parametrize("value", [1.0])
        @pytest.mark.spa_dat(profile="mqtt")
        def test_oven(harness, value):
            h = harness(plant())
            for _ in range(20):
                h.publish("plant/oven/temperature", value)
            h.settle()
            assert h.state("watch") == []
        """,
        "--spa-dat-seed=7",
    )
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            "*- spa_dat harness -*",
            "seed 7, profile mqtt",
            "replay with: pytest '*::test_oven?1.0?' --spa-dat-seed=7",
            "the last 30 of * events:",
            "*plant/0/watch publish plant/alarms*",
        ]
    )


def test_the_nearer_an_option_stands_the_more_it_counts(run: Run) -> None:
    result = run(
        """
        pytestmark = pytest.mark.spa_dat(seed=1)

        def trace(harness, **options):
            with harness(plant(), **options) as h:
                h.publish("plant/oven/temperature", 1.0)
            return h.trace

        @pytest.mark.spa_dat(seed=2)
        def test_marker(harness):
            assert trace(harness) == trace(harness, seed=2) != trace(harness, seed=1)

        def test_module(harness):
            assert trace(harness) == trace(harness, seed=1) != trace(harness, seed=7)
        """,
        "--spa-dat-seed=7",
    )
    result.assert_outcomes(passed=2)


def test_the_command_line_gives_the_seed_of_all_others(run: Run) -> None:
    result = run(
        """
        def test_seed(harness):
            traces = []
            for options in ({}, {"seed": 7}, {"seed": 8}):
                with harness(plant(), **options) as h:
                    h.publish("plant/oven/temperature", 1.0)
                traces.append(h.trace)
            assert traces[0] == traces[1] != traces[2]
        """,
        "--spa-dat-seed=7",
    )
    result.assert_outcomes(passed=1)


def test_a_wrong_option_of_the_marker_is_named(run: Run) -> None:
    result = run(
        """
        @pytest.mark.spa_dat(sead=1)
        def test_marker(harness):
            pass
        """
    )
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*mark.spa_dat(sead): give options by name: seed, profile*"])


def test_async_tests_of_others_are_left_alone(run: Run, pytester: pytest.Pytester) -> None:
    pytester.makeconftest(
        """
        import asyncio
        import inspect
        import pytest

        @pytest.hookimpl(tryfirst=True)
        def pytest_pyfunc_call(pyfuncitem):
            if pyfuncitem.get_closest_marker("mine") is None:
                return None
            names = pyfuncitem._fixtureinfo.argnames
            arguments = {name: pyfuncitem.funcargs[name] for name in names}
            asyncio.run(pyfuncitem.obj(**arguments))
            print("mine ran it")
            return True

        def pytest_configure(config):
            config.addinivalue_line("markers", "mine: run by another plugin")
        """
    )
    result = run(
        """
        @pytest.mark.mine
        async def test_theirs(harness):
            harness(plant()).settle()

        @pytest.mark.spa_dat
        async def test_ours():
            await asyncio.sleep(0)

        async def test_nobodys():
            raise AssertionError("not run")
        """,
        "-rA",
    )
    result.assert_outcomes(passed=2, failed=1)
    assert result.stdout.str().count("mine ran it") == 1
    result.stdout.fnmatch_lines(["*async def functions are not natively supported*"])


def test_without_the_plugin_nothing_of_it_is_there(run: Run) -> None:
    result = run("def test_one(harness): pass", "-p", "no:spa_dat")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*fixture 'harness' not found*"])


def test_fixtures_and_marker_are_described(pytester: pytest.Pytester) -> None:
    fixtures = pytester.runpytest_subprocess("--fixtures", "-q").stdout.str()
    for name in ("harness", "mqtt_broker", "kafka_broker"):
        assert f"\n{name} " in fixtures
    assert "@pytest.mark.spa_dat(" in pytester.runpytest_subprocess("--markers").stdout.str()


def test_nothing_is_imported_before_it_is_used() -> None:
    entries = importlib.metadata.entry_points(group="pytest11", name="spa_dat")
    assert [entry.value for entry in entries] == ["spa_dat._pytest"]
    program = (
        "import sys, spa_dat._pytest; print([m for m in sys.modules if m.startswith('spa_dat')])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "['spa_dat', 'spa_dat._pytest']"


def test_what_the_package_shows_is_there_when_it_is_asked_for() -> None:
    program = (
        "import spa_dat; names = spa_dat.__all__; assert {*names} <= {*dir(spa_dat)};"
        "print([spa_dat.__dict__.get(n) for n in names] == [None] * len(names),"
        " all(getattr(spa_dat, n) is spa_dat.__dict__[n] for n in names), spa_dat.errors.__name__,"
        " hasattr(spa_dat, 'Actors'))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["True", "True", "spa_dat.errors", "False"]


def test_a_broker_that_is_not_here_skips_and_on_ci_fails(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = """
        from spa_dat.testing import Kafka, Mosquitto

        @pytest.fixture(scope="session", autouse=True)
        def nothing_is_installed():
            Mosquitto.missing = Kafka.missing = classmethod(lambda cls: f"get {cls.__name__}!")

        def test_mqtt(mqtt_broker): pass
        def test_kafka(kafka_broker): pass
        def test_harness(harness): pass
        """
    monkeypatch.delenv("CI", raising=False)
    result = run(text, "-rs", "--spa-dat-broker=mqtt")
    result.assert_outcomes(skipped=3)
    result.stdout.fnmatch_lines(["*get Mosquitto!*"])
    monkeypatch.setenv("CI", "true")
    run(text, "--spa-dat-broker=kafka").assert_outcomes(errors=3)


_ON_ANY_BUS = """
    from spa_dat import Reject, RetryPolicy

    def test_plain(harness):
        h = harness(plant())
        for number in range(50):
            h.publish(f"plant/m{number % 3}/temperature", float(number))
        h.settle()
        assert sorted(h.state("watch")) == [float(number) for number in range(50)]
        assert len(h.published("plant/alarms")) == 50
        assert h.request("plant/limit", 2.0, reply=float) == 4.0

    async def test_async(harness):
        async with harness(plant()) as h:
            h.publish("plant/oven/temperature", 1.0)
            await h.settle()
            assert h.published("plant/alarms") == ["oven: 1.0"]

    def test_one_does_not_see_what_another_has_left(harness):
        one, other = harness(plant()), harness(plant("other"))
        one.publish("plant/oven/temperature", 1.0)
        one.settle()
        other.settle()
        assert (one.state("watch"), other.state("watch")) == ([1.0], [])

    def test_several_applications_and_buses(harness):
        app = DistributedApplication("kafka://elsewhere.example", name="bridge")

        @app.application("plant/alarms", socket_provider="mqtt://broker.example")
        async def carry(payload: str) -> None:
            await app.socket().publish("carried", payload)

        h = harness(plant(), app)
        h.publish("plant/oven/temperature", 1.0)
        h.settle()
        assert h.published("carried") == ["oven: 1.0"]

    def test_what_comes_while_it_is_stopped_is_handled_later(harness):
        h = harness(plant())
        h.stop()
        h.publish("plant/oven/temperature", 1.0)
        h.settle()
        h.restart()
        h.settle()
        assert h.state("watch") == [1.0]

    def test_dead_letters(harness):
        app = plant()

        @app.application("bad")
        async def bad(payload: str) -> None:
            raise Reject("never")

        h = harness(app)
        h.publish("bad", "x")
        h.settle()
        (letter,) = h.dead_letters()
        assert (letter.topic, letter.payload, letter.actor) == ("bad", b"x", "plant/0/bad")
        assert [failure.where for failure in h.failures] == ["handler"]

    def test_retries_are_waited_for(harness):
        app = plant()
        attempts = []

        @app.application("weak", retry=RetryPolicy(first=0.05))
        async def weak(payload: str) -> None:
            attempts.append(payload)
            if len(attempts) < 3:
                raise ValueError("not yet")

        h = harness(app, allow_failures=ValueError)
        h.publish("weak", "x")
        h.settle()
        assert attempts == ["x"] * 3

    def test_filters_that_come_while_it_runs(harness):
        app = plant()

        @app.application("listen", state=list)
        async def listen(message, state: list, socket: Socket) -> None:
            state.append(message.topic)
            if message.topic == "listen":
                await socket.subscribe("other")

        h = harness(app)
        h.publish("listen", "x")
        h.settle()
        h.publish("other", "y")
        h.settle()
        assert h.state("listen") == ["listen", "other"]

    def test_a_failing_handler(harness):
        harness(plant()).publish("plant/oven/temperature", -1.0)

    def test_virtual_time(harness):
        h = harness(plant())
        h.advance(3600)
        assert h.time == 3600

    async def test_crash(harness):
        async with harness(plant()) as h:
            h.crash()
            await h.restart()

    @pytest.mark.spa_dat(profile="mqtt")
    def test_profile(harness):
        harness(plant()).settle()
    """


def test_the_same_tests_run_in_memory(run: Run) -> None:
    run(_ON_ANY_BUS).assert_outcomes(passed=11, failed=1)


@pytest.mark.mosquitto
@pytest.mark.usefixtures("own_mosquitto")
def test_the_same_tests_run_on_mosquitto(run: Run) -> None:
    result = run(_ON_ANY_BUS, "--spa-dat-broker=mqtt", "-rs")
    result.assert_outcomes(passed=9, failed=1, skipped=2)
    result.stdout.fnmatch_lines(
        [
            "*HandlerFailed: handler of plant/0/watch*",
            "on a real broker, in real time",
            "replay with: pytest *::test_a_failing_handler --spa-dat-broker=mqtt",
            "SKIPPED*test_the_same_tests_*.py:*: advance() needs a simulated bus*real mqtt broker*",
        ]
    )


@pytest.mark.kafka
@pytest.mark.usefixtures("own_kafka")
def test_the_same_tests_run_on_kafka(run: Run) -> None:
    result = run(_ON_ANY_BUS, "--spa-dat-broker=kafka", "-rs")
    result.assert_outcomes(passed=8, failed=1, skipped=3)


@pytest.mark.mosquitto
def test_a_harness_and_a_broker_of_ones_own(
    harness: HarnessFactory, mqtt_broker: Mosquitto
) -> None:
    assert mqtt_broker.alive
    app = DistributedApplication("memory://")

    @app.application("in")
    async def carry(payload: str, socket: Socket) -> None:
        if payload == "no":
            raise Reject("as asked")
        await socket.publish("out", payload)

    started = harness(app)
    assert isinstance(started, Harness)
    started.publish("in", "yes")
    started.publish("in", "no")
    started.settle()
    assert started.published("out") == ["yes"]


@pytest.mark.kafka
def test_kafka_is_there_for_users(kafka_broker: Kafka) -> None:
    assert kafka_broker.url == f"kafka://{kafka_broker.server}"
    assert kafka_broker.alive


def test_a_block_in_a_fixture_is_open_until_the_fixture_leaves_it(run: Run) -> None:
    result = run(
        """
        @pytest.fixture
        def started(harness):
            with harness(plant()) as h:
                yield h
                # What the test has left is checked and done, and more can be looked at.
                assert h.published("plant/alarms") == ["oven: 1.0"]
                h.publish("plant/oven/temperature", 2.0)
                h.settle()
                assert h.state("watch") == [1.0, 2.0]

        @pytest.fixture
        def started_in_async(harness):
            loop = asyncio.new_event_loop()

            async def start():
                block = harness(plant())
                return block, await block.__aenter__()

            block, h = loop.run_until_complete(start())
            yield loop, h
            loop.run_until_complete(block.__aexit__(None, None, None))
            loop.close()

        def test_plain(started):
            started.publish("plant/oven/temperature", 1.0)

        async def test_async(started):
            started.publish("plant/oven/temperature", 1.0)

        def test_async_fixture(started_in_async):
            loop, h = started_in_async
            assert loop.run_until_complete(h.request("plant/limit", 2.0, reply=float)) == 4.0
        """,
        "-Werror",
    )
    result.assert_outcomes(passed=3)


def test_what_fails_in_a_block_of_a_fixture_fails_the_test_and_only_that(run: Run) -> None:
    result = run(
        """
        @pytest.fixture
        def started(harness):
            with harness(plant()) as h:
                yield h

        def test_that_forgets_to_settle(started):
            started.publish("plant/oven/temperature", -1.0)

        def test_that_fails_itself(started):
            started.publish("plant/oven/temperature", -1.0)
            assert started.published() == ["something"]
        """,
        "-Werror",
    )
    result.assert_outcomes(failed=2)
    result.stdout.fnmatch_lines(["*HandlerFailed*-1.0 cannot be*"])


def test_blocks_in_fixtures_of_pytest_asyncio(run: Run) -> None:
    pytest.importorskip("pytest_asyncio")
    result = run(
        """
        import pytest_asyncio
        from spa_dat.testing import Harness

        @pytest_asyncio.fixture
        async def started(harness):
            async with harness(plant()) as h:
                yield h

        @pytest_asyncio.fixture
        async def plain():
            async with Harness(plant()) as h:
                yield h

        @pytest.mark.asyncio
        async def test_fixture(started):
            assert await started.request("plant/limit", 2.0, reply=float) == 4.0

        @pytest.mark.asyncio
        async def test_plain(plain):
            assert await plain.request("plant/limit", 2.0, reply=float) == 4.0
        """,
    )
    result.assert_outcomes(passed=2)


def test_a_harness_that_was_started_without_a_loop_says_why_it_does_not_run_in_one(
    run: Run,
) -> None:
    result = run(
        """
        from spa_dat.testing import Harness

        @pytest.fixture
        def started():
            with Harness(plant()) as h:
                yield h

        @pytest.mark.spa_dat
        async def test_async(started):
            started.settle()
        """,
    )
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        ["*ConfigurationError*was started where no event loop was running*"]
    )
