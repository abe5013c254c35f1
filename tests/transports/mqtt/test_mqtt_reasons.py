"""The table that says what is done about each reason code of MQTT 5."""

from __future__ import annotations

from pathlib import Path

import pytest
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.reasoncodes import ReasonCode

from spa_dat.errors import (
    ConnectFailed,
    ConnectionLost,
    NotAuthorised,
    PublishRefused,
    SpaDatError,
    TransportError,
)
from spa_dat.transports import Envelope
from spa_dat.transports.mqtt.protocol._reason_codes import (
    ANSWERS,
    Answer,
    BrokerReason,
    Decision,
    LoginRefused,
    Packet,
    answer_to,
    connect_problem,
    publish_refusal,
    reason_text,
    subscribe_refusal,
)
from support.mqtt import client
from support.scripted import Peer, ScriptedBroker, connack, suback

MQTT = Path(__file__).parent.parent.parent.parent / "docs" / "mqtt.md"
# A client says this one.
OF_CLIENTS = {(Packet.DISCONNECT, 0x04)}
# The standard has the first in 3.2.2.2, the library does not. Mosquitto sends the second.
NOT_IN_THE_LIST = {(Packet.CONNACK, 0x99), (Packet.PUBACK, 0x95)}


def listed() -> set[tuple[Packet, int]]:
    """What MQTT 5 lists, says the client library."""
    names = ReasonCode(PacketTypes.CONNACK).names
    kinds = {getattr(PacketTypes, packet.value): packet for packet in Packet}
    return {
        (kinds[kind], code)
        for code, meanings in names.items()
        for found in meanings.values()
        for kind in found
        if kind in kinds
    }


def test_each_code_that_mqtt_5_lists_has_a_decision_and_no_other_one_has() -> None:
    decided = {(packet, code) for packet, answers in ANSWERS.items() for code in answers}
    assert decided == (listed() - OF_CLIENTS) | NOT_IN_THE_LIST


@pytest.mark.parametrize("packet", Packet)
def test_decisions_fit_their_packets(packet: Packet) -> None:
    possible = {
        Packet.CONNACK: {Decision.RETRY, Decision.LATER, Decision.APPLICATION},
        Packet.PUBACK: {Decision.RETRY, Decision.MESSAGE},
        Packet.SUBACK: {Decision.RETRY, Decision.SUBSCRIPTION},
        Packet.UNSUBACK: {Decision.RETRY},
        Packet.DISCONNECT: {*Decision} - {Decision.FINE},
    }[packet]
    for code, answer in ANSWERS[packet].items():
        if code < 0x80 and packet is not Packet.DISCONNECT:
            assert answer.decision is Decision.FINE
        else:
            assert answer.decision in possible, hex(code)
        final = answer.decision in {Decision.MESSAGE, Decision.SUBSCRIPTION, Decision.APPLICATION}
        assert not final or answer.error is not None, hex(code)


def test_only_one_reason_ends_an_application_that_has_started() -> None:
    final = [c for c, a in ANSWERS[Packet.DISCONNECT].items() if a.decision is Decision.APPLICATION]
    assert final == [0x8E]


@pytest.mark.parametrize("packet", Packet)
def test_a_code_that_nobody_knows_has_a_decision_too(packet: Packet) -> None:
    unknown = answer_to(packet, 0xF7)
    assert isinstance(unknown, Answer)
    assert unknown.decision is not Decision.FINE
    assert answer_to(packet, 0x33).decision in {Decision.FINE, Decision.RETRY}


def rows() -> list[str]:
    """The table as the docs show it."""
    codes = sorted({code for answers in ANSWERS.values() for code in answers if code >= 0x80})
    lines = []
    for code in codes:
        name = reason_text(code).rpartition(" (")[0]
        cells = [
            answers[code].decision.value if code in answers else ""
            for answers in (ANSWERS[packet] for packet in Packet)
        ]
        lines.append(f"| 0x{code:02X} | {name} | {' | '.join(cells)} |".replace("|  |", "| |"))
    return [line.replace("|  |", "| |") for line in lines]


@pytest.mark.repository
def test_the_docs_show_the_table() -> None:
    shown = [line for line in MQTT.read_text(encoding="utf-8").splitlines() if "| 0x" in line]
    assert shown == rows()


# In words.


@pytest.mark.parametrize(
    ("code", "error", "words"),
    [
        (0x87, NotAuthorised, "access rules"),
        (0x9E, ConnectFailed, "deliver='all'"),
        (0xA2, ConnectFailed, "without + and #"),
        (0x97, ConnectionLost, "quota exceeded (0x97)"),
        (0xF0, ConnectFailed, "unknown reason (0xf0)"),
    ],
)
def test_a_refused_subscription_says_why_and_what_to_do(
    code: int, error: type[TransportError], words: str
) -> None:
    refusal = subscribe_refusal(code, "a/+")
    assert isinstance(refusal, error)
    assert bool(refusal.outage) is (error is ConnectionLost), "what is final is not an outage"
    assert "'a/+'" in str(refusal)
    assert words in str(refusal)


