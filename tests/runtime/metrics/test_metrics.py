"""What the metrics of an application say, and to whom."""

from __future__ import annotations

import asyncio
import random
import sys
from collections.abc import Iterable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from prometheus_client import CollectorRegistry, Counter
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from spa_dat import DistributedApplication, Message, Reject, RetryPolicy, Socket
from spa_dat.errors import ConfigurationError, MessageTooLarge, RemoteError
from spa_dat.runtime.application._application import runs_of
from spa_dat.runtime.messaging._measured_bus import MeasuredBus
from spa_dat.runtime.metrics import _opentelemetry, _prometheus
from spa_dat.runtime.metrics._measurements import BOUNDS, OTHER, Measurements
from spa_dat.runtime.metrics._sampling import Sampling
from spa_dat.testing import Mosquitto
from spa_dat.transports import Delivery, Envelope
from support.memory import Site
from support.waiting import eventually

ACTOR = "spa_dat_actor"
TEMPLATE = "messaging_destination_template"


def exposed(app: DistributedApplication, accept: str = "") -> str:
    """Return what Prometheus would get."""
    run = runs_of(app).current
    assert run is not None
    assert run._metrics is not None
    assert run._metrics.exposition is not None
    return run._metrics.exposition.text(accept)[0].decode()


def samples(text: str, name: str, *labels: str) -> dict[tuple[str, ...] | str, float]:
    """Return the values of a metric by labels."""
    found: dict[tuple[str, ...] | str, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name == name:
                values = tuple(sample.labels[label] for label in labels)
                key = values[0] if len(values) == 1 else values
                found[key] = found.get(key, 0.0) + sample.value
    return found


def read(app: DistributedApplication, name: str, *labels: str) -> dict[Any, float]:
    return samples(exposed(app), name, *labels)


@pytest.mark.virtual
async def test_messages_are_counted_and_timed_by_actor_and_filter() -> None:
    site = Site()
    app = site.app(metrics="prometheus")

    @app.application(["plant/{line}/temperature", "plant/+/pressure"])
    async def boiler(payload: int, socket: Socket) -> None:
        await asyncio.sleep(payload)
        await socket.publish("out", payload)

    @app.application("other")
    async def idle(payload: int) -> None: ...

    async with app:
        site.publish("plant/1/temperature", "3")
        site.publish("plant/2/temperature", "2")
        site.publish("plant/2/pressure", "0")
        await site.settled("app.0.boiler")
        consumed = read(app, "messaging_client_consumed_messages_total", ACTOR, TEMPLATE)
        assert consumed == {
            ("boiler", "plant/{line}/temperature"): 2,
            ("boiler", "plant/+/pressure"): 1,
            ("idle", "other"): 0,
        }
        for name, sums in (
            ("messaging_process_duration_seconds", (5, 0)),
            # The first waits for nobody, the second for it, and the third for both.
            ("spa_dat_mailbox_wait_duration_seconds", (3, 5)),
        ):
            taken = read(app, f"{name}_sum", TEMPLATE)
            assert taken["plant/{line}/temperature"] == pytest.approx(sums[0], abs=0.1)
            assert taken["plant/+/pressure"] == pytest.approx(sums[1], abs=0.1)
            assert read(app, f"{name}_count", TEMPLATE)["plant/{line}/temperature"] == 2
        buckets = read(app, "messaging_process_duration_seconds_bucket", TEMPLATE, "le")
        assert buckets["plant/{line}/temperature", "1.0"] == 0
        assert buckets["plant/{line}/temperature", "2.5"] == 1
        assert buckets["plant/{line}/temperature", "+Inf"] == 2
        sent = read(app, "messaging_client_sent_messages_total", ACTOR, "error_type")
        assert sent == {("boiler", ""): 3}
        own = read(app, "spa_dat_application_ready", "spa_dat_application", "spa_dat_instance")
        assert own == {("app", "0"): 1}
        system = read(app, "spa_dat_bus_connected", "messaging_system", "spa_dat_bus")
        assert system == {("memory", site.provider.address): 1}


@pytest.mark.virtual
async def test_each_outcome_of_what_was_not_handled_is_counted() -> None:
    site = Site()
    app = site.app(metrics="prometheus")
    gate = asyncio.Event()

    @app.application(["n/{kind}"], retry=RetryPolicy(attempts=2, first=1.0), qos=1)
    async def picky(payload: int, kind: str) -> None:
        await asyncio.sleep(1)
        if kind == "rejected":
            raise Reject("no")
        if kind == "failing":
            raise ValueError

    @app.application("ask")
    async def answers(payload: int) -> int:
        raise RemoteError("closed", "come back later")

    @app.application("q", mailbox=1, qos=0)
    async def slow(payload: int) -> None:
        await gate.wait()

    async with app:
        site.publish("n/failing", "1")
        site.publish("n/rejected", "1")
        site.publish("n/undecodable", "x")
        site.publish("n/expired", "1", expiry=1.0)
        with pytest.raises(RemoteError):
            await app.socket().request("ask", 1)
        for number in range(3):
            site.publish("q", str(number), qos=0)
        await site.settled("app.0.picky")
        await eventually(lambda: app.stats["messages.dropped"] == 2)
        failed = read(app, "spa_dat_messages_failed_total", ACTOR, "spa_dat_outcome", "error_type")
        assert failed == {
            ("picky", "retried", "ValueError"): 1,
            ("picky", "dead_letter", "ValueError"): 1,
            ("picky", "rejected", "Reject"): 1,
            ("picky", "dead_letter", "DecodeError"): 1,
            ("picky", "expired", ""): 1,
            ("answers", "answered", "RemoteError"): 1,
            ("slow", "dropped", ""): 2,
        }
        # Both attempts, and not the pause between them; nothing of what was never handled.
        taken = read(app, "messaging_process_duration_seconds_sum", ACTOR, "error_type")
        assert taken["picky", "ValueError"] == pytest.approx(2, abs=0.1)
        assert taken["picky", "Reject"] == pytest.approx(1, abs=0.1)
        assert taken["picky", ""] == 0
        assert read(app, "spa_dat_dead_letters", ACTOR)["picky"] == 3
        assert read(app, "spa_dat_events_total", "spa_dat_event")["messages.undecodable"] == 1
        gate.set()


@pytest.mark.virtual
async def test_a_batch_is_timed_as_one_and_its_messages_are_counted() -> None:
    site = Site()
    app = site.app(metrics="prometheus")
    calls = 0

    @app.application("n", name="actor", batch=(3, 1.0), retry=RetryPolicy(attempts=2))
    async def together(numbers: list[int]) -> None:
        nonlocal calls
        calls += 1
        await asyncio.sleep(1)
        if calls == 1:
            raise ValueError

    async with app:
        site.number("n", 1, 2, 3)
        await site.settled()
        assert read(app, "messaging_client_consumed_messages_total", ACTOR) == {"actor": 3}
        taken = read(app, "messaging_process_duration_seconds_sum", "error_type")
        assert taken == {"": pytest.approx(1), "ValueError": pytest.approx(1)}
        assert read(app, "spa_dat_mailbox_wait_duration_seconds_count", ACTOR) == {"actor": 3}
        assert read(app, "spa_dat_messages_failed_total", "spa_dat_outcome") == {"retried": 3}


@pytest.mark.virtual
async def test_handlers_in_threads_requests_and_shared_subscriptions_are_measured() -> None:
    site = Site()
    app = site.app(metrics="prometheus")

    @app.application("n/+", subscription="both", name="first")
    def in_thread(payload: int) -> None: ...

    @app.application("n/{x}", subscription="both", name="second")
    async def beside(payload: int) -> None: ...

    @app.application("ask")
    async def doubles(payload: int) -> int:
        return 2 * payload

    async with app:
        site.publish("n/1", "1")
        assert await app.socket().request("ask", 4, reply=int) == 8
        await site.settled("app.0.both")
        consumed = read(app, "messaging_client_consumed_messages_total", ACTOR)
        assert consumed == {"first": 1, "second": 1, "doubles": 1}
        counted = read(app, "messaging_process_duration_seconds_count", ACTOR)
        assert counted == {"first": 1, "second": 1, "doubles": 1}
        assert read(app, "spa_dat_mailbox_wait_duration_seconds_count", ACTOR) == counted
        sent = read(app, "messaging_client_sent_messages_total", ACTOR)
        # The request is of no actor.
        assert sent == {"": 1, "doubles": 1}


async def test_child_processes_tell_what_they_have_measured() -> None:
    app = DistributedApplication("memory://", metrics="prometheus", admin="127.0.0.1:0")

    @app.application("n/{x}", placement="process", retry=RetryPolicy(attempts=1))
    async def actor(payload: int, socket: Socket) -> None:
        socket.post("out", payload)
        if payload:
            raise ValueError

    async with app:
        for number in (0, 1):
            await app.socket().publish("n/1", number)

        def counted() -> dict[Any, float]:
            return read(app, "messaging_process_duration_seconds_count", TEMPLATE, "error_type")

        both = {("n/{x}", ""): 1, ("n/{x}", "ValueError"): 1}
        await eventually(lambda: counted() == both)

        def failed() -> dict[Any, float]:
            return read(app, "spa_dat_messages_failed_total", ACTOR, "spa_dat_outcome")

        # It is stored after the handler has ended, and so told later.
        await eventually(lambda: failed() == {("actor", "dead_letter"): 1})
        assert read(app, "messaging_client_consumed_messages_total", ACTOR) == {"actor": 2}
        assert read(app, "messaging_client_sent_messages_total", ACTOR)["actor"] == 2


@pytest.mark.virtual
async def test_what_the_bus_refuses_is_counted_by_the_error() -> None:
    site = Site(max_payload=10)
    app = site.app(metrics="prometheus")

    @app.application("n")
    async def actor(payload: int) -> None: ...

    async with app:
        with pytest.raises(MessageTooLarge):
            app.socket().post("out", b"x" * 11)
        with pytest.raises(MessageTooLarge):
            await app.socket().publish("out", b"x" * 11)
        app.socket().post("out", b"x")
        sent = read(app, "messaging_client_sent_messages_total", "error_type")
        assert sent == {"": 1, "MessageTooLarge": 2}


def test_the_bus_that_counts_has_the_limit_that_the_broker_has_set() -> None:
    bus: Any = SimpleNamespace(max_payload=100)
    measured = MeasuredBus(bus, Measurements(), "mqtt://host")
    # When it has connected.
    bus.max_payload = 10
    assert measured.max_payload == 10


@pytest.mark.virtual
async def test_nothing_that_strangers_send_becomes_a_label() -> None:
    site = Site()
    app = site.app(metrics="prometheus")

    @app.application("n/#", retry=RetryPolicy(attempts=1))
    async def actor(message: Message[bytes], socket: Socket) -> None:
        socket.post(f"out/{message.topic}", message.payload, headers=dict(message.headers))
        raise type(f"Secret{message.payload.decode()}", (ValueError,), {})()

    async with app:
        for number in range(300):
            site.publish(f"n/secret/{number}", str(number), headers={"h": "secret"}, key="secret")
        await site.settled("app.0.actor")
        text = exposed(app)
        app.stats.update({f"{number}\n": number for number in range(500)})
        events = read(app, "spa_dat_events_total", "spa_dat_event")
    assert len(events) == 201
    assert events["7\\n"] == 7
    assert sum(events.values()) == sum(app.stats.values())
    assert "secret" not in text
    # The program's own classes of errors are many: only some get labels.
    failed = samples(text, "spa_dat_messages_failed_total", "error_type")
    assert sum(failed.values()) == 300
    assert len(failed) < 130
    assert failed[OTHER] > 100
    assert len(text.splitlines()) < 1500


@pytest.mark.virtual
async def test_filters_that_come_and_go_do_not_become_more_and_more_labels() -> None:
    site = Site()
    app = site.app(metrics="prometheus")

    @app.application("begin")
    async def actor(message: Message[bytes], socket: Socket) -> None:
        if message.topic == "begin":
            await socket.subscribe("end")
            for number in range(150):
                await socket.subscribe(f"now/{number}")

    async with app:
        site.publish("begin")
        await eventually(lambda: "app.0.actor.now" in site.broker.queues)
        await site.settled("app.0.actor")
        for number in range(150):
            site.publish(f"now/{number}")
        consumed: dict[Any, float] = {}

        def all_came() -> bool:
            nonlocal consumed
            consumed = read(app, "messaging_client_consumed_messages_total", TEMPLATE)
            return sum(consumed.values()) == 151

        await eventually(all_came)
        assert len(consumed) == 101
        assert consumed[OTHER] == 52


def test_of_many_messages_some_are_timed_and_later_all_again() -> None:
    measurements = Measurements(all_timed=10, one_in=8, chance=random.Random(7).random)
    now = 0.0
    sampling = Sampling(measurements, lambda: now)

    def timed_of(number: int, at_once: int, sampling: Sampling = sampling) -> int:
        deliveries = [Delivery(Envelope(topic="n", payload=b"")) for _ in range(number)]
        for place in range(0, number, at_once):
            sampling.choose_among(deliveries[place : place + at_once])
        return sum(delivery.arrived > 0 for delivery in deliveries)

    for at_once in (1, 7, 500):
        now += 1
        sampling.left = 0
        assert 500 < timed_of(10_000, at_once) < 3000
    sampling.left = 0
    for _ in range(19):
        now += 1
        assert timed_of(1, 1) == 1
    assert timed_of(10_000, 500, Sampling(measurements, lambda: 1.0, everything=True)) == 10_000


def test_each_message_that_is_timed_counts_for_those_since_the_last_one() -> None:
    series = Measurements().series("actor", "n", "mqtt")
    for since in (1, 7, 300):
        series.consumed += since
        series.took(0.001, series.weigh())
    (durations,) = series.handling.values()
    assert durations.counts[0] == sum(durations.counts) == series.consumed == 308
    # A second attempt at the same message.
    assert series.weigh() == 1


@pytest.mark.mosquitto
@pytest.mark.parametrize("qos", [0, 1])
async def test_counts_are_exact_however_few_messages_are_timed(
    qos: int, mosquitto: Mosquitto, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = DistributedApplication(
        mosquitto.url, name=f"sampled{qos}", metrics="prometheus", admin="127.0.0.1:0"
    )
    measurements = runs_of(app).settings.measurements
    assert measurements is not None
    measurements.all_timed, measurements.one_in = 1, 50

    @app.application(["sampled/+/a", "sampled/+/b"], retry=RetryPolicy(attempts=1))
    async def actor(payload: int) -> None:
        if payload % 5 == 0:
            raise ValueError

    async with app:
        for number in range(1000):
            topic = f"sampled/{qos}/{'a' if number % 3 else 'b'}"
            app.socket().post(topic, number, qos=qos)

        def consumed() -> dict[Any, float]:
            return read(app, "messaging_client_consumed_messages_total", TEMPLATE)

        await eventually(lambda: app.stats["dead_letters.stored"] == 200)
        await eventually(lambda: sum(consumed().values()) == 1000)
        assert consumed() == {"sampled/+/a": 666, "sampled/+/b": 334}
        timed = read(app, "spa_dat_mailbox_wait_duration_seconds_count", TEMPLATE)
        assert 0 < sum(timed.values()) <= 1000


def test_a_duration_is_in_the_first_bucket_whose_bound_it_does_not_exceed() -> None:
    series = Measurements().series("actor", "n", "mqtt")
    for seconds in (0.0, *BOUNDS, 11.0):
        series.waited(seconds, 1)
    assert series.waiting.counts == [2, *[1] * len(BOUNDS)]


# Exporters.


@pytest.mark.virtual
async def test_opentelemetry_gets_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader], shutdown_on_exit=False)
    of_program = _opentelemetry.Instruments(provider.get_meter("spa_dat"))
    monkeypatch.setattr(_opentelemetry, "_instruments", of_program)

    def points(name: str) -> list[Any]:
        data = reader.get_metrics_data()
        assert data is not None
        (resource,) = data.resource_metrics
        (scope,) = resource.scope_metrics
        return [p for m in scope.metrics if m.name == name for p in m.data.data_points]

    site = Site()
    app = site.app(metrics="opentelemetry")

    @app.application("plant/{line}", name="actor", retry=RetryPolicy(attempts=1))
    async def boiler(payload: int) -> None:
        await asyncio.sleep(2)
        if payload:
            raise ValueError

    for _ in range(2):
        async with app:
            site.publish("plant/1", "0")
            site.publish("plant/2", "1")
            await site.settled()
            (mailbox,) = points("spa_dat.mailbox.messages")
            assert mailbox.attributes["spa_dat.actor"] == "actor"
            (consumed,) = points("messaging.client.consumed.messages")
    # Over both runs; and what has ended has no gauges any more.
    assert consumed.value == 4
    assert dict(consumed.attributes) == {
        "spa_dat.application": "app",
        "spa_dat.instance": "0",
        "spa_dat.actor": "actor",
        "messaging.destination.template": "plant/{line}",
        "messaging.system": "memory",
        "messaging.operation.name": "receive",
    }
    durations = {p.attributes.get("error.type"): p for p in points("messaging.process.duration")}
    assert durations.keys() == {None, "ValueError"}
    assert durations[None].count == 2
    assert durations[None].sum == pytest.approx(4, abs=0.1)
    assert durations[None].explicit_bounds == BOUNDS
    (waiting,) = points("spa_dat.mailbox.wait.duration")
    assert waiting.count == 4
    assert points("spa_dat.mailbox.messages") == []


