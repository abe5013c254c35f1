"""The options of an actor, with their defaults and checks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal, TypedDict

from ..._unknown_names import nearest_or_all
from ...actors import Overflow
from ...errors import ConfigurationError
from ...transports import SocketProvider, TopicFilter
from ...transports._wire_formats import WireName
from ._custom_codecs import Codec, check_codec
from ._option_checks import (
    LARGEST_WINDOW,
    LARGEST_WINDOW_BYTES,
    check_batch,
    check_concurrency,
    check_count,
    check_lanes,
    check_name,
    check_per,
    check_placement,
    check_retained,
    check_seconds,
    check_wire,
    parse_reply_topics,
    parse_rewind_to,
)
from ._resources import Resource, check_resources
from ._retry_policy import RetryPolicy
from ._state_factory import check_state

if TYPE_CHECKING:
    from ._durable import Durable

__all__ = ["ActorOptions", "HandlerOptions", "merge_options"]

_WINDOW_OF_A_LANE = 10
_KEYS_AT_WORK = 16


@dataclass(frozen=True, kw_only=True)
class ActorOptions:
    """How an actor is run.

    Attributes:
        socket_provider: the bus it uses; None for the application's default.
        state: a factory (a class, function, lambda or partial), or one value that only this actor
            owns.
        ressources: context managers, or callables that return one, by parameter name.
        retry: what happens to a message whose handler failed.
        mailbox: the most local messages that may wait; deliveries of the bus are bounded by the
            window.
        window: the most unsettled deliveries; None for the bus's default.
        window_bytes: the most bytes of unsettled deliveries; None for the bus's default. A single
            message that takes more passes alone.
        overflow: what happens to a message that finds the mailbox full.
        qos: 1 at least once, 0 at most once; None for the bus's default.
        deliver: ``share`` gives each message to one instance, ``all`` to every instance; None
            for the bus's default.
        retained: whether it gets the retained messages of topics that are ``new`` to its
            subscription, ``always`` when it is connected, or ``never``. No effect on Kafka, which
            keeps none.
        rewind_to: a time with its zone; on Kafka the actor's group goes back to it, once, so that
            what is not older is read again. Give another time to go back again.
        subscription: a name by which several actors share one subscription; a message is then
            acknowledged when all of them are done with it.
        replies: answer requests with what the handler returns, even if that is None.
        retry_requests: retry a request whose handler failed like other messages, up to its
            expiry, before the error is sent.
        handle_expired: handle messages, other than requests, also when their expiry runs out while
            they wait in the application.
        deadline: seconds after which an attempt is cut off and counts as failed; None for never.
        concurrency: how many lanes it has; None for one. Each is an actor of its own, with its own
            instance, state and mailbox, and handles one message at a time; messages with the same
            key always go to the same lane, so they stay in order. With ``per`` it has no lanes, and
            this is how many keys are at work at a time; None for 16.
        per: the name of a capture that all filters have. Each of its values, the keys, has a state
            of its own and its messages in order, whatever other keys do.
        hot: the most keys whose states are kept; a state that goes is forgotten, the one that was
            used least recently first. None for all.
        idle: seconds without a message after which the state of a key is forgotten; None for never.
        durable: with ``per``: keep the states of the keys on disk; a `Durable` says how. What a
            handler publishes is sent after its state is written, a message that comes again is
            known by its id, and a state is undone if the handler fails. It needs one instance, and
            an application with a name.
        exactly_once: on Kafka: commit what a handler publishes together with the acknowledgement of
            its message, so that each message has its effects once, whatever fails. It needs one
            topic for the actor, and an application with a name.
        key: what the key of a message is, for ``concurrency`` above 1 or
            ``Overflow.LATEST_BY_KEY``: the name of a capture, or ``header:`` and the name of a
            header. None for the message's own key. The topic is the key of messages without it.
        batch: the most messages that one call of the handler gets, as a list, and the seconds
            after which it is called with fewer; None for one message per call.
        wire: the format of its messages: ``spa-dat`` for that of spa-dat 0.4.0, in which it then
            publishes, requests and replies, and in which it expects messages; ``cloudevents``;
            None for that of its bus.
        codec: encodes what it publishes, requests and replies, unless the publish, the `Topic` or
            the annotation names another format, and decodes what comes with its content type. None
            for the application's, or else for the runtime's own formats.
        reply_topics: filters for the topics that replies may go to, besides the reply inboxes of
            programs that use this package; None for the application's. A reply never goes to a
            topic that an actor of the application subscribes to.
        placement: ``process`` runs it in a child process, which gets its code pickled; None in the
            process of the application.
        processes: how many child processes it has. With ``key`` the messages of one key always go
            to the same one; without, those of one message key do, and all others go to whichever
            is free.
        every: seconds from one call of a producer to the next; None to call it once.
    """

    socket_provider: SocketProvider | None = None
    state: Any = None
    ressources: Mapping[str, Resource] = field(default_factory=dict)
    retry: RetryPolicy = field(default_factory=RetryPolicy)
    mailbox: int = 1_000
    window: int | None = None
    window_bytes: int | None = None
    overflow: Overflow = Overflow.REFUSE
    qos: int | None = None
    deliver: Literal["share", "all"] | None = None
    retained: Literal["new", "always", "never"] = "new"
    rewind_to: str | datetime | None = None
    subscription: str | None = None
    replies: bool = False
    retry_requests: bool = False
    handle_expired: bool = False
    deadline: float | None = None
    concurrency: int | None = None
    per: str | None = None
    hot: int | None = None
    idle: float | None = None
    durable: bool | Durable = False
    exactly_once: bool = False
    key: str | None = None
    batch: tuple[int, float] | None = None
    wire: WireName | None = None
    codec: Codec | None = None
    reply_topics: str | Sequence[str] | None = None
    placement: Literal["process"] | None = None
    processes: int = 1
    every: float | None = None

    @property
    def lanes(self) -> int:
        """How many lanes it has."""
        return 1 if self.concurrency is None or self.per is not None else self.concurrency

    @property
    def places(self) -> int:
        """How many of its messages may be handled at a time, in one process."""
        if self.concurrency is not None:
            return self.concurrency
        return 1 if self.per is None else _KEYS_AT_WORK

    @property
    def kept(self) -> Durable:
        """How the states of durable keys are kept."""
        if not isinstance(self.durable, bool):
            return self.durable
        # Not at the top: most applications have no durable actors.
        from ._durable import Durable

        return Durable()

    def are_kept_by(self, provider: SocketProvider | None) -> bool:
        """Return whether states of keys are kept by a bus, with which they move.

        Args:
            provider: that of the bus; None if it is not known.
        """
        able = provider is not None and provider.has_transactions
        return bool(self.durable) and able and self.kept.store is None

    @property
    def most_hot(self) -> int | None:
        """``hot``, wherever it was given."""
        return self.hot if isinstance(self.durable, bool) or self.hot else self.durable.hot

    @property
    def longest_idle(self) -> float | None:
        """``idle``, wherever it was given."""
        return self.idle if isinstance(self.durable, bool) or self.idle else self.durable.idle

    def window_for(self, default: int) -> int:
        """Return the window; lanes and batches need more room than ``default``, the bus's."""
        if self.window is not None:
            return self.window
        size = 1 if self.batch is None else self.batch[0]
        lanes = self.places * self.processes
        least = _WINDOW_OF_A_LANE * lanes if lanes > 1 else 0
        return min(LARGEST_WINDOW, max(default, least, 2 * size * lanes))

    def must_say_deliver(self, provider: SocketProvider) -> bool:
        """Return whether several instances need ``deliver`` to know how messages are spread.

        On a bus that shares them by default they do not; that each gets a copy is too often not
        what is meant.
        """
        return self.deliver is None and provider.default_deliver == "all"

    @property
    def moment_to_rewind_to(self) -> datetime | None:
        """``rewind_to``, parsed."""
        return None if self.rewind_to is None else parse_rewind_to("", self.rewind_to)

    @property
    def reply_filters(self) -> tuple[TopicFilter, ...] | None:
        """``reply_topics``, parsed."""
        return None if self.reply_topics is None else parse_reply_topics("", self.reply_topics)

    def check(self, owner: str) -> None:
        """Raise ConfigurationError for an option with an impossible value."""
        check_count(owner, "mailbox", self.mailbox, LARGEST_WINDOW)
        for name, most in (("window", LARGEST_WINDOW), ("window_bytes", LARGEST_WINDOW_BYTES)):
            if getattr(self, name) is not None:
                check_count(owner, name, getattr(self, name), most)
        if self.qos not in (None, 0, 1):
            why = ""
            if self.qos == 2:
                why = (
                    ". QoS 2 promises no more than QoS 1: if the receipt is confirmed before the"
                    " handler has run, a crash loses the message; if after it, the message may come"
                    " again"
                )
            raise ConfigurationError(f"{owner}: qos={self.qos!r}: give 0 or 1{why}")
        if self.deliver not in (None, "share", "all"):
            raise ConfigurationError(f"{owner}: deliver={self.deliver!r}: give 'share' or 'all'")
        check_retained(owner, self.retained, self.deliver)
        if self.rewind_to is not None:
            parse_rewind_to(owner, self.rewind_to)
        if not isinstance(self.retry, RetryPolicy):
            raise ConfigurationError(
                f"{owner}: retry={self.retry!r}: give a RetryPolicy, such as"
                " RetryPolicy(attempts=3) for three calls in all, or attempts=1 for a single one"
            )
        if not isinstance(self.overflow, Overflow):
            raise ConfigurationError(f"{owner}: overflow={self.overflow!r}: give an Overflow")
        for name in ("deadline", "every"):
            seconds = getattr(self, name)
            if seconds is not None:
                check_seconds(owner, name, seconds)
        if self.wire is not None:
            check_wire(owner, self.wire, self.socket_provider)
        if self.codec is not None:
            check_codec(f"{owner}: codec", self.codec)
        if self.reply_topics is not None:
            parse_reply_topics(owner, self.reply_topics)
        if self.subscription is not None:
            check_name(f"{owner}: subscription", self.subscription)
        check_state(owner, self.state)
        check_placement(owner, self.placement, self.processes)
        check_per(owner, self.per, self._not_with_per(), self.state, self.hot, self.idle)
        self._check_what_lasts(owner)
        if self.concurrency is not None:
            check_lanes(owner, self.concurrency)
        lanes = max(self.places, self.processes)
        check_concurrency(owner, self.places, self.key, self.overflow, self.state, lanes)
        check_batch(owner, self.batch, self.window)
        check_resources(owner, self.ressources)

    def _check_what_lasts(self, owner: str) -> None:
        if self.durable is not False:
            # Not at the top: most applications have no durable actors.
            from ._durable_checks import check_durable

            check_durable(owner, self)
        if self.exactly_once is not False:
            # Not at the top: most applications have no transactions.
            from ._exactly_once_checks import check_exactly_once

            check_exactly_once(owner, self)

    def _not_with_per(self) -> Mapping[str, bool]:
        """Return the options that ``per`` has no use for, and whether each was given."""
        return {
            "key": self.key is not None,
            "batch": self.batch is not None,
            "placement": self.placement is not None,
            "overflow": self.overflow is not Overflow.REFUSE,
        }


