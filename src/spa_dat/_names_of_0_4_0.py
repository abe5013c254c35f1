"""Modules and names of spa-dat 0.4.0, and what has become of them."""

from __future__ import annotations

__all__ = ["advice_on_name", "check_module"]

_GUIDE = "docs/migrating.md has a table of all changes"
_MODULES = {
    "application": "write 'from spa_dat import DistributedApplication'",
    "config": (
        "SocketConfig and PayloadFormat are gone: give SocketProviderFactory.from_config a"
        " MqttConfig or KafkaConfig of spa_dat, or from_url a URL"
    ),
    "main": "write 'from spa_dat import DistributedApplication'",
    "provider": "write 'from spa_dat import SocketProviderFactory'",
    "serialization": "serializers are gone: the type of a payload decides how it is written",
    "socket": (
        "write 'from spa_dat import KafkaConfig, Message, MessageBuilder, MqttConfig, Socket,"
        " SocketProvider'; Message was SpaMessage, Socket was SpaSocket"
    ),
}
_NAMES = {
    "ConsumerApplication": "use the decorator @app.application(...) of a DistributedApplication",
    "JsonSerializer": _MODULES["serialization"],
    "KafkaSocketProvider": "use SocketProviderFactory.from_config(KafkaConfig(...))",
    "MqttSocketProvider": "use SocketProviderFactory.from_config(MqttConfig(...))",
    "PayloadFormat": _MODULES["config"],
    "ProducerApplication": "use the decorator @app.producer(...) of a DistributedApplication",
    "QualityOfService": "give qos=0 or qos=1 to the actor and to publish",
    "Serializer": _MODULES["serialization"],
    "SocketConfig": _MODULES["config"],
    "SpaMessage": (
        "write 'from spa_dat import Message' for what handlers get, and use message_builder or"
        " publish(topic, payload) for what is sent"
    ),
    "SpaSocket": "write 'from spa_dat import Socket'",
}


def check_module(name: str) -> None:
    """Raise ImportError, which says what to import instead, for a module that 0.4.0 had."""
    advice = _MODULES.get(name.removeprefix("spa_dat."))
    if advice is not None:
        raise ImportError(f"{name} was a module of spa-dat 0.4.0: {advice}; {_GUIDE}", name=name)


def advice_on_name(name: str) -> str | None:
    """Return what to use instead of a name that 0.4.0 had; None for any other."""
    advice = _NAMES.get(name)
    return None if advice is None else f"{name} was a name of spa-dat 0.4.0: {advice}; {_GUIDE}"
