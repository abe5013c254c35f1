"""What strangers send, in bytes, on real brokers."""

from __future__ import annotations

import asyncio
import hashlib
import sys
from collections.abc import Callable, Sequence

import pytest
from aiokafka import AIOKafkaProducer

from spa_dat import DistributedApplication
from spa_dat.errors import RemoteError
from spa_dat.testing import Kafka, Mosquitto
from spa_dat.transports import Delivery, DeliveryState, Envelope, LeftOut
from support.kafka_bus import create, new_prefix
from support.kafka_consuming import committed, taker
from support.mqtt import Recorder, client
from support.waiting import eventually

StartBroker = Callable[..., Mosquitto]


def left_out(payload: bytes) -> LeftOut:
    return LeftOut(len(payload), hashlib.sha256(payload).hexdigest())


def unsettled(deliveries: list[Delivery]) -> int:
    return sum(
        len(delivery.envelope.payload)
        for delivery in deliveries
        if delivery.state is not DeliveryState.SETTLED
    )


@pytest.mark.mosquitto
@pytest.mark.parametrize("qos", [0, 1])
async def test_reading_stops_at_so_many_bytes_and_others_go_on(
    mosquitto: Mosquitto, qos: int
) -> None:
    size, count = 50_000, 100
    name = f"bytes{qos}"
    async with client(mosquitto, name=name) as app:
        recorder, other = Recorder(settle=False), Recorder()
        await app.consume(f"{name}/a", recorder=recorder, window_bytes=4 * size, qos=qos)
        await app.consume(f"{name}/a", recorder=other, name="other")
        payloads = [b"%04d" % number + b"x" * size for number in range(count)]
        for payload in payloads:
            await app.bus.publish(
                Envelope(topic=f"{name}/a", payload=payload, qos=qos), timeout=30.0
            )
        # Another session, and publishing, are held up by nothing.
        await other.get(count, 30.0)
        await eventually(lambda: app.stats["mqtt.paused"])
        most = unsettled(recorder.deliveries)
        # One read of the socket may bring some more whole messages.
        assert most <= 4 * size + 70_000
        position = 0
        while position < len(recorder.deliveries) and len(recorder.deliveries) <= count:
            delivery = recorder.deliveries[position]
            assert delivery.start()
            delivery.settle()
            position += 1
            most = max(most, unsettled(recorder.deliveries))
            if position < count:
                await recorder.get(position + 1, 30.0)
        assert recorder.payloads == payloads
        assert most <= 4 * size + 70_000
        assert app.stats["mqtt.paused"] > 5


@pytest.mark.mosquitto
async def test_of_short_messages_that_are_not_acknowledged_few_are_held(
    own_mosquitto: StartBroker,
) -> None:
    # So many wait for one client there.
    count = 30_000
    broker = own_mosquitto(extra=(f"max_queued_messages {count}",))
    async with client(broker, name="short", outbox=count) as app:
        recorder = Recorder(settle=False)
        await app.consume("short/a", recorder=recorder, qos=0)
        posted = [app.bus.post(Envelope(topic="short/a", qos=0)) for _ in range(count)]
        await eventually(lambda: posted[-1].done())
        await eventually(lambda: app.stats["mqtt.paused"])
        await app.bus.publish(Envelope(topic="short/b"), timeout=30.0)
        # One read of the socket may bring some more whole messages.
        assert len(recorder.deliveries) < 4_000
        position = 0

        def settled() -> int:
            nonlocal position
            for delivery in recorder.deliveries[position:]:
                delivery.start()
                delivery.settle()
                position += 1
            return position

        await eventually(lambda: settled() == count)


@pytest.mark.mosquitto
async def test_a_message_larger_than_the_window_passes_alone(mosquitto: Mosquitto) -> None:
    async with client(mosquitto, name="alone") as app:
        _, recorder = await app.consume("alone/a", window_bytes=1)
        payloads = [b"x" * size for size in (500_000, 10, 700_000, 0)]
        for payload in payloads:
            await app.bus.publish(Envelope(topic="alone/a", payload=payload), timeout=30.0)
        await recorder.get(len(payloads))
        assert recorder.payloads == payloads


