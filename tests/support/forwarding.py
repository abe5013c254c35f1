"""An application that passes messages on, with each kind of handler."""

from __future__ import annotations

from spa_dat import DistributedApplication, Socket, SyncSocket

__all__ = ["forwarding"]


def forwarding(url: str, kind: str) -> DistributedApplication:
    """Return an application that passes on what it gets, with a handler of the kind."""
    app = DistributedApplication(url, name="app")
    if kind == "async":

        @app.application("in/+")
        async def forward(payload: int, socket: Socket) -> None:
            await socket.publish("out", payload)

    elif kind == "posting":

        @app.application("in/+")
        async def post(payload: int, socket: Socket) -> None:
            socket.post("out", payload)

    elif kind == "thread":

        @app.application("in/+")
        def block(payload: int, socket: SyncSocket) -> None:
            socket.publish("out", payload)

    elif kind == "batch":

        @app.application("in/+", batch=(3, 0.5))
        async def several(payload: list[int], socket: Socket) -> None:
            for number in payload:
                await socket.publish("out", number)

    else:

        @app.application("in/+", concurrency=3)
        async def lanes(payload: int, socket: Socket) -> None:
            await socket.publish("out", payload)

    return app
