"""Programs of spa-dat 0.4.0, in processes of their own with an environment of their own."""

from __future__ import annotations

import textwrap

from support.peers import PeerProgram

__all__ = ["OldProgram"]

_BEGINNING = """
import asyncio, json, logging, sys

from spa_dat.application.application import DistributedApplication
from spa_dat.config import PayloadFormat, SocketConfig
from spa_dat.provider import SocketProviderFactory
from spa_dat.socket.kafka import KafkaConfig
from spa_dat.socket.mqtt import MqttConfig

bus, host, port, topic = sys.argv[1:]
if bus == "kafka":
    config = KafkaConfig(bootstrap_servers=f"{host}:{port}")
else:
    config = MqttConfig(host=host, port=int(port))
app = DistributedApplication(
    SocketProviderFactory.from_config(
        SocketConfig(payload_format=PayloadFormat.JSON, socket_config=config)
    )
)

def say(**what):
    print(json.dumps(what), flush=True)

def said(message):
    say(
        payload=message.payload.decode(),
        topic=message.topic,
        content_type=message.content_type,
        client_name=message.client_name,
        response_topic=message.response_topic,
    )

"""


class OldProgram(PeerProgram):
    """A program of 0.4.0, which has ``app``, ``topic``, ``say`` and ``said``.

    Args:
        bus: ``mqtt`` or ``kafka``.
        place: host and port of the broker.
        topic: for the program.
        text: what it does before ``app.start()``.
    """

    def __init__(self, bus: str, place: tuple[str, int], topic: str, text: str) -> None:
        super().__init__(
            ".venv-0.4.0",
            "SPA_DAT_0_4_0_PYTHON",
            _BEGINNING + textwrap.dedent(text) + "\napp.start()\n",
            bus,
            place[0],
            str(place[1]),
            topic,
        )