@pytest.mark.mosquitto
async def test_what_is_too_large_comes_as_size_and_digest_in_its_place_and_is_acknowledged(
    mosquitto: Mosquitto,
) -> None:
    sent = [b"a", b"b" * 300_000, b"c", b"d" * 5_000_000, b"e" * 100_001, b"f" * 100_000]
    async with (
        client(mosquitto, name="stranger", max_payload=10_000_000) as stranger,
        client(mosquitto, name="large", max_received=100_000) as app,
    ):
        consumer, recorder = await app.consume("large/a")
        for payload in sent:
            await stranger.bus.publish(
                Envelope(topic="large/a", payload=payload, headers={"n": "1"}), timeout=30.0
            )
        await recorder.get(len(sent), 30.0)
        got = [delivery.envelope for delivery in recorder.deliveries]
        for payload, envelope in zip(sent, got, strict=True):
            assert envelope.headers == {"n": "1"}
            large = len(payload) > 100_000
            assert envelope.payload == (b"" if large else payload)
            assert envelope.left_out == (left_out(payload) if large else None)
        await consumer.close()
        again, recorder = await app.consume("large/a")
        await stranger.bus.publish(Envelope(topic="large/a", payload=b"last"), timeout=30.0)
        await recorder.get(1)
        assert recorder.payloads == [b"last"], "nothing is left unacknowledged"
        await again.close()


@pytest.mark.mosquitto
async def test_a_reply_that_is_too_large_comes_as_size_and_digest(mosquitto: Mosquitto) -> None:
    async with (
        client(mosquitto, name="talkative", max_payload=10_000_000) as stranger,
        client(mosquitto, name="asking", max_received=100_000) as app,
    ):
        for payload in (b"r" * 3_000_000, b"short"):
            await stranger.bus.publish(
                Envelope(topic=app.bus.reply_address("ab"), payload=payload), timeout=30.0
            )
        await eventually(lambda: len(app.replies) == 2)
        large, short = (envelope for _, envelope in app.replies)
        assert large.left_out == left_out(b"r" * 3_000_000)
        assert short.payload == b"short"


_HOG = """
import asyncio, sys
from pathlib import Path
from spa_dat import DistributedApplication

def peak():
    # Not ru_maxrss: a child inherits that from the process that started it.
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0])

async def main(url):
    app = DistributedApplication(url, name="hog")
    held = asyncio.Event()
    for number in range(10):
        async def take(payload: bytes) -> None:
            await held.wait()
        app.application("hog/+", name=f"actor{number}")(take)
    async with app:
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.readline)
        print(peak(), flush=True)
        held.set()

asyncio.run(main(sys.argv[1]))
"""


@pytest.mark.slow
@pytest.mark.mosquitto
@pytest.mark.deadline(180)
@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
async def test_ten_actors_stay_small_whatever_is_sent_to_them(own_mosquitto: StartBroker) -> None:
    broker = own_mosquitto()
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _HOG, broker.url,
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        assert await process.stdout.readline() == b"ready\n"
        async with client(broker, name="stranger", max_payload=100_000_000) as stranger:
            for size in [8_000_000] * 8 + [1_000_000] * 40:
                await stranger.bus.publish(
                    Envelope(topic="hog/x", payload=b"x" * size), timeout=60.0
                )
            for _ in range(200):
                await stranger.bus.publish(
                    Envelope(topic="hog/x", payload=b"x" * 50_000, qos=0), timeout=60.0
                )
        process.stdin.write(b"\n")
        await process.stdin.drain()
        kilobytes = int(await process.stdout.readline())
        # All of it would be a gigabyte; ten windows and what an interpreter takes are far less.
        assert kilobytes < 250_000
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def produce(
    server: str, topic: str, payloads: Sequence[bytes], *, partitions: int = 1
) -> None:
    """Have another program append records to the topic's partitions, by turns."""
    producer = AIOKafkaProducer(bootstrap_servers=server, max_request_size=2_000_000)
    await producer.start()
    try:
        for number, payload in enumerate(payloads):
            await producer.send_and_wait(topic, payload, partition=number % partitions)
    finally:
        await producer.stop()


