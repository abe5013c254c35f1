"""A web service with FastAPI: its routes publish and ask, and actors run beside them.

It needs fastapi and a server, such as uvicorn. Run it on memory, or on a broker::

    uvicorn fastapi_app:web --app-dir examples
    SPA_DAT_URL=mqtt://127.0.0.1 uvicorn fastapi_app:web --app-dir examples

    curl localhost:8000/price --json '{"item": "bolt", "amount": 3}'
    curl localhost:8000/orders/anna --json '{"item": "bolt", "amount": 3}'
"""

import asyncio
import os
import signal
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Annotated

from fastapi import FastAPI, Path, Request
from fastapi.responses import JSONResponse

from spa_dat import DistributedApplication, Message, SpaDatError, Topic, carried_headers
from spa_dat.errors import (
    ActorStopped,
    ConnectionLost,
    DecodeError,
    EncodeError,
    MessageTooLarge,
    NoResponder,
    OutboxFull,
    PublishNotSent,
    PublishUnknown,
    RemoteError,
    RequestTimeout,
)

shop = DistributedApplication(os.environ.get("SPA_DAT_URL", "memory://"), name="shop")


@dataclass
class Order:
    item: str
    amount: int


@dataclass
class Offer:
    total: float


orders = Topic[Order]("shop/orders/{customer}")
prices = Topic[Order, Offer]("shop/price")


@shop.application(orders)
async def take(order: Order, message: Message[Order], customer: str) -> None:
    print(f"{customer} orders {order.amount} of {order.item}, flow {message.correlation_id}")


@shop.application(prices)
async def price(order: Order) -> Offer:
    if order.amount < 1:
        raise RemoteError("bad-amount", f"{order.amount} of {order.item} cannot be sold")
    return Offer(total=0.25 * order.amount)


def end_server(waiting: asyncio.Task[None]) -> None:
    # The server stops as if somebody had asked it to, and whatever looks after it starts it again.
    if not waiting.cancelled() and waiting.exception() is not None:
        signal.raise_signal(signal.SIGTERM)


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncGenerator[None]:
    async with shop:
        waiting = asyncio.create_task(shop.wait())
        waiting.add_done_callback(end_server)
        yield
        waiting.cancel()


web = FastAPI(lifespan=lifespan)


@web.exception_handler(SpaDatError)
async def answer_with_error(_: Request, error: SpaDatError) -> JSONResponse:
    match error:
        case RemoteError():
            # A code is for programs; the text may tell more than strangers should know.
            return JSONResponse({"error": error.code}, 502)
        case DecodeError():
            return JSONResponse({"error": "bad-reply"}, 502)
        case RequestTimeout() | PublishUnknown():
            return JSONResponse({"error": "timeout"}, 504)
        case OutboxFull() | PublishNotSent() | ConnectionLost() | NoResponder() | ActorStopped():
            return JSONResponse({"error": "unavailable"}, 503, {"Retry-After": "5"})
        case MessageTooLarge():
            return JSONResponse({"error": "too-large"}, 413)
        case EncodeError():
            # JSON may escape half of a surrogate pair, which UTF-8 does not have.
            return JSONResponse({"error": "bad-text"}, 422)
        case _:
            raise error  # the program is wrong: a 500, with a traceback in the server's log


# Part of a topic, so neither a wildcard nor a slash may be in it; Kafka takes nothing but these.
Customer = Annotated[str, Path(pattern="^[A-Za-z0-9_-]{1,64}$")]


@web.post("/orders/{customer}", status_code=202)
async def order(customer: Customer, order: Order, request: Request) -> None:
    # Returns when the broker has it. The shorter timeout is what the client is ready to wait.
    await shop.socket().publish(
        orders.at(customer=customer), order, headers=carried_headers(request.headers), timeout=5
    )


@web.post("/price")
async def ask_price(order: Order, request: Request) -> Offer:
    return await shop.socket().request(
        prices, order, headers=carried_headers(request.headers), timeout=5
    )


@web.get("/readyz")
async def ready() -> JSONResponse:
    health = shop.health()
    return JSONResponse({"ready": health.ready}, 200 if health.ready else 503)
