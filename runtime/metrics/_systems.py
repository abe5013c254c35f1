"""The kind of a bus as the conventions name it: the value of ``messaging.system``."""

from __future__ import annotations

__all__ = ["system_of"]

_SYSTEMS = {"mqtts": "mqtt", "ws": "mqtt", "wss": "mqtt", "kafkas": "kafka"}


def system_of(address: str) -> str:
    """Return the kind of the bus at an address: ``mqtt``, ``kafka``, ``memory`` or another one."""
    scheme = address.partition(":")[0]
    return _SYSTEMS.get(scheme, scheme)
