"""Ask and answer: what a handler returns is the reply.

Run it on memory, or on a broker::

    python examples/request_reply.py
    python examples/request_reply.py mqtt://127.0.0.1:1883
"""

import sys
from dataclasses import dataclass

from spa_dat import DistributedApplication, Message, Socket
from spa_dat.errors import RemoteError

URL = sys.argv[1] if len(sys.argv) > 1 else "memory://"

app = DistributedApplication(URL, name="request-reply-example")


@dataclass
class Order:
    item: str
    amount: int


@dataclass
class Offer:
    seller: str
    total: float


@app.application("shop/price")
async def price(order: Order) -> Offer:
    if order.amount <= 0:
        raise RemoteError("bad-amount", f"{order.amount} of {order.item} cannot be ordered")
    return Offer("shop", total=0.25 * order.amount)


@app.application("market/price")
async def cheap(order: Order) -> Offer:
    return Offer("cheap", total=0.20 * order.amount)


@app.application("market/price", replies=True)
async def fair(order: Order, message: Message[Order]) -> None:
    # The long form: reply first, then continue with something else.
    await message.reply(Offer("fair", total=0.22 * order.amount))


@app.producer()
async def customer(socket: Socket) -> None:
    offer = await socket.request("shop/price", Order("bolt", 100), reply=Offer, timeout=5)
    print(f"{offer.seller} asks {offer.total:.2f}")

    try:
        await socket.request("shop/price", Order("bolt", -1), reply=Offer, timeout=5)
    except RemoteError as error:
        print(f"refused with code {error.code!r}: {error.text}")

    try:
        await socket.request("shop/price", "a dozen bolts", reply=Offer, timeout=5)
    except RemoteError as error:
        print(f"refused with code {error.code!r}")

    offers = await socket.request_many(
        "market/price", Order("bolt", 100), reply=Offer, count=2, timeout=5
    )
    best = min((o for o in offers if isinstance(o, Offer)), key=lambda o: o.total)
    print(f"{len(offers)} offers, the best from {best.seller}: {best.total:.2f}")
    app.stop()


if __name__ == "__main__":
    app.run()
