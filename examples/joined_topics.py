"""Join orders with their payments, which come in another topic, and ship each order once.

The two come in any order. What is known of an order is its state, which both change. The first
attempt at a payment fails after it has published: nothing of that is seen, and its state is undone.
On Kafka one transaction has the offsets of both topics, the states and the shipments, so killing
the program at any time, or running it twice at once, changes nothing::

    python examples/joined_topics.py kafka://127.0.0.1:9092?create_topics=all
    python examples/joined_topics.py mqtt://127.0.0.1:1883
    python examples/joined_topics.py
"""

import sys
import tempfile
from dataclasses import dataclass
from typing import Any

from spa_dat import (
    Actor,
    Context,
    DistributedApplication,
    KafkaTopic,
    RetryPolicy,
    Socket,
    SocketProviderFactory,
    on,
)

URL = sys.argv[1] if len(sys.argv) > 1 else "memory://"
ON_KAFKA = URL.startswith("kafka")
# What belongs to one order has its key, so it is in the partitions with one number, as its state.
TOPICS = {
    "orders/{order}": KafkaTopic("orders", key="order"),
    "payments/{order}": KafkaTopic("payments", key="order"),
    "shipments/{order}": KafkaTopic("shipments", key="order"),
}

options: dict[str, Any] = {"topics": TOPICS} if ON_KAFKA else {}
bus = SocketProviderFactory.from_url(URL, **options)
# Without a folder: where the system keeps the state of programs.
app = DistributedApplication(bus, name="joined-example", state_folder=tempfile.mkdtemp())


@dataclass
class Order:
    """What is known of one order, from both topics."""

    item: str | None = None
    euros: float = 0.0
    paid: float = 0.0
    shipped: bool = False


class Orders(Actor):
    """One instance for each order, which gets the messages of both topics."""

    per = "order"
    state = Order
    durable = True
    exactly_once = ON_KAFKA
    retry = RetryPolicy(first=0.1, jitter=0)

    @on("orders/{order}")
    async def ordered(self, payload: Order, order: str, socket: Socket) -> None:
        self.state.item, self.state.euros = payload.item, payload.euros
        await self._ship(order, socket)

    @on("payments/{order}")
    async def paid(self, euros: float, order: str, context: Context, socket: Socket) -> None:
        self.state.paid += euros
        await self._ship(order, socket)
        if order == "7" and context.attempt == 1:
            raise OSError("the bank does not answer")

    async def _ship(self, order: str, socket: Socket) -> None:
        state = self.state
        if state.item is not None and state.paid >= state.euros and not state.shipped:
            state.shipped = True
            await socket.publish(f"shipments/{order}", f"{state.item} for {state.paid} euros")


app.add(Orders)
shipments: list[str] = []


@app.application("shipments/{order}")
async def warehouse(shipment: str, order: str) -> None:
    shipments.append(f"order {order}: {shipment}")
    if len(shipments) == 2:
        print("\n".join(sorted(shipments)))
        app.stop()


@app.producer()
async def customers(socket: Socket) -> None:
    # The second one pays in advance, in two parts.
    await socket.publish("payments/8", 12.0, key="8")
    await socket.publish("orders/7", Order("bolt", 20.0), key="7")
    await socket.publish("payments/7", 20.0, key="7")
    await socket.publish("orders/8", Order("nut", 30.0), key="8")
    await socket.publish("payments/8", 18.0, key="8")


if __name__ == "__main__":
    app.run()