@pytest.mark.kafka
async def test_a_record_that_a_default_broker_takes_is_received(
    kafka: Kafka,
) -> None:
    prefix = new_prefix()
    sizes = [1_000_000, 1_000_001, 1_048_000]
    async with taker(kafka.server, "t", prefix=prefix) as inbox:
        await produce(kafka.server, f"{prefix}t", [b"x" * size for size in sizes])
        await eventually(lambda: len(inbox.payloads) == len(sizes))
        assert [len(payload) for payload in inbox.payloads] == sizes


@pytest.mark.kafka
async def test_a_record_that_is_too_large_comes_with_its_place_and_does_not_stop_others(
    kafka: Kafka,
) -> None:
    prefix = new_prefix()
    payloads = [b"a", b"b" * 900_000, b"c", b"d" * 100_001, b"e" * 100_000]
    async with taker(kafka.server, "t", prefix=prefix, max_received=100_000) as inbox:
        await produce(kafka.server, f"{prefix}t", payloads)
        await eventually(lambda: len(inbox.deliveries) == len(payloads))
        for offset, (payload, delivery) in enumerate(zip(payloads, inbox.deliveries, strict=True)):
            envelope = delivery.envelope
            assert (envelope.partition, envelope.offset) == (0, offset)
            large = len(payload) > 100_000
            assert envelope.payload == (b"" if large else payload)
            assert envelope.left_out == (left_out(payload) if large else None)
        await eventually(lambda: committed_all(kafka.server, prefix, len(payloads)))


async def committed_all(server: str, prefix: str, offset: int) -> bool:
    return (await committed(server, prefix)).get("t/0") == offset


@pytest.mark.kafka
async def test_no_more_bytes_of_a_topic_are_handed_out_than_the_window_says(
    kafka: Kafka,
) -> None:
    prefix = new_prefix()
    size, count = 50_000, 60
    async with taker(
        kafka.server,
        "t",
        prefix=prefix,
        settle=False,
        subscription={"window_bytes": 4 * size},
    ) as inbox:
        await produce(kafka.server, f"{prefix}t", [b"%04d" % n + b"x" * size for n in range(count)])
        await eventually(lambda: unsettled(inbox.deliveries) >= 4 * size)
        most = 0
        for position in range(count):
            await inbox.get(position + 1, 30.0)
            most = max(most, unsettled(inbox.deliveries))
            delivery = inbox.deliveries[position]
            assert delivery.start()
            delivery.settle()
        # The first fetch does not know yet how large the records are: a few come at once.
        assert most <= 4 * size + 70_000
        assert [payload[:4] for payload in inbox.payloads] == [f"{n:04}" for n in range(count)]


@pytest.mark.kafka
async def test_what_is_fetched_is_taken_before_more_is_fetched(kafka: Kafka) -> None:
    prefix, count = new_prefix(), 16
    await create(kafka.server, f"{prefix}t", partitions=8)
    loop = asyncio.get_running_loop()
    async with taker(
        kafka.server,
        "t",
        prefix=prefix,
        settle=False,
        subscription={"window_bytes": 300_000},
    ) as inbox:
        payloads = [b"x" * 300_000] * count
        await produce(kafka.server, f"{prefix}t", payloads, partitions=8)
        begun = most = 0

        def all_settled() -> bool:
            nonlocal begun, most
            most = max(most, len(inbox.library._fetcher._records))
            for delivery in inbox.deliveries[begun:]:
                begun += 1
                assert delivery.start()
                # Longer than the library waits before it fetches of other partitions.
                loop.call_later(0.2, delivery.settle)
            return begun == count

        await eventually(all_settled, 60.0)
        assert most <= 2


@pytest.mark.mosquitto
@pytest.mark.parametrize("most", [330, 450])
async def test_an_error_is_the_answer_even_where_the_broker_allows_hardly_any_bytes(
    own_mosquitto: StartBroker, most: int
) -> None:
    broker = own_mosquitto(extra=(f"max_packet_size {most}",))
    app = DistributedApplication(broker.url, name="app")

    @app.application("q", name="actor")
    async def handle(payload: str) -> str:
        raise ValueError("x" * 300)

    async with app:
        with pytest.raises(RemoteError, match="ValueError: x") as raised:
            await app.socket().request("q", "1", reply=str, timeout=60)
    assert raised.value.code == "failed"
    assert app.stats["replies.refused"] == 0
