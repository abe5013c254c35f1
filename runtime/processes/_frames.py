"""The frames on the channel between an actor's runner and its child process.

Both directions are msgpack, so neither side unpickles what the other one sends. The exception is
`Start`, which only the child gets, once: code cannot be shipped otherwise.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import msgspec

from ... import errors
from ..._texts import describe, encodable, error_name
from ...errors import RemoteError, RequestTimeout, SpaDatError, TransportError
from ...transports import Envelope
from ..metrics._measurements import TakenMeasurements

__all__ = [
    "Begin",
    "Cancel",
    "Confirmed",
    "Connected",
    "DefineRoute",
    "Deliver",
    "Ended",
    "Failed",
    "Finished",
    "FromChild",
    "Logged",
    "Measured",
    "NotStarted",
    "Park",
    "PipedEnvelope",
    "Post",
    "Problem",
    "ProblemsChanged",
    "Publish",
    "Ready",
    "Recall",
    "Recalled",
    "Replied",
    "Returned",
    "Settled",
    "Start",
    "Stats",
    "Stop",
    "StopActor",
    "Stopped",
    "Subscribe",
    "Taken",
    "ToChild",
    "error_of",
    "problem_of",
    "tag_of",
]


# Characters of what a handler raises, which may be as long as a message from anybody.
_LONGEST = 32_768


class PipedEnvelope(Envelope, frozen=True, kw_only=True, gc=False, array_like=True):
    """An envelope that came over the pipe; `msgspec.structs.astuple` gives what is sent."""


class Problem(msgspec.Struct, array_like=True, frozen=True):
    """An error, as the other side may know of it.

    Attributes:
        name: of its class; only public errors are made again from it.
        text: what it says.
        outage: as in `TransportError`.
        code: of a `RemoteError`.
    """

    name: str
    text: str
    outage: bool | None = None
    code: str | None = None


def problem_of(error: BaseException) -> Problem:
    """Return what the other side is told of an error."""
    if isinstance(error, RemoteError):
        text, code = (encodable(str(one)[:_LONGEST]) for one in (error.text, error.code))
        return Problem("RemoteError", text, code=code)
    for kind in type(error).__mro__:
        if kind.__name__ in errors.__all__:
            return Problem(kind.__name__, describe(error), getattr(error, "outage", None))
    return Problem("SpaDatError", f"{error_name(error)}: {describe(error)}")


def error_of(problem: Problem) -> SpaDatError:
    """Return the error that the other side tells of, as one of our public errors."""
    if problem.name == "RemoteError":
        return RemoteError(problem.code or "failed", problem.text)
    kind = getattr(errors, problem.name) if problem.name in errors.__all__ else SpaDatError
    error: SpaDatError = kind(problem.text)
    if isinstance(error, TransportError):
        error.outage = problem.outage
    elif isinstance(error, RequestTimeout):
        error.outage = bool(problem.outage)
    return error


def tag_of(kind: type[msgspec.Struct]) -> int:
    """Return what a frame of this kind begins with, for frames that are sent as tuples.

    A tuple takes less time to make than a struct.
    """
    tag = kind.__struct_config__.tag
    assert isinstance(tag, int)
    return tag


PlaceInMemory: TypeAlias = tuple[int, int] | None
"""Where a payload is that went by shared memory, for `Channel`; the envelope's is empty then."""


class Taken(msgspec.Struct, array_like=True, frozen=True, tag=99):
    """The other side has read a payload in shared memory; of both directions.

    Attributes:
        at: where it begins.
    """

    at: int


class _ToChild(msgspec.Struct, array_like=True, frozen=True):
    pass


class Start(_ToChild, tag=0, frozen=True):
    """What the child is to run.

    Attributes:
        shipped: the actor, pickled; see `_code_pickling`.
        application: name of the application.
        instance: of the application.
        ephemeral: as in `Identity`.
        number: which of several processes of the actor it is; None for the only one.
        levels: of the loggers that have one of their own, by name.
        bus: what the bus of the actor is like.
        slow: as in `Settings`.
        blocked: as in `Settings`.
        restart: fields of the restart policy.
        slots: how many deliveries it may be given.
    """

    shipped: bytes
    application: str
    instance: str
    ephemeral: bool
    number: int | None
    levels: dict[str, int]
    bus: dict[str, Any]
    slow: float | None
    blocked: float | None
    restart: tuple[int, float, float, float]
    slots: int


class DefineRoute(_ToChild, tag=1, frozen=True):
    """A way that deliveries come: handler and filter have a number from now on."""

    number: int
    handler: int
    filter: str
    shared: bool


class Deliver(_ToChild, tag=2, frozen=True):
    """A message to be handled.

    Attributes:
        slot: what it is called until it is settled or returned, and its place in `Progress`.
        route: number of the way that it comes.
        attempts: how often a handler has failed on it.
        last: nobody sends it again, so it is worked off also at a stop.
        envelope: the message.
    """

    slot: int
    route: int
    attempts: int
    last: bool
    envelope: PipedEnvelope
    place: PlaceInMemory = None


