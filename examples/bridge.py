"""Carry messages from one bus to another, both ways.

The plant and the office are two buses, here both in memory; give one or both as a URL::

    python examples/bridge.py
    python examples/bridge.py mqtt://127.0.0.1:1883 kafka://127.0.0.1:9092?create_topics=all
"""

import sys

from spa_dat import DistributedApplication, Message, Socket, SocketProviderFactory

URLS = [*sys.argv[1:], *("memory://plant", "memory://office")[len(sys.argv) - 1 :]]

plant, office = (SocketProviderFactory.from_url(url) for url in URLS[:2])
app = DistributedApplication(name="bridge-example")


@app.application("ovens/{oven}/temperature", socket_provider=plant)
async def to_office(message: Message[bytes], oven: str) -> None:
    # post() does not wait, so many messages are on their way at once. Each is acknowledged in the
    # plant once the office has confirmed it.
    app.socket(socket_provider=office).post(
        message.topic,
        message.payload,
        key=oven,
        headers=message.headers,
        content_type=message.content_type,
    )


@app.application("orders/{oven}", socket_provider=office)
async def to_plant(message: Message[bytes], oven: str) -> None:
    # publish() returns once the plant has confirmed it, or raises; then the message is retried.
    await app.socket(socket_provider=plant).publish(
        message.topic, message.payload, key=oven, content_type=message.content_type
    )


# What follows stands for other programs in the plant and in the office.


@app.producer(socket_provider=plant)
async def ovens(socket: Socket) -> None:
    for number in range(100):
        socket.post(f"ovens/{number % 4}/temperature", 150 + number)


@app.application("ovens/{oven}/temperature", socket_provider=office, state=dict)
async def control(celsius: float, oven: str, state: dict[float, str], socket: Socket) -> None:
    state[celsius] = oven
    if len(state) == 100:
        print("the office has 100 temperatures")
        await socket.publish(f"orders/{state[max(state)]}", "cool down")


@app.application("orders/{oven}", socket_provider=plant)
async def obey(order: str, oven: str) -> None:
    print(f"oven {oven} is told to {order}")
    app.stop()


if __name__ == "__main__":
    app.run()
