"""Signs of life on MQTT connections: what counts as one, and when there is none."""

from __future__ import annotations

import asyncio
import socket
import ssl
from pathlib import Path
from typing import Any, cast

import pytest

from spa_dat import MqttConfig
from spa_dat.errors import ConnectionLost
from spa_dat.harness.brokers._certificates import make_certificates
from spa_dat.transports import Envelope
from spa_dat.transports.mqtt.protocol._keepalive import LARGE, KeepAlive
from spa_dat.transports.mqtt.protocol._open_socket import open_socket
from spa_dat.transports.mqtt.protocol._packets import PINGREQ
from spa_dat.transports.mqtt.protocol._stream import FrameStream
from spa_dat.transports.mqtt.protocol._subscribe import SubscribeRequests
from support.mqtt import Recorder, client
from support.scripted import Peer, ScriptedBroker, publish
from support.waiting import eventually

SECONDS = 10.0


class Link:
    """A connection whose bytes leave at a given rate, to a broker that answers pings."""

    def __init__(
        self,
        *,
        seconds: float = SECONDS,
        bearable: float = 0.0,
        rate: float = 1e9,
        hides: float = 0.0,
        patience: int = 1,
        unconfirmed: int = 0,
        oldest: int = 0,
    ) -> None:
        self.heard = self.spoken = self.paused = False
        self.written = 0
        self.pings = 0
        self.is_answering = True
        self.silent_at: float | None = None
        self.reason = ""
        self.oldest = oldest
        self.rate = rate
        self._hides = hides
        self._left = 0.0
        self._unanswered: list[int] = []
        self._loop = asyncio.get_running_loop()
        self._began = self._now = self._loop.time()
        self.keepalive = KeepAlive(
            self,
            seconds,
            self._on_silence,
            lambda: unconfirmed,
            oldest=lambda: self.oldest,
            bearable=bearable,
            patience=patience,
        )

    def departed(self) -> int:
        return int(self._left)

    def write(self, data: bytes) -> None:
        self.written += len(data)
        self.spoken = True
        if data == PINGREQ:
            self.pings += 1
            self._unanswered.append(self.written)

    async def run(self, seconds: float) -> None:
        """Let so much time go by."""
        end = self._loop.time() + seconds
        while self._loop.time() < end and self.silent_at is None:
            await asyncio.sleep(0.1)
            passed = self._loop.time() - self._now
            self._now += passed
            self._left = min(self.written, self._left + passed * self.rate)
            is_through = self._now - self._began >= self._hides
            if self.is_answering and is_through:
                arrived = [end for end in self._unanswered if end <= self._left]
                del self._unanswered[: len(arrived)]
                self.heard = self.heard or bool(arrived)

    def _on_silence(self, reason: str) -> None:
        self.silent_at = self._loop.time() - self._began
        self.reason = reason


@pytest.mark.virtual
async def test_what_leaves_in_front_of_a_ping_is_a_sign_of_life_for_however_long_it_takes() -> None:
    link = Link(rate=1_000)
    link.write(b"x" * 1_000_000)
    await link.run(990)
    assert link.silent_at is None
    assert link.pings <= 2, "a ping that waits in line is not followed by more"
    await link.run(200)
    assert link.silent_at is None
    link.keepalive.stop()


@pytest.mark.virtual
async def test_sending_that_comes_to_rest_ends_within_two_keep_alives() -> None:
    link = Link(rate=1_000, unconfirmed=1_000_000)
    link.is_answering = False
    link.write(b"x" * 1_000_000)
    await link.run(301)
    assert link.silent_at is None
    link.rate = 0.0
    await link.run(1_000)
    assert link.silent_at is not None
    assert link.silent_at - 301 <= 2 * SECONDS


@pytest.mark.virtual
async def test_bytes_behind_a_ping_prove_nothing_when_the_broker_is_frozen() -> None:
    link = Link()
    link.is_answering = False
    for _ in range(100):
        link.write(b"x" * 100)
        await link.run(1)
    assert link.silent_at is not None
    assert link.silent_at <= 2 * SECONDS


@pytest.mark.virtual
async def test_an_idle_broker_that_freezes_is_noticed_within_one_and_a_half_intervals() -> None:
    link = Link()
    await link.run(7)
    link.is_answering = False
    await link.run(100)
    assert link.silent_at is not None
    assert link.silent_at - 7 <= 1.5 * SECONDS


@pytest.mark.virtual
async def test_an_idle_broker_that_answers_is_asked_once_in_half_an_interval() -> None:
    link = Link()
    await link.run(1_000)
    assert link.silent_at is None
    assert 190 <= link.pings <= 200
    link.keepalive.stop()


@pytest.mark.virtual
async def test_a_broker_that_wants_to_hear_more_often_may_answer_as_late_as_any_other() -> None:
    link = Link(seconds=1, bearable=SECONDS)
    link.is_answering = False
    await link.run(100)
    assert link.silent_at is not None
    assert SECONDS <= link.silent_at <= 1.5 * SECONDS
    assert link.pings >= SECONDS, "as often as it wants"


