"""Every example does what it says, on memory and on real brokers."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

from spa_dat.testing import Kafka, Mosquitto

EXAMPLES = Path(__file__).parent.parent.parent / "examples"
TIMEOUT = 140.0

EXPECTED = {
    "actor_class": [
        "watching, the limit is 80 °C",
        "alarm: 85 °C",
        "limit not changed, too-low: it has 85 °C now",
        "the limit is 95 °C; last seen 85.0 °C",
        "no longer watching",
    ],
    "batches": ["stored 200 at once", "all 1000 readings are stored"],
    "bridge": ["the office has 100 temperatures", "oven 3 is told to cool down"],
    "consumer": [
        "kitchen: 21.5 °C from sensor T1",
        "cellar: 12.0 °C from sensor unknown",
        "note on kitchen: window replaced",
        "note on the whole house: chimney sweep on Monday",
        "house/kitchen/temperature: 30 bytes of application/json",
        "house/notes: 23 bytes of text/plain",
    ],
    "exactly_once": ["invoice for order 3: 30.0 euros", " invoices have come, 3 different ones"],
    "fleet": [
        "Monday: south has driven 20000 km",
        "Monday: west has driven 500 km",
        "Tuesday: north has driven 24000 km",
        "Tuesday: south has driven 32000 km",
        "Tuesday: west has driven 1200 km",
        "south goes to service after 32000 km",
        "south is called back",
    ],
    "keyed": [
        "old: first message",
        "new: 75 km",
        "new has driven 75 km",
        "old: 3 km\nold has driven 3 km",
    ],
    "joined_topics": ["order 7: bolt for 20.0 euros\norder 8: nut for 30.0 euros\n"],
    "durable_outbox": ["100 readings have arrived, the last with 29.9 °C"],
    "middleware": [
        "north: nut for 0.75\n",
        "south: bolt for 1.20\n",
        "calls: customers 1, invoice 2, order 3, price 2; some time: True",
    ],
    "own_formats": ["boiler: 95.0 °C\nboiler: 203.0 °F"],
    "plant": [
        "operator   present: north, south, west",
        "control    the limit is 80 °C",
        "control    refused: 130 °C is not safe",
        "burner off",
        "burner on",
        "ALARM at",
        "south      vibration 0.004",
        "'plant/west/vibration' failed (attempt 1, next attempt in",
        "'plant/west/vibration' failed (attempt 3, no further attempt)",
        "archive    closed",
        "dead_letters.stored  1",
    ],
    "processes": [
        "anna: 3dbb101b, computed elsewhere\nbert: c19d1ea6, computed elsewhere\nanna: 3dbb101b",
    ],
    "producer": ["history sent", "reading 1 confirmed", "reading 5 confirmed", "calls: "],
    "request_reply": [
        "shop asks 25.00",
        "refused with code 'bad-amount': -1 of bolt cannot be ordered",
        "refused with code 'bad-request'",
        "2 offers, the best from cheap: 20.00",
    ],
    "reminders": [
        "order 7 is paid: 20.0 euros",
        "order 8 was not paid, and is cancelled\nwhat was meant for order 8 goes back: 30.0 euros",
    ],
    "resources": [
        "database open",
        "wine: 3 readings, 13.0 °C on average",
        "database closed",
    ],
    "schema_registry": ["19.5 °C, sensor unknown\n21.5 °C, sensor T1"],
    # Machines have topics of their own, so their order to each other is not that of sending.
    "state": ["record 1: ", "record 4: ", "a 40.0\n", "b 55.0\n", "a 60.0\n", "b 58.0\n"],
    "thread_handler": [
        "correct: 05f7bc2d8908975f",
        "horse: 2f324f78d7eb10df",
        "battery: 8b884f3b06a21bce",
        "times meanwhile",
    ],
    "typed_topics": ["the boiler was at 95.5 °C"],
    "workers": ["instance 0: 303 primes below 2000", "all 12 jobs are done"],
}
"""What the standard output of each example contains."""
TRACE = """\
anna pays: bolt for 1.00
publish orders/{customer}
  process orders/{customer}
    request prices
      process prices
        reply
    publish invoices/{customer}
      process invoices/{customer}  spa_dat.retry
      process invoices/{customer}
