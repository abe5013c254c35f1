"""Real brokers for tests: processes on this machine, started when needed.

It imports no other room of the harness. Begin with `_process`.
"""

from __future__ import annotations

from ._errors import BrokerFailed, BrokerUnavailable
from ._kafka import Acl, Kafka
from ._mosquitto import Mosquitto
from ._process import BrokerProcess
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
