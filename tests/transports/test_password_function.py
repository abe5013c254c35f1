"""Passwords and tokens that a function of the program returns."""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import functools
import json
import pickle
import threading
from collections.abc import Callable
from typing import Any

import pytest

from spa_dat._environment import Environment
from spa_dat.errors import ConfigurationError
from spa_dat.transports._credentials import PasswordFunction, PasswordUnavailable, Secret
from spa_dat.transports._factory import SocketProviderFactory
from spa_dat.transports.kafka import KafkaConfig, _reachability
from spa_dat.transports.kafka._errors import TokenRefused
from spa_dat.transports.mqtt import MqttConfig, MqttProvider
from support.waiting import eventually

CANARY = "hunter2-canary"


class Clock(Environment):
    """An environment whose time the test sets."""

    time = 1_000.0

    def now(self) -> float:
        return self.time


def token(claims: object) -> str:
    """A JSON Web Token, unsigned."""
    text = base64.urlsafe_b64encode(json.dumps(claims).encode()).decode().rstrip("=")
    return f"e30.{text}."


def asked(function: Any, environment: Environment | None = None) -> PasswordFunction:
    return PasswordFunction("MqttConfig", function, environment)


async def from_coroutine(value: str = "first") -> str:
    return value


class Vault:
    """Callable objects are functions, too."""

    async def __call__(self) -> str:
        return "two"


@pytest.mark.parametrize(
    ("function", "password"),
    [
        (lambda: "zero", "zero"),
        (lambda: Secret("hidden"), "hidden"),
        (from_coroutine, "first"),
        (functools.partial(from_coroutine, "partly"), "partly"),
        (Vault(), "two"),
    ],
)
async def test_a_function_of_any_kind_returns_the_password(
    function: Callable[[], str], password: str
) -> None:
    config = MqttConfig(username="ann", password_function=function)
    assert await config.current_password() == password
    assert await dataclasses.replace(config, keepalive=20).current_password() == password
    assert password not in repr(config)
    MqttProvider(config)


async def test_a_function_that_is_not_async_may_block() -> None:
    free = threading.Event()
    secret = asked(lambda: "late" if free.wait(60) else "never")
    asking = asyncio.ensure_future(secret.ask(60))
    await asyncio.sleep(0)
    free.set()
    assert await asking == "late"


async def test_what_several_ask_for_at_once_is_asked_once() -> None:
    calls = []
    go = asyncio.Event()

    async def function() -> str:
        calls.append(1)
        await go.wait()
        return "one"

    secret = asked(function)
    asking = [asyncio.ensure_future(secret.ask(60)) for _ in range(5)]
    await eventually(lambda: calls)
    asking.pop().cancel()
    go.set()
    assert await asyncio.gather(*asking) == ["one"] * 4
    assert len(calls) == 1
    await secret.ask(60)
    assert len(calls) == 2


async def test_a_token_is_kept_for_most_of_its_time() -> None:
    clock = Clock()
    calls = []

    def function() -> str:
        calls.append(1)
        return token({"exp": clock.time + 100})

    secret = asked(function, clock)
    first = await secret.ask(60)
    clock.time += 79
    assert await secret.ask(60) == first
    assert len(calls) == 1
    clock.time += 2
    assert await secret.ask(60) != first
    assert len(calls) == 2


async def test_a_token_that_was_refused_is_not_kept() -> None:
    calls: list[str] = []

    def function() -> str:
        calls.append(token({"exp": 9e9, "number": len(calls)}))
        return calls[-1]

    config = MqttConfig(username="ann", password_function=function)
    first = await config.current_password()
    assert await config.current_password() == first
    config.forget_password()
    assert await config.current_password() == calls[1] != first
    MqttConfig(username="ann", password="plain").forget_password()


async def test_kafka_forgets_a_token_that_it_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def function() -> str:
        calls.append(token({"exp": 9e9, "number": len(calls)}))
        return calls[-1]

    async def refused(*args: Any) -> None:
        raise TokenRefused(b"no")

    monkeypatch.setattr(_reachability, "try_connection", refused)
    config = KafkaConfig(
        sasl_mechanism="OAUTHBEARER", allow_plain_password=True, password_function=function
    )
    for count in (1, 2):
        with pytest.raises(TokenRefused):
            await _reachability.reach(config, "plant")
        assert len(calls) == count