traces: 1
"""
"""What the example of spans prints on memory."""
MARKS = {"plant": pytest.mark.slow}


@pytest.fixture(
    params=[
        "memory",
        pytest.param("mqtt", marks=pytest.mark.mosquitto),
        pytest.param("kafka", marks=pytest.mark.kafka),
    ]
)
def arguments(request: pytest.FixtureRequest) -> list[str]:
    """Return the arguments: none for memory, or the address of a broker."""
    if request.param == "memory":
        return []
    if request.param == "mqtt":
        return [request.getfixturevalue("mosquitto").url]
    return [kafka_url(request.getfixturevalue("kafka"))]


def kafka_url(kafka: Kafka) -> str:
    # Other tests leave messages on the broker, which a new group would get.
    return f"{kafka.url}?create_topics=all&prefix=example-{uuid.uuid4().hex[:12]}."


def run(name: str, arguments: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", EXAMPLES / f"{name}.py", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONIOENCODING": "utf-8"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        timeout=TIMEOUT,
        check=False,
    )


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=MARKS.get(name, ())) for name in EXPECTED]
)
def test_example_does_its_job_and_ends(name: str, arguments: list[str], tmp_path: Path) -> None:
    result = run(name, arguments, tmp_path)

    assert result.returncode == 0, result.stdout + result.stderr
    assert "Traceback" not in result.stderr
    missing = [text for text in EXPECTED[name] if text not in result.stdout]
    assert missing == [], result.stdout + result.stderr


@pytest.mark.mosquitto
@pytest.mark.kafka
@pytest.mark.parametrize("kafka_first", [True, False])
def test_the_bridge_joins_two_brokers(
    kafka: Kafka, own_mosquitto: Callable[[], Mosquitto], tmp_path: Path, kafka_first: bool
) -> None:
    # One of its own: the shared one keeps what went the other way.
    urls = [kafka_url(kafka), own_mosquitto().url]
    result = run("bridge", urls if kafka_first else urls[::-1], tmp_path)

    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stderr == ""
    assert [text for text in EXPECTED["bridge"] if text not in result.stdout] == []


def test_the_spans_of_the_example_are_one_trace(tmp_path: Path) -> None:
    result = run("tracing", [], tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
    assert TRACE in result.stdout


def test_every_example_is_tested() -> None:
    # Those that are embedded have tests of their own, in test_embedding_examples.py.
    embedded = ["fastapi_app", "aiohttp_app", "notebook"]
    # That with a database has one in tests/whole.
    names = [*EXPECTED, "testing", "tracing", "postgres_states", *embedded]
    paths = [*EXAMPLES.glob("*.py"), *EXAMPLES.glob("*.ipynb")]
    assert sorted(path.stem for path in paths) == sorted(names)


@pytest.mark.parametrize(
    ("broker", "outcome"),
    [
        ("memory", "5 passed in"),
        pytest.param("mqtt", "4 passed, 1 skipped in", marks=pytest.mark.mosquitto),
        pytest.param("kafka", "4 passed, 1 skipped in", marks=pytest.mark.kafka),
    ],
)
def test_the_tests_of_an_application_run_without_and_with_a_broker(
    broker: str, outcome: str, tmp_path: Path
) -> None:
    options = ["-q", "-p", "no:cacheprovider", "-W", "error", f"--spa-dat-broker={broker}"]
    result = subprocess.run(
        [sys.executable, "-m", "pytest", *options, EXAMPLES / "testing.py"],
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        timeout=TIMEOUT,
        check=False,
    )
    assert outcome in result.stdout, result.stdout + result.stderr


def test_an_address_that_is_wrong_is_explained_without_its_password(tmp_path: Path) -> None:
    result = run("consumer", ["mqtt://user:geheim@127.0.0.1:1?keepalife=3"], tmp_path)

    assert result.returncode == 1
    assert "keepalife" in result.stderr
    assert "keepalive" in result.stderr
    assert "geheim" not in result.stderr


def test_a_broker_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    result = run("consumer", ["mqtt://user:geheim@127.0.0.1:1?start_timeout=0.2"], tmp_path)

    assert result.returncode == 1
    assert result.stdout == ""
    assert result.stderr.startswith("spa_dat: ConnectFailed: ")
    assert result.stderr.count("\n") == 1
    assert "127.0.0.1:1" in result.stderr
    assert "geheim" not in result.stderr


def test_the_example_that_needs_a_package_says_which(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "aiosqlite.py").write_text("raise ImportError('not installed')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)

    result = run("resources", [], tmp_path)

    assert result.returncode == 1
    assert result.stderr == "this example needs aiosqlite: pip install aiosqlite\n"
