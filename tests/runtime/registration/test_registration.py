"""What can be registered, and what is refused at once with an error that helps."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial, singledispatch
from typing import Any, ClassVar

import pytest

from spa_dat import (
    Actor,
    Context,
    DistributedApplication,
    MemoryConfig,
    Message,
    MessageBuilder,
    RestartPolicy,
    RetryPolicy,
    Socket,
    SocketProviderFactory,
    SyncSocket,
    on,
    run,
)
from spa_dat.errors import ConfigurationError
from spa_dat.runtime.application._application import runs_of
from spa_dat.runtime.options._actor_options import HandlerOptions
from spa_dat.transports import Consumer, Receiver, SocketProvider, Subscription
from spa_dat.transports.memory._bus import MemoryBus
from support.waiting import eventually

Register = Callable[[DistributedApplication], object]


@pytest.fixture
def app() -> DistributedApplication:
    return DistributedApplication("memory://", name="plant")


def test_decorators_return_the_function_they_got(app: DistributedApplication) -> None:
    async def handler(payload: str) -> None: ...

    async def producer(socket: Socket) -> None: ...

    assert app.application("a")(handler) is handler
    assert app.producer()(producer) is producer


def test_seed_signatures_are_accepted_to_the_letter(app: DistributedApplication) -> None:
    provider = SocketProviderFactory.from_config(MemoryConfig())

    @app.application(["a", "b"], socket_provider=provider, state=dict, ressources={})
    async def consume(message, socket, state, context, message_builder) -> None: ...  # type: ignore[no-untyped-def]  # noqa: ANN001

    @app.producer(socket_provider=provider, state=None, ressources={})
    async def produce(socket, state, message_builder) -> None: ...  # type: ignore[no-untyped-def]  # noqa: ANN001


@pytest.mark.parametrize(
    "bus",
    [
        "memory://",
        "memory://shared?window=5",
        MemoryConfig(),
        SocketProviderFactory.from_url("memory://"),
    ],
)
def test_a_provider_a_config_and_a_url_are_accepted_where_a_provider_is(
    bus: SocketProvider | MemoryConfig | str,
) -> None:
    app = DistributedApplication(bus)

    @app.application("a", socket_provider=bus)
    async def handler(payload: str) -> None: ...


@pytest.mark.parametrize(
    ("bus", "words"),
    [
        ("memry://", ["memry", "memory"]),
        ("memory://x?windw=3", ["windw", "window"]),
        ("memory://x?window=many", ["window", "many"]),
        ("just-a-name", ["URL", "memory://"]),
        (5, ["int", "MemoryConfig"]),
        (MemoryConfig, ["class MemoryConfig", "without parentheses"]),
    ],
)
def test_an_address_that_can_not_be_is_refused_at_once(bus: Any, words: list[str]) -> None:
    with pytest.raises(ConfigurationError) as caught:
        DistributedApplication(bus)
    assert all(word in str(caught.value) for word in words)


@pytest.mark.parametrize("name", ["", "with space", "a/b", "ä", "x" * 65, "a\n", 5])
def test_names_outside_the_alphabet_are_refused(name: Any) -> None:
    with pytest.raises(ConfigurationError, match="A-Z"):
        DistributedApplication("memory://", name=name)
    with pytest.raises(ConfigurationError, match="A-Z"):
        DistributedApplication("memory://", name="plant", instance=name)
    app = DistributedApplication("memory://", name="plant")
    with pytest.raises(ConfigurationError, match="A-Z"):

        @app.application("a", name=name)
        async def handler(payload: str) -> None: ...


def test_the_instance_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPA_DAT_INSTANCE", "7")
    assert DistributedApplication("memory://", name="a").identity.instance == "7"
    assert DistributedApplication("memory://", name="a", instance="2").identity.instance == "2"
    monkeypatch.delenv("SPA_DAT_INSTANCE")
    assert DistributedApplication("memory://", name="a").identity.instance == "0"


def test_an_application_without_a_name_has_a_random_one() -> None:
    first, second = DistributedApplication("memory://"), DistributedApplication("memory://")
    assert first.identity.ephemeral
    assert first.name != second.name


@pytest.mark.parametrize(
    "options",
    [
        {"stop_timeout": -1.0},
        {"stop_timeout": float("nan")},
        {"stop_timeout": "soon"},
        {"dead_letter_limit": -1},
        {"dead_letter_limit": 1.5},
        {"restart": 3},
    ],
)
def test_application_options_that_can_not_be_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(options))):
        DistributedApplication("memory://", **options)


# Handlers.


def unfillable(app: DistributedApplication) -> None:
    @app.application("plant/{machine}/temperature")
    async def handler(payload: str, thermometer: int, barometer: int) -> None: ...


def misspelt_capture(app: DistributedApplication) -> None:
    @app.application("plant/{machine}/temperature")
    async def handler(payload: str, machin: str) -> None: ...


def misspelt_capture_alone(app: DistributedApplication) -> None:
    @app.application("plant/{machine}/temperature")
    async def handler(machin: str) -> None: ...


def misspelt_resource(app: DistributedApplication) -> None:
    @app.application("a", ressources={"database": open})  # type: ignore[dict-item]
    async def handler(databse: str) -> None: ...


def producer_with_message(app: DistributedApplication) -> None:
    @app.producer()
    async def handler(message: Message[str]) -> None: ...


def producer_with_payload(app: DistributedApplication) -> None:
    @app.producer()
    async def handler(reading: str) -> None: ...


def unannotated_payload(app: DistributedApplication) -> None:
    @app.application("a")
    async def handler(reading) -> None: ...  # type: ignore[no-untyped-def]  # noqa: ANN001


def generator(app: DistributedApplication) -> None:
    @app.application("a")
    async def handler(reading: str) -> Any:
        yield reading


def not_a_function(app: DistributedApplication) -> None:
    app.application("a")(5)  # type: ignore[type-var]


def lacking_capture(app: DistributedApplication) -> None:
    @app.application(["plant/{machine}/temperature", "alarms"])
    async def handler(payload: str, machine: str) -> None: ...


def resource_like_capture(app: DistributedApplication) -> None:
    @app.application("plant/{machine}/temperature", ressources={"machine": open})  # type: ignore[dict-item]
    async def handler(payload: str) -> None: ...


def reserved_resource(app: DistributedApplication) -> None:
    @app.application("a", ressources={"socket": open})  # type: ignore[dict-item]
    async def handler(payload: str) -> None: ...


def reserved_shared_resource(app: DistributedApplication) -> None:
    app.resource("state", open)  # type: ignore[arg-type]


def method(app: DistributedApplication) -> None:
    class Boiler:
        @app.application("a")
        async def measured(self, payload: str, celsius: float) -> None: ...


def class_as_handler(app: DistributedApplication) -> None:
    @app.application("a")
    class Boiler(Actor):
        async def on_message(self, payload: str) -> None: ...


def without_a_name(app: DistributedApplication) -> None:
    app.application("a")(lambda payload: print(payload))


def letters_of_other_languages(app: DistributedApplication) -> None:
    async def prüfe(payload: str) -> None: ...

    app.application("a")(prüfe)


def letters_of_other_languages_in_a_class(app: DistributedApplication) -> None:
    class Gerät(Actor):
        @on("a")
        async def handler(self, payload: str) -> None: ...

    app.add(Gerät)


def async_with_sync_socket(app: DistributedApplication) -> None:
    @app.application("a")
    async def handler(payload: str, bus: SyncSocket) -> None: ...


def thread_with_async_socket(app: DistributedApplication) -> None:
    @app.application("a")
    def handler(payload: str, bus: Socket) -> None: ...


def thread_method_with_async_socket(app: DistributedApplication) -> None:
    class Boiler(Actor):
        @on("a")
        def measured(self, payload: str, bus: Socket) -> None: ...

    app.add(Boiler)


@pytest.mark.parametrize(
    ("register", "words"),
    [
        (unfillable, ["'thermometer'", "'barometer'", "machine", "socket", "Message[...]"]),
        (misspelt_capture, ["'machin'", "did you mean 'machine'"]),
        (misspelt_capture_alone, ["'machin'", "did you mean 'machine'"]),
        (misspelt_resource, ["'databse'", "did you mean 'database'"]),
        (producer_with_message, ["producer gets no messages"]),
        (producer_with_payload, ["'reading'", "socket"]),
        (unannotated_payload, ["'reading'", "annotat"]),
        (generator, ["generator"]),
        (not_a_function, ["5", "not a function"]),
        (lacking_capture, ["'machine'", "'alarms'", "default"]),
        (resource_like_capture, ["'machine'", "resource", "capture"]),
        (reserved_resource, ["'socket'", "reserved"]),
        (reserved_shared_resource, ["'state'", "reserved"]),
        (method, ["'self'", "@on(...)", "add(...)"]),
        (class_as_handler, ["Boiler", "add(Boiler, ...)"]),
        (without_a_name, ["<lambda>", "name="]),
        (letters_of_other_languages, ["'prüfe'", "give it one with name="]),
        (letters_of_other_languages_in_a_class, ["'Gerät'", "in the class, as name = ..."]),
        (async_with_sync_socket, ["'bus'", "SyncSocket", "use Socket"]),
        (thread_with_async_socket, ["'bus'", "use SyncSocket"]),
        (thread_method_with_async_socket, ["'bus'", "use SyncSocket"]),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_handler_that_can_not_be_served_is_refused_when_it_is_registered(
    app: DistributedApplication, register: Register, words: list[str]
) -> None:
    with pytest.raises(ConfigurationError) as caught:
        register(app)
    assert [word for word in words if word not in str(caught.value)] == []


@pytest.mark.parametrize(
    ("topics", "words"),
    [
        ("", ["empty"]),
        ([], ["no topics"]),
        (["a", ""], ["empty"]),
        ("a/#/b", ["a/#/b", "last"]),
        ("a/b+/c", ["b+"]),
        ("a/{x}/{x}", ["{x}", "twice"]),
        ("a/x{y}", ["x{y}"]),
        ("a.{y}", ["a.{y}", "separated by '/'"]),
        ("a/{not valid}", ["not valid"]),
        ("a\0b", ["null"]),
        ("$share/group/a", ["$share"]),
        ("_spa/reply/#", ["_spa/"]),
        ("_spa", ["_spa/"]),
        (["a", "a"], ["'a'", "same topics"]),
        (["a/{x}", "a/+"], ["'a/{x}'", "'a/+'", "same topics"]),
        ([5], ["5", "str"]),
        (5, ["5", "filter"]),
        (len, ["@app.application("]),
    ],
)
def test_invalid_filters_are_refused_when_they_are_registered(
    app: DistributedApplication, topics: Any, words: list[str]
) -> None:
    with pytest.raises(ConfigurationError) as caught:

        @app.application(topics)  # type: ignore[untyped-decorator]
        async def handler(payload: str) -> None: ...

    assert [word for word in words if word not in str(caught.value)] == []


@pytest.mark.parametrize("level", ["*", "**", ">", "plant.*", "plant.>", ":machine", "<machine>"])
def test_wildcards_of_others_are_told_of_because_they_match_only_themselves(
    app: DistributedApplication, level: str, caplog: pytest.LogCaptureFixture
) -> None:
    for topic in (f"plant/{level}", "plant/a*b/a.b/+/{machine}/#"):

        @app.application(topic, replace=True)
        async def handler(payload: str, machine: str = "") -> None: ...

    (record,) = caplog.records
    assert f"filter 'plant/{level}': '{level}' is no wildcard" in record.getMessage()


def test_a_bare_decorator_is_refused_instead_of_registering_nothing(
    app: DistributedApplication,
) -> None:
    with pytest.raises(ConfigurationError, match="needs topics"):

        @app.application  # type: ignore[call-overload]
        async def handler(payload: str) -> None: ...


def test_a_producer_without_parentheses_is_told(app: DistributedApplication) -> None:
    async def tick(socket: Socket) -> None: ...

    with pytest.raises(ConfigurationError, match=r"producer\(\) got .*tick.*@app\.producer\(\)"):
        app.producer(tick)  # type: ignore[arg-type]


def test_two_actors_of_one_name_are_refused(app: DistributedApplication) -> None:
    @app.application("a")
    async def handler(payload: str) -> None: ...

    with pytest.raises(ConfigurationError, match="already an actor 'handler'"):
        app.application("b")(handler)
    with pytest.raises(ConfigurationError, match="already an actor 'handler'"):
        app.producer(name="handler")(lambda: None)
    app.application("b", name="other")(handler)


def test_two_decorators_on_one_function_are_told_of_the_list(app: DistributedApplication) -> None:
    with pytest.raises(ConfigurationError, match=r"application\(\['a', 'b'\]\)"):

        @app.application("a")
        @app.application("b")
        async def handler(payload: str) -> None: ...


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("subscriber", "@app.application('topic')"),
        ("publisher", "await socket.publish(topic, payload)"),
        ("publish", "app.socket()"),
        ("on_startup", "app.resource("),
        ("after_shutdown", "on_stop"),
    ],
)
def test_what_other_frameworks_call_it_is_an_error_that_says_what_it_is_here(
    app: DistributedApplication, name: str, advice: str
) -> None:
    with pytest.raises(AttributeError, match=name) as caught:
        getattr(app, name)
    assert advice in str(caught.value)


def test_an_attribute_that_nothing_has_is_an_error_as_ever(app: DistributedApplication) -> None:
    assert not hasattr(app, "subscribers")
    with pytest.raises(AttributeError, match="object has no attribute 'subscribers'"):
        _ = app.subscribers  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"mailbx": 3}, ["'mailbx'", "did you mean 'mailbox'"]),
        ({"xyz": 3}, ["'xyz'", "there are:", "mailbox"]),
        ({"every": 1.0}, ["'every'", "only producers"]),
        ({"mailbox": 0}, ["mailbox=0"]),
        ({"window": True}, ["window=True"]),
        ({"window": 65536}, ["window=65536"]),
        ({"qos": 2}, ["qos=2", "before the handler has run"]),
        ({"deliver": "some"}, ["deliver='some'", "'share'"]),
        ({"retained": "once"}, ["retained='once'", "'always'"]),
        ({"retained": None}, ["retained=None", "'new'"]),
        ({"retained": ["new"]}, ["retained=", "'never'"]),
        ({"retained": "always", "deliver": "share"}, ["retained='always'", "deliver='all'"]),
        ({"codec": "avro"}, ["codec: 'avro' is no codec", "spa_dat.Codec"]),
        ({"rewind_to": "1h"}, ["rewind_to='1h'", "'2026-11-27T09:00:00Z'", "each start"]),
        ({"rewind_to": "2026-11-27"}, ["rewind_to='2026-11-27'", "a datetime"]),
        ({"rewind_to": 1_700_000_000}, ["rewind_to=1700000000", "give a time"]),
        ({"rewind_to": "2026-11-27T10:00"}, ["rewind_to='2026-11-27T10:00'", "needs its zone"]),
        ({"rewind_to": datetime.now(UTC).replace(tzinfo=None)}, ["rewind_to='20", "its zone"]),
        ({"rewind_to": "1969-12-31T23:00Z"}, ["rewind_to=", "older than 1970"]),
        ({"rewind_to": "9" * 100_000 + "T"}, ["rewind_to='999", "give a time"]),
        ({"retry": 3}, ["retry=3", "RetryPolicy(attempts=3)"]),
        ({"retries": 3}, ["'retries'", "retry=RetryPolicy(attempts=3)"]),
        ({"group_id": "billing"}, ["'group_id'", "{application}.{actor}"]),
        ({"max_workers": 4}, ["'max_workers'", "concurrency="]),
        ({"overflow": "drop"}, ["overflow='drop'"]),
        ({"deadline": 0}, ["deadline=0"]),
        ({"deadline": "1"}, ["deadline='1'"]),
        ({"subscription": "a b"}, ["'a b'"]),
    ],
)
def test_options_that_can_not_be_are_refused_by_name(
    app: DistributedApplication, options: dict[str, Any], words: list[str]
) -> None:
    with pytest.raises(ConfigurationError) as caught:

        @app.application("a", **options)
        async def handler(payload: str) -> None: ...

    assert [word for word in words if word not in str(caught.value)] == []


async def test_a_producer_has_nothing_to_read_again(app: DistributedApplication) -> None:
    @app.producer()
    async def send() -> None: ...

    (spec,) = runs_of(app).specs
    app.configure(spec, rewind_to="2023-11-14T23:00:00Z")
    with pytest.raises(ConfigurationError, match=r"rewind_to='2023.*' has no effect.*no topics"):
        await app.__aenter__()


async def test_a_bus_that_keeps_nothing_has_nothing_to_read_again(
    app: DistributedApplication,
) -> None:
    @app.application("a", rewind_to=datetime(2023, 11, 14, tzinfo=UTC))
    async def handler(payload: int) -> None: ...

    with pytest.raises(ConfigurationError) as caught:
        await app.__aenter__()
    assert "actor 'handler': rewind_to='2023-11-14 00:00:00+00:00': memory://" in str(caught.value)
    assert "keeps no messages that could be read again" in str(caught.value)


@pytest.mark.parametrize("every", [0, -1.0, float("nan"), float("inf"), "1", True])
def test_a_producers_interval_must_be_a_positive_time(
    app: DistributedApplication, every: Any
) -> None:
    with pytest.raises(ConfigurationError, match="every="):

        @app.producer(every=every)
        async def produce(socket: Socket) -> None: ...


def test_a_missing_bus_is_named_when_the_actor_is_registered() -> None:
    app = DistributedApplication(name="plant")
    with pytest.raises(ConfigurationError, match="no bus"):
        app.application("a")
    with pytest.raises(ConfigurationError, match="no bus"):
        app.producer()

    @app.application("a", socket_provider="memory://")
    async def handler(payload: str) -> None: ...


async def test_a_class_without_a_bus_is_named_at_start() -> None:
    class Boiler(Actor):
        @on("a")
        async def measured(self, payload: str) -> None: ...

    app = DistributedApplication(name="plant")
    app.add(Boiler)
    with pytest.raises(ConfigurationError, match="'Boiler' has no bus"):
        await app.__aenter__()


# State and resources.


@dataclass
class Tally:
    count: int = 0


@dataclass(frozen=True)
class Limits:
    upper: float = 1.0


def test_one_mutable_object_as_state_of_two_actors_is_refused(app: DistributedApplication) -> None:
    tally = Tally()

    @app.application("a", state=tally)
    async def first(payload: str, state: Tally) -> None: ...

    with pytest.raises(ConfigurationError, match="'first' and 'second'"):

        @app.application("b", state=tally)
        async def second(payload: str, state: Tally) -> None: ...


@pytest.mark.parametrize(
    "state", [Tally, lambda: Tally(), partial(Tally, 3), dict, 5, "x", Limits()]
)
def test_factories_and_immutable_values_may_serve_several_actors(
    app: DistributedApplication, state: Any
) -> None:
    for name in ("first", "second"):

        @app.application("a", name=name, state=state)
        async def handler(payload: str, state: Any) -> None: ...


def test_an_async_state_factory_is_refused(app: DistributedApplication) -> None:
    async def connect() -> Tally:
        return Tally()

    with pytest.raises(ConfigurationError, match="async"):

        @app.application("a", state=connect)
        async def handler(payload: str, state: Tally) -> None: ...


def test_state_without_state_is_refused(app: DistributedApplication) -> None:
    with pytest.raises(ConfigurationError, match="no state was given"):

        @app.application("a")
        async def handler(payload: str, state: Tally) -> None: ...


def test_resources_must_be_context_managers_with_usable_names(app: DistributedApplication) -> None:
    bad: list[dict[str, Any]] = [{"db": 5}, {"d b": open}]
    for ressources in bad:
        with pytest.raises(ConfigurationError, match=r"resource.*'d"):

            @app.application("a", ressources=ressources)
            async def handler(payload: str) -> None: ...

    app.resource("db", open)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="already registered"):
        app.resource("db", open)  # type: ignore[arg-type]


# Classes.


def test_a_class_that_handles_nothing_is_refused(app: DistributedApplication) -> None:
    class Idle(Actor): ...

    class NoMethod(Actor):
        topics = ("a",)

    class Both(Actor):
        topics = ("a",)

        async def on_message(self, payload: str) -> None: ...

        @on("b")
        async def other(self, payload: str) -> None: ...

    for cls, word in ((Idle, "has no handlers"), (NoMethod, "no on_message"), (Both, "both")):
        with pytest.raises(ConfigurationError, match=word):
            app.add(cls)
    with pytest.raises(ConfigurationError, match="not a class derived from Actor"):
        app.add(dict)  # type: ignore[type-var]


def test_constructor_arguments_that_do_not_fit_are_refused_at_once(
    app: DistributedApplication,
) -> None:
    class Boiler(Actor):
        def __init__(self, limit: float) -> None:
            self.limit = limit

        @on("a")
        async def measured(self, payload: str) -> None: ...

    with pytest.raises(ConfigurationError, match=r"Boiler.*limit"):
        app.add(Boiler)  # type: ignore[call-arg]
    with pytest.raises(ConfigurationError, match=r"Boiler.*name"):
        app.add(Boiler, limit=1.0, name="x")  # type: ignore[call-arg]
    assert app.add(Boiler, 90.0).name == "Boiler"


def test_a_filter_that_is_never_reached_is_refused(app: DistributedApplication) -> None:
    class Boiler(Actor):
        @on("a/{x}")
        async def first(self, payload: str) -> None: ...

        @on("a/+")
        async def second(self, payload: str) -> None: ...

    with pytest.raises(ConfigurationError, match="never reached"):
        app.add(Boiler)


def test_class_attributes_are_options_and_methods_of_the_same_name_are_not(
    app: DistributedApplication,
) -> None:
    class Boiler(Actor):
        name: ClassVar = "kettle"
        retry: ClassVar = RetryPolicy(attempts=2)
        window: ClassVar = 7

        @on("a")
        async def measured(self, payload: str) -> None: ...

        def deadline(self) -> float:
            return 3.0

    spec = app.add(Boiler)
    assert spec.name == "kettle"
    assert spec.options.retry.attempts == 2
    assert spec.options.window == 7
    assert spec.options.deadline is None

    class Wrong(Boiler):
        window: ClassVar = 0

    with pytest.raises(ConfigurationError, match="window=0"):
        app.add(Wrong)


class Plain(Actor):
    @on("a")
    async def measured(self, payload: str) -> None: ...


def test_configure_changes_options_whole_or_not_at_all(app: DistributedApplication) -> None:
    spec = app.add(Plain)
    app.configure(spec, name="kettle", mailbox=3)
    assert (spec.name, spec.options.mailbox) == ("kettle", 3)
    with pytest.raises(ConfigurationError, match="mailbox=0"):
        app.configure(spec, name="pot", mailbox=0)
    with pytest.raises(ConfigurationError, match=r"'mailbx'.*'mailbox'"):
        app.configure(spec, mailbx=4)
    with pytest.raises(ConfigurationError, match="'every'"):
        app.configure(spec, every=1.0)
    with pytest.raises(ConfigurationError, match="memry"):
        app.configure(spec, socket_provider="memry://")
    assert (spec.name, spec.options.mailbox) == ("kettle", 3)


def test_configure_refuses_somebody_elses_registration(app: DistributedApplication) -> None:
    spec = DistributedApplication("memory://", name="other").add(Plain)
    with pytest.raises(ConfigurationError, match="not registered with application 'plant'"):
        app.configure(spec, mailbox=3)


async def test_two_classes_of_one_name_are_named_at_start(app: DistributedApplication) -> None:
    app.add(Plain)
    second = app.add(Plain)
    with pytest.raises(ConfigurationError, match="two actors are named 'Plain'"):
        await app.__aenter__()
    app.configure(second, name="second")
    async with app:
        pass


async def test_nothing_is_registered_while_the_application_runs(
    app: DistributedApplication,
) -> None:
    spec = app.add(Plain)

    async def handler(payload: str) -> None: ...

    async with app:
        actions: list[Callable[[], object]] = [
            lambda: app.application("b")(handler),
            lambda: app.producer()(lambda: None),
            lambda: app.add(Plain),
            lambda: app.configure(spec, mailbox=3),
            lambda: app.resource("db", open),  # type: ignore[arg-type]
        ]
        for action in actions:
            with pytest.raises(ConfigurationError, match="while application 'plant' is running"):
                action()
        with pytest.raises(ConfigurationError, match="while application 'plant' is running"):
            await app.__aenter__()
    app.application("b")(handler)


def test_context_is_injected_whatever_its_name(app: DistributedApplication) -> None:
    @app.application("a")
    async def handler(payload: str, whatever: Context) -> None: ...

    with pytest.raises(ConfigurationError, match="did you mean 'context'"):

        @app.application("b")
        async def other(payload: str, contxt: int) -> None: ...


@pytest.mark.parametrize(
    ("options", "wanted"), [({}, (0, 3)), ({"qos": 1, "window": 5}, (1, 5))], ids=["bus", "own"]
)
async def test_qos_and_window_of_the_bus_count_for_actors_that_do_not_say(
    options: HandlerOptions, wanted: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[tuple[int, int]] = []
    consumer = MemoryBus.consumer

    def remember(bus: MemoryBus, subscription: Subscription, receiver: Receiver) -> Consumer:
        made.append((subscription.qos, subscription.window))
        return consumer(bus, subscription, receiver)

    monkeypatch.setattr(MemoryBus, "consumer", remember)
    app = DistributedApplication("memory://?qos=0&window=3", name="defaults")

    @app.application("a", **options)
    async def take(payload: bytes) -> None: ...

    async with app:
        assert made == [wanted]


def test_the_mqtt_configuration_has_the_same_defaults() -> None:
    provider = SocketProviderFactory.from_url("mqtt://localhost?qos=0&window=3")
    assert (provider.default_qos, provider.default_window) == (0, 3)


def test_a_method_without_self_is_refused(app: DistributedApplication) -> None:
    class Boiler(Actor):
        @on("boiler")
        async def measured(celsius: float) -> None: ...  # type: ignore[misc]  # noqa: N805

    with pytest.raises(ConfigurationError, match=r"'celsius'.*put self"):
        app.add(Boiler)


def test_add_refuses_an_instance(app: DistributedApplication) -> None:
    with pytest.raises(ConfigurationError, match=r"add\(Plain, ...\), not an instance"):
        app.add(Plain())  # type: ignore[arg-type]


def test_a_misspelt_name_is_recognised(app: DistributedApplication) -> None:
    spec = app.add(Plain)
    with pytest.raises(ConfigurationError, match="'nmae'; did you mean 'name'"):
        app.configure(spec, nmae="b")


# Registering again.


def test_replace_takes_the_place_of_an_actor(app: DistributedApplication) -> None:
    @app.application("a")
    async def handler(payload: str) -> None: ...

    @app.application("b")
    async def last(payload: str) -> None: ...

    @app.application("c", name="handler", replace=True)
    async def other(payload: str) -> None: ...

    specs = runs_of(app).specs
    assert [(s.name, s.filters[0].text) for s in specs] == [("handler", "c"), ("last", "b")]


async def test_a_cell_of_a_notebook_can_be_run_again(
    app: DistributedApplication, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "ps1", ">>> ", raising=False)
    seen: list[int] = []
    for cell in (1, 2):

        @app.application("in", state=dict)
        async def handler(payload: int, cell: int = cell) -> None: ...

        class Counter(Actor):
            number: ClassVar[int] = cell

            @on("count")
            async def count(self, payload: int) -> None:
                seen.append(self.number)

        app.add(Counter)
    assert [spec.name for spec in runs_of(app).specs] == ["handler", "Counter"]
    async with app:
        await app.socket().publish("count", 1)
        await eventually(lambda: seen)
    assert seen == [2]


async def test_a_cell_that_registers_resources_can_be_run_again(
    app: DistributedApplication, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "ps1", ">>> ", raising=False)
    for cell in (1, 2):

        @asynccontextmanager
        async def database(cell: int = cell) -> AsyncIterator[str]:
            yield f"database {cell}"

        class Printer:
            number: ClassVar[int] = cell

            async def __aenter__(self) -> str:
                return f"printer {self.number}"

            async def __aexit__(self, *error: object) -> None: ...

        app.resource("database", database)
        app.resource("printer", Printer())

        @app.application("used")
        async def used(payload: int, database: str, printer: str) -> list[str]:
            return [database, printer]

    async with app:
        found = await app.socket().request("used", 1, reply=list[str])
    assert found == ["database 2", "printer 2"]
    with pytest.raises(
        ConfigurationError, match=r"'database' is already registered, with .*database;"
    ):
        app.resource("database", Printer())


def test_another_function_of_that_name_is_no_new_version(
    app: DistributedApplication, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "ps1", ">>> ", raising=False)

    @app.application("a", name="handler")
    async def first(payload: str) -> None: ...

    async def second(payload: str) -> None: ...

    with pytest.raises(ConfigurationError, match=r"already an actor 'handler'.*replace=True"):
        app.application("b", name="handler")(second)


def test_replace_can_be_refused_in_a_notebook(
    app: DistributedApplication, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "ps1", ">>> ", raising=False)

    async def handler(payload: str) -> None: ...

    app.application("a")(handler)
    with pytest.raises(ConfigurationError, match="already an actor"):
        app.application("a", replace=False)(handler)


def test_an_actor_is_removed_by_name_or_by_registration(app: DistributedApplication) -> None:
    @app.application("a")
    async def handler(payload: str) -> None: ...

    spec = app.add(Plain)
    app.remove("handler")
    with pytest.raises(ConfigurationError, match=r"no actor 'handler' is registered.*'Plain'"):
        app.remove("handler")
    app.remove(spec)
    assert runs_of(app).specs == []
    app.application("a")(handler)


@pytest.mark.parametrize("value", ["4", 4, None, (1,), object()])
@pytest.mark.parametrize("option", ["ressources", "concurrency"])
def test_options_of_another_kind_are_refused_by_name(
    app: DistributedApplication, option: str, value: Any
) -> None:
    if (option, value) in (("concurrency", 4), ("concurrency", None)):
        return

    class Boiler(Actor):
        @on("a")
        async def measured(self, payload: str) -> None: ...

    def function(payload: str) -> None: ...

    def by_attribute() -> None:
        setattr(Boiler, option, value)
        app.add(Boiler)

    added = app.add(Boiler)
    for register in (
        lambda: app.application("a", **{option: value})(function),
        lambda: app.configure(added, **{option: value}),
        by_attribute,
    ):
        if register is by_attribute and value is None:
            continue
        with pytest.raises(ConfigurationError, match=f"{option}=.*: give "):
            register()


@pytest.mark.parametrize(
    ("make", "options", "words"),
    [
        (DistributedApplication, {"metrics": 5}, ["metrics=5", "prometheus"]),
        (DistributedApplication, {"state_folder": 5}, ["state_folder=5", "a folder"]),
        (RestartPolicy, {"period": "4"}, ["period='4'", "a finite number"]),
        (MessageBuilder(), {"topic": "a", "headers": "4"}, ["headers", "4", "a dict"]),
    ],
)
def test_arguments_of_another_kind_are_refused_by_name(
    make: Any, options: dict[str, Any], words: list[str]
) -> None:
    with pytest.raises(ConfigurationError) as caught:
        make(**options)
    assert [word for word in words if word not in str(caught.value)] == []


def test_what_is_no_class_and_no_name_is_refused(app: DistributedApplication) -> None:
    with pytest.raises(ConfigurationError, match=r"add\(5\): give a class"):
        app.add(5)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match=r"resource name \[\].*an identifier"):
        app.resource([], open)  # type: ignore[arg-type]


def test_what_is_no_application_is_not_run() -> None:
    with pytest.raises(ConfigurationError, match=r"run\(5\).*: give applications"):
        run(5)  # type: ignore[arg-type]


def test_the_payloads_of_a_batch_may_be_called_so(app: DistributedApplication) -> None:
    @app.application("a", batch=(2, 1))
    async def store(payloads: list[str]) -> None: ...

    with pytest.raises(ConfigurationError, match="did you mean 'payload'"):

        @app.application("b")
        async def misspelt(payloads: list[str]) -> None: ...


def test_a_function_that_dispatches_on_its_first_argument_is_refused() -> None:
    @singledispatch
    def handle(number: int) -> None: ...

    with pytest.raises(ConfigurationError, match=r"singledispatch.*a handler that calls it"):
        DistributedApplication("memory://", name="app").application("a")(handle)


def test_a_model_of_an_earlier_pydantic_is_named_as_one() -> None:
    v1 = pytest.importorskip("pydantic.v1")
    model: Any = type("Reading", (v1.BaseModel,), {"__annotations__": {"n": int}})

    async def handle(reading: object) -> None: ...

    handle.__annotations__["reading"] = model
    with pytest.raises(
        ConfigurationError, match=r"pydantic\.v1; derive it from pydantic.BaseModel"
    ):
        DistributedApplication("memory://", name="app").application("a")(handle)
