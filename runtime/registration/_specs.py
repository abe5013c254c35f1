"""Specifications of registered actors: name, kind, handlers, hooks, options."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

from ..._texts import quoted
from ...actors import ActorRef
from ...errors import ActorStopped, ConfigurationError, NotHere
from ...transports import TopicFilter
from ..injection._injection import Injection
from ..injection._signatures import Signature
from ..options._actor_options import ActorOptions
from ..options._custom_codecs import Codec
from ..options._option_checks import check_name
from ..options._state_factory import make_state
from ._message_keys import MessageKey

__all__ = ["Handler", "Kind", "Spec"]

A = TypeVar("A")

Kind = Literal["application", "producer"]


@dataclass(frozen=True)
class Handler:
    """One handler of an actor.

    Attributes:
        filters: the topics it handles; none for producers.
        injection: what its parameters get.
        bind: returns the callable for an instance of the actor.
        responder: whether it answers requests.
        returns_reply: whether what it returns is the reply.
        reply_codec: encodes what it returns, by its annotation or its actor; None for the runtime's
            own formats.
        attribute: its name in the class; empty for a function.
        signature: what it asks for.
        reminders: the names of the reminders that it handles.
    """

    filters: tuple[TopicFilter, ...]
    injection: Injection
    bind: Callable[[Any], Callable[..., Any]]
    responder: bool
    returns_reply: bool
    reply_codec: Codec | None
    attribute: str
    signature: Signature
    reminders: tuple[str, ...] = ()


class Spec(Generic[A]):
    """A registered actor.

    Attributes:
        name: the actor's name, unique in its application.
        kind: ``application`` or ``producer``.
        source: the function or class that was registered.
        factory: makes an instance; called again when the actor is restarted.
        handlers: its handlers, in the order of declaration.
        hooks: ``on_start`` and ``on_stop``, by name, where they have parameters to inject.
        options: how it is run.
        message_key: reads the keys of its messages.
        reminder_functions: of an actor that is a function: the names of reminders, and the
            function that handles them.
    """

    def __init__(
        self,
        name: str,
        kind: Kind,
        source: Callable[..., Any],
        factory: Callable[[], A],
        options: ActorOptions,
        analyse: Callable[[ActorOptions], tuple[Handler, ...]],
        analyse_hooks: Callable[[ActorOptions], dict[str, Handler]] = lambda options: {},
    ) -> None:
        self.name: str = check_name("actor name", name, _advice_on_name(name, source))
        self.kind: Kind = kind
        self.source = source
        self.reminder_functions: list[tuple[tuple[str, ...], Callable[..., Any]]] = []
        self.factory = factory
        self._analyse = analyse
        self._analyse_hooks = analyse_hooks
        self._refs: tuple[ActorRef[Any], ...] = ()
        self._peek: Callable[[str], Awaitable[Any]] | None = None
        self.options: ActorOptions
        self.handlers: tuple[Handler, ...]
        self.hooks: dict[str, Handler]
        self.message_key: MessageKey
        self.reconfigure(options)

    def reconfigure(self, options: ActorOptions) -> None:
        """Change how it is run; an error (ConfigurationError) leaves it as it was."""
        owner = f"actor {self.name!r}"
        options.check(owner)
        if options.per is not None and self.kind == "producer":
            raise ConfigurationError(
                f"{owner}: a producer has no topics, so per={options.per!r} names no capture"
            )
        handlers, hooks = self._analyse(options), self._analyse_hooks(options)
        filters = (filter_ for handler in handlers for filter_ in handler.filters)
        self.message_key = MessageKey(owner, options.key, filters, options.per)
        self.handlers, self.hooks, self.options = handlers, hooks, options

    def started(
        self,
        refs: tuple[ActorRef[Any], ...],
        peek: Callable[[str], Awaitable[Any]] | None = None,
    ) -> None:
        """Note the lanes that were started; none once they have stopped.

        Args:
            refs: the lanes.
            peek: returns the states of durable keys.
        """
        self._refs = refs
        self._peek = peek

    async def peek(self, key: str) -> Any:
        """Return a copy of the state of a durable key as it was committed last; None for none.

        It may be older than a message that is being handled, or waits. A request to the key is
        answered in its turn, by whichever instance has the key.

        Args:
            key: the value of the capture.

        Raises:
            NotHere: the actor is not running in this process, or on this event loop.
            ConfigurationError: the actor is not durable, or the key is no text.
            StateUnreadable, StateNotWritten: it cannot be read.
        """
        if not self.options.durable:
            raise ConfigurationError(
                f"actor {self.name!r} is not durable, so nothing of its keys is committed: give"
                " per= and durable=True, or make a request to the key"
            )
        if not isinstance(key, str):
            raise ConfigurationError(f"peek({quoted(key)}): give the key as text")
        if self._peek is None:
            raise NotHere(
                f"actor {self.name!r} is not running in this process: peek() sees only what is"
                " here; make a request to the key"
            )
        return await self._peek(key)

    @property
    def refs(self) -> tuple[ActorRef[Any], ...]:
        """The running lanes; only one without ``concurrency``.

        Raises:
            ActorStopped: the application is not running.
            ConfigurationError: the actor runs in another process, or has a state for each key.
        """
        if self.options.placement is not None:
            raise ConfigurationError(
                f"actor {self.name!r} has placement='process', and references lead to actors of"
                " this process only: publish to one of its topics, or make a request"
            )
        if self.options.per is not None:
            raise ConfigurationError(
                f"actor {self.name!r} has per={self.options.per!r}, and references lead to actors,"
                " not to keys: publish to one of its topics, or make a request"
            )
        if not self._refs:
            raise ActorStopped(f"actor {self.name!r} is not started; start the application first")
        return self._refs

    @property
    def ref(self) -> ActorRef[Any]:
        """The running actor.

        Raises:
            ActorStopped: the application is not running.
            ConfigurationError: the actor has several lanes, each with its own state; see `refs`.
        """
        if self.options.lanes > 1:
            raise ConfigurationError(
                f"actor {self.name!r} has {self.options.lanes} lanes, but ref stands for one"
                " actor; choose one of refs"
            )
        return self.refs[0]

    @property
    def filters(self) -> tuple[TopicFilter, ...]:
        """All its filters, in the order of declaration."""
        return tuple(filter_ for handler in self.handlers for filter_ in handler.filters)

    def make_state(self) -> Any:
        """Return the actor's initial state."""
        return make_state(f"actor {self.name!r}", self.options.state)

    def __repr__(self) -> str:
        return f"<Spec {self.kind} {self.name!r}>"


def _advice_on_name(name: str, source: Callable[..., Any]) -> str:
    if name != getattr(source, "__name__", None):
        # It was given.
        return ""
    where = "in the class, as name = ..." if isinstance(source, type) else "with name="
    return f"; give it one {where}"