@pytest.mark.virtual
async def test_while_reading_is_paused_pings_go_out_and_silence_is_not_judged() -> None:
    link = Link()
    link.is_answering = False
    link.paused = True
    await link.run(1_000)
    assert link.silent_at is None
    assert link.pings >= 190
    link.keepalive.stop()


@pytest.mark.parametrize("how", ["in good order", "with a reason", "with a reset"])
async def test_a_broker_that_closes_while_reading_is_paused_is_noticed(
    how: str, caplog: pytest.LogCaptureFixture
) -> None:
    """As when it is restarted while a handler is slow: nobody reads that it has closed."""
    full = asyncio.Event()

    async def talk(peer: Peer) -> None:
        await peer.ready()
        # Answers pings.
        await peer.expect("PUBLISH")

    async def closing(peer: Peer) -> None:
        await peer.ready()
        for packet_id in (1, 2):
            peer.send(publish(packet_id))
        await full.wait()
        if how == "in good order":
            peer.close()
        elif how == "with a reason":
            # For these there is no room.
            peer.send(b"".join(publish(packet_id, bytes(10_000)) for packet_id in range(3, 6)))
            peer.goodbye(0x8B)
        else:
            peer.reset()

    async with (
        ScriptedBroker(talk, closing, talk) as broker,
        client(broker, keepalive=1) as app,
    ):
        slow = Recorder(settle=False)
        consumer, _ = await app.consume("t", recorder=slow, window=1)
        await eventually(lambda: app.stats["mqtt.paused"] == 1)
        full.set()
        await eventually(lambda: broker.connections >= 3)
        assert slow.events[0] == "hold"
        await eventually(lambda: consumer.trouble is None)
    told = "the broker ended the connection: server shutting down (0x8b)"
    assert any(told in line for line in caplog.messages) is (how == "with a reason")


@pytest.mark.virtual
@pytest.mark.parametrize(
    ("size", "hidden_for", "patience", "lives"),
    [
        (1_000_000, 38, 1, True),
        (1_000_000, 60, 1, False),
        (1_000_000, 60, 2, True),
        (10_000_000, 45, 1, True),
        (10_000_000, 70, 1, False),
        (LARGE, 38, 16, False),
        (0, 38, 16, False),
    ],
)
async def test_what_a_proxy_has_taken_gets_time_for_its_size_and_patience(
    size: int, hidden_for: float, patience: int, lives: bool
) -> None:
    link = Link(hides=hidden_for, rate=1e9, patience=patience, unconfirmed=size)
    link.write(b"x" * 1_000)
    await link.run(hidden_for + SECONDS)
    assert (link.silent_at is None) is lives
    link.keepalive.stop()


@pytest.mark.virtual
async def test_a_host_that_takes_nothing_gets_no_more_time_for_a_large_message() -> None:
    link = Link(patience=16, unconfirmed=10 * LARGE)
    await link.run(7)
    link.rate = 0.0
    link.is_answering = False
    await link.run(1_000)
    assert link.silent_at is not None
    assert link.silent_at - 7 <= 1.5 * SECONDS


async def test_a_stream_tells_how_much_the_peer_has() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        ours = socket.create_connection(server.getsockname())
        peer, _ = server.accept()
    ours.setblocking(False)
    peer.setblocking(False)
    stream = FrameStream(ours, lambda *packet: None, lambda error: None)
    loop = asyncio.get_running_loop()
    size = 40_000_000
    try:
        stream.write(b"x" * size)
        await asyncio.sleep(0)
        assert stream.written == size
        assert stream.departed() < size
        got = 0
        while got < size:
            before = stream.departed()
            got += len(await loop.sock_recv(peer, 4_000_000))
            assert stream.departed() >= before
        await eventually(lambda: stream.departed() == size)
    finally:
        stream.abort()
        peer.close()


async def test_over_tls_a_stream_tells_of_a_large_write_before_all_of_it_has_left(
    tmp_path: Path,
) -> None:
    certificate = make_certificates("127.0.0.1", tmp_path)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)
    accepted: asyncio.Future[tuple[asyncio.StreamReader, asyncio.StreamWriter]]
    accepted = asyncio.get_running_loop().create_future()
    server = await asyncio.start_server(
        lambda *streams: accepted.set_result(streams), "127.0.0.1", 0, ssl=context
    )
    port = server.sockets[0].getsockname()[1]
    config = MqttConfig(host="127.0.0.1", port=port, tls=True, tls_ca=str(tmp_path / "ca.pem"))
    stream = FrameStream(await open_socket(config), lambda *packet: None, lambda error: None)
    try:
        stream.write(b"x" * 40_000_000)
        reader, writer = await accepted
        got = 0
        while got < 20_000_000:
            got += len(await reader.read(1_000_000))
        await eventually(lambda: stream.departed() >= 10_000_000)
        assert stream.departed() < 40_000_000
    finally:
        stream.abort()
        server.close()
    writer.transport.abort()
    await server.wait_closed()