@pytest.mark.mosquitto
async def test_prometheus_asks_at_the_admin_endpoint(
    mosquitto: Mosquitto, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    token = "0123456789abcdef"
    app = DistributedApplication(
        mosquitto.url,
        name="metrics",
        metrics=["prometheus"],
        admin="127.0.0.1:0",
        admin_token=token,
    )
    done = 0

    @app.application("metrics/+/a")
    async def handle(payload: bytes) -> None:
        nonlocal done
        done += 1

    async def ask(*headers: str) -> str:
        (line,) = [r.getMessage() for r in caplog.records if "answers probes" in r.getMessage()]
        port = int(line.rpartition(":")[2])
        connection, writer = await asyncio.open_connection("127.0.0.1", port)
        lines = ["GET /metrics HTTP/1.1", "Host: 127.0.0.1", *headers, "", ""]
        writer.write("\r\n".join(lines).encode())
        answer = (await connection.read()).decode()
        writer.close()
        return answer

    async with app:
        for number in range(200):
            app.socket().post(f"metrics/{number}/a", b"x", qos=number % 2)
        await eventually(lambda: done == 200)
        assert (await ask()).startswith("HTTP/1.1 401")
        answer = await ask(f"Authorization: Bearer {token}")
        openmetrics = await ask(
            f"Authorization: Bearer {token}", "Accept: application/openmetrics-text"
        )
    head, _, text = answer.partition("\r\n\r\n")
    assert head.startswith("HTTP/1.1 200")
    assert "Content-Type: text/plain" in head
    assert openmetrics.endswith("# EOF\n")
    labels = ("messaging_system", TEMPLATE)
    consumed = samples(text, "messaging_client_consumed_messages_total", *labels)
    assert consumed == {("mqtt", "metrics/+/a"): 200}


class _Broken(Collector):
    """A metric of the program's that cannot be read."""

    def describe(self) -> Iterable[Metric]:
        """Return nothing, so that it is not read when it is registered."""
        return []

    def collect(self) -> Iterable[Metric]:
        """Raise."""
        raise OSError("no sensor")


@pytest.mark.virtual
async def test_the_metrics_of_the_program_are_there_as_well(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    registry = CollectorRegistry()
    monkeypatch.setattr(_prometheus, "REGISTRY", registry)
    Counter("orders", "what was ordered", registry=registry).inc(3)
    app = DistributedApplication("memory://", metrics="prometheus")
    async with app:
        assert read(app, "orders_total") == {(): 3}
        registry.register(_Broken())
        # What was read before is there, and so are the application's own.
        assert read(app, "orders_total") == {(): 3}
        assert read(app, "spa_dat_application_problems", "spa_dat_instance") == {"0": 0}
        assert "cannot be read" in caplog.text
        # Its name is another one at each start, and would be a new label.
        assert read(app, "spa_dat_application_ready", "spa_dat_application") == {"ephemeral": 1}


class _Unwritable(Collector):
    """Metrics of the program's that can be read, one of which nobody can write down."""

    def collect(self) -> Iterable[Metric]:
        """Return one that is right, then one whose label is none, and end the thread."""
        yield GaugeMetricFamily("right", "", 1)
        wrong = GaugeMetricFamily("wrong", "", labels=["a"])
        wrong.add_metric([None], 1)  # type: ignore[list-item]
        yield wrong
        yield GaugeMetricFamily("right_as_well", "", 2)
        sys.exit(3)


@pytest.mark.virtual
@pytest.mark.parametrize("accept", ["", "application/openmetrics-text; version=1.0.0"])
async def test_metrics_of_the_program_take_no_others_with_them(
    accept: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    registry = CollectorRegistry(auto_describe=False)
    monkeypatch.setattr(_prometheus, "REGISTRY", registry)
    registry.register(_Unwritable())
    app = DistributedApplication("memory://", metrics="prometheus")
    async with app:
        for _ in range(2):
            text = exposed(app, accept)
            assert "\nright 1.0\n" in text
            assert "\nright_as_well 2.0\n" in text
            assert "spa_dat_application_ready{" in text
            assert text.count("# EOF") == (1 if accept else 0)
            assert text.endswith("# EOF\n") or not accept
    assert caplog.text.count("cannot be read") == 2


@pytest.mark.virtual
async def test_counters_whose_names_are_cut_off_alike_are_one() -> None:
    app = DistributedApplication("memory://", metrics="prometheus")
    async with app:
        for number in range(300):
            app.stats["x" * 100 + str(number)] += 1
        events = read(app, "spa_dat_events_total", "spa_dat_event")
        assert events["x" * 97 + "..."] == 300
        text = exposed(app)
        assert text.count("spa_dat_events_total{") == len(events)


async def test_without_metrics_nothing_is_imported_and_the_path_is_named(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("SPA_DAT_METRICS", raising=False)
    app = DistributedApplication("memory://", name="plant", admin="127.0.0.1:0")
    caplog.set_level("INFO")
    async with app:
        (line,) = [r.getMessage() for r in caplog.records if "answers probes" in r.getMessage()]
        reader, writer = await asyncio.open_connection("127.0.0.1", int(line.rpartition(":")[2]))
        writer.write(b"GET /metrics HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        answer = (await reader.read()).decode()
        writer.close()
    assert answer.startswith("HTTP/1.1 404")
    assert "SPA_DAT_METRICS=prometheus" in answer


@pytest.mark.parametrize("given", ["statsd", ["prometheus", "statsd"], [3]])
def test_an_unknown_exporter_is_refused(given: Any) -> None:
    with pytest.raises(ConfigurationError, match="is unknown; give 'prometheus' or"):
        DistributedApplication("memory://", metrics=given)


@pytest.mark.parametrize(
    ("text", "exporters"),
    [
        ("", ()),
        ("prometheus", ("prometheus",)),
        (" opentelemetry, prometheus ,", ("prometheus", "opentelemetry")),
    ],
)
def test_the_environment_may_name_exporters(
    text: str, exporters: Sequence[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPA_DAT_METRICS", text)
    app = DistributedApplication("memory://")
    assert runs_of(app).settings.exporters == exporters
    monkeypatch.setenv("SPA_DAT_METRICS", "statsd")
    with pytest.raises(ConfigurationError, match="SPA_DAT_METRICS='statsd' is unknown"):
        DistributedApplication("memory://")


async def test_prometheus_needs_an_address_to_ask_at() -> None:
    app = DistributedApplication("memory://", metrics="prometheus")
    with pytest.raises(ConfigurationError, match="give admin= as well"):
        await app.__aenter__()


@pytest.mark.parametrize(
    ("exporter", "library", "text"),
    [
        ("prometheus", "prometheus_client", r"pip install 'spa-dat\[metrics\]'"),
        ("opentelemetry", "opentelemetry", "pip install opentelemetry-api"),
    ],
)
async def test_without_the_library_the_error_names_what_to_install(
    exporter: Any, library: str, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    module: Any = {"prometheus": _prometheus, "opentelemetry": _opentelemetry}[exporter]
    monkeypatch.setitem(sys.modules, library, None)
    monkeypatch.delitem(sys.modules, module.__name__)
    monkeypatch.delattr(sys.modules[module.__package__], module.__name__.rpartition(".")[2])
    app = DistributedApplication("memory://", metrics=exporter, admin="127.0.0.1:0")
    with pytest.raises(ConfigurationError, match=text):
        await app.__aenter__()