class Confirmed(_ToChild, tag=3, frozen=True):
    """These went well."""

    numbers: list[int]


class Finished(_ToChild, tag=4, frozen=True):
    """What became of a thing that was asked for; without a problem it went well."""

    number: int
    problem: Problem | None


class Replied(_ToChild, tag=5, frozen=True):
    """A reply to a request of the child."""

    correlation: str
    envelope: PipedEnvelope
    place: PlaceInMemory = None


class Connected(_ToChild, tag=6, frozen=True):
    """Whether the bus is connected now."""

    connected: bool


class Recall(_ToChild, tag=7, frozen=True):
    """Return what has not been started."""


class Stop(_ToChild, tag=8, frozen=True):
    """Stop in good order.

    Attributes:
        seconds: for how long handlers may go on.
    """

    seconds: float


class Begin(_ToChild, tag=9, frozen=True):
    """Everybody has started: a producer may make its first call."""


ToChild: TypeAlias = (
    Start
    | DefineRoute
    | Deliver
    | Confirmed
    | Finished
    | Replied
    | Connected
    | Recall
    | Stop
    | Begin
    | Taken
)


class _FromChild(msgspec.Struct, array_like=True, frozen=True):
    pass


class Ready(_FromChild, tag=0, frozen=True):
    """The actor has started in the child."""


class NotStarted(_FromChild, tag=1, frozen=True):
    """The actor could not be started, and the child ends."""

    problem: Problem


class Settled(_FromChild, tag=2, frozen=True):
    """The deliveries in these slots are settled."""

    slots: list[int]


class Returned(_FromChild, tag=3, frozen=True):
    """Deliveries that the child has not started, or not finished; slot and attempts of each."""

    deliveries: list[tuple[int, int]]


class Post(_FromChild, tag=4, frozen=True):
    """See `Bus.post`."""

    number: int
    envelope: PipedEnvelope
    place: PlaceInMemory = None


class Publish(_FromChild, tag=5, frozen=True):
    """See `Bus.publish`."""

    number: int
    timeout: float
    envelope: PipedEnvelope
    place: PlaceInMemory = None


class Park(_FromChild, tag=6, frozen=True):
    """See `Bus.park`."""

    number: int
    timeout: float
    envelope: PipedEnvelope
    place: PlaceInMemory = None


class Cancel(_FromChild, tag=7, frozen=True):
    """Nobody waits for it any more."""

    number: int


class Subscribe(_FromChild, tag=8, frozen=True):
    """See `Socket.subscribe` and, with ``undo``, `Socket.unsubscribe`."""

    number: int
    pattern: str
    undo: bool


class Logged(_FromChild, tag=9, frozen=True):
    """A record of the child's log.

    Attributes:
        traceback: the text of it.
        attributes: what else it has, by name: of what message it is, and what was given as
            ``extra``.
        own: it is the runtime's.
        created: when, in seconds since 1970.
    """

    name: str
    level: int
    text: str
    traceback: str | None
    attributes: dict[str, Any]
    own: bool
    created: float


class Stats(_FromChild, tag=10, frozen=True):
    """What was counted since the last time."""

    counted: dict[str, int | float]


class Ended(_FromChild, tag=11, frozen=True):
    """The actor has nothing more to do, or wants the end of everything.

    Attributes:
        problem: why, for an error.
        exit: code of a `SystemExit`; 130 for a `KeyboardInterrupt`.
    """

    problem: Problem | None
    exit: int | str | None = None


class StopActor(_FromChild, tag=12, frozen=True):
    """See `Context.stop`."""


class Failed(_FromChild, tag=13, frozen=True):
    """Something of the user's failed; see `Observer.failed`."""

    where: str
    problem: Problem
    topic: str | None


class Stopped(_FromChild, tag=14, frozen=True):
    """The child has stopped and is about to end; what it could not finish."""

    given_up: list[str]


class ProblemsChanged(_FromChild, tag=15, frozen=True):
    """What is not as it should be in the child now."""

    texts: list[str]


class Measured(_FromChild, tag=16, frozen=True):
    """What was measured since the last time, by the filters of messages."""

    series: list[tuple[str, TakenMeasurements]]


class Recalled(_FromChild, tag=17, frozen=True):
    """The answer to `Recall`, after all that had not been started."""


FromChild: TypeAlias = (
    Ready
    | NotStarted
    | Settled
    | Returned
    | Post
    | Publish
    | Park
    | Cancel
    | Subscribe
    | Logged
    | Stats
    | Measured
    | Ended
    | StopActor
    | Failed
    | Stopped
    | ProblemsChanged
    | Recalled
    | Taken
)
