"""Middleware: whose message it is, for every handler and on everything published; and a clock.

Run it on memory, or on a broker::

    python examples/middleware.py
    python examples/middleware.py mqtt://127.0.0.1:1883
"""

import sys
import time
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import Any

from spa_dat import DistributedApplication, HandlerCall, Middleware, Outgoing, Reject, Socket

URL = sys.argv[1] if len(sys.argv) > 1 else "memory://"

tenant: ContextVar[str | None] = ContextVar("tenant", default=None)
app = DistributedApplication(URL, name="middleware-example")


class Tenancy(Middleware):
    """Handlers find the tenant of their message in a variable; what they publish names it."""

    async def handle(self, call: HandlerCall, next: Callable[[], Awaitable[Any]]) -> Any:
        if call.message is not None:
            if "tenant" not in call.message.headers:
                raise Reject("a message of no tenant")
            tenant.set(call.message.headers["tenant"])
        return await next()

    def publish(self, outgoing: Outgoing) -> None:
        name = tenant.get()
        if name is not None:
            outgoing.headers["tenant"] = name


class Clock(Middleware):
    """Counts the calls of each handler, and how long they take together."""

    def __init__(self) -> None:
        self.calls: dict[str, int] = {}
        self.seconds = 0.0

    async def handle(self, call: HandlerCall, next: Callable[[], Awaitable[Any]]) -> Any:
        begun = time.perf_counter()
        try:
            return await next()
        finally:
            self.seconds += time.perf_counter() - begun
            self.calls[call.handler] = self.calls.get(call.handler, 0) + 1


clock = Clock()
app.use(clock)
app.use(Tenancy())


@app.application("orders")
async def order(item: str, socket: Socket) -> None:
    price = await socket.request("prices", item, reply=float, timeout=10)
    await socket.publish("invoices", f"{item} for {price:.2f}")


@app.application("prices")
def price(item: str) -> float:
    # The tenant came with the request, and is known in the thread, too.
    return {"north": 0.25, "south": 0.30}[tenant.get() or ""] * len(item)


@app.application("invoices", state=set)
async def invoice(text: str, state: set[str | None]) -> None:
    print(f"{tenant.get()}: {text}")
    state.add(tenant.get())
    if len(state) == 2:
        app.stop()


@app.producer()
async def customers(socket: Socket) -> None:
    await socket.publish("orders", "bolt")
    await socket.publish("orders", "nut", headers={"tenant": "north"})
    await socket.publish("orders", "bolt", headers={"tenant": "south"})


if __name__ == "__main__":
    app.run()
    calls = ", ".join(f"{name} {count}" for name, count in sorted(clock.calls.items()))
    print(f"calls: {calls}; some time: {clock.seconds > 0}")
