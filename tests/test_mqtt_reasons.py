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
)
from spa_dat.transports.mqtt._reasons import (
    ANSWERS,
    Answer,
    Decision,
    LoginRefused,
    Packet,
    Reason,
    answer_to,
    connect_problem,
    publish_refusal,
    reason_text,
    subscribe_refusal,
)

MQTT = Path(__file__).parent.parent / "docs" / "mqtt.md"
# A client says this one.
OF_CLIENTS = {(Packet.DISCONNECT, 0x04)}
# The standard has it in 3.2.2.2, the library does not.
NOT_IN_THE_LIST = {(Packet.CONNACK, 0x99)}


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
    code: int, error: type[SpaDatError], words: str
) -> None:
    refusal = subscribe_refusal(code, "a/+")
    assert type(refusal) is error
    assert "'a/+'" in str(refusal)
    assert words in str(refusal)


def test_the_words_of_a_broker_stay_on_one_line_and_are_shortened() -> None:
    said = Reason(0x99, "line one\nline two\x1b[31m\u202e" + "x" * 5_000, "other\r\nhost:1883")
    for text in (
        reason_text(said),
        str(publish_refusal(said, "t")),
        str(subscribe_refusal(said, "t")),
        str(connect_problem(LoginRefused(said), "mqtt://h", None).error),
    ):
        assert text.isprintable()
        assert r"line one\nline two\x1b[31m\u202e" in text
        assert r"'other\r\nhost:1883'" in text
        assert len(text) < 700
    assert isinstance(publish_refusal(said, "t"), PublishRefused)


def test_a_refused_login_names_the_file_of_its_password() -> None:
    problem = connect_problem(LoginRefused(Reason(0x86)), "mqtt://h", "bob", "/run/secret")
    assert isinstance(problem.error, NotAuthorised)
    assert "'/run/secret'" in str(problem.error)


def test_a_server_that_has_moved_is_final_and_named() -> None:
    moved = Reason(0x9D, "", "b.example:1883")
    problem = connect_problem(LoginRefused(moved), "mqtt://h", None)
    assert problem.final
    assert "'b.example:1883'" in str(problem.error)
    busy = connect_problem(LoginRefused(Reason(0x9C, "", "b.example")), "mqtt://h", None)
    assert not busy.final
    assert busy.later
