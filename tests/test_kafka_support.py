"""The tests' Kafka does what it says."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiokafka.errors
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer

from support.kafka import Kafka
from support.waiting import eventually

pytestmark = pytest.mark.kafka


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


def test_kafka_that_can_not_start_shows_its_log(own_kafka: Callable[..., Kafka]) -> None:
    with pytest.raises(RuntimeError, match="no-such-class"):
        own_kafka(properties={"authorizer.class.name": "no-such-class"})


_STARTER = """
import sys
from support.kafka import Kafka
broker = Kafka()
broker.start()
print(broker.port, broker.folder, flush=True)
sys.stdin.read()
"""


@pytest.mark.usefixtures("own_kafka")
async def test_kafka_ends_with_the_process_that_started_it() -> None:
    starter = subprocess.Popen(
        [sys.executable, "-c", _STARTER],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with starter:
        assert starter.stdout is not None
        port, folder = starter.stdout.readline().split(maxsplit=1)
        try:
            assert _accepts(int(port))
            starter.send_signal(signal.SIGKILL)
            await eventually(lambda: not _accepts(int(port)))
        finally:
            shutil.rmtree(folder.strip())


def _accepts(port: int) -> bool:
    with socket.socket() as connection:
        return connection.connect_ex((Kafka.host, port)) == 0
