"""The semantic conventions of OpenTelemetry: which version, and what they call a bus."""

from __future__ import annotations

__all__ = ["SCHEMA", "system_of"]

SCHEMA = "https://opentelemetry.io/schemas/1.44.0"
"""The version of the conventions that names and units are from."""

_SYSTEMS = {"mqtts": "mqtt", "ws": "mqtt", "wss": "mqtt", "kafkas": "kafka"}


def system_of(address: str) -> str:
    """Return the value of ``messaging.system``: ``mqtt``, ``kafka``, ``memory`` or another one.

    Args:
        address: that of the bus.
    """
    # "mqtt+unix" is MQTT over a Unix socket.
    scheme = address.partition(":")[0].partition("+")[0]
    return _SYSTEMS.get(scheme, scheme)