async def test_the_same_large_publish_is_given_more_time_after_each_silence() -> None:
    """A silent broker that has taken everything looks like a proxy that passes it on slowly."""
    given: list[int] = []

    async def script(peer: Peer) -> None:
        await peer.ready()
        packet = await peer.expect("PUBLISH")
        given.append(len(packet.body))
        if len(given) < 2:
            await asyncio.Event().wait()
        peer.puback(packet)
        await peer.wait_closed()

    async with ScriptedBroker(script) as broker, client(broker, keepalive=1) as app:
        bus = app.bus
        posted = bus.post(Envelope(topic="t", payload=b"x" * 70_000))
        patience: list[int] = []
        for connections in (1, 2):
            await eventually(lambda count=connections: len(given) == count)  # type: ignore[misc]
            patience.append(vars(bus)["_patience"])
        await posted
        assert patience == [1, 2]


@pytest.mark.virtual
@pytest.mark.parametrize(("patience", "ends"), [(1, 70.0), (4, 250.0)])
async def test_a_broker_that_lives_and_confirms_nothing_is_left_after_a_minute(
    patience: int, ends: float
) -> None:
    link = Link(patience=patience, unconfirmed=100, oldest=100)
    link.write(b"x" * 100)
    await link.run(1_000)
    assert link.silent_at is not None
    assert ends - 10 <= link.silent_at <= ends + 10
    assert "does not confirm" in link.reason


@pytest.mark.virtual
async def test_what_has_not_left_or_is_confirmed_in_turn_is_waited_for() -> None:
    slow = Link(rate=10, unconfirmed=5_000, oldest=5_000)
    slow.write(b"x" * 5_000)
    await slow.run(500)
    assert slow.silent_at is None
    slow.keepalive.stop()
    link = Link(unconfirmed=1, oldest=1)
    link.write(b"x" * 100)
    for _ in range(20):
        await link.run(50)
        link.oldest += 1
    link.oldest = 0
    await link.run(500)
    assert link.silent_at is None
    link.keepalive.stop()


async def test_a_message_that_the_broker_has_lost_is_sent_again_on_another_connection(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("spa_dat.transports.mqtt.protocol._keepalive._LONGEST_WAIT", 1.0)
    monkeypatch.setattr("spa_dat.transports.mqtt.protocol._keepalive._LEAST_PERIODS", 2)

    async def losing(peer: Peer) -> None:
        # One message at a time.
        await peer.ready(b"\x21\0\1")
        await peer.expect("PUBLISH")
        while True:
            await peer.expect("PINGREQ")
            peer.send(b"\xd0\0")

    async def confirming(peer: Peer) -> None:
        await peer.ready()
        while True:
            peer.puback(await peer.expect("PUBLISH"))

    async with ScriptedBroker(losing, confirming) as broker, client(broker, keepalive=1) as app:
        posts = [app.bus.post(Envelope(topic="t", payload=b"%d" % n)) for n in range(3)]
        await asyncio.wait_for(asyncio.gather(*posts), 20)
        assert app.stats["mqtt.lost"] == 1
        assert app.stats["publishes.suspected"] == app.stats["publishes.refused"] == 0


class Library:
    """Stands for the client library; the broker answers after ``seconds``."""

    def __init__(self, seconds: float) -> None:
        self.control: SubscribeRequests | None = None
        self._seconds = seconds

    def subscribe(self, topics: object, *, properties: object) -> tuple[int, int]:
        assert self.control is not None
        answer = b"\0\x01\0\x01"
        asyncio.get_running_loop().call_later(
            self._seconds, self.control.answered, answer, 0, len(answer)
        )
        return 0, 1


@pytest.mark.virtual
@pytest.mark.parametrize(("rate", "waits"), [(26_000, True), (1, False), (0, False)])
async def test_an_answer_behind_large_messages_is_waited_for_while_they_come(
    rate: int, waits: bool
) -> None:
    """A session's messages come before the answer to a subscription; pings' answers do too."""
    loop = asyncio.get_running_loop()
    busy: list[bool] = []
    library = Library(300)
    control = library.control = SubscribeRequests(
        cast(Any, library),
        loop.create_future(),
        lambda: int(loop.time() * rate),
        busy.append,
    )
    began = loop.time()
    subscribing = control.subscribe(["t"], qos=1, timeout=10, identifier=0, retained="new")
    if waits:
        assert await subscribing == [1]
    else:
        with pytest.raises(ConnectionLost, match=r"'t'.*did not answer within 10 s"):
            await subscribing
        assert loop.time() - began < 11
    assert busy == [True, False]