def test_the_words_of_a_broker_stay_on_one_line_and_are_shortened() -> None:
    said = BrokerReason(
        0x99, "line one\nline two\x1b[31m\u202e" + "x" * 5_000, "other\r\nhost:1883"
    )
    for text in (
        reason_text(said),
        str(publish_refusal(said, "t")),
        str(subscribe_refusal(said, "t")),
        str(connect_problem(LoginRefused(said), "mqtt://h", "app.0", None).error),
    ):
        assert text.isprintable()
        assert r"line one\nline two\x1b[31m\u202e" in text
        assert r"'other\r\nhost:1883'" in text
        assert len(text) < 700
    assert isinstance(publish_refusal(said, "t"), PublishRefused)


def test_a_refused_login_names_the_file_of_its_password() -> None:
    problem = connect_problem(
        LoginRefused(BrokerReason(0x86)), "mqtt://h", "app.0", "bob", "the file '/run/secret'"
    )
    assert isinstance(problem.error, NotAuthorised)
    assert "'/run/secret'" in str(problem.error)


def test_a_server_that_has_moved_is_final_and_named() -> None:
    moved = BrokerReason(0x9D, "", "b.example:1883")
    problem = connect_problem(LoginRefused(moved), "mqtt://h", "app.0", None)
    assert problem.final
    assert "'b.example:1883'" in str(problem.error)
    busy = connect_problem(
        LoginRefused(BrokerReason(0x9C, "", "b.example")), "mqtt://h", "app.0", None
    )
    assert not busy.final
    assert busy.later


BAD_WORDS = b"\x1f\0\x02\xff\xfe"


@pytest.mark.parametrize("properties", [b"", BAD_WORDS])
@pytest.mark.parametrize("code", range(0x80, 0x100))
async def test_each_refusal_of_a_login_is_read_whatever_else_is_in_it(
    code: int, properties: bytes
) -> None:
    async def script(peer: Peer) -> None:
        await peer.expect("CONNECT")
        peer.send(connack(code, properties))
        await peer.wait_closed()

    answer = answer_to(Packet.CONNACK, code)
    async with ScriptedBroker(script) as broker:
        seconds = 10.0 if answer.decision is Decision.APPLICATION else 0.001
        with pytest.raises(answer.error or SpaDatError, match=f"{code:#04x}"):
            async with client(broker, start_timeout=seconds, connect_timeout=10.0):
                pass


@pytest.mark.parametrize("properties", [b"", BAD_WORDS])
@pytest.mark.parametrize("code", [*range(3), 0x80, 0x87, 0x92, 0xFF])
async def test_each_answer_to_a_subscription_is_read_whatever_else_is_in_it(
    code: int, properties: bytes
) -> None:
    async def script(peer: Peer) -> None:
        await peer.accept()
        packet = await peer.expect("SUBSCRIBE")
        peer.send(suback(packet.packet_id, code, properties=properties))
        await peer.wait_closed()

    async with ScriptedBroker(script) as broker:
        if code < 0x80:
            async with client(broker):
                assert broker.connections == 1
            return
        with pytest.raises(SpaDatError, match=f"{code:#04x}"):
            async with client(broker):
                pass


@pytest.mark.parametrize("properties", [b"", BAD_WORDS])
@pytest.mark.parametrize("code", [0x00, 0x04, 0x8B, 0x92, 0xFF])
async def test_each_goodbye_is_read_whatever_else_is_in_it(
    code: int, properties: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async def first(peer: Peer) -> None:
        await peer.ready()
        # The client has to be through with its start.
        await peer.expect("PUBLISH")
        peer.goodbye(code, properties)

    async def second(peer: Peer) -> None:
        await peer.ready()
        peer.puback(await peer.expect("PUBLISH"))
        await peer.wait_closed()

    async with ScriptedBroker(first, second) as broker, client(broker) as app:
        await app.bus.publish(Envelope(topic="t", payload=b"x"), timeout=20)
        assert f"({code:#04x})" in caplog.text


async def test_what_is_wrong_in_an_acceptance_keeps_nobody_out() -> None:
    """Limits of nothing are no limits, and what cannot be read is passed over."""

    async def script(peer: Peer) -> None:
        await peer.accept(b"\x21\0\0\x27\0\0\0\0" + BAD_WORDS + b"\x77\x01")
        await peer.subscribe()
        peer.puback(await peer.expect("PUBLISH"))
        await peer.wait_closed()

    async with ScriptedBroker(script) as broker, client(broker) as app:
        await app.bus.publish(Envelope(topic="t", payload=b"x"), timeout=20)


async def test_an_inbox_that_is_not_in_the_answer_is_not_granted() -> None:
    async def script(peer: Peer) -> None:
        await peer.accept()
        packet = await peer.expect("SUBSCRIBE")
        peer.send(b"\x90\x03" + packet.packet_id.to_bytes(2, "big") + b"\0")
        await peer.wait_closed()

    async with ScriptedBroker(script) as broker:
        with pytest.raises(ConnectFailed, match="_spa/reply"):
            async with client(broker):
                pass
