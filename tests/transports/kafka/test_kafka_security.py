"""Logins, access rules and TLS of a Kafka broker."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import datetime
import functools
import logging
import ssl
import struct
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import trustme
from aiokafka.conn import AIOKafkaConnection, CloseReason, ScramAuthenticator

from spa_dat import DistributedApplication
from spa_dat._pytest import require
from spa_dat.errors import ConfigurationError, ConnectFailed, NotAuthorised, PublishNotSent
from spa_dat.harness.brokers._certificates import make_certificates
from spa_dat.testing import Acl, Kafka
from spa_dat.transports import Envelope, KafkaConfig
from spa_dat.transports.kafka.consuming import (
    _partition_guard as _guard,
    _unreadable_reports as _reports,
)
from spa_dat.transports.kafka.consuming._history import read_history
from support.kafka_bus import bus_client, create, new_prefix, settings
from support.kafka_consuming import taker
from support.waiting import eventually

pytestmark = pytest.mark.kafka

_SECRET = "hush-hush-4711"
_DELETE_ACLS = 31


def rules(user: str, prefix: str) -> list[Acl]:
    own = f"{prefix}_spa.*"
    return [
        (user, operation, "TOPIC", own) for operation in ("CREATE", "READ", "WRITE", "DESCRIBE")
    ] + [(user, "WRITE", "TOPIC", f"{prefix}open"), (user, "READ", "GROUP", "*")]


@pytest.fixture(scope="module")
def _guarded() -> Iterator[Kafka]:
    require(Kafka)
    with Kafka(sasl_users={"ann": _SECRET, "bob": "other"}, tls=True) as broker:
        yield broker


@pytest.fixture
def guarded(_guarded: Kafka, prefix: str) -> Iterator[Kafka]:
    """A broker that all tests share, with what ann may do with names of this test."""
    for rule in rules("ann", prefix):
        _guarded.grant(*rule)
    yield _guarded
    assert _SECRET not in _guarded.log


@pytest.fixture
def prefix() -> str:
    return new_prefix()


async def test_a_login_with_access_rules(
    guarded: Kafka, prefix: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    server = f"{guarded.host}:{guarded.sasl_port}"
    login: dict[str, Any] = {"username": "ann", "password": _SECRET, "allow_plain_password": True}
    await create(guarded.server, f"{prefix}open")
    await create(guarded.server, f"{prefix}closed")
    async with bus_client(server, prefix=prefix, **login) as client:
        await client.publish("open")
        # It may not be written, nor seen, nor created.
        for topic in ("closed", "missing"):
            with pytest.raises(NotAuthorised, match=topic):
                await client.publish(topic)
        posts = [client.bus.post(Envelope(topic="closed")) for _ in range(3)]
        await client.publish("open")
        results = await asyncio.wait_for(asyncio.gather(*posts, return_exceptions=True), 60)
        assert [type(result) for result in results] == [NotAuthorised] * 3
        guarded.grant("ann", "WRITE", "TOPIC", f"{prefix}closed")
        await client.publish("closed")
        assert client.stats["kafka.producers_lost"] == 0
    assert (await settings(guarded.server, f"{prefix}missing"))[0] == 0
    assert _SECRET not in caplog.text


async def test_a_right_that_is_gone_refuses_and_others_go_on(guarded: Kafka, prefix: str) -> None:
    server = f"{guarded.host}:{guarded.sasl_port}"
    guarded.grant("ann", "DESCRIBE", "TOPIC", f"{prefix}seen")
    await create(guarded.server, f"{prefix}seen")
    login: dict[str, Any] = {"username": "ann", "password": _SECRET, "allow_plain_password": True}
    async with bus_client(server, prefix=prefix, create_topics="own", **login) as client:
        # The cluster shows the topic, and refuses what is written to it.
        for _ in range(2):
            with pytest.raises(NotAuthorised, match=r"refused the publish to 'seen'.*access rules"):
                await client.publish("seen")
        guarded.grant("ann", "WRITE", "TOPIC", f"{prefix}seen")
        await client.publish("seen")
        assert client.stats["kafka.producers_lost"] == 0


def revoke(broker: Kafka, user: str, topic: str) -> None:
    """Take back all that a user was granted for this topic alone."""
    name, principal = topic.encode(), f"User:{user}".encode()
    texts = struct.pack(f">h{len(name)}sb", len(name), name, 3)
    texts += struct.pack(f">h{len(principal)}sh", len(principal), principal, -1)
    rules = struct.pack(">ib", 1, 2) + texts + struct.pack(">bb", 1, 1)
    answer = broker._ask(_DELETE_ACLS, 1, rules)
    assert struct.unpack_from(">iiih", answer)[-2:] == (1, 0)


async def test_who_loses_a_right_without_a_group_is_told_so(
    guarded: Kafka, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_reports, "_ABSENT_AFTER", 0.0)
    topic = f"{prefix}seen"
    await create(guarded.server, topic)
    guarded.grant("ann", "READ", "TOPIC", topic)
    login: dict[str, Any] = {"username": "ann", "password": _SECRET, "allow_plain_password": True}
    server = f"{guarded.host}:{guarded.sasl_port}"
    async with taker(
        server, "seen", prefix=prefix, ephemeral=True, **{"create_topics": "own", **login}
    ) as inbox:
        assert inbox.consumer.trouble is None
        revoke(guarded, "ann", topic)
        await eventually(lambda: "not authorised" in (inbox.consumer.trouble or ""))
        guarded.grant("ann", "READ", "TOPIC", topic)
        await eventually(lambda: inbox.consumer.trouble is None)


@pytest.mark.parametrize("reset", ["earliest", "latest", "1s"])
async def test_a_wildcard_leaves_out_what_may_not_be_read(
    guarded: Kafka,
    prefix: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    reset: str,
) -> None:
    monkeypatch.setattr(_guard, "_FIRST_PAUSE", 0.05)
    monkeypatch.setattr(_guard, "_LONGEST_PAUSE", 0.1)
    for topic in ("open", "closed"):
        await create(guarded.server, f"{prefix}w.{topic}")
        guarded.grant("ann", "DESCRIBE", "TOPIC", f"{prefix}w.{topic}")
    guarded.grant("ann", "READ", "TOPIC", f"{prefix}w.open")
    login: dict[str, Any] = {"username": "ann", "password": _SECRET, "allow_plain_password": True}
    async with (
        bus_client(guarded.server, prefix=prefix) as other,
        taker(
            f"{guarded.host}:{guarded.sasl_port}",
            "w/+",
            prefix=prefix,
            create_topics="own",
            offset_reset=reset,
            **login,
        ) as inbox,
    ):
        await eventually(lambda: f"topic '{prefix}w.closed' cannot be read" in caplog.text)
        for number in range(20):
            await other.publish("w/closed", b"%d" % number)
            await other.publish("w/open", b"%d" % number)
        await inbox.get(20)
        assert inbox.numbers == list(range(20))
        assert inbox.stats["kafka.reconnects"] == 0
        # What a wildcard finds may be for others.
        assert inbox.consumer.trouble is None
        assert caplog.text.count("cannot be read") == 1
        guarded.grant("ann", "READ", "TOPIC", f"{prefix}w.closed")
        await inbox.get(40)
        assert {d.envelope.topic for d in inbox.deliveries[20:]} == {"w/closed"}
        await eventually(lambda: "can be read again" in caplog.text)


@pytest.mark.parametrize("durable", [True, False])
async def test_a_topic_by_name_that_may_not_be_read_is_refused_at_the_start(
    guarded: Kafka, prefix: str, durable: bool
) -> None:
    login: dict[str, Any] = {"username": "ann", "password": _SECRET, "allow_plain_password": True}
    await create(guarded.server, f"{prefix}seen")
    guarded.grant("ann", "DESCRIBE", "TOPIC", f"{prefix}seen")
    server = f"{guarded.host}:{guarded.sasl_port}"
    async with taker(
        server, "seen", prefix=prefix, start=False, subscription={"durable": durable}, **login
    ) as inbox:
        with pytest.raises(NotAuthorised, match=rf"'{prefix}seen'.*access rules"):
            await asyncio.wait_for(inbox.consumer.start(), 60)
    guarded.grant("ann", "READ", "TOPIC", f"{prefix}seen")
    async with (
        bus_client(guarded.server, prefix=prefix) as other,
        taker(server, "seen", prefix=prefix, subscription={"durable": durable}, **login) as inbox,
    ):
        await other.publish("seen")
        await inbox.get(1)


async def test_a_refused_login_is_an_error_at_once(guarded: Kafka) -> None:
    server = f"{guarded.host}:{guarded.sasl_port}"
    login: dict[str, Any] = {
        "username": "ann",
        "password": "wrong-one",
        "allow_plain_password": True,
    }
    async with bus_client(server, start=False, start_timeout=600.0, **login) as client:
        with pytest.raises(NotAuthorised, match=r"user 'ann'.*user name or password") as caught:
            await asyncio.wait_for(client.start(), 60)
        assert "wrong-one" not in str(caught.value)


@pytest.mark.parametrize("mechanism", ["SCRAM-SHA-256", "SCRAM-SHA-512"])
async def test_a_login_with_another_mechanism(guarded: Kafka, prefix: str, mechanism: str) -> None:
    server = f"{guarded.host}:{guarded.sasl_port}"
    login: dict[str, Any] = {"username": "ann", "password": _SECRET, "allow_plain_password": True}
    async with bus_client(server, prefix=prefix, sasl_mechanism=mechanism, **login) as client:
        await client.bus.park(Envelope(topic="a", id="1"), timeout=20)


async def test_a_broker_has_to_prove_that_it_knows_the_password(
    guarded: Kafka,
    prefix: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    genuine = ScramAuthenticator.process_server_final_message

    def wrong(login: Any, answer: str) -> None:
        genuine(login, "v=" + base64.b64encode(b"guessed").decode())

    server = f"{guarded.host}:{guarded.sasl_port}"
    login: dict[str, Any] = {
        "username": "ann",
        "password": _SECRET,
        "allow_plain_password": True,
        "sasl_mechanism": "SCRAM-SHA-256",
    }
    monkeypatch.setattr(ScramAuthenticator, "process_server_final_message", wrong)
    async with bus_client(server, start=False, start_timeout=600.0, **login) as client:
        with pytest.raises(NotAuthorised, match="does not prove that it knows the password"):
            await asyncio.wait_for(client.start(), 60)
    monkeypatch.setattr(ScramAuthenticator, "process_server_final_message", genuine)
    connections = set[Any]()
    connect = AIOKafkaConnection.connect

    async def noted(connection: Any) -> Any:
        connections.add(connection)
        return await connect(connection)

    monkeypatch.setattr(AIOKafkaConnection, "connect", noted)
    async with bus_client(server, prefix=prefix, create_topics="own", **login) as client:
        await create(guarded.server, f"{prefix}open")
        await client.publish("open")
        monkeypatch.setattr(ScramAuthenticator, "process_server_final_message", wrong)
        for connection in connections:
            connection.close(reason=CloseReason.CONNECTION_BROKEN)
        await eventually(lambda: "answer to the login is wrong" in caplog.text)
        post = client.bus.post(Envelope(topic="open"))
        monkeypatch.setattr(ScramAuthenticator, "process_server_final_message", genuine)
        await asyncio.wait_for(post, 60)
        assert client.fatal == []


async def test_a_mechanism_that_the_cluster_does_not_have(own_kafka: Callable[..., Kafka]) -> None:
    only_plain = {"sasl.enabled.mechanisms": "PLAIN"}
    broker = own_kafka(sasl_users={"ann": _SECRET}, properties=only_plain)
    server = f"{broker.host}:{broker.sasl_port}"
    login: dict[str, Any] = {"username": "ann", "password": _SECRET, "allow_plain_password": True}
    scram: dict[str, Any] = {**login, "sasl_mechanism": "SCRAM-SHA-256"}
    async with bus_client(server, start=False, **scram) as client:
        with pytest.raises(NotAuthorised, match=r"'ann'.*mechanism is not enabled"):
            await asyncio.wait_for(client.start(), 60)


@pytest.mark.parametrize("source", ["password_function", "password_file"])
async def test_a_token_is_renewed_before_it_ends(
    guarded: Kafka,
    prefix: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    source: str,
) -> None:
    file, tokens = tmp_path / "token", list[str]()

    def renewed() -> str:
        tokens.append(guarded.token("ann", 5.0))
        return tokens[-1]

    def write() -> None:
        new = tmp_path / "new"
        new.write_text(renewed() + "\n")
        new.replace(file)

    write()
    option: Any = renewed if source == "password_function" else str(file)
    closed = 0
    close = AIOKafkaConnection.close

    def counting(connection: Any, reason: Any = None, exc: Any = None) -> Any:
        nonlocal closed
        closed += reason is CloseReason.CONNECTION_BROKEN
        return close(connection, reason, exc)

    monkeypatch.setattr(AIOKafkaConnection, "close", counting)
    guarded.grant("ann", "READ", "TOPIC", f"{prefix}open")
    await create(guarded.server, f"{prefix}open")
    async with taker(
        f"{guarded.host}:{guarded.sasl_port}",
        "open",
        prefix=prefix,
        create_topics="own",
        sasl_mechanism="OAUTHBEARER",
        allow_plain_password=True,
        **{source: option},
    ) as inbox:
        await inbox.client.start()
        number = 0

        def is_closed(before: int) -> bool:
            write()
            return closed > before

        # The cluster closes each connection when its token ends.
        while closed < 6:
            before = closed
            await inbox.client.publish("open", b"%d" % number)
            number += 1
            await inbox.get(number)
            await eventually(functools.partial(is_closed, before))
        assert inbox.numbers == list(range(number))
        assert inbox.stats["kafka.reconnects"] == 0
        assert inbox.stats["kafka.producers_lost"] == 0
    assert [record for record in caplog.records if record.levelno > logging.INFO] == []
    assert not any(token in caplog.text for token in tokens)


@pytest.mark.parametrize(
    ("token", "kind", "words"),
    [
        (
            Kafka.token("ann", -60.0),
            NotAuthorised,
            r"refused the token.*invalid_token.*not expired",
        ),
        ("hunter2-canary", NotAuthorised, r"refused the token.*invalid_token"),
        ("a\x01auth=Bearer b", ConfigurationError, "OAUTHBEARER"),
    ],
    ids=["ended", "no token", "two"],
)
async def test_a_token_that_is_refused_is_an_error_at_once(
    guarded: Kafka, token: str, kind: type[Exception], words: str
) -> None:
    server = f"{guarded.host}:{guarded.sasl_port}"
    login: dict[str, Any] = {"sasl_mechanism": "OAUTHBEARER", "allow_plain_password": True}
    async with bus_client(
        server, start=False, start_timeout=600.0, password_function=lambda: token, **login
    ) as client:
        with pytest.raises(kind, match=words) as caught:
            await asyncio.wait_for(client.start(), 60)
        assert token not in str(caught.value)


async def test_a_token_that_cannot_be_had_is_an_outage(
    guarded: Kafka, prefix: str, caplog: pytest.LogCaptureFixture
) -> None:
    server = f"{guarded.host}:{guarded.sasl_port}"
    failing = False

    def function() -> str:
        if failing:
            raise OSError("the server of tokens is away")
        return guarded.token("ann", 5.0)

    async with bus_client(
        server,
        prefix=prefix,
        create_topics="own",
        sasl_mechanism="OAUTHBEARER",
        allow_plain_password=True,
        password_function=function,
    ) as client:
        await create(guarded.server, f"{prefix}open")
        await client.publish("open")
        failing = True
        await eventually(lambda: "'the server of tokens is away'" in caplog.text)
        post = client.bus.post(Envelope(topic="open"))
        failing = False
        await asyncio.wait_for(post, 60)
    assert len([1 for record in caplog.records if "tokens is away" in record.message]) < 10


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ("e30.eyJleHAiOjRlOX0.", "the broker closed the connection during the login"),
        (Kafka.token("ann", -60.0), "refused the token"),
    ],
    ids=["fails over it", "refuses it"],
)
async def test_a_bad_token_while_running_is_an_outage(
    guarded: Kafka,
    prefix: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    bad: str,
    words: str,
) -> None:
    good = True
    connections: set[AIOKafkaConnection] = set()
    connect = AIOKafkaConnection.connect

    def remembering(connection: Any) -> Any:
        connections.add(connection)
        return connect(connection)

    monkeypatch.setattr(AIOKafkaConnection, "connect", remembering)
    guarded.grant("ann", "READ", "TOPIC", f"{prefix}open")
    await create(guarded.server, f"{prefix}open")
    async with taker(
        f"{guarded.host}:{guarded.sasl_port}",
        "open",
        prefix=prefix,
        create_topics="own",
        sasl_mechanism="OAUTHBEARER",
        allow_plain_password=True,
        password_function=lambda: guarded.token("ann", 5.0) if good else bad,
    ) as inbox:
        client = inbox.client
        await client.start()
        await client.publish("open", b"0")
        await inbox.get(1)
        good = False
        for connection in connections:
            connection.close(reason=CloseReason.CONNECTION_BROKEN)
        await eventually(lambda: words in (client.bus.trouble or ""))
        await eventually(lambda: words in (inbox.consumer.trouble or ""))
        with pytest.raises(PublishNotSent, match=words):
            await client.bus.publish(Envelope(topic="open", payload=b"lost"), timeout=0.1)
        post = client.bus.post(Envelope(topic="open", payload=b"1"))
        said = [record for record in caplog.records if words in record.getMessage()]
        assert len([1 for record in said if "publisher" in record.name]) == 1
        good = True
        await asyncio.wait_for(post, 60)
        await inbox.get(2)
        assert inbox.numbers == [0, 1]
        await eventually(lambda: client.bus.trouble is inbox.consumer.trouble is None)
    assert bad not in caplog.text


async def test_a_login_without_rights_says_what_is_missing(guarded: Kafka, prefix: str) -> None:
    server = f"{guarded.host}:{guarded.sasl_port}"
    login: dict[str, Any] = {"username": "bob", "password": "other", "allow_plain_password": True}
    async with bus_client(server, prefix=prefix, start=False, **login) as client:
        with pytest.raises(NotAuthorised, match=rf"{prefix}_spa\.reply\.app"):
            await asyncio.wait_for(client.start(), 60)


async def test_a_login_where_none_is_asked_for_is_refused(guarded: Kafka) -> None:
    login: dict[str, Any] = {"username": "ann", "password": _SECRET, "allow_plain_password": True}
    async with bus_client(guarded.server, start=False, **login) as client:
        with pytest.raises(NotAuthorised, match="does not accept a login"):
            await asyncio.wait_for(client.start(), 60)


@pytest.mark.parametrize(
    ("port", "options", "kind", "words"),
    [
        ("tls_port", {"tls_ca": None}, ConnectFailed, "not accepted.*issuer.*tls_ca"),
        ("tls_port", {"tls_ca": "other"}, ConnectFailed, "not accepted.*issuer.*tls_ca"),
        ("tls_port", {"host": "127.1"}, ConnectFailed, "not accepted.*Hostname mismatch.*name"),
        ("expired", {}, ConnectFailed, "not accepted.*has expired.*renew"),
        ("tls_port", {"tls": False}, ConnectFailed, "speaks TLS.*kafkas://"),
        ("sasl_port", {"tls": False}, None, ""),
        ("sasl_port", {}, ConnectFailed, "without TLS"),
        ("port", {}, ConnectFailed, "without TLS"),
        ("tls_port", {"password": "wrong"}, NotAuthorised, "'ann'.*user name or password"),
        ("tls_port", {"username": None}, NotAuthorised, "requires a login.*SCRAM-SHA-512"),
        ("sasl_port", {"tls": False, "username": None}, NotAuthorised, "requires a login"),
    ],
    ids=[
        "no CA",
        "wrong CA",
        "other host",
        "expired",
        "plain to TLS",
        "plain",
        "TLS to plain SASL",
        "TLS to plain",
        "wrong password",
        "no login with TLS",
        "no login",
    ],
)
async def test_a_connection_that_is_set_up_wrongly_fails_at_once_and_says_why(
    guarded: Kafka,
    prefix: str,
    tmp_path: Path,
    port: str,
    options: dict[str, Any],
    kind: type[Exception] | None,
    words: str,
) -> None:
    options = dict(options)
    async with contextlib.AsyncExitStack() as stack:
        if port == "expired":
            number, ca = await stack.enter_async_context(expired_certificate(tmp_path))
        else:
            number, ca = getattr(guarded, port), str(guarded.ca_file)
        if options.get("tls_ca") == "other":
            make_certificates(guarded.host, tmp_path)
            options["tls_ca"] = str(tmp_path / "ca.pem")
        login = {"username": "ann", "password": _SECRET, "allow_plain_password": True}
        options = {"tls": True, "tls_ca": ca, **login, **options}
        if options["username"] is None:
            options["password"] = None
        if not options["tls"]:
            options["tls_ca"] = None
        server = f"{options.pop('host', guarded.host)}:{number}"
        client = await stack.enter_async_context(
            bus_client(server, prefix=prefix, start=False, start_timeout=600.0, **options)
        )
        if kind is None:
            await asyncio.wait_for(client.start(), 60)
            return
        with pytest.raises(kind, match=words) as caught:
            await asyncio.wait_for(client.start(), 60)
        assert server in str(caught.value)
        assert _SECRET not in str(caught.value)


@pytest.mark.parametrize("way", ["plain", "login with TLS", "token with TLS", "document"])
async def test_a_program_moves_to_a_cluster_with_tls_and_a_login_by_its_url_alone(
    guarded: Kafka, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    name = f"plant{new_prefix()}app"
    secure = f"{guarded.host}:{guarded.tls_port}"
    ca, token = quote(str(guarded.ca_file)), tmp_path / "token"
    token.write_text(guarded.token("ann"))
    document = tmp_path / "plant.toml"
    document.write_text(
        f"""
        url = "kafkas://{secure}"
        username = "ann"
        password_env = "ANNS"
        sasl_mechanism = "SCRAM-SHA-512"
        tls_ca = "{guarded.ca_file}"
        """
    )
    monkeypatch.setenv("ANNS", _SECRET)
    url = {
        "plain": f"kafka://{guarded.server}",
        "login with TLS": f"kafkas://ann:{_SECRET}@{secure}?tls_ca={ca}",
        "token with TLS": f"kafkas://{secure}?sasl_mechanism=OAUTHBEARER&tls_ca={ca}"
        f"&password_file={quote(str(token))}",
        "document": document.as_uri(),
    }[way]
    # What the page on Kafka says that an application needs.
    await create(guarded.server, f"{name}.double")
    for operation, topics in (
        ("READ", (f"{name}.double", f"_spa.reply.{name}")),
        ("WRITE", (f"{name}.double", f"_spa.reply.{name}", f"_spa.dead-letter.{name}")),
        ("CREATE", (f"_spa.reply.{name}", f"_spa.dead-letter.{name}")),
    ):
        for topic in topics:
            guarded.grant("ann", operation, "TOPIC", topic)
    guarded.grant("ann", "READ", "GROUP", f"{name}.*")
    app = DistributedApplication(url, name=name)

    @app.application(f"{name}/double", replies=True)
    async def double(number: int) -> int:
        return 2 * number

    async with app:
        reply = await app.socket().request(f"{name}/double", 21, reply=int, timeout=60)
        await app.socket().publish(f"{name}/double", "not a number")
        await eventually(lambda: app.stats["dead_letters.stored"] == 1)
    assert reply == 42


@contextlib.asynccontextmanager
async def expired_certificate(folder: Path) -> AsyncIterator[tuple[int, str]]:
    """Listen with TLS and a certificate that has expired; yield port and authority."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(folder / "ca.pem"))
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    past = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
    authority.issue_cert("127.0.0.1", not_after=past).configure_cert(context)

    def ignore(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    async with await asyncio.start_server(ignore, "127.0.0.1", 0, ssl=context) as server:
        yield server.sockets[0].getsockname()[1], str(folder / "ca.pem")


async def test_tls_with_a_login(guarded: Kafka, prefix: str) -> None:
    server = f"{guarded.host}:{guarded.tls_port}"
    login: dict[str, Any] = {"username": "ann", "password": _SECRET, "tls": True}
    # The first handshake of a new Java takes long on a busy machine.
    patient: dict[str, Any] = {"start_timeout": 60.0, "connect_timeout": 30.0}
    trusted: dict[str, Any] = {**login, **patient, "tls_ca": str(guarded.ca_file)}
    async with bus_client(server, prefix=prefix, **trusted) as client:
        assert client.provider.address == f"kafkas://{server}?prefix={prefix}"
        await create(guarded.server, f"{prefix}open")
        await client.publish("open")
    options: dict[str, Any] = {**login, "tls_insecure_skip_verification": True}
    async with bus_client(server, prefix=prefix, **options) as client:
        await client.publish("open")


async def test_a_client_certificate(own_kafka: Callable[..., Kafka], tmp_path: Path) -> None:
    broker = own_kafka(tls=True, client_certificates=True)
    server = f"{broker.host}:{broker.tls_port}"
    ca = str(broker.ca_file)
    cert = str(broker.client_cert_file)
    # The first handshake of a new Java takes long on a busy machine.
    patient: dict[str, Any] = {"start_timeout": 60.0, "connect_timeout": 30.0}
    async with bus_client(server, tls=True, tls_ca=ca, tls_cert=cert, **patient) as client:
        await client.publish("a")
    make_certificates(broker.host, tmp_path)
    for other in (None, str(tmp_path / "client.pem")):
        options: dict[str, Any] = {"tls": True, "tls_ca": ca, "start_timeout": 600.0}
        async with bus_client(server, start=False, tls_cert=other, **options) as client:
            with pytest.raises(ConnectFailed, match=r"TLS failed.*not accept our certificate"):
                await asyncio.wait_for(client.start(), 60)
    async with bus_client(server, start=False, tls=True, tls_ca=cert + "x") as client:
        with pytest.raises(ConfigurationError, match=r"client\.pemx"):
            await asyncio.wait_for(client.start(), 60)


async def test_a_login_that_has_to_be_renewed_is_no_failure(
    own_kafka: Callable[..., Kafka],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    broker = own_kafka(
        sasl_users={"ann": _SECRET},
        acls=rules("ann", "p-"),
        properties={"connections.max.reauth.ms": "2000"},
    )
    await create(broker.server, "p-open")
    broker.grant("ann", "READ", "TOPIC", "p-open")
    closed = 0
    close = AIOKafkaConnection.close

    def counting(connection: Any, reason: Any = None, exc: Any = None) -> Any:
        nonlocal closed
        closed += reason is CloseReason.CONNECTION_BROKEN
        return close(connection, reason, exc)

    monkeypatch.setattr(AIOKafkaConnection, "close", counting)
    server = f"{broker.host}:{broker.sasl_port}"
    login: dict[str, Any] = {"username": "ann", "password": _SECRET, "allow_plain_password": True}
    async with taker(server, "open", prefix="p-", create_topics="own", **login) as inbox:
        await inbox.client.start()
        number = 0
        # The library does not renew it, so the cluster closes connections.
        while closed < 5:
            before = closed
            await inbox.client.publish("open", b"%d" % number)
            await inbox.client.publish(inbox.client.bus.reply_address(str(number)))
            number += 1
            await inbox.get(number)
            await eventually(lambda: len(inbox.client.replies) >= number)  # noqa: B023
            await eventually(lambda: closed > before)  # noqa: B023
        assert inbox.numbers == list(range(number))
        assert inbox.stats["kafka.reconnects"] == 0
        assert inbox.stats["kafka.producers_lost"] == 0
    assert [record for record in caplog.records if record.levelno > logging.INFO] == []


async def test_the_history_of_what_may_not_be_read_is_refused(guarded: Kafka, prefix: str) -> None:
    await create(guarded.server, f"{prefix}closed")
    config = KafkaConfig(
        f"{guarded.host}:{guarded.sasl_port}",
        prefix=prefix,
        username="ann",
        password=_SECRET,
        allow_plain_password=True,
    )
    with pytest.raises(NotAuthorised, match=f"topic '{prefix}closed'"):
        await anext(read_history(config, ["closed"], since=0))
