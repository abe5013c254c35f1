"""Send one invoice for each order, although the handler fails after it has published one.

On Kafka what a failed attempt has published is never seen. Elsewhere it stays published, and comes
twice, with the same id::

    python examples/exactly_once.py kafka://127.0.0.1:9092?create_topics=all
    python examples/exactly_once.py
"""

import sys
from dataclasses import dataclass

from spa_dat import Context, DistributedApplication, Message, RetryPolicy, Socket

URL = sys.argv[1] if len(sys.argv) > 1 else "memory://"
ORDERS = 3

app = DistributedApplication(URL, name="exactly-once-example")


@dataclass
class Order:
    number: int
    euros: float


handled: set[int] = set()
invoices: list[int] = []
ids: set[str | None] = set()


@app.application(
    "orders", exactly_once=URL.startswith("kafka"), retry=RetryPolicy(first=0.1, jitter=0)
)
async def orders(order: Order, context: Context, socket: Socket) -> None:
    await socket.publish("invoices", order)
    if order.number == 2 and context.attempt == 1:
        raise OSError("the printer has no paper")
    handled.add(order.number)
    stop_when_all_is_done()


@app.application("invoices")
async def note(invoice: Order, message: Message[bytes]) -> None:
    print(f"invoice for order {invoice.number}: {invoice.euros} euros")
    invoices.append(invoice.number)
    ids.add(message.id)
    stop_when_all_is_done()


@app.producer()
async def shop(socket: Socket) -> None:
    for number in range(1, ORDERS + 1):
        await socket.publish("orders", Order(number, 10.0 * number))


def stop_when_all_is_done() -> None:
    if len(handled) == ORDERS == len(set(invoices)):
        print(f"{len(invoices)} invoices have come, {len(ids)} different ones")
        app.stop()


if __name__ == "__main__":
    app.run()
