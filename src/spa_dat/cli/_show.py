"""``spa-dat show``."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping

from .._texts import escaped
from ..runtime.application._application import runs_of
from ..transports import SocketProviderFactory
from ._application import load_application
from ._application_facts import ActorFacts, ApplicationFacts, HandlerFacts, facts_of
from ._standard_output import printing, write_text

__all__ = ["show"]

_WIDTH = 14
_LONGEST = 1_000
_UNKNOWN = (
    "What handlers publish, request and subscribe to cannot be seen from here, apart from the Topic"
    " objects that their code names."
)


def show(target: str, *, url: str | None, form: str) -> int:
    """Print what is registered with an application; returns the exit code.

    Args:
        target: names the application.
        url: the bus in place of the application's default one.
        form: ``text``, ``json`` or ``mermaid``.

    Raises:
        ConfigurationError: there is no such application.
    """
    application = load_application(target)
    if url is not None:
        runs_of(application).replace_provider(SocketProviderFactory.from_url(url))
    facts = facts_of(application)
    with printing():
        if form == "json":
            write_text(json.dumps(dataclasses.asdict(facts), indent=2) + "\n")
        else:
            lines = _picture(facts) if form == "mermaid" else _text(facts)
            write_text("".join(f"{escaped(line, _LONGEST)}\n" for line in lines))
    return 0


def _text(facts: ApplicationFacts) -> Iterator[str]:
    name = facts.application or "without a name, so nothing is kept for it while it is away"
    yield f"application {name}, instance {facts.instance}"
    if facts.resources:
        yield _row("resources", ", ".join(facts.resources))
    for bus in facts.buses:
        yield ""
        yield f"bus {bus.address}{' (default)' if bus.is_default else ''}"
        yield from _rows(bus.names)
    for actor in facts.actors:
        yield ""
        yield from _of_actor(actor)
    yield ""
    yield _UNKNOWN


def _of_actor(actor: ActorFacts) -> Iterator[str]:
    yield f"{actor.kind} {actor.name} on {actor.bus or 'no bus'}"
    yield _row("source", actor.source)
    if actor.kind == "producer":
        yield _row("is called", "once" if actor.every is None else f"every {actor.every:g} s")
    for handler in actor.handlers:
        for topic in handler.topics:
            yield _row("handles", f"{topic}: {_types(handler)}")
    for option, value in actor.options.items():
        yield _row("option", f"{option}={value}")
    yield from _rows(actor.names)
    for named in actor.topics_named:
        reply = "" if named.reply is None else f" -> {named.reply}"
        yield _row("names", f"{named.topic}: {named.payload}{reply}")


def _types(handler: HandlerFacts) -> str:
    taken = handler.payload or "anything"
    return taken if handler.reply is None else f"{taken} -> {handler.reply}"


def _rows(names: Mapping[str, list[str]]) -> Iterator[str]:
    for kind, values in names.items():
        for value in values:
            yield _row(kind, value)


def _row(label: str, text: str) -> str:
    return f"  {label:<{_WIDTH}}{text}"


def _picture(facts: ApplicationFacts) -> Iterator[str]:
    """Return a flowchart in the language of Mermaid."""
    yield "flowchart LR"
    yield f"    %% {_UNKNOWN}"
    topics: dict[str, str] = {}
    for number, actor in enumerate(facts.actors):
        shape = '(["{}"])' if actor.kind == "producer" else '["{}"]'
        yield f"    a{number}{shape.format(_label(actor.name))}"
    for actor in facts.actors:
        handled = [topic for handler in actor.handlers for topic in handler.topics]
        for topic in (*handled, *(named.topic for named in actor.topics_named)):
            if topic not in topics:
                topics[topic] = f"t{len(topics)}"
                yield f'    {topics[topic]}[/"{_label(topic)}"/]'
    for number, actor in enumerate(facts.actors):
        for handler in actor.handlers:
            for topic in handler.topics:
                yield f'    {topics[topic]} -->|"{_label(_types(handler))}"| a{number}'
        for named in actor.topics_named:
            yield f'    a{number} -.->|"{_label(named.payload)}"| {topics[named.topic]}'


def _label(text: str) -> str:
    """Return a text that means nothing else to Mermaid."""
    safe = escaped(text).replace("#", "#35;")
    for letter, entity in (('"', "#quot;"), ("<", "#lt;"), (">", "#gt;")):
        safe = safe.replace(letter, entity)
    return safe
