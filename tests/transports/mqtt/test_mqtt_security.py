"""TLS and logins on a real MQTT broker, and everything that can be wrong with them."""

from __future__ import annotations

import asyncio
import base64
import datetime
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import quote

import pytest
import trustme

from spa_dat import DistributedApplication
from spa_dat._pytest import require
from spa_dat.errors import ConnectFailed, NotAuthorised
from spa_dat.harness.brokers._certificates import make_certificates
from spa_dat.testing import Mosquitto, Proxy
from spa_dat.transports import Envelope
from support.mqtt import client
from support.waiting import eventually

pytestmark = pytest.mark.mosquitto

SECRET = "hush-hush-4711"
RULES = "user ann\ntopic readwrite #\n"
WS: dict[str, Any] = {"websocket_path": "/mqtt"}
PLAIN_WS: dict[str, Any] = {**WS, "tls": False}


@pytest.fixture(scope="module")
def guarded() -> Iterator[Mosquitto]:
    """A broker that all tests share: with TLS and without, for ann alone."""
    require(Mosquitto)
    with Mosquitto(
        users={"ann": SECRET}, acl=RULES, tls=True, websockets=True, unix_socket=True
    ) as broker:
        yield broker
    assert SECRET not in broker.log


@pytest.fixture(scope="module")
def mutual() -> Iterator[Mosquitto]:
    """A broker that requires certificates of its clients."""
    require(Mosquitto)
    with Mosquitto(tls=True, client_certificates=True) as broker:
        yield broker


@pytest.fixture(scope="module")
def expired() -> Iterator[Mosquitto]:
    """A broker whose certificate has expired."""
    require(Mosquitto)
    broker = Mosquitto(tls=True)
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(broker.ca_file))
    past = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
    issued = authority.issue_cert(broker.host, not_after=past)
    issued.private_key_and_cert_chain_pem.write_to_path(str(broker.folder / "server.pem"))
    with broker:
        yield broker


def token(claims: dict[str, float]) -> str:
    """A JSON Web Token, unsigned."""
    text = base64.urlsafe_b64encode(json.dumps(claims).encode()).decode().rstrip("=")
    return f"e30.{text}."


async def test_a_token_that_is_refused_is_not_used_again() -> None:
    require(Mosquitto)
    good, refused = token({"exp": 1.0}), [token({"exp": 4e9})]
    given: list[str] = []

    def function() -> str:
        # The first one is for the start, which a refusal would end.
        given.append(refused.pop() if given and refused else good)
        return given[-1]

    with Mosquitto(users={"ann": good}) as broker:
        async with (
            Proxy(broker.host, broker.port) as proxy,
            client(proxy, username="ann", password_function=function) as app,
        ):
            proxy.cut()
            await eventually(lambda: not refused)
            await app.bus.publish(Envelope(topic="open"), timeout=30)


def at(broker: Mosquitto, port: str, host: str | None = None) -> Any:
    return SimpleNamespace(host=host or broker.host, port=getattr(broker, port))


async def test_a_login_with_tls(guarded: Mosquitto, caplog: pytest.LogCaptureFixture) -> None:
    options: dict[str, Any] = {"tls_ca": str(guarded.ca_file), "password": SECRET}
    async with client(at(guarded, "tls_port"), tls=True, username="ann", **options) as app:
        _, recorder = await app.consume("a")
        await app.bus.publish(Envelope(topic="a", payload=b"x"), timeout=20)
        await recorder.get(1)
    assert SECRET not in caplog.text


@pytest.mark.parametrize("way", ["unix socket", "websocket", "websocket with TLS"])
async def test_another_way_to_the_broker(guarded: Mosquitto, way: str) -> None:
    options: dict[str, Any] = {"username": "ann", "password": SECRET}
    place, path = at(guarded, "websocket_port"), f"a/{way}"
    if way == "unix socket":
        place, options["unix_socket"] = at(guarded, "port"), str(guarded.socket_file)
        # What is tested has no port.
        place.port = None
    elif way == "websocket":
        options |= WS
    else:
        place = at(guarded, "websocket_tls_port")
        options |= {**WS, "tls": True, "tls_ca": str(guarded.ca_file)}
    numbers = [b"%d" % number for number in range(300)]
    # Mosquitto sends 40 KB/s over websockets.
    large = [bytes([number]) * 20_000 for number in range(3)]
    async with client(place, name=way.replace(" ", ""), **options) as app:
        _, recorder = await app.consume(path)
        posts = [app.bus.post(Envelope(topic=path, payload=each)) for each in numbers + large]
        await asyncio.wait_for(asyncio.gather(*posts), 60)
        await recorder.get(303, 60.0)
        assert recorder.payloads == numbers + large
        assert app.stats["mqtt.lost"] == 0
    address = app.config.address
    assert address.startswith({"u": "mqtt+unix:///"}.get(way[0], "ws"))


