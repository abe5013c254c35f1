"""The check that the installed libraries have the private parts that the client uses."""

from __future__ import annotations

import asyncio
import importlib.util
from collections.abc import Sequence
from importlib import metadata

import aiomqtt
import paho.mqtt.client as paho

from ....errors import ConfigurationError

__all__ = ["check_libraries", "check_loop", "check_websockets"]

# What `_client` and `_subscribe` use or replace that the libraries do not document.
_AIOMQTT_HOOKS = ("_client_connect", "_on_connect")
_AIOMQTT_STATE = ("_client", "_connected", "_disconnected")
_PAHO_HOOKS = ("_create_socket", "_mid_generate", "loop_read", "loop_write", "manual_ack_set")


def check_libraries() -> None:
    """Check that the installed libraries have the internals used here.

    Must run inside an event loop.

    Raises:
        ConfigurationError: they do not; names the installed and the supported versions.
    """
    missing = _lacking(aiomqtt.Client, _AIOMQTT_HOOKS) + _lacking(paho.Client, _PAHO_HOOKS)
    if not missing:
        probe = aiomqtt.Client("localhost", protocol=aiomqtt.ProtocolVersion.V5)
        missing = _lacking(probe, _AIOMQTT_STATE)
    if missing:
        raise ConfigurationError(
            f"aiomqtt {metadata.version('aiomqtt')} with paho-mqtt"
            f" {metadata.version('paho-mqtt')} lacks {', '.join(missing)};"
            " install aiomqtt>=2.5.1,<3 and paho-mqtt>=2.2,<3"
        )


def check_websockets() -> None:
    """Check that the library for websockets is installed.

    Raises:
        ConfigurationError: it is not.
    """
    if importlib.util.find_spec("wsproto") is None:
        raise ConfigurationError(
            "MQTT over websockets needs the package wsproto: install spa-dat[websockets]"
        )


def check_loop(loop: asyncio.AbstractEventLoop) -> None:
    """Check that the loop can watch sockets.

    Raises:
        ConfigurationError: it cannot, like the default one on Windows; says which one can.
    """
    if type(loop).add_reader is asyncio.AbstractEventLoop.add_reader:
        raise ConfigurationError(
            f"{type(loop).__name__} cannot watch sockets, which the MQTT transport needs: run"
            " with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop)"
        )


def _lacking(thing: object, names: Sequence[str]) -> list[str]:
    owner = thing if isinstance(thing, type) else type(thing)
    return [
        f"{owner.__module__}.{owner.__qualname__}.{name}"
        for name in names
        if not hasattr(thing, name)
    ]
