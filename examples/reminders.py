"""Have orders that nobody pays for cancelled by a reminder, which survives the program.

Kill it while the orders wait, and start it again: what is overdue is cancelled then, once::

    python examples/reminders.py
    python examples/reminders.py mqtt://127.0.0.1:1883
    python examples/reminders.py kafka://127.0.0.1:9092?create_topics=all
"""

import sys
import tempfile
from dataclasses import dataclass
from typing import Any

from spa_dat import (
    Actor,
    Context,
    DistributedApplication,
    Durable,
    KafkaTopic,
    Socket,
    SocketProviderFactory,
    on,
    on_reminder,
)

URL = sys.argv[1] if len(sys.argv) > 1 else "memory://"
ON_KAFKA = URL.startswith("kafka")
# All orders share topics there. What belongs to one is in one partition, as is its state.
TOPICS = {
    "orders/{order}/cancelled": KafkaTopic("orders.cancelled", key="order"),
    "orders/{order}/{step}": KafkaTopic("orders.steps", key="order"),
}
PATIENCE = 0.5

options: dict[str, Any] = {"topics": TOPICS} if ON_KAFKA else {}
bus = SocketProviderFactory.from_url(URL, **options)
# Without a folder: where the system keeps the state of programs.
app = DistributedApplication(bus, name="orders-example", state_folder=tempfile.mkdtemp())


@dataclass
class Order:
    """What is known of one order."""

    euros: float = 0.0
    paid: bool = False


class Orders(Actor):
    """One instance for each order."""

    per = "order"
    state = Order
    durable = Durable(ttl=30 * 86_400)
    exactly_once = ON_KAFKA

    @on("orders/{order}/placed")
    async def placed(self, euros: float, context: Context) -> None:
        self.state.euros = euros
        # Set with the commit of this message, so there is no order without it.
        context.remind("unpaid", after=PATIENCE)

    @on("orders/{order}/paid")
    async def paid(self, payload: bytes, order: str, context: Context) -> None:
        self.state.paid = True
        context.forget_reminder("unpaid")
        print(f"order {order} is paid: {self.state.euros} euros")

    @on_reminder("unpaid")
    async def unpaid(self, order: str, context: Context, socket: Socket) -> None:
        print(f"order {order} was not paid, and is cancelled")
        await socket.publish(f"orders/{order}/cancelled", self.state.euros)
        context.delete()


app.add(Orders)


@app.producer()
async def customers(socket: Socket) -> None:
    for order, euros in (("7", 20.0), ("8", 30.0)):
        await socket.publish(f"orders/{order}/placed", euros, key=order)
    await socket.publish("orders/7/paid", key="7")


@app.application("orders/{order}/cancelled")
async def warehouse(euros: float, order: str) -> None:
    print(f"what was meant for order {order} goes back: {euros} euros")
    app.stop()


if __name__ == "__main__":
    app.run()
