"""Request-reply written by hand on aiokafka; both roles.

One consumer without a group for all replies, at the end of its topic before the first request, and
futures by the correlation id in a header. Nobody waits for a confirmation, the responder commits
on aiokafka's timer, and nothing is retried: it is as fast as aiokafka allows.
"""

from __future__ import annotations

import asyncio
import itertools

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from ._child import Order, arguments, measure_requests, on_kafka, report


def _producer(order: Order) -> AIOKafkaProducer:
    return AIOKafkaProducer(bootstrap_servers=order.server, acks="all", enable_idempotence=True)


async def _respond(order: Order) -> None:
    topic = on_kafka(order.topic)
    consumer = AIOKafkaConsumer(
        topic, bootstrap_servers=order.server, group_id=topic, auto_offset_reset="earliest"
    )
    async with _producer(order) as producer, consumer:
        report("ready")
        while True:
            for records in (await consumer.getmany(timeout_ms=1_000)).values():
                for record in records:
                    headers = dict(record.headers)
                    await producer.send(
                        headers["reply_to"].decode(),
                        record.value,
                        headers=[("correlation_id", headers["correlation_id"])],
                    )


async def _request(order: Order) -> None:
    topic = on_kafka(order.topic)
    replies = f"{topic}.replies"
    numbers = itertools.count()
    waiting: dict[bytes, asyncio.Future[bytes]] = {}

    async def read() -> None:
        while True:
            for records in (await consumer.getmany(timeout_ms=1_000)).values():
                for record in records:
                    future = waiting.pop(dict(record.headers)["correlation_id"], None)
                    if future is not None and not future.done():
                        future.set_result(record.value)

    async def ask(payload: bytes) -> bytes:
        correlation = b"%d" % next(numbers)
        future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        waiting[correlation] = future
        headers = [("reply_to", replies.encode()), ("correlation_id", correlation)]
        await producer.send(topic, payload, headers=headers)
        async with asyncio.timeout(30.0):
            return await future

    consumer = AIOKafkaConsumer(bootstrap_servers=order.server)
    async with _producer(order) as producer, consumer:
        inbox = TopicPartition(replies, 0)
        consumer.assign([inbox])
        await consumer.seek_to_end(inbox)
        await consumer.position(inbox)
        reading = asyncio.create_task(read())
        report("ready")
        await measure_requests(ask, order)
        reading.cancel()


if __name__ == "__main__":
    told = arguments()
    asyncio.run(_respond(told) if told.what == "responder" else _request(told))
