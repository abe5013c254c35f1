"""Logins that a broker neither accepts nor refuses: it closes the connection, or never answers."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import ssl
import struct
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trustme
from aiokafka.client import AIOKafkaClient
from aiokafka.structs import BrokerMetadata

from spa_dat.errors import ConnectFailed
from spa_dat.harness.brokers._certificates import make_certificates
from spa_dat.transports import KafkaConfig
from spa_dat.transports.kafka._aiokafka_private import keep_connections
from spa_dat.transports.kafka._client_options import common_options, renewed_options
from spa_dat.transports.kafka._reachability import Reachability
from support.kafka_bus import bus_client

_METADATA, _HANDSHAKE, _VERSIONS, _AUTHENTICATE = 3, 17, 18, 36
_CLOSED = "the broker closed the connection during the login"
_SILENT = "no answer to the login within 30 s"
_FAILURES = [
    pytest.param(_HANDSHAKE, False, _CLOSED, id="closes after the handshake"),
    pytest.param(_AUTHENTICATE, False, _CLOSED, id="closes after the token"),
    pytest.param(_METADATA, False, _CLOSED, id="closes after the login"),
    pytest.param(_AUTHENTICATE, True, _SILENT, id="never answers the token"),
    pytest.param(_METADATA, True, _SILENT, id="never answers after the login"),
]


def _text(value: str) -> bytes:
    return struct.pack(">h", len(value)) + value.encode()


class _Broker:
    """A broker that answers a login, and fails at one request of it.

    Instead of being silent for long it has the loop's clock leap.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, fails_at: int, *, silent: bool) -> None:
        self.fails_at: int | None = fails_at
        self.port = 0
        self._silent = silent
        self._leapt = 0.0
        loop = asyncio.get_running_loop()
        clock = loop.time
        monkeypatch.setattr(loop, "time", lambda: clock() + self._leapt)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Listen."""
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield
        finally:
            server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                (size,) = struct.unpack(">i", await reader.readexactly(4))
                kind, _, number = struct.unpack(">hhi", (await reader.readexactly(size))[:8])
                if kind == self.fails_at:
                    if not self._silent:
                        break
                    self._leapt += 100.0
                    continue
                answer = struct.pack(">i", number) + self._answer(kind)
                writer.write(struct.pack(">i", len(answer)) + answer)
        writer.close()

    def _answer(self, kind: int) -> bytes:
        if kind == _VERSIONS:
            ranges = [(_METADATA, 1), (_HANDSHAKE, 1), (_VERSIONS, 0), (_AUTHENTICATE, 0)]
            parts = [struct.pack(">hhh", key, 0, newest) for key, newest in ranges]
            return struct.pack(">hi", 0, len(parts)) + b"".join(parts)
        if kind == _HANDSHAKE:
            return struct.pack(">hi", 0, 1) + _text("OAUTHBEARER")
        if kind == _AUTHENTICATE:
            return struct.pack(">hhi", 0, -1, 0)
        assert kind == _METADATA
        broker = struct.pack(">ii", 1, 1) + _text("127.0.0.1") + struct.pack(">ih", self.port, -1)
        return broker + struct.pack(">ii", 1, 0)


class _Tokens:
    """A password function; counts its calls."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self) -> str:
        """Return a token that is good for a century."""
        self.calls += 1
        claims = base64.urlsafe_b64encode(json.dumps({"exp": 4e9}).encode()).decode()
        return f"e30.{claims.rstrip('=')}.{self.calls}"


def _options(tokens: _Tokens) -> dict[str, Any]:
    return {
        "sasl_mechanism": "OAUTHBEARER",
        "allow_plain_password": True,
        "password_function": tokens,
        "connect_timeout": 30.0,
    }


async def test_a_function_that_gives_no_token_is_told_while_the_application_runs() -> None:
    def function() -> str:
        raise OSError("no server of tokens")

    options: dict[str, Any] = {"sasl_mechanism": "OAUTHBEARER", "allow_plain_password": True}
    config = KafkaConfig("127.0.0.1:9", password_function=function, **options)
    client = AIOKafkaClient(bootstrap_servers=config.servers)
    reachability = Reachability(config, "plant", client)
    assert not await reachability.moved()
    assert "no server of tokens" in str(reachability.obstacle)
    await client.close()


@pytest.mark.parametrize("lacking", ["authority", "file"])
async def test_what_is_wrong_with_certificates_is_told_while_the_application_runs(
    tmp_path: Path, lacking: str
) -> None:
    theirs, ours = make_certificates("127.0.0.1", tmp_path), tmp_path / "ours.pem"
    trustme.CA().cert_pem.write_to_path(str(ours))
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(theirs)
    server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", ssl=context)
    place = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    client = AIOKafkaClient(bootstrap_servers=place)
    reachability = Reachability(KafkaConfig(place, tls=True, tls_ca=str(ours)), "plant", client)
    if lacking == "file":
        ours.unlink()
    async with server:
        assert not await reachability.moved()
    words = "certificate is not accepted" if lacking == "authority" else "ours.pem"
    assert words in str(reachability.obstacle)
    await client.close()


@pytest.mark.parametrize(("fails_at", "silent", "words"), _FAILURES)
async def test_a_broker_that_breaks_off_the_login_is_not_there(
    monkeypatch: pytest.MonkeyPatch, fails_at: int, silent: bool, words: str
) -> None:
    broker, tokens = _Broker(monkeypatch, fails_at, silent=silent), _Tokens()
    async with broker.running():
        config = KafkaConfig(f"127.0.0.1:{broker.port}", **_options(tokens))
        client = AIOKafkaClient(**common_options(config, "plant"))
        keep_connections(client, partial(renewed_options, config), config.connect_timeout)
        client.cluster._brokers[1] = BrokerMetadata(1, "127.0.0.1", broker.port, None)
        reachability = Reachability(config, "plant", client)
        try:
            assert not await reachability.reachable()
            assert not await reachability.moved()
            assert words in str(reachability.obstacle)
            # The token may be to blame, however long it is good for.
            used = tokens.calls
            broker.fails_at = None
            assert await reachability.reachable()
            assert tokens.calls == used + 1
            assert reachability.obstacle is None
        finally:
            await client.close()


@pytest.mark.parametrize(("fails_at", "silent", "words"), _FAILURES)
async def test_a_start_says_that_the_login_was_broken_off(
    monkeypatch: pytest.MonkeyPatch, fails_at: int, silent: bool, words: str
) -> None:
    broker, tokens = _Broker(monkeypatch, fails_at, silent=silent), _Tokens()
    async with (
        broker.running(),
        bus_client(
            f"127.0.0.1:{broker.port}",
            start=False,
            start_timeout=0.1,
            **_options(tokens),
        ) as client,
    ):
        with pytest.raises(ConnectFailed, match=words):
            await asyncio.wait_for(client.start(), 600)
