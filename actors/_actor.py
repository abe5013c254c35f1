"""`Actor`: the base class of users' actors."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn, Self

import pykka

from .._logs import get_logger
from .._texts import quoted
from ..errors import ActorStopped, ConfigurationError
from ._mailbox import Mailbox
from ._pykka_adapter import ActorFuture, StoppedFlag

if TYPE_CHECKING:
    from ._actor_cell import ActorCell
    from ._reference import ActorRef

__all__ = ["Actor"]

_log = get_logger("spa_dat.actors")

_CALLED = ("on_start", "on_stop", "on_receive", "on_failure")

if TYPE_CHECKING:
    # pykka declares its hooks as plain functions, so for a type checker every async override
    # would be an error.
    class _Base: ...
else:
    _Base = pykka.Actor


class Actor(_Base):
    """One mailbox, one message at a time, state that nobody else touches.

    Derive from it, keep the state in attributes, and have an `ActorSystem` or an application
    start it. ``super().__init__()`` need not be called. Every hook may be ``def`` or
    ``async def``; a ``def`` hook runs on the event loop and must not block.

    Attributes:
        topics: topics of the one handler ``on_message``, for an actor that needs no more than that.
        on_message: the handler for ``topics``.
    """

    topics: ClassVar[Any] = ()
    on_message: Any

    _spa_cell: ActorCell[Any] | None = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for name in _CALLED:
            function = getattr(cls, name, None)
            if not callable(function):
                raise ConfigurationError(
                    f"{cls.__name__}.{name} is {function!r}: the runtime calls a method of that"
                    " name; rename the attribute"
                )
            if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
                raise ConfigurationError(
                    f"{cls.__name__}.{name} is a generator, so none of its code would run: remove"
                    " the yield"
                )

    def __init__(self) -> None:
        """Set nothing up: an actor gets what it needs when it is spawned."""

    @property
    def actor_ref(self) -> ActorRef[Self]:
        """The reference to this actor; available from `on_start` on.

        Raises:
            ActorStopped: the actor is not spawned yet, or a newer instance has replaced it.
        """
        return self._bound().ref

    @property
    def actor_urn(self) -> str:
        """A globally unique name; the same after a restart."""
        return self._bound().urn

    @property
    def actor_inbox(self) -> Mailbox:
        """The mailbox."""
        return self._bound().mailbox

    @property
    def actor_stopped(self) -> StoppedFlag:
        """A flag whose ``is_set()`` tells whether the actor has stopped taking messages."""
        return StoppedFlag(self._bound())

    if TYPE_CHECKING:
        # Handlers may well be called start and stop, with parameters of their own.
        start: Any
        stop: Any
        # In an application the hooks may ask for a socket, the context and resources.
        on_start: Any
        on_stop: Any
    else:

        @classmethod
        def start(cls, *args: Any, **kwargs: Any) -> NoReturn:
            """Refuse to start: pykka's way of starting an actor provides no event loop.

            Raises:
                ConfigurationError: always.
            """
            raise ConfigurationError(
                f"{cls.__name__}.start() does not start an actor here:"
                f" use system.spawn(lambda: {cls.__name__}(...))"
            )

        def stop(self) -> None:
            """Stop after the messages that are already in the mailbox. Does not wait."""
            self._bound().request_stop(drain=True)

        def on_start(self) -> Any:
            """Run before the first message. If it raises, the actor is restarted."""

        def on_stop(self) -> Any:
            """Run after the last message. What it raises is reported."""

    def on_receive(self, message: Any, /) -> Any:
        """Handle a local message; the return value is the answer to an ask."""
        text = "%s received a message but has no on_receive to handle it: %s"
        if self._spa_cell is None:
            _log.warning(text, self, quoted(message))
        else:
            self._spa_cell.owner.log.warning(text, self, quoted(message), kind=self._spa_cell.name)

    def on_failure(self, error: Exception) -> Any:
        """Run after a message that was told, not asked, has raised ``error``.

        The actor continues with the next message.
        """

    def __str__(self) -> str:
        cell = self._spa_cell
        return f"{type(self).__name__} ({'not spawned' if cell is None else cell.address})"

    def _bound(self) -> ActorCell[Any]:
        if self._spa_cell is None:
            raise ActorStopped(
                f"this {type(self).__name__} does not belong to a running actor yet: it does"
                " from on_start on, not in __init__"
            )
        return self._spa_cell

    @staticmethod
    def _create_actor_inbox() -> Mailbox:
        return Mailbox()

    @staticmethod
    def _create_future() -> ActorFuture:
        return ActorFuture()

    def _start_actor_loop(self) -> None:
        self.start()