@pytest.mark.parametrize("way", ["plain", "TLS", "wss", "unix", "document"])
async def test_a_program_moves_to_a_broker_with_tls_and_a_login_by_its_url_alone(
    mosquitto: Mosquitto, guarded: Mosquitto, tmp_path: Path, way: str
) -> None:
    ca = quote(str(guarded.ca_file))
    login = f"ann:{SECRET}@"
    document = tmp_path / "plant.toml"
    document.write_text(
        f"""
        url = "mqtts://{guarded.host}:{guarded.tls_port}"
        username = "ann"
        password = "{SECRET}"
        tls_ca = "{guarded.ca_file}"
        """
    )
    url = {
        "plain": mosquitto.url,
        "TLS": f"mqtts://{login}{guarded.host}:{guarded.tls_port}?tls_ca={ca}",
        "wss": f"wss://{login}{guarded.host}:{guarded.websocket_tls_port}?tls_ca={ca}",
        "unix": f"mqtt+unix://{login}{quote(str(guarded.socket_file))}",
        "document": document.as_uri(),
    }[way]
    name = f"secure-{way}"
    app = DistributedApplication(url, name=name)

    @app.application(f"{name}/double", replies=True)
    async def double(number: int) -> int:
        return 2 * number

    async with app:
        reply = await app.socket().request(f"{name}/double", 21, reply=int, timeout=60)
    assert reply == 42


@pytest.mark.parametrize("way", ["unix_socket", "websockets"])
async def test_another_way_survives_a_restart_of_the_broker(
    own_mosquitto: Callable[..., Mosquitto], way: str
) -> None:
    broker = own_mosquitto(durable=True, **{way: True})
    place = at(broker, "port")
    options = WS
    if way == "unix_socket":
        place.port, options = None, {"unix_socket": str(broker.socket_file)}
    else:
        place.port = broker.websocket_port
    async with client(place, **options) as app:
        _, recorder = await app.consume("a")
        await app.bus.publish(Envelope(topic="a", payload=b"1"), timeout=20)
        await recorder.get(1)
        await asyncio.to_thread(broker.restart)
        await app.bus.publish(Envelope(topic="a", payload=b"2"), timeout=60)
        await eventually(lambda: b"2" in recorder.payloads)
        # The broker may not have had the acknowledgement of the first one.
        assert list(dict.fromkeys(recorder.payloads)) == [b"1", b"2"]


@pytest.mark.parametrize(
    ("where", "port", "options", "kind", "words"),
    [
        ("guarded", "tls_port", {"tls_ca": None}, ConnectFailed, "not accepted.*signed.*tls_ca"),
        ("guarded", "tls_port", {"tls_ca": "other"}, ConnectFailed, "not accepted.*tls_ca"),
        ("guarded", "tls_port", {"host": "127.1"}, ConnectFailed, "Hostname mismatch.*a name"),
        ("expired", "tls_port", {}, ConnectFailed, "not accepted.*has expired.*renew"),
        ("guarded", "tls_port", {"tls": False}, ConnectFailed, "speaks TLS.*mqtts://"),
        ("guarded", "port", {}, ConnectFailed, "without TLS"),
        ("guarded", "websocket_tls_port", PLAIN_WS, ConnectFailed, "TLS.*wss://"),
        ("guarded", "websocket_port", WS, ConnectFailed, "does not speak TLS"),
        ("guarded", "port", PLAIN_WS, ConnectFailed, "without websockets"),
        ("guarded", "tls_port", WS, ConnectFailed, "without websockets"),
        ("guarded", "websocket_port", {"tls": False}, ConnectFailed, "HTTP.*ws://"),
        ("guarded", "websocket_tls_port", {}, ConnectFailed, "HTTP.*ws://"),
        ("guarded", "websocket_tls_port", {**WS, "tls_ca": None}, ConnectFailed, "not accepted"),
        ("guarded", "websocket_port", {**PLAIN_WS, "password": "wrong"}, NotAuthorised, "'ann'"),
        ("mutual", "tls_port", {}, ConnectFailed, "requires a certificate.*give tls_cert"),
        ("mutual", "tls_port", {"tls_cert": "other"}, ConnectFailed, "the authority.*tls_cert"),
        ("guarded", "tls_port", {"password": "wrong"}, NotAuthorised, "user 'ann'.*password"),
        ("guarded", "tls_port", {"username": None}, NotAuthorised, "without a user name"),
    ],
    ids=[
        "no CA", "wrong CA", "other host", "expired", "plain to TLS", "TLS to plain",
        "ws to wss", "wss to ws", "ws to mqtt", "wss to mqtts", "mqtt to ws", "mqtts to wss",
        "wss without CA", "ws with a wrong password",
        "no client certificate", "other client certificate", "wrong password", "no login",
    ],
)  # fmt: skip
async def test_a_connection_that_is_set_up_wrongly_fails_at_once_and_says_why(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    where: str,
    port: str,
    options: dict[str, Any],
    kind: type[Exception],
    words: str,
) -> None:
    broker: Mosquitto = request.getfixturevalue(where)
    make_certificates(broker.host, tmp_path)
    login = {"username": "ann", "password": SECRET, "tls_ca": str(broker.ca_file)}
    options = {"tls": True, **login, **options}
    for option, file in (("tls_ca", "ca.pem"), ("tls_cert", "client.pem")):
        if options.get(option) == "other":
            options[option] = str(tmp_path / file)
    if options["username"] is None:
        options["password"] = None
    if not options["tls"]:
        options["tls_ca"] = None
    place = at(broker, port, options.pop("host", None))
    async with client(place, start=False, start_timeout=600.0, **options) as app:
        with pytest.raises(kind, match=words) as caught:
            await asyncio.wait_for(app.start(), 60)
    assert f"{place.host}:{place.port}" in str(caught.value)
    assert SECRET not in str(caught.value)
