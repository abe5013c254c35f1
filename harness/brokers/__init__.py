"""Real brokers for tests: processes on this machine, started when needed.

It imports no other folder of the harness. Begin with `_broker_process`.
"""

from __future__ import annotations

from ._broker_process import BrokerProcess
from ._errors import BrokerFailed, BrokerUnavailable
from ._kafka import Acl, Kafka
from ._mosquitto import Mosquitto
from ._proxy import Proxy

__all__ = [
    "Acl",
    "BrokerFailed",
    "BrokerProcess",
    "BrokerUnavailable",
    "Kafka",
    "Mosquitto",
    "Proxy",
]
