"""Brokers that replace client identifiers, and so take all connections of a user for one client."""

from __future__ import annotations

from ..._logs import get_logger
from ...errors import ConfigurationError
from .._contract import Surroundings
from ._config import MqttConfig
from ._connection_group import CLOSE_TIMEOUT
from ._session_probe import SessionProbe
from .protocol._client import MqttClient

__all__ = ["replaced_identifiers", "replaces_identifiers"]

_log = get_logger(__name__)

# The session of the first of two connections has to be there while the second one connects.
_BRIEFLY = 1


async def replaces_identifiers(
    config: MqttConfig, identifier: str, surroundings: Surroundings
) -> bool:
    """Return whether the broker proves to give connections other identifiers than they ask for.

    It does if the session of one identifier that nobody has used before is found under another one.
    The first asks for a new session: a broker that has one all the same cannot be believed. That
    deletes nothing that is of use, because the application's own connection has done so before.
    What goes wrong proves nothing.
    """
    probes: list[SessionProbe] = []
    clients: list[MqttClient] = []
    try:
        for is_first in (True, False):
            probes.append(SessionProbe())
            client = MqttClient(
                config,
                f"{identifier}.{surroundings.environment.token()}",
                probes[-1],
                surroundings.stats,
                clean_start=is_first,
                session_expiry=_BRIEFLY if is_first else 0,
            )
            clients.append(client)
            await client.connect()
    except Exception as error:  # noqa: BLE001 (the next attempt to connect meets it again)
        _log.debug("whether identifiers are kept could not be examined: %s", error)
    finally:
        for client in clients:
            await client.disconnect(CLOSE_TIMEOUT)
    return [probe.session_present for probe in probes] == [False, True]


def replaced_identifiers(config: MqttConfig, identifier: str) -> ConfigurationError:
    """Return the error for a broker that replaces identifiers."""
    return ConfigurationError(
        f"the broker at {config.address} replaces the client identifiers that connections ask for"
        f" ({identifier!r}, and others of this application): it takes all connections with one"
        " login for the same client, and each closes the one before. Have it keep them (Mosquitto:"
        " without use_username_as_clientid on this listener; EMQX: without it and without"
        " peer_cert_as_clientid)"
    )
