"""TLS and logins on a real MQTT broker, and everything that can be wrong with them."""

from __future__ import annotations

import asyncio
import datetime
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trustme

from spa_dat._pytest import require
from spa_dat.errors import ConnectFailed, NotAuthorised
from spa_dat.harness.brokers._certificates import make_certificates
from spa_dat.testing import Mosquitto
from spa_dat.transports import Envelope
from support.mqtt import client

pytestmark = pytest.mark.mosquitto

SECRET = "hush-hush-4711"
RULES = "user ann\ntopic readwrite #\n"


@pytest.fixture(scope="module")
def guarded() -> Iterator[Mosquitto]:
    """A broker that all tests share: with TLS and without, for ann alone."""
    require(Mosquitto)
    with Mosquitto(users={"ann": SECRET}, acl=RULES, tls=True) as broker:
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


def at(broker: Mosquitto, port: str, host: str | None = None) -> Any:
    return SimpleNamespace(host=host or broker.host, port=getattr(broker, port))


async def test_a_login_with_tls(guarded: Mosquitto, caplog: pytest.LogCaptureFixture) -> None:
    options: dict[str, Any] = {"tls_ca": str(guarded.ca_file), "password": SECRET}
    async with client(at(guarded, "tls_port"), tls=True, username="ann", **options) as app:
        _, recorder = await app.consume("a")
        await app.bus.publish(Envelope(topic="a", payload=b"x"), timeout=20)
        await recorder.get(1)
    assert SECRET not in caplog.text


@pytest.mark.parametrize(
    ("where", "port", "options", "kind", "words"),
    [
        ("guarded", "tls_port", {"tls_ca": None}, ConnectFailed, "not accepted.*signed.*tls_ca"),
        ("guarded", "tls_port", {"tls_ca": "other"}, ConnectFailed, "not accepted.*tls_ca"),
        ("guarded", "tls_port", {"host": "127.1"}, ConnectFailed, "Hostname mismatch.*a name"),
        ("expired", "tls_port", {}, ConnectFailed, "not accepted.*has expired.*renew"),
        ("guarded", "tls_port", {"tls": False}, ConnectFailed, "speaks TLS.*mqtts://"),
        ("guarded", "port", {}, ConnectFailed, "without TLS"),
        ("mutual", "tls_port", {}, ConnectFailed, "requires a certificate.*give tls_cert"),
        ("mutual", "tls_port", {"tls_cert": "other"}, ConnectFailed, "the authority.*tls_cert"),
        ("guarded", "tls_port", {"password": "wrong"}, NotAuthorised, "user 'ann'.*password"),
        ("guarded", "tls_port", {"username": None}, NotAuthorised, "without a user name"),
    ],
    ids=[
        "no CA", "wrong CA", "other host", "expired", "plain to TLS", "TLS to plain",
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
