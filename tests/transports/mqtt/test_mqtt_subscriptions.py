"""How filters are brought in force on brokers that do not take many at once."""

from __future__ import annotations

import pytest

from spa_dat.errors import ConfigurationError, NotAuthorised
from spa_dat.transports.mqtt import MqttConfig
from support.mqtt import client
from support.scripted import Packet, Peer, ScriptedBroker, publish, suback
from support.waiting import eventually

COUNT = 40
FILTERS = tuple(f"topic{number}/#" for number in range(COUNT))


def filters_of(packet: Packet) -> list[str]:
    """The filters of a SUBSCRIBE or UNSUBSCRIBE."""
    body, found = packet.body, []
    position = 3 + body[2]
    while position < len(body):
        size = int.from_bytes(body[position : position + 2], "big")
        found.append(body[position + 2 : position + 2 + size].decode())
        position += 2 + size + (packet.kind == "SUBSCRIBE")
    return found


class Limited:
    """A broker that takes a number of filters in a packet, and packets before it answers.

    Args:
        filters: the most in one packet.
        packets: the most that wait for their answer.
        refusal: code for the filters of a packet that is too large; None closes the connection.
        forbidden: filters that are refused whatever comes with them.
    """

    def __init__(
        self,
        filters: int = 8,
        *,
        packets: int = 1_000,
        refusal: int | None = None,
        forbidden: tuple[str, ...] = (),
    ) -> None:
        self.filters = filters
        self.packets = packets
        self.sizes: list[int] = []
        self.in_force: set[str] = set()
        self.peers: list[Peer] = []
        self.overruns = 0
        self._refusal = refusal
        self._forbidden = forbidden

    async def talk(self, peer: Peer) -> None:
        await peer.ready()
        await peer.wait_closed()

    async def consume(self, peer: Peer) -> None:
        await peer.accept(session=len(self.peers) > 0)
        self.peers.append(peer)
        while True:
            # What has been sent at once is looked at as a whole, then answered.
            waiting = [await peer.receive(), *await peer.arrived()]
            requests = [one for one in waiting if one.kind in ("SUBSCRIBE", "UNSUBSCRIBE")]
            for packet in waiting:
                if packet.kind == "DISCONNECT":
                    return
                if packet.kind == "PINGREQ":
                    peer.send(b"\xd0\0")
            if len(requests) > self.packets:
                self.overruns += 1
                return
            for packet in requests:
                if not self._answer(peer, packet):
                    self.overruns += 1
                    return

    def _answer(self, peer: Peer, packet: Packet) -> bool:
        filters = filters_of(packet)
        self.sizes.append(len(filters))
        is_too_large = len(filters) > self.filters
        if is_too_large and (self._refusal is None or packet.kind == "UNSUBSCRIBE"):
            return False
        if packet.kind == "UNSUBSCRIBE":
            codes = [0 if one in self.in_force else 0x11 for one in filters]
            self.in_force -= set(filters)
            answer = bytearray(suback(packet.packet_id, *codes))
            answer[0] = 0xB0
            peer.send(bytes(answer))
            return True
        codes = [0x87 if one in self._forbidden else 1 for one in filters]
        if is_too_large and self._refusal is not None:
            codes = [self._refusal] * len(filters)
        self.in_force |= {one for one, code in zip(filters, codes, strict=True) if code == 1}
        peer.send(suback(packet.packet_id, *codes))
        return True

    def cut(self) -> None:
        """Lose the consuming connection."""
        self.peers[-1].reset()


async def test_at_most_eight_filters_stand_in_a_packet_unless_it_is_said_otherwise() -> None:
    limited = Limited()
    async with (
        ScriptedBroker(limited.talk, limited.consume) as broker,
        client(broker) as app,
    ):
        await app.consume(*FILTERS)
        assert limited.in_force == set(FILTERS)
        assert limited.sizes == [8] * 5
        assert len(limited.peers) == 1
        limited.cut()
        await eventually(lambda: limited.sizes == [8] * 10)


