"""The pytest plugin of spa_dat: fixtures ``harness``, ``mqtt_broker``, ``kafka_broker``.

pytest imports it at every start, even in projects that do not use it, so it imports nothing more of
the package before a fixture is used.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import os
import shlex
from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING, Any, cast

import pytest

if TYPE_CHECKING:
    from .harness import HarnessOptions
    from .testing import BrokerProcess, HarnessFactory, Kafka, Mosquitto

__all__ = ["harness", "kafka_broker", "mqtt_broker", "require"]

_FACTORY: pytest.StashKey[HarnessFactory] = pytest.StashKey()
_MARKER = "spa_dat"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options of the command line."""
    group = parser.getgroup("spa-dat", "applications of spa_dat under test")
    group.addoption(
        "--spa-dat-seed",
        type=int,
        metavar="N",
        help="seed of all harnesses that do not set one (default: 0)",
    )
    group.addoption(
        "--spa-dat-broker",
        choices=("memory", "mqtt", "kafka"),
        default="memory",
        help="where the applications of the fixture 'harness' run: simulated, in memory (default),"
        " or on a real Mosquitto or Kafka",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Declare the marker."""
    config.addinivalue_line(
        "markers",
        f"{_MARKER}(seed, profile, faults, allow_failures, grace, patience, limit): options for the"
        " fixture 'harness', see spa_dat.testing.Harness",
    )


@pytest.fixture
def harness(request: pytest.FixtureRequest) -> Iterator[HarnessFactory]:
    """Start applications under test: ``harness(app)`` gives a `spa_dat.testing.Harness`.

    Harnesses that are still open at the end of the test are settled, checked and closed as part of
    it; a block in a fixture of your own closes its harness later. Takes the options of `Harness`;
    their defaults come from the marker ``spa_dat`` and ``--spa-dat-seed``.
    """
    from .harness import HarnessFactory

    factory = HarnessFactory(
        _options(request),
        brokers=_brokers(request),
        asynchronous=inspect.iscoroutinefunction(request.function),
    )
    request.node.stash[_FACTORY] = factory
    yield factory
    factory.close()


@pytest.fixture(scope="session")
def mqtt_broker() -> Iterator[Mosquitto]:
    """Run a real Mosquitto for all tests, a `spa_dat.testing.Mosquitto`: use topics of your own.

    Where there is none the test is skipped; with the environment variable ``CI=true`` it fails.
    """
    from .testing import Mosquitto

    require(Mosquitto)
    with Mosquitto() as broker:
        yield broker


@pytest.fixture(scope="session")
def kafka_broker() -> Iterator[Kafka]:
    """Run a real Kafka for all tests, a `spa_dat.testing.Kafka`: use topics of your own.

    Where there is none the test is skipped; with the environment variable ``CI=true`` it fails.
    """
    from .testing import Kafka

    require(Kafka)
    with Kafka() as broker:
        yield broker


def require(broker: type[BrokerProcess]) -> None:
    """Skip the test if this machine does not have such a broker; on CI fail it."""
    text = broker.missing()
    if text is None:
        return
    if os.environ.get("CI") == "true":
        pytest.fail(text, pytrace=False)
    pytest.skip(text)


def _options(request: pytest.FixtureRequest) -> HarnessOptions:
    from .harness import HarnessOptions

    options: dict[str, Any] = {}
    seed = request.config.getoption("--spa-dat-seed")
    if seed is not None:
        options["seed"] = seed
    # The closest one comes first.
    for marker in reversed(list(request.node.iter_markers(_MARKER))):
        unknown = [name for name in marker.kwargs if name not in HarnessOptions.__annotations__]
        if marker.args or unknown:
            raise pytest.UsageError(
                f"@pytest.mark.{_MARKER}({', '.join([*map(repr, marker.args), *unknown])}):"
                f" give options by name: {', '.join(HarnessOptions.__annotations__)}"
            )
        options |= marker.kwargs
    return cast("HarnessOptions", options)


def _brokers(request: pytest.FixtureRequest) -> Any:
    kind = request.config.getoption("--spa-dat-broker")
    if kind == "memory":
        return None
    from .harness.live._real_brokers import KafkaBrokers, MosquittoBrokers

    if kind == "mqtt":
        from .testing import Mosquitto

        # Each harness starts its own broker: that is faster than cleaning up a shared one.
        require(Mosquitto)
        return MosquittoBrokers
    return functools.partial(KafkaBrokers, request.getfixturevalue("kafka_broker"))


@pytest.hookimpl(wrapper=True, trylast=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """Close the harnesses as part of the test, so that failures in them fail the test."""
    __tracebackhide__ = True
    try:
        result = yield
    except BaseException as error:
        factory = item.stash.get(_FACTORY, None)
        if factory is not None:
            factory.abandon()
            if _is_about_simulation(error):
                raise pytest.skip.Exception(str(error), _use_item_location=True) from None
        raise
    factory = item.stash.get(_FACTORY, None)
    if factory is not None:
        factory.finish()
    return result


def _is_about_simulation(error: BaseException) -> bool:
    from .testing import NotSimulated

    return isinstance(error, NotSimulated)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show what led to a failure: the seed, how to replay it, and the last events."""
    report = yield
    factory = item.stash.get(_FACTORY, None)
    if report.failed and factory is not None:
        replay = f"pytest {shlex.quote(item.nodeid)}"
        broker = item.config.getoption("--spa-dat-broker")
        if broker != "memory":
            replay += f" --spa-dat-broker={broker}"
        text = factory.report(replay)
        if text:
            report.sections.append(("spa_dat harness", text))
    return report


def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run ``async def`` tests that use the plugin, unless a plugin for such tests has done so.

    Such plugins come first, or have replaced the test by a plain function.
    """
    test = pyfuncitem.obj
    if not inspect.iscoroutinefunction(test) or not _uses_plugin(pyfuncitem):
        return None
    names = pyfuncitem._fixtureinfo.argnames
    asyncio.run(test(**{name: pyfuncitem.funcargs[name] for name in names}))
    return True


def _uses_plugin(item: pytest.Function) -> bool:
    if item.get_closest_marker(_MARKER) is not None:
        return True
    definitions = item._fixtureinfo.name2fixturedefs.values()
    return any(found[-1].func.__module__ == __name__ for found in definitions)
