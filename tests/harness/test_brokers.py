"""Real brokers for tests, and the proxy in front of them, do what they say."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiokafka.errors
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer

from spa_dat import DistributedApplication
from spa_dat._pytest import require
from spa_dat.harness.brokers._broker_process import PortClaims
from spa_dat.harness.brokers._kafka_tools import class_archive
from spa_dat.testing import BrokerFailed, BrokerProcess, BrokerUnavailable, Kafka, Mosquitto, Proxy
from support.kafka_bus import create, new_prefix, settings
from support.waiting import eventually


@asynccontextmanager
async def _echo_server() -> AsyncIterator[tuple[str, int]]:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while chunk := await reader.read(1024):
                writer.write(chunk)
        except ConnectionError:
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    async with server:
        yield "127.0.0.1", server.sockets[0].getsockname()[1]
        server.close()


async def test_proxy_passes_on_and_cuts() -> None:
    async with _echo_server() as target, Proxy(*target) as proxy:
        reader, writer = await asyncio.open_connection(proxy.host, proxy.port)
        writer.write(b"hello")
        assert await reader.readexactly(5) == b"hello"
        proxy.cut()
        with pytest.raises(ConnectionResetError):
            await reader.readexactly(1)
        writer.close()
        await eventually(lambda: proxy.connections == 0)
        assert proxy.accepted == 1


async def test_proxy_holds_back_in_a_blackhole_until_healed() -> None:
    async with _echo_server() as target, Proxy(*target) as proxy:
        reader, writer = await asyncio.open_connection(proxy.host, proxy.port)
        proxy.blackhole()
        writer.write(b"hello")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await reader.readexactly(5)
        proxy.heal()
        assert await reader.readexactly(5) == b"hello"
        writer.close()


async def test_proxy_closes_a_connection_that_fell_into_a_blackhole() -> None:
    async with _echo_server() as target:
        async with Proxy(*target) as proxy:
            proxy.blackhole()
            reader, writer = await asyncio.open_connection(proxy.host, proxy.port)
            await eventually(lambda: proxy.accepted == 1)
        with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
            await reader.readexactly(1)
        writer.close()


async def test_proxy_refuses_and_allows() -> None:
    async with _echo_server() as target, Proxy(*target) as proxy:
        await proxy.refuse()
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection(proxy.host, proxy.port)
        await proxy.allow()
        reader, writer = await asyncio.open_connection(proxy.host, proxy.port)
        writer.write(b"x")
        assert await reader.readexactly(1) == b"x"
        writer.close()


async def test_proxy_cuts_after_so_many_bytes() -> None:
    async with _echo_server() as target, Proxy(*target) as proxy:
        proxy.cut_after(3, "server")
        reader, writer = await asyncio.open_connection(proxy.host, proxy.port)
        writer.write(b"hello")
        assert await reader.readexactly(3) == b"hel"
        with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
            await reader.readexactly(1)
        writer.close()


async def test_proxy_passes_nothing_on_between_the_last_byte_and_the_cut() -> None:
    async with _echo_server() as target, Proxy(*target) as proxy:
        proxy.cut_after(3)
        assert proxy.on_client_bytes is not None
        assert proxy.on_client_bytes(b"hello") == b"hel"
        assert proxy.on_client_bytes(b"gap") == b""


async def test_proxy_hooks_see_and_change_bytes() -> None:
    async with _echo_server() as target, Proxy(*target) as proxy:
        proxy.on_client_bytes = bytes.upper
        proxy.delay = 0.01
        reader, writer = await asyncio.open_connection(proxy.host, proxy.port)
        writer.write(b"hello")
        assert await reader.readexactly(5) == b"HELLO"
        writer.close()


@pytest.mark.parametrize("turns", range(12))
def test_proxy_leaves_no_connection_open_that_it_is_just_accepting(turns: int) -> None:
    async def close_meanwhile() -> None:
        async with Proxy("127.0.0.1", 1) as proxy:
            with socket.create_connection((proxy.host, proxy.port)):
                for _ in range(turns):
                    await asyncio.sleep(0)
                await proxy.close()

    asyncio.run(close_meanwhile())
    # What is left open would warn, which is an error here.
    gc.collect()


@pytest.mark.mosquitto
def test_mosquitto_restarts_on_its_port(own_mosquitto: Callable[..., Mosquitto]) -> None:
    broker = own_mosquitto(durable=True, users={"ann": "secret"}, acl="user ann\n", tls=True)
    port, first = broker.port, broker.pid
    broker.restart(kill=True)
    assert broker.alive
    assert (broker.port, broker.pid != first) == (port, True)
    broker.pause()
    broker.stop()
    assert not broker.alive
    assert "mosquitto version" in broker.log


@pytest.mark.mosquitto
def test_mosquitto_that_can_not_start_shows_its_log(
    own_mosquitto: Callable[..., Mosquitto],
) -> None:
    with pytest.raises(RuntimeError, match="no_such_option"):
        own_mosquitto(extra=["no_such_option true"])


@pytest.mark.mosquitto
def test_a_durable_mosquitto_keeps_its_data(own_mosquitto: Callable[..., Mosquitto]) -> None:
    broker = own_mosquitto(durable=True)
    asyncio.run(_retain(broker.url))
    broker.restart()
    asyncio.run(_find_retained(broker.url))


async def _retain(url: str) -> None:
    async with DistributedApplication(url, name="writer") as app:
        await app.socket().publish("kept", "value", retain=True)


async def _find_retained(url: str) -> None:
    app = DistributedApplication(url, name="reader")
    seen: list[str] = []

    @app.application("kept")
    async def keep(payload: str) -> None:
        seen.append(payload)

    async with app:
        await eventually(lambda: "value" in seen)


@pytest.mark.mosquitto
def test_mosquitto_reads_its_rules_again(own_mosquitto: Callable[..., Mosquitto]) -> None:
    broker = own_mosquitto(users={"ann": "secret"}, acl="user ann\n")
    broker.reload(users={"ann": "other"}, acl="user ann\ntopic readwrite #\n")
    asyncio.run(eventually(lambda: "Reloading config" in broker.log))


@pytest.mark.mosquitto
def test_a_broker_that_does_not_run_says_so(own_mosquitto: Callable[..., Mosquitto]) -> None:
    broker = own_mosquitto()
    with pytest.raises(BrokerFailed, match="is already running"):
        broker.start()
    broker.kill()
    assert not broker.alive
    with pytest.raises(BrokerFailed, match=r"(?s)is not running; its log:.*mosquitto version"):
        broker.stop()
    broker.close()
    broker.close()
    assert not broker.folder.exists()


class Stubborn(BrokerProcess):
    """A broker that is only a process; what it does about SIGTERM is up to the code."""

    title = "Stubborn"
    url = "stub://127.0.0.1"

    def __init__(self, at_sigterm: str) -> None:
        super().__init__()
        self._at_sigterm = at_sigterm

    @classmethod
    def missing(cls) -> str | None:
        return None

    def _command(self) -> list[str]:
        code = (
            "import signal, sys, pathlib\nseen = []\n"
            f"def at_sigterm(*_):\n    seen.append(1)\n    {self._at_sigterm}\n"
            "signal.signal(signal.SIGTERM, at_sigterm)\n"
            "pathlib.Path('ready').touch()\n"
            "while True: signal.pause()"
        )
        return [sys.executable, "-c", code]

    def _answers(self) -> bool:
        return (self.folder / "ready").exists()


def test_a_broker_that_somebody_else_has_stopped_ends_at_a_stop() -> None:
    with Stubborn("sys.exit()") as broker:
        os.kill(broker.pid, signal.SIGSTOP)
        broker.stop()
        assert not broker.alive


def test_a_broker_that_misses_a_signal_gets_another() -> None:
    with Stubborn("len(seen) > 1 and sys.exit()") as broker:
        broker.stop()
        assert not broker.alive


def test_a_broker_that_does_not_end_is_killed_and_named() -> None:
    with Stubborn("pass") as broker:
        broker._stop_timeout = 0.2
        pid = broker.pid
        with pytest.raises(
            BrokerFailed, match=rf"Stubborn \(process {pid}, .*SIGTERM and was killed"
        ):
            broker.stop()
        assert not broker.alive


def test_what_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setenv("SPA_DAT_KAFKA_JARS", str(tmp_path))
    assert "apt-get install default-jre-headless" in str(Kafka.missing())
    with pytest.raises(BrokerUnavailable, match="no Java 17"), Kafka():
        pass
    with pytest.raises(BrokerUnavailable, match="apt-get install maven"):
        Kafka.fetch()
    _executable(tmp_path / "java", "echo 'openjdk version \"21.0.1\"' >&2")
    assert "SPA_DAT_KAFKA_JARS" in str(Kafka.missing())
    assert str(tmp_path) in str(Kafka.missing())
    (tmp_path / "kafka_2.13-4.1.1.jar").touch()
    assert Kafka.missing() is None
    assert Kafka.fetch() == tmp_path


def test_a_java_that_is_too_old_does_not_count(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "bin").mkdir()
    _executable(tmp_path / "bin" / "java", "echo 'java version \"11.0.2\"' >&2")
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    assert "no Java 17" in str(Kafka.missing())


def test_jars_are_fetched_with_maven_entirely_or_not_at_all(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tools, cache = tmp_path / "tools", tmp_path / "cache"
    tools.mkdir()
    monkeypatch.setenv("PATH", f"{tools}:/usr/bin:/bin")
    monkeypatch.delenv("SPA_DAT_KAFKA_JARS", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    monkeypatch.setenv("SPA_DAT_KAFKA_VERSION", "3.9.1")
    _executable(tools / "mvn", "echo no network; exit 1")
    with pytest.raises(BrokerFailed, match=r"Kafka 3\.9\.1:\nno network"):
        Kafka.fetch()
    assert list((cache / "spa-dat").iterdir()) == []
    _executable(
        tools / "mvn",
        """
        grep -q '<version>3.9.1</version>' "$5" || exit 1
        for option; do case $option in -DoutputDirectory=*) folder=${option#*=};; esac; done
        mkdir "$folder" && touch "$folder/kafka_2.13-3.9.1.jar"
        """,
    )
    folder = Kafka.fetch()
    assert folder == cache / "spa-dat" / "kafka-3.9.1"
    assert [path.name for path in folder.iterdir()] == ["kafka_2.13-3.9.1.jar"]
    assert [path.name for path in folder.parent.iterdir()] == ["kafka-3.9.1"]


@pytest.mark.kafka
def test_kafka_starts_with_the_classes_of_an_earlier_one(own_kafka: Callable[..., Kafka]) -> None:
    assert Kafka.share_classes().exists()
    # With this option Java ends if it cannot use the archive.
    broker = own_kafka(jvm=["-Xshare:on", "-Xlog:class+load:file=loaded"])
    loaded = (broker.folder / "loaded").read_text()
    assert "kafka.server.BrokerServer source: shared objects file" in loaded


def test_an_archive_of_classes_is_for_these_jars_and_this_java(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    archives = []
    for java, jar in [("21.0.1", "a"), ("21.0.2", "a"), ("21.0.2", "b"), ("21.0.2", "b")]:
        home, jars = tmp_path / java, tmp_path / jar
        (home / "bin").mkdir(parents=True, exist_ok=True)
        _executable(home / "bin" / "java", f"echo 'openjdk version \"{java}\"' >&2")
        jars.mkdir(exist_ok=True)
        (jars / "kafka_2.13-4.1.1.jar").touch()
        monkeypatch.setenv("JAVA_HOME", str(home))
        monkeypatch.setenv("SPA_DAT_KAFKA_JARS", str(jars))
        archives.append(class_archive())
    assert archives[2] == archives[3]
    assert len(set(archives)) == 3
    assert {archive.parent for archive in archives} == {tmp_path / "spa-dat"}


def _executable(path: Path, text: str) -> None:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


async def _produce(*values: bytes, topic: str = "log", **options: Any) -> None:
    producer = AIOKafkaProducer(acks="all", **options)
    try:
        await producer.start()
        for value in values:
            await producer.send_and_wait(topic, value)
    finally:
        await producer.stop()


async def _consume(count: int, topic: str = "log", **options: Any) -> list[bytes | None]:
    values: list[bytes | None] = []
    async with AIOKafkaConsumer(topic, auto_offset_reset="earliest", **options) as consumer:
        while len(values) < count:
            for records in (await consumer.getmany(timeout_ms=100)).values():
                values += [record.value for record in records]
    return values


@pytest.mark.kafka
async def test_kafka_keeps_its_data_when_it_is_killed(own_kafka: Callable[..., Kafka]) -> None:
    broker = own_kafka(auto_create=True)
    port, first = broker.port, broker.pid
    await _produce(b"1", b"2", bootstrap_servers=broker.server)
    broker.restart(kill=True)
    assert broker.alive
    assert (broker.port, broker.pid != first) == (port, True)
    await _produce(b"3", bootstrap_servers=broker.server)
    broker.restart()
    assert await _consume(3, bootstrap_servers=broker.server) == [b"1", b"2", b"3"]
    broker.pause()
    broker.stop()
    assert not broker.alive
    assert "Kafka version" in broker.log


@pytest.mark.kafka
async def test_clients_of_the_proxy_talk_to_kafka_through_it(
    own_kafka: Callable[..., Kafka],
) -> None:
    broker = own_kafka(auto_create=True)
    proxy = broker.proxy()
    async with proxy:
        server = f"{proxy.host}:{proxy.port}"
        await _produce(b"1", bootstrap_servers=server)
        # The first connection is for finding the brokers, the next for talking to one.
        assert proxy.accepted >= 2
        async with AIOKafkaProducer(acks="all", bootstrap_servers=server) as producer:
            await producer.send_and_wait("log", b"2")
            accepted = proxy.accepted
            proxy.cut()
            await producer.send_and_wait("log", b"3")
            assert proxy.accepted > accepted
        assert await _consume(3, bootstrap_servers=server) == [b"1", b"2", b"3"]
        await proxy.refuse()
        proxy.cut()
        with pytest.raises(aiokafka.errors.KafkaConnectionError):
            await _produce(b"4", bootstrap_servers=server)
        await _produce(b"5", bootstrap_servers=broker.server)


@pytest.mark.kafka
async def test_kafka_lets_in_who_has_a_login_and_what_it_was_granted(
    own_kafka: Callable[..., Kafka],
) -> None:
    broker = own_kafka(
        auto_create=True, sasl_users={"ann": "secret"}, acls=[("ann", "ALL", "TOPIC", "ann.*")]
    )
    ann: dict[str, Any] = {
        "bootstrap_servers": f"{broker.host}:{broker.sasl_port}",
        "security_protocol": "SASL_PLAINTEXT",
        "sasl_mechanism": "PLAIN",
        "sasl_plain_username": "ann",
        "sasl_plain_password": "secret",
    }
    for mechanism in ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"):
        await _produce(b"1", topic="ann.log", **{**ann, "sasl_mechanism": mechanism})
    with pytest.raises(aiokafka.errors.TopicAuthorizationFailedError):
        await _produce(b"2", topic="other", **ann)
    broker.grant("ann", "ALL", "TOPIC", "other")
    await _produce(b"2", topic="other", **ann)
    assert await _consume(1, topic="other", bootstrap_servers=broker.server) == [b"2"]
    with pytest.raises(aiokafka.errors.KafkaConnectionError):
        await _produce(b"3", topic="ann.log", **{**ann, "sasl_plain_password": "wrong"})


@pytest.mark.kafka
async def test_kafka_speaks_tls(own_kafka: Callable[..., Kafka]) -> None:
    broker = own_kafka(tls=True, client_certificates=True, auto_create=True)
    context = ssl.create_default_context(cafile=str(broker.ca_file))
    context.load_cert_chain(broker.client_cert_file)
    server = f"{broker.host}:{broker.tls_port}"
    secure: dict[str, Any] = {
        "bootstrap_servers": server,
        "security_protocol": "SSL",
        "ssl_context": context,
    }
    await _produce(b"1", **secure)
    assert await _consume(1, **secure) == [b"1"]


@pytest.mark.kafka
def test_kafka_has_started_only_when_each_of_its_listeners_accepts(
    own_kafka: Callable[..., Kafka], monkeypatch: pytest.MonkeyPatch
) -> None:
    accepts, asked = Kafka._accepts, list[int]()

    def late(self: Kafka, port: int) -> bool:
        asked.append(port)
        if asked.count(port) == 1:
            raise ConnectionRefusedError
        return accepts(self, port)

    monkeypatch.setattr(Kafka, "_accepts", late)
    broker = own_kafka(tls=True)
    assert asked.count(broker.tls_port) > 1


@pytest.mark.kafka
async def test_kafka_keeps_records_with_a_time_of_long_ago(kafka: Kafka) -> None:
    name = f"{new_prefix()}old"
    await create(kafka.server, name)
    _, configs = await settings(kafka.server, name)
    # Since 1970.
    assert int(configs["retention.ms"]) > time.time() * 1000


@pytest.mark.kafka
def test_kafka_that_can_not_start_shows_its_log(own_kafka: Callable[..., Kafka]) -> None:
    with pytest.raises(RuntimeError, match="no-such-class"):
        own_kafka(properties={"authorizer.class.name": "no-such-class"})


_STARTER = """
import sys
from spa_dat import testing
broker = getattr(testing, sys.argv[1])()
broker.start()
print(broker.port, broker.folder, flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(Mosquitto, marks=pytest.mark.mosquitto),
        pytest.param(Kafka, marks=pytest.mark.kafka),
    ],
)
async def test_a_broker_ends_with_the_process_that_started_it(kind: type[BrokerProcess]) -> None:
    require(kind)
    starter = subprocess.Popen(
        [sys.executable, "-c", _STARTER, kind.__name__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with starter:
        assert starter.stdout is not None
        port, folder = starter.stdout.readline().split(maxsplit=1)
        assert _accepts(int(port))
        starter.send_signal(signal.SIGKILL)
        await eventually(lambda: not _accepts(int(port)))
        await eventually(lambda: not Path(folder.strip()).exists())


def _accepts(port: int) -> bool:
    with socket.socket() as connection:
        return connection.connect_ex((Kafka.host, port)) == 0


# Ports.


def test_a_claimed_port_is_given_to_nobody_else(ports: PortClaims) -> None:
    mine = ports.take(50)
    assert len(set(mine)) == 50
    others = PortClaims()
    program = (
        "import sys; from spa_dat.harness.brokers._broker_process import PortClaims;"
        "print([PortClaims._lock(int(port)) for port in sys.argv[1:]])"
    )
    try:
        assert not set(others.take(500)) & set(mine)
        tried = [str(port) for port in mine[:3]]
        done = subprocess.run(
            [sys.executable, "-c", program, *tried], capture_output=True, text=True, check=True
        )
        assert done.stdout.strip() == "[False, False, False]"
    finally:
        others.release()
    ports.release()
    done = subprocess.run(
        [sys.executable, "-c", program, *tried], capture_output=True, text=True, check=True
    )
    assert "True" in done.stdout
