"""Names of other frameworks that are tried here out of habit, and what to write instead."""

from __future__ import annotations

__all__ = ["advice_on_attribute", "advice_on_option"]

_REGISTER = "a handler is registered with @app.application('topic')"
_PUBLISH = (
    "in a handler ask for socket: Socket, and write 'await socket.{0}(topic, payload)'; elsewhere"
    " use app.socket()"
)
_START = "use app.resource(name, context_manager), or on_start of an actor class"
_STOP = "use app.resource(name, context_manager), or on_stop of an actor class"
_ATTRIBUTES = {
    "after_shutdown": _STOP,
    "after_startup": _START,
    "agent": _REGISTER,
    "broker": "the first argument of DistributedApplication is the bus, for example a URL",
    "include_router": "write a function that takes the application and registers actors with it",
    "on_shutdown": _STOP,
    "on_startup": _START,
    "publish": _PUBLISH.format("publish"),
    "publisher": f"what a handler returns is a reply; to publish, {_PUBLISH.format('publish')}",
    "request": _PUBLISH.format("request"),
    "subscriber": _REGISTER,
    "timer": "write @app.producer(every=seconds)",
}
_OPTIONS = {
    "ack_policy": (
        "a message is always acknowledged when it is handled, or stored as a dead letter after"
        " retry="
    ),
    "group": "the group is {application}.{actor}; give the actor another name=",
    "group_id": "the group is {application}.{actor}; give the actor another name=",
    "max_workers": "use concurrency=",
    "retries": "use retry=RetryPolicy(attempts=3)",
}


def advice_on_attribute(name: str) -> str | None:
    """Return what to use instead of an attribute that applications of other packages have."""
    return _ATTRIBUTES.get(name)


def advice_on_option(name: str) -> str | None:
    """Return what to use instead of an option that handlers of other packages have."""
    return _OPTIONS.get(name)
