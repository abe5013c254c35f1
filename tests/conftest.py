"""How the tests are run: ``async def`` tests, deadlines, brokers."""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable, Generator, Iterator
from typing import Any

import hypothesis
import pytest

from support.deadline import DEADLINE, deadline
from support.kafka import Kafka, require_kafka
from support.mosquitto import Mosquitto, require_mosquitto
from support.running import run_async_test

# Timing says nothing on a busy machine. On CI the same examples every time: what random ones find
# is found, and mended, where somebody looks.
hypothesis.settings.register_profile("here", deadline=None)
hypothesis.settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") == "true" else "here")


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run ``async def`` tests, also those of Hypothesis (each example on a loop of its own)."""
    virtual = pyfuncitem.get_closest_marker("virtual") is not None
    test = pyfuncitem.obj
    handle = getattr(test, "hypothesis", None)
    if handle is not None and inspect.iscoroutinefunction(handle.inner_test):
        inner = handle.inner_test

        @functools.wraps(inner)
        def synchronous(*args: Any, **kwargs: Any) -> None:
            run_async_test(functools.partial(inner, *args), kwargs, virtual=virtual)

        handle.inner_test = synchronous
        return None
    if not inspect.iscoroutinefunction(test):
        return None
    names = pyfuncitem._fixtureinfo.argnames
    arguments = {name: pyfuncitem.funcargs[name] for name in names}
    run_async_test(test, arguments, virtual=virtual)
    return True


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> Generator[None, None, None]:
    with deadline(DEADLINE):
        yield


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, None, None]:
    marker = item.get_closest_marker("deadline")
    with deadline(DEADLINE if marker is None else marker.args[0]):
        yield


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None, None, None]:
    with deadline(DEADLINE):
        yield


@pytest.fixture(scope="session")
def mosquitto() -> Iterator[Mosquitto]:
    """A broker that all tests share, with default settings: use topics of your own."""
    require_mosquitto()
    with Mosquitto() as broker:
        yield broker


@pytest.fixture
def own_mosquitto() -> Iterator[Callable[..., Mosquitto]]:
    """Starts brokers for one test; takes the arguments of `Mosquitto`."""
    require_mosquitto()
    brokers: list[Mosquitto] = []

    def start(**options: Any) -> Mosquitto:
        broker = Mosquitto(**options)
        brokers.append(broker)
        broker.start()
        return broker

    yield start
    for broker in brokers:
        broker.close()


@pytest.fixture(scope="session")
def kafka() -> Iterator[Kafka]:
    """A broker that all tests share, with default settings: use topics and groups of your own."""
    require_kafka()
    with Kafka() as broker:
        yield broker


@pytest.fixture
def own_kafka() -> Iterator[Callable[..., Kafka]]:
    """Starts brokers for one test; takes the arguments of `Kafka`."""
    require_kafka()
    brokers: list[Kafka] = []

    def start(**options: Any) -> Kafka:
        broker = Kafka(**options)
        brokers.append(broker)
        broker.start()
        return broker

    yield start
    for broker in brokers:
        broker.close()