class HandlerOptions(TypedDict, total=False):
    """Options of `DistributedApplication.application`; `ActorOptions` explains them."""

    retry: RetryPolicy
    mailbox: int
    window: int
    window_bytes: int
    overflow: Overflow
    qos: int
    deliver: Literal["share", "all"] | None
    retained: Literal["new", "always", "never"]
    rewind_to: str | datetime | None
    subscription: str | None
    replies: bool
    retry_requests: bool
    handle_expired: bool
    deadline: float | None
    concurrency: int | None
    per: str | None
    hot: int | None
    idle: float | None
    durable: bool | Durable
    exactly_once: bool
    key: str | None
    batch: tuple[int, float] | None
    wire: WireName | None
    codec: Codec | None
    reply_topics: str | Sequence[str] | None
    placement: Literal["process"] | None
    processes: int


_OPTION_NAMES = tuple(option.name for option in fields(ActorOptions))


def merge_options(
    owner: str, options: ActorOptions, changes: Mapping[str, Any], *, but: Sequence[str] = ()
) -> ActorOptions:
    """Return the options with some replaced.

    Raises:
        ConfigurationError: an option does not exist; names the most similar one.
    """
    allowed = [name for name in _OPTION_NAMES if name not in but]
    for name in changes:
        if name in but:
            raise ConfigurationError(f"{owner}: only producers have the option {name!r}")
        if name not in allowed:
            # Only a wrong name needs it.
            from ._names_elsewhere import advice_on_option

            hint = advice_on_option(name) or nearest_or_all(name, ["name", *allowed])
            raise ConfigurationError(f"{owner}: unknown option {name!r}; {hint}")
    merged = {name: getattr(options, name) for name in _OPTION_NAMES} | dict(changes)
    return ActorOptions(**merged)
