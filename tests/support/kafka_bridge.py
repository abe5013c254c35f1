"""A bridge from Kafka to MQTT in a process of its own.

Usage: python kafka_bridge.py KAFKA_URL MQTT_URL
"""

from __future__ import annotations

import faulthandler
import signal
import sys

from spa_dat import DistributedApplication, Message

source, target = sys.argv[1:]
app = DistributedApplication(target, name="bridge")
# For a test that finds it hanging.
faulthandler.register(signal.SIGUSR1, chain=True)


@app.application("numbers", socket_provider=source)
async def carry(message: Message[bytes]) -> None:
    app.socket().post(f"bridged/{message.key}", message.payload)


if __name__ == "__main__":
    app.run()