async def test_packets_go_out_without_waiting_for_each_others_answer() -> None:
    async def patient(peer: Peer) -> None:
        await peer.accept()
        packets = [await peer.expect("SUBSCRIBE") for _ in range(COUNT // 8)]
        for packet in packets:
            peer.send(suback(packet.packet_id, *[1] * 8))
        await peer.wait_closed()

    limited = Limited()
    async with ScriptedBroker(limited.talk, patient) as broker, client(broker) as app:
        await app.consume(*FILTERS)


@pytest.mark.parametrize("batch", [9, 33, 1_000])
@pytest.mark.parametrize("most", [1, 8])
async def test_a_broker_that_closes_over_too_many_filters_gets_fewer(batch: int, most: int) -> None:
    limited = Limited(most)
    async with (
        ScriptedBroker(limited.talk, limited.consume) as broker,
        client(broker, subscribe_batch=batch, start_timeout=30) as app,
    ):
        consumer, recorder = await app.consume(*FILTERS)
        assert limited.in_force == set(FILTERS)
        # What has been learnt holds for new filters, filters that end, and after a reconnect.
        lives, overruns = len(limited.peers), limited.overruns
        for number in range(most + 1):
            await consumer.add_filter(f"more{number}")
        for pattern in FILTERS[: most + 1]:
            await consumer.remove_filter(pattern)
        assert len(limited.in_force) == COUNT
        limited.cut()
        await eventually(lambda: len(limited.peers) == lives + 1)
        limited.peers[-1].send(publish(1, topic="more0"))
        await recorder.get(1)
        assert limited.overruns == overruns
        assert len(limited.peers) == lives + 1


async def test_a_broker_that_closes_over_too_many_packets_gets_one_after_the_other() -> None:
    limited = Limited(packets=1)
    async with (
        ScriptedBroker(limited.talk, limited.consume) as broker,
        client(broker, start_timeout=30) as app,
    ):
        await app.consume(*FILTERS)
        assert limited.in_force == set(FILTERS)
        assert limited.overruns == 1


@pytest.mark.parametrize("code", [0x80, 0x83, 0x97])
async def test_filters_refused_together_are_tried_alone(code: int) -> None:
    limited = Limited(refusal=code)
    async with (
        ScriptedBroker(limited.talk, limited.consume) as broker,
        client(broker, subscribe_batch=9) as app,
    ):
        await app.consume(*FILTERS)
        assert limited.in_force == set(FILTERS)
        assert len(limited.peers) == 1


async def test_a_filter_that_is_forbidden_is_not_asked_for_again_alone() -> None:
    limited = Limited(forbidden=FILTERS[3:4])
    async with ScriptedBroker(limited.talk, limited.consume) as broker, client(broker) as app:
        with pytest.raises(NotAuthorised, match="topic3/#"):
            await app.consume(*FILTERS)
        assert limited.sizes == [8] * 5


async def test_filters_without_a_code_in_the_answer_count_as_refused() -> None:
    answered = 0

    async def forgetful(peer: Peer) -> None:
        nonlocal answered
        await peer.accept()
        await peer.subscribe(1)
        for _ in range(2):
            packet = await peer.expect("SUBSCRIBE")
            answered += 1
            assert len(filters_of(packet)) == 1
            peer.send(suback(packet.packet_id, 1))
        await peer.wait_closed()

    limited = Limited()
    async with ScriptedBroker(limited.talk, forgetful) as broker, client(broker) as app:
        await app.consume("a", "b", "c")
        assert answered == 2


async def test_filters_that_are_looked_for_to_be_ended_also_come_in_small_packets() -> None:
    limited = Limited()
    async with ScriptedBroker(limited.talk, limited.consume) as broker, client(broker) as app:
        consumer, _ = await app.consume("wanted", "ended")
        # From now on more may arrive than what is wanted.
        await consumer.remove_filter("ended")
        limited.in_force.add("old/+/c/#")
        consumer.discard_stale("old/b/c/d/e")
        await eventually(lambda: limited.in_force == {"wanted"})
        assert limited.overruns == 0
        assert sum(limited.sizes) > 50


def test_a_batch_of_no_filters_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="subscribe_batch"):
        MqttConfig(subscribe_batch=0)
