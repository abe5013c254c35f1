"""Two programs with one client identifier: what proves it, and which of them gives way."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections import Counter
from collections.abc import Awaitable, Callable

import pytest

from spa_dat import DistributedApplication
from spa_dat.errors import ConfigurationError, ConnectionLost
from spa_dat.testing import Mosquitto
from spa_dat.transports import Envelope
from spa_dat.transports.mqtt import MqttConfig
from spa_dat.transports.mqtt._connection_events import Ending, Loss
from spa_dat.transports.mqtt._connection_group import ConnectionGroup
from spa_dat.transports.mqtt._session_probe import SessionProbe
from spa_dat.transports.mqtt._takeovers import Takeovers
from spa_dat.transports.mqtt.protocol._client import MqttClient
from spa_dat.transports.mqtt.protocol._reason_codes import ANSWERS, BrokerReason, Packet
from support.mqtt import client
from support.scripted import Packet as ClientPacket, Peer, ScriptedBroker, connack, suback
from support.waiting import eventually

Script = Callable[[Peer], Awaitable[None]]

TAKEN_OVER = Loss("taken over", Ending.GOODBYE, BrokerReason(0x8E))
CLOSED = Loss("closed", Ending.CLOSED)
RESET = Loss("reset", Ending.RESET)
SILENT = Loss("silent", Ending.FAILED)


def goodbye(code: int) -> Loss:
    return Loss("goodbye", Ending.GOODBYE, BrokerReason(code))


# What counts.


def test_a_newcomer_gives_way_after_three_takeovers_and_who_was_there_first_after_twenty() -> None:
    newcomer, first = Takeovers(), Takeovers()
    first.ended(TAKEN_OVER, 3.0, left_trace=False)
    for _ in range(2):
        newcomer.ended(TAKEN_OVER, 0.2, left_trace=False)
        first.ended(TAKEN_OVER, 0.2, left_trace=False)
    assert not newcomer.gives_way
    newcomer.ended(TAKEN_OVER, 0.2, left_trace=False)
    assert newcomer.gives_way
    assert newcomer.is_newcomer
    for _ in range(16):
        first.ended(TAKEN_OVER, 0.2, left_trace=False)
    assert not first.gives_way
    first.ended(TAKEN_OVER, 0.2, left_trace=False)
    assert first.gives_way
    assert not first.is_newcomer


def test_who_was_there_first_comes_back_at_once_while_there_is_another_one() -> None:
    takeovers = Takeovers()
    takeovers.ended(TAKEN_OVER, 0.2, left_trace=False)
    assert not takeovers.hurries, "a newcomer"
    takeovers.unreachable()
    takeovers.ended(SILENT, 3.0, left_trace=False)
    assert not takeovers.hurries, "nobody else is there"
    takeovers.ended(TAKEN_OVER, 0.2, left_trace=False)
    assert takeovers.hurries


def test_a_copy_that_is_started_again_and_again_never_ends_the_first_one() -> None:
    """Each life of the second takes over three times; then the first has some seconds."""
    first = Takeovers()
    first.ended(SILENT, 3.0, left_trace=False)
    for _ in range(100):
        second = Takeovers()
        first.ended(TAKEN_OVER, 5.0, left_trace=False)
        while not second.gives_way:
            second.ended(TAKEN_OVER, 0.1, left_trace=False)
            if not second.gives_way:
                first.ended(TAKEN_OVER, 0.2, left_trace=False)
        assert not first.gives_way


@pytest.mark.parametrize(
    "loss",
    [
        *(goodbye(code) for code in ANSWERS[Packet.DISCONNECT] if code != 0x8E),
        goodbye(0xF0),
        Loss("no reason", Ending.GOODBYE),
        CLOSED,
        RESET,
        SILENT,
    ],
    ids=lambda loss: f"{loss.ending.name} {loss.reason or 0:#x}",
)
def test_nothing_else_counts_however_often_it_comes(loss: Loss) -> None:
    takeovers = Takeovers()
    for _ in range(1_000):
        takeovers.ended(loss, 0.01, left_trace=takeovers.leaves_trace)
        assert not takeovers.gives_way
        if takeovers.looks:
            takeovers.looked(foreign=False)
    assert takeovers.count == 0


def test_a_connection_that_holds_or_another_reason_or_an_outage_ends_the_fight() -> None:
    takeovers = Takeovers()
    for lasted in (0.1, 0.1, 31.0, 0.1):
        takeovers.ended(TAKEN_OVER, lasted, left_trace=False)
    assert takeovers.count == 2
    takeovers.ended(goodbye(0x8B), 0.1, left_trace=False)
    assert takeovers.count == 0
    takeovers.ended(TAKEN_OVER, 0.1, left_trace=False)
    takeovers.unreachable()
    assert takeovers.count == 0


def test_after_some_ends_without_a_word_a_trace_is_left_and_looked_for() -> None:
    takeovers = Takeovers()
    assert not takeovers.leaves_trace
    takeovers.ended(CLOSED, 0.1, left_trace=False)
    assert not takeovers.leaves_trace
    takeovers.ended(CLOSED, 0.1, left_trace=False)
    assert takeovers.leaves_trace
    assert not takeovers.looks
    takeovers.ended(RESET, 0.1, left_trace=True)
    assert takeovers.looks
    takeovers.looked(foreign=True)
    assert takeovers.count == 1
    takeovers.ended(CLOSED, 0.1, left_trace=False)
    assert not takeovers.looks, "no trace was left"
    takeovers.ended(CLOSED, 11.0, left_trace=True)
    assert not takeovers.looks, "it held"


def test_before_it_gives_way_and_after_every_third_end_without_a_word_it_doubts() -> None:
    silent, told = Takeovers(), Takeovers()
    doubts: list[bool] = []
    for _ in range(7):
        silent.ended(CLOSED, 0.1, left_trace=False)
        doubts.append(silent.doubts)
    assert doubts == [False, False, True, False, False, True, False]
    for _ in range(3):
        assert not told.doubts
        told.ended(TAKEN_OVER, 0.1, left_trace=False)
    assert told.doubts


# On a connection.


async def test_a_newcomer_that_is_taken_over_ends_and_the_error_names_the_identifier() -> None:
    started = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.ready()
        await started.wait()
        peer.goodbye(0x8E)

    async with ScriptedBroker(script) as broker, client(broker, name="twice") as app:
        started.set()
        await eventually(lambda: app.fatal)
        assert isinstance(app.fatal[0], ConfigurationError)
        text = str(app.fatal[0])
        assert "another program uses the same identifier 'twice.0'" in text
        assert "instance=" in text
        assert "3 times, the first time right after this one started" in text
        assert broker.connections == 3


async def test_taken_over_while_it_starts_the_start_says_so() -> None:
    async def script(peer: Peer) -> None:
        await peer.accept()
        peer.goodbye(0x8E)

    async with ScriptedBroker(script) as broker:
        with pytest.raises(ConfigurationError, match=r"same identifier 'app\.0'"):
            async with client(broker, start_timeout=60):
                pass


@pytest.mark.parametrize(
    "code", [None, *(code for code in sorted(ANSWERS[Packet.DISCONNECT]) if code != 0x8E), 0xF0]
)
async def test_no_other_end_however_frequent_ends_an_application(code: int | None) -> None:
    async def script(peer: Peer) -> None:
        await peer.accept()
        packet = await peer.receive()
        if packet.kind == "SUBSCRIBE":
            peer.send(suback(packet.packet_id, 1))
            await peer.expect("PUBLISH")
        if code is None:
            peer.close()
        else:
            peer.goodbye(code)

    async def serve(peer: Peer) -> None:
        await peer.accept()
        while True:
            packet = await peer.receive()
            if packet.kind == "SUBSCRIBE":
                peer.send(suback(packet.packet_id, 1))
            elif packet.kind == "PUBLISH":
                peer.puback(packet)

    scripts: list[Script] = [script] * 12
    async with (
        ScriptedBroker(*scripts, serve) as broker,
        client(broker, backoff_max=0.03, backoff_min=0.01) as app,
    ):
        number = 0
        while broker.connections < 13:
            # Another one each time: this is not about one message that the broker dislikes.
            number += 1
            posted = app.bus.post(Envelope(topic="t", payload=b"%d" % number))
            before = app.stats["mqtt.lost"]
            await eventually(lambda: posted.done() or app.stats["mqtt.lost"] > before)  # noqa: B023
            posted.cancel()
        await app.bus.publish(Envelope(topic="t"), timeout=30)
        assert app.fatal == []


async def test_a_session_of_somebody_else_where_ours_was_left_counts_as_taken_over() -> None:
    looks: list[ClientPacket] = []

    started = asyncio.Event()

    async def closing(peer: Peer) -> None:
        connect = await peer.accept(session=True)
        packet = await peer.receive()
        if packet.kind == "SUBSCRIBE":
            peer.send(suback(packet.packet_id, 1))
            await started.wait()
            await asyncio.sleep(0.02)
            peer.close()
            return
        assert connect.body[7] & 2 == 0, "no clean start: it wants to see what is there"
        looks.append(packet)
        peer.unsuback(packet, 0x11)
        await peer.wait_closed()

    async with (
        ScriptedBroker(closing) as broker,
        client(broker, backoff_max=0.03, backoff_min=0.01) as app,
    ):
        started.set()
        await eventually(lambda: app.fatal)
        assert "another program uses the same identifier 'app.0'" in str(app.fatal[0])
        assert [packet.kind for packet in looks] == ["UNSUBSCRIBE"] * 3
        assert all(b"_spa/reply/app/" in packet.body for packet in looks)


async def test_our_own_session_found_again_proves_nothing() -> None:
    looked = 0
    started = asyncio.Event()

    async def closing(peer: Peer) -> None:
        nonlocal looked
        await peer.accept(session=True)
        packet = await peer.receive()
        if packet.kind == "SUBSCRIBE":
            peer.send(suback(packet.packet_id, 1))
            await started.wait()
            await asyncio.sleep(0.02)
            peer.close()
            return
        looked += 1
        peer.unsuback(packet, 0)
        await peer.wait_closed()

    async with (
        ScriptedBroker(closing) as broker,
        client(broker, backoff_max=0.03, backoff_min=0.01) as app,
    ):
        started.set()
        await eventually(lambda: looked == 5)
        assert app.fatal == []


class OneClient:
    """A broker that takes all connections for one client, or those with one identifier."""

    def __init__(self, code: int | None, *, replaces: bool) -> None:
        self.identifiers: list[str] = []
        self._code = code
        self._replaces = replaces
        self._peers: dict[str, Peer] = {}

    async def serve(self, peer: Peer) -> None:
        connect = await peer.expect("CONNECT")
        identifier, is_clean = connect.client_id, connect.body[7] & 2
        self.identifiers.append(identifier)
        taken = "" if self._replaces else identifier
        before = self._peers.get(taken)
        self._peers[taken] = peer
        peer.send(connack(0, session=before is not None and not is_clean))
        if before is not None and self._code is not None:
            before.goodbye(self._code)
        elif before is not None:
            before.close()
        while (packet := await peer.receive()).kind != "DISCONNECT":
            if packet.kind == "SUBSCRIBE":
                peer.send(suback(packet.packet_id, 1))


@pytest.mark.parametrize("code", [0x8E, None])
async def test_connections_that_displace_each_other_are_not_blamed_on_another_program(
    code: int | None,
) -> None:
    one = OneClient(code, replaces=True)
    async with (
        ScriptedBroker(one.serve) as broker,
        client(broker, backoff_max=0.03, backoff_min=0.01) as app,
    ):
        with contextlib.suppress(ConnectionLost, ConfigurationError):
            await app.consume("t")
        await eventually(lambda: app.fatal)
        assert isinstance(app.fatal[0], ConfigurationError)
        assert "use_username_as_clientid" in str(app.fatal[0])
        assert len(app.fatal) == 1


async def test_with_a_broker_that_keeps_identifiers_the_other_program_is_blamed() -> None:
    one = OneClient(0x8E, replaces=False)
    async with (
        ScriptedBroker(one.serve) as broker,
        client(broker, backoff_max=0.03, backoff_min=0.01) as app,
    ):
        await app.consume("t")
        while not app.fatal:
            rival = MqttClient(
                MqttConfig(broker.host, port=broker.port),
                "app.0",
                SessionProbe(),
                Counter(),
                clean_start=True,
            )
            lost, before = app.stats["mqtt.lost"], one.identifiers.count("app.0")

            def is_back(lost: int = lost, before: int = before) -> bool:
                back = one.identifiers.count("app.0") > before + 1
                return bool(app.fatal) or (app.stats["mqtt.lost"] > lost and back)

            await rival.connect()
            await eventually(is_back)
            rival.abort()
        assert "another program uses the same identifier 'app.0'" in str(app.fatal[0])
        assert set(one.identifiers) == {"app.0", "app.0.actor"}, "it had no reason to try others"


@pytest.mark.parametrize("says_present", [False, True])
async def test_a_broker_that_keeps_closing_or_invents_sessions_is_not_accused_of_that(
    says_present: bool,
) -> None:
    """Whatever is looked for with names of nobody is only proof if it is first not there."""
    names: dict[str, None] = {}
    is_closing = asyncio.Event()

    async def closing(peer: Peer) -> None:
        connect = await peer.accept(session=says_present)
        packet = await peer.receive()
        if packet.kind == "SUBSCRIBE":
            peer.send(suback(packet.packet_id, 1))
            await is_closing.wait()
            peer.close()
        elif packet.kind == "UNSUBSCRIBE":
            peer.unsuback(packet, 0)
            await peer.wait_closed()
        else:
            names[connect.client_id] = None

    async with (
        ScriptedBroker(closing) as broker,
        client(broker, backoff_max=0.03, backoff_min=0.01) as app,
    ):
        await app.consume("in")
        is_closing.set()
        await eventually(lambda: len(names) >= 2)
        before = broker.connections
        await eventually(lambda: broker.connections > before + 12)
        assert app.fatal == []


@pytest.mark.virtual
async def test_a_broker_that_closes_many_connections_is_asked_each_ten_seconds_at_most() -> None:
    group = ConnectionGroup(lambda error: None)
    group.lost("a")
    assert not group.may_displace_each_other(at_last=True), "one only"
    group.lost("b")
    asked = [group.may_displace_each_other(at_last=False) for _ in range(3)]
    assert asked == [True, False, False]
    assert group.may_displace_each_other(at_last=True), "before it gives way"
    await asyncio.sleep(11.0)
    assert group.may_displace_each_other(at_last=False)
    await asyncio.sleep(61.0)
    assert not group.may_displace_each_other(at_last=True), "too long ago"


async def test_nothing_is_asked_about_own_connections_if_only_one_of_them_ends() -> None:
    names: list[str] = []

    async def steady(peer: Peer) -> None:
        await peer.ready()
        await peer.wait_closed()

    async def closing(peer: Peer) -> None:
        names.append((await peer.accept()).client_id)
        await peer.subscribe()
        if len(names) == 1:
            await is_closing.wait()
        peer.close()

    is_closing = asyncio.Event()
    async with (
        ScriptedBroker(steady, closing) as broker,
        client(broker, backoff_max=0.03, backoff_min=0.01) as app,
    ):
        await app.consume("in")
        is_closing.set()
        await eventually(lambda: len(names) > 8)
        assert set(names) == {"app.0.actor"}


def _assigned(name: str) -> bytes:
    return b"\x12" + len(name).to_bytes(2, "big") + name.encode()


async def test_a_broker_that_assigns_one_identifier_to_two_connections_is_refused_at_once() -> None:
    async def assigning(peer: Peer) -> None:
        await peer.ready(_assigned("plant"))
        await peer.wait_closed()

    async with ScriptedBroker(assigning) as broker, client(broker) as app:
        with pytest.raises(ConfigurationError, match="replaces the client identifiers"):
            await app.consume("in")
        assert app.fatal == []


async def test_identifiers_that_a_broker_assigns_and_that_differ_are_fine() -> None:
    names = iter(("tenant/1", "tenant/2"))

    async def assigning(peer: Peer) -> None:
        await peer.ready(_assigned(next(names)))
        await peer.wait_closed()

    async with ScriptedBroker(assigning) as broker, client(broker) as app:
        await app.consume("in")
        assert app.bus.connected


@pytest.mark.mosquitto
async def test_an_application_ends_where_the_broker_replaces_identifiers() -> None:
    with Mosquitto(users={"ann": "secret"}, extra=["use_username_as_clientid true"]) as broker:
        app = DistributedApplication(
            f"mqtt://ann:secret@{broker.host}:{broker.port}?backoff_max=0.1", name="plant"
        )

        @app.application("in")
        async def handle(payload: int) -> None: ...

        with pytest.raises(ConfigurationError, match="use_username_as_clientid"):
            async with app:
                await app.wait()


# On a real broker, which closes without a word.

_COPY = """
import sys
from spa_dat import DistributedApplication
app = DistributedApplication(sys.argv[1], name="prod")
@app.application("in")
async def handle(payload: int) -> None: ...
@app.producer()
async def ready() -> None:
    print("started", flush=True)
app.run()
"""


@pytest.mark.mosquitto
@pytest.mark.slow
# Ten seconds on an idle machine: the copies take the identifier from each other by turns.
@pytest.mark.deadline(300)
async def test_of_two_copies_the_one_that_was_there_first_stays() -> None:
    async def start() -> asyncio.subprocess.Process:
        copy = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            _COPY,
            f"{broker.url}?keepalive=5",
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        assert copy.stdout is not None
        await copy.stdout.readline()
        return copy

    with Mosquitto() as broker:
        first = await start()
        try:
            # What makes it the first: it has held its connection for two seconds.
            await eventually(lambda: "PINGRESP" in broker.log)
            second = await start()
            try:
                _, errors = await asyncio.wait_for(second.communicate(), 250)
            finally:
                if second.returncode is None:
                    second.kill()
                    await second.wait()
            assert second.returncode == 1
            assert b"another program uses the same identifier 'prod.0'" in errors
            assert first.returncode is None
        finally:
            if first.returncode is None:
                first.terminate()
            _, errors = await first.communicate()
        assert first.returncode == 0, errors.decode()
