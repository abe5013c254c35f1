"""A web service with aiohttp: its handlers post and ask, and an actor keeps what was posted.

It needs aiohttp. Run it on memory, or on a broker::

    python examples/aiohttp_app.py
    python examples/aiohttp_app.py mqtt://127.0.0.1

    curl localhost:8080/machines/boiler -d '{"celsius": 61.5}'
    curl localhost:8080/machines/boiler
"""

import asyncio
import re
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import asdict, dataclass

import msgspec
from aiohttp import web

from spa_dat import DistributedApplication, Topic, carried_headers
from spa_dat.errors import (
    ActorStopped,
    ConnectionLost,
    MessageTooLarge,
    NoResponder,
    OutboxFull,
    PublishNotSent,
    RemoteError,
    RequestTimeout,
)

PLANT = web.AppKey("plant", DistributedApplication)
# Part of a topic, so neither a wildcard nor a slash may be in it; Kafka takes nothing but these.
MACHINE = re.compile("[A-Za-z0-9_-]{1,64}")


@dataclass
class Reading:
    celsius: float


readings = Topic[Reading]("plant/{machine}/temperature")
latest = Topic[str, Reading]("plant/latest")


def make_plant(url: str) -> DistributedApplication:
    plant = DistributedApplication(url, name="plant-web")
    known: dict[str, Reading] = {}

    @plant.application(readings)
    async def keep(reading: Reading, machine: str) -> None:
        known[machine] = reading

    @plant.application(latest)
    async def find(machine: str) -> Reading:
        if machine not in known:
            raise RemoteError("unknown", f"nothing is known of {machine}")
        return known[machine]

    return plant


def end_server(waiting: asyncio.Task[None]) -> None:
    # The server stops as if somebody had asked it to, and whatever looks after it starts it again.
    if not waiting.cancelled() and waiting.exception() is not None:
        signal.raise_signal(signal.SIGTERM)


async def run_plant(app: web.Application) -> AsyncIterator[None]:
    async with app[PLANT] as plant:
        waiting = asyncio.create_task(plant.wait())
        waiting.add_done_callback(end_server)
        yield
        waiting.cancel()


@web.middleware
async def answer_with_errors(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    try:
        return await handler(request)
    except RemoteError as error:
        raise web.HTTPNotFound if error.code == "unknown" else web.HTTPBadGateway from error
    except RequestTimeout as error:
        raise web.HTTPGatewayTimeout from error
    except MessageTooLarge as error:
        raise web.HTTPRequestEntityTooLarge(0, 0) from error
    except (OutboxFull, PublishNotSent, ConnectionLost, NoResponder, ActorStopped) as error:
        raise web.HTTPServiceUnavailable(headers={"Retry-After": "5"}) from error


def machine_of(request: web.Request) -> str:
    machine = request.match_info["machine"]
    if not MACHINE.fullmatch(machine):
        raise web.HTTPNotFound
    return machine


async def post_reading(request: web.Request) -> web.Response:
    topic = readings.at(machine=machine_of(request))
    try:
        # Unlike json it takes neither NaN nor what is too large for a float.
        reading = msgspec.json.decode(await request.read(), type=Reading)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise web.HTTPUnprocessableEntity from error
    # Does not wait for the broker: one reading more or less does not matter here.
    request.app[PLANT].socket().post(topic, reading, headers=carried_headers(request.headers))
    return web.Response(status=202)


async def get_reading(request: web.Request) -> web.Response:
    socket = request.app[PLANT].socket()
    headers = carried_headers(request.headers)
    reading = await socket.request(latest, machine_of(request), headers=headers, timeout=5)
    return web.json_response(asdict(reading))


def make_web(url: str = "memory://") -> web.Application:
    app = web.Application(middlewares=[answer_with_errors])
    app[PLANT] = make_plant(url)
    app.cleanup_ctx.append(run_plant)
    app.router.add_post("/machines/{machine}", post_reading)
    app.router.add_get("/machines/{machine}", get_reading)
    return app


if __name__ == "__main__":
    server = make_web(*sys.argv[1:2])
    web.run_app(server)
    # It returns after SIGTERM, whoever has sent it.
    sys.exit(server[PLANT].health().state == "failed")
