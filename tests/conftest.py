"""How the tests are run: ``async def`` tests, deadlines, brokers."""

from __future__ import annotations

import contextlib
import functools
import gc
import inspect
import itertools
import os
import signal
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any, TypeVar

import hypothesis
import pytest

from spa_dat._pytest import require
from spa_dat.harness.brokers._broker_process import PortClaims
from spa_dat.testing import BrokerProcess, Kafka, Mosquitto
from support.deadline import DEADLINE, deadline, keep_stderr
from support.machine import examples
from support.postgres import Postgres
from support.program import Program, Start
from support.running import run_async_test
from support.shared_kafka import KafkaOfTheRun, SharedKafka, kafka_for_all

B = TypeVar("B", bound=BrokerProcess)
_BROKEN = "kafka_to_break"
_KAFKA: pytest.StashKey[KafkaOfTheRun] = pytest.StashKey()
_ADDRESS = "address of the Kafka of the run"

# Timing says nothing on a busy machine. On CI the same examples every time: what random ones find
# is found, and mended, where somebody looks.
hypothesis.settings.register_profile("here", deadline=None, max_examples=examples(40))
hypothesis.settings.register_profile(
    "ci", hypothesis.settings.get_profile("here"), derandomize=True, print_blob=True
)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") == "true" else "here")


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Tell a process of pytest-xdist where to ask for the Kafka that all processes share."""
    config: pytest.Config = node.config
    if _KAFKA not in config.stash:
        config.stash[_KAFKA] = KafkaOfTheRun(node.workerinput["workercount"])
    node.workerinput[_ADDRESS] = config.stash[_KAFKA].address


def pytest_unconfigure(config: pytest.Config) -> None:
    """End the Kafka that all processes share: they have ended."""
    if _KAFKA in config.stash:
        config.stash[_KAFKA].close()


def pytest_configure() -> None:
    # Nothing is captured here.
    keep_stderr()
    # Collecting makes millions of objects that stay.
    gc.disable()
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # A shell has what it starts in the background ignore Ctrl-C, which tests send.
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Of several processes, let half begin with the tests on Kafka, and the others with long ones.

    So the brokers of a module, and the one that tests break, are started in one process only, as
    each costs as much as hundreds of tests, and no long test is left over at the end, when the
    other processes have nothing to do any more.
    """
    processes: int = getattr(config, "workerinput", {}).get("workercount", 1)
    if processes == 1:
        return
    first: list[list[pytest.Item]] = [[] for _ in range(processes)]
    half = (processes + 1) // 2
    on_one_broker: dict[Path | str, list[pytest.Item]] = {}
    for item in filter(_is_on_kafka, items):
        broken = _BROKEN in getattr(item, "fixturenames", ())
        on_one_broker.setdefault(_BROKEN if broken else item.path, []).append(item)
    # The largest first: so the shares become equal.
    for tests in sorted(on_one_broker.values(), key=len, reverse=True):
        min(first[:half], key=len).extend(tests)
    for share in first[:half]:
        share.sort(key=_is_long, reverse=True)
    long = [item for item in items if _is_long(item) and not _is_on_kafka(item)]
    for number, tests in enumerate(first[half:]):
        tests += long[number :: processes - half]
    placed = set(itertools.chain.from_iterable(first))
    others = [item for item in items if item not in placed]
    ordered: list[pytest.Item] = []
    for number in range(processes):
        ordered += first[number]
        rest = max(0, len(items) * (number + 1) // processes - len(ordered))
        ordered += others[:rest]
        del others[:rest]
    items[:] = ordered + others


def pytest_collection_finish() -> None:
    """Let no collection of garbage look at the thousands of tests again."""
    gc.collect()
    gc.freeze()
    gc.enable()


def _is_on_kafka(item: pytest.Item) -> bool:
    if item.get_closest_marker("kafka") is None:
        return False
    return not _is_long(item) or _BROKEN in getattr(item, "fixturenames", ())


def _is_long(item: pytest.Item) -> bool:
    return any(item.get_closest_marker(name) is not None for name in ("slow", "deadline"))


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


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Write what UTF-8 cannot carry as escapes: reports travel between processes.

    Tests of hostile texts log and raise halves of surrogate pairs.
    """
    report = yield
    report.sections = [(_encodable(name), _encodable(text)) for name, text in report.sections]
    if report.longrepr is not None:
        text = str(report.longrepr)
        if text != _encodable(text):
            report.longrepr = _encodable(text)
    return report


def _encodable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start programs: `support.program` puts a beginning in front of the given text."""
    with contextlib.ExitStack() as stack:

        def started(text: str) -> Program:
            program = Program(tmp_path, text)
            stack.callback(program.close)
            return program

        yield started


@pytest.fixture(scope="session")
def mosquitto(mqtt_broker: Mosquitto) -> Mosquitto:
    """Return the broker that all tests share, with default settings: use topics of your own."""
    return mqtt_broker


@pytest.fixture
def own_mosquitto() -> Iterator[Callable[..., Mosquitto]]:
    """Start brokers for one test; takes the arguments of `Mosquitto`."""
    with _starting(Mosquitto) as start:
        yield start


@pytest.fixture(scope="session")
def kafka(request: pytest.FixtureRequest) -> Iterator[Kafka]:
    """Run the broker that all tests share, of all processes: use your own topics and groups."""
    require(Kafka)
    worker: dict[str, Any] | None = getattr(request.config, "workerinput", None)
    if worker is None:
        with kafka_for_all() as broker:
            yield broker
    else:
        process = int(worker["workerid"].removeprefix("gw"))
        yield SharedKafka.asked_for(worker[_ADDRESS], process)


@pytest.fixture(scope="session")
def _kafka_to_break() -> Iterator[Kafka]:
    require(Kafka)
    broker = Kafka()
    yield broker
    broker.close()


@pytest.fixture
def kafka_to_break(_kafka_to_break: Kafka) -> Iterator[Kafka]:
    """Return a broker that tests stop, kill and pause in turn: use your own topics and groups."""
    if not _kafka_to_break.alive:
        _kafka_to_break.start()
    yield _kafka_to_break
    if _kafka_to_break.alive:
        _kafka_to_break.resume()


@pytest.fixture
def own_kafka() -> Iterator[Callable[..., Kafka]]:
    """Start brokers for one test; takes the arguments of `Kafka`."""
    with _starting(Kafka) as start:
        yield start


@pytest.fixture
def ports() -> Iterator[PortClaims]:
    """Claim ports that nobody else uses while the test runs."""
    claims = PortClaims()
    yield claims
    claims.release()


@contextlib.contextmanager
def _starting(kind: type[B]) -> Iterator[Callable[..., B]]:
    require(kind)
    with contextlib.ExitStack() as brokers:

        def start(**options: Any) -> B:
            broker = kind(**options)
            brokers.callback(broker.close)
            broker.start()
            return broker

        yield start


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """Return the database that all tests of a process share: use owners of your own."""
    server = Postgres()
    yield server
    server.close()


@pytest.fixture
def own_postgres() -> Iterator[Postgres]:
    """Return a database for one test, which may stop it."""
    server = Postgres()
    yield server
    server.close()
