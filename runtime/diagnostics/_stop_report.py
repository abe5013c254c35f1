"""The report of a stop: what became of the messages of one run of an application."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

__all__ = ["StopReport", "StoppedActor"]

_MOST_ACTORS_SHOWN = 20
_NAMES = {
    "handled": "handled",
    "dead_letters": "stored as dead letters",
    "handed_back": "handed back",
    "dropped": "dropped",
    "given_up": "given up",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class StoppedActor:
    """What became of the messages of one actor in one run, with all its lanes.

    Attributes:
        name: the actor's.
        handled: messages that it was done with, and whose posts and replies were confirmed.
        dead_letters: how many it has stored.
        handed_back: messages that had arrived but were not finished, and that the bus still has: it
            delivers them again. If actors share a subscription, they count for all of them.
        dropped: messages that had arrived but were not finished, and that no bus keeps: at QoS 0,
            or for an application without a name.
        given_up: messages that it did not get to and that are nowhere else, such as those that
            other actors have told it.
    """

    name: str
    handled: int
    dead_letters: int
    handed_back: int
    dropped: int
    given_up: int

    @property
    def has_numbers(self) -> bool:
        """Whether one of the numbers is not zero."""
        return any(getattr(self, name) for name in _NAMES)


@dataclass(frozen=True, slots=True, kw_only=True)
class StopReport:
    """What `DistributedApplication.stop_report` returns: the account of one run, at its end.

    Attributes:
        application: its name.
        instance: which of its instances this was.
        seconds: how long the stop took.
        handled: as in `StoppedActor`, for all actors together.
        dead_letters: likewise.
        handed_back: likewise; each message once, however many actors share it.
        dropped: likewise.
        given_up: what was left unfinished, in words: handlers and threads that go on, resources
            that are open, posts that were not confirmed, messages that are lost, and each
            ``on_stop`` that has failed.
        actors: those for which one of the numbers is not zero, in the order of registration.
    """

    application: str
    instance: str
    seconds: float
    handled: int
    dead_letters: int
    handed_back: int
    dropped: int
    given_up: tuple[str, ...]
    actors: tuple[StoppedActor, ...]

    @property
    def clean(self) -> bool:
        """Whether nothing was given up."""
        return not self.given_up

    def as_dict(self) -> dict[str, Any]:
        """Return it as dicts, lists, texts and numbers, for JSON."""
        own = {each.name: getattr(self, each.name) for each in fields(self)}
        actors = [
            {each.name: getattr(actor, each.name) for each in fields(actor)}
            for actor in self.actors
        ]
        return {**own, "given_up": list(self.given_up), "actors": actors}

    def __str__(self) -> str:
        """Say it in one line."""
        parts = [_counts(self)]
        if self.actors:
            shown = self.actors[:_MOST_ACTORS_SHOWN]
            by_actor = [f"{actor.name}: {_counts(actor)}" for actor in shown]
            if more := len(self.actors) - len(shown):
                by_actor.append(f"and {more} more actors")
            parts.append(f" ({'; '.join(by_actor)})")
        if self.given_up:
            parts.append(f"; given up: {'; '.join(self.given_up)}")
        return "".join(parts)


def _counts(of: StopReport | StoppedActor) -> str:
    counts = {name: getattr(of, name) for name in _NAMES}
    texts = [
        f"{count} {_NAMES[name]}"
        for name, count in counts.items()
        if isinstance(count, int) and count
    ]
    return ", ".join(texts) or "no messages"