@pytest.mark.parametrize(
    "value",
    [
        "plain",
        "a.b.c",
        token({}),
        token([]),
        token("x"),
        token({"exp": "soon"}),
        token({"exp": None}),
        token({"exp": float("nan")}),
        token({"exp": 10**400}),
        token({"exp": -1}),
        f"e30.{base64.urlsafe_b64encode(b'[' * 100_00).decode().rstrip('=')}.",
        "é.é.é",
    ],
)
async def test_what_does_not_say_when_it_ends_is_asked_for_each_time(value: str) -> None:
    calls = []

    def function() -> str:
        calls.append(1)
        return value

    secret = asked(function)
    assert [await secret.ask(60), await secret.ask(60)] == [value] * 2
    assert len(calls) == 2


async def test_what_a_function_raises_is_told_and_asked_again() -> None:
    failures: list[Exception] = [ValueError("no such role"), TimeoutError(), OSError("x" * 9_999)]

    def function() -> str:
        if failures:
            raise failures.pop(0)
        return "one"

    secret = asked(function)
    with pytest.raises(PasswordUnavailable, match=r"function.*raised ValueError: 'no such role'"):
        await secret.ask(60)
    with pytest.raises(PasswordUnavailable, match="raised TimeoutError"):
        await secret.ask(60)
    with pytest.raises(PasswordUnavailable, match="OSError") as caught:
        await secret.ask(60)
    assert len(str(caught.value)) < 1_000
    assert await secret.ask(60) == "one"


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, "a NoneType"),
        ("", "an empty string"),
        (b"bytes", "a bytes"),
        ("\ud800", "surrogate"),
        ("x" * 65_536, "65535 bytes"),
    ],
)
async def test_what_is_no_password_is_named_and_not_shown(value: Any, words: str) -> None:
    with pytest.raises(ConfigurationError, match=f"function.*{words}") as caught:
        await asked(lambda: value).ask(60)
    assert len(str(caught.value)) < 300


async def test_a_coroutine_from_a_function_that_is_not_async_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="async def"):
        await asked(lambda: from_coroutine()).ask(60)


async def test_an_async_function_that_hangs_is_cancelled() -> None:
    ended = asyncio.Event()

    async def function() -> str:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()
        return "never"

    config = MqttConfig(username="ann", password_function=function, connect_timeout=0.01)
    with pytest.raises(OSError, match=r"has not returned within 0\.01 s"):
        await config.current_password()
    await asyncio.wait_for(ended.wait(), 60)


async def test_a_function_that_hangs_in_its_thread_has_one_thread() -> None:
    free = threading.Event()
    calls = []

    def function() -> str:
        calls.append(1)
        free.wait(60)
        return "late"

    secret = asked(function)
    for _ in range(3):
        with pytest.raises(PasswordUnavailable, match="has not returned"):
            await secret.ask(0.01)
    free.set()
    assert await secret.ask(60) == "late"
    assert len(calls) == 1


def test_a_function_of_the_wrong_kind_is_named() -> None:
    for config in (MqttConfig, KafkaConfig):
        with pytest.raises(ConfigurationError, match=r"password_function of \w+ is a int"):
            config(username="ann", password_function=5)  # type: ignore[arg-type]
        with pytest.raises(ConfigurationError, match="password and password_function"):
            config(username="ann", password=CANARY, password_function=lambda: CANARY)
    with pytest.raises(ConfigurationError, match="password_function"):
        SocketProviderFactory.from_url("mqtt://ann@h?password_function=os.getcwd")


def test_a_function_can_not_be_pickled_nor_mistaken_for_another() -> None:
    one = asked(from_coroutine)
    assert one == asked(from_coroutine)
    assert hash(one) == hash(asked(from_coroutine))
    assert one != asked(Vault())
    assert one != Secret("")
    with pytest.raises(TypeError, match="cannot be pickled"):
        pickle.dumps(one)


def test_a_token_needs_a_source_and_no_user_name() -> None:
    options: dict[str, Any] = {"sasl_mechanism": "OAUTHBEARER"}
    with pytest.raises(ConfigurationError, match=r"needs a token.*password_function"):
        KafkaConfig(tls=True, **options)
    with pytest.raises(ConfigurationError, match=r"username='ann'.*leave it out"):
        KafkaConfig(tls=True, username="ann", password="x", **options)
    with pytest.raises(ConfigurationError, match=r"not encrypted, so the token could be read"):
        KafkaConfig(password="x", **options)
    assert KafkaConfig(tls=True, password="x", **options).uses_token
