"""``spa-dat show``."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from .._texts import escaped
from ..errors import ConfigurationError
from ..runtime.application._application import runs_of
from ..transports import SocketProviderFactory, TopicFilter
from ..transports._topics import covers, overlap
from ._application import load_application
from ._application_facts import ActorFacts, ApplicationFacts, HandlerFacts, facts_of
from ._standard_output import printing, write_text
from ._terminal import QUIET, console_of, is_terminal, table

if TYPE_CHECKING:
    from rich.console import RenderableType

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
        elif form == "mermaid":
            write_text("".join(f"{escaped(line, _LONGEST)}\n" for line in _picture(facts)))
        else:
            _print(facts)
    return 0


@dataclass
class _Section:
    """What belongs to one thing that is shown.

    Attributes:
        title: what it is.
        rows: what is known of it: kinds, and texts.
    """

    title: str
    rows: list[tuple[str, str]] = field(default_factory=list)

    def as_text(self) -> str:
        """Return it in lines."""
        lines = [self.title, *(f"  {label:<{_WIDTH}}{text}" for label, text in self.rows)]
        return "".join(f"{escaped(line, _LONGEST)}\n" for line in lines)

    def as_table(self) -> RenderableType:
        """Return it for a terminal."""
        rows = [(label, escaped(text, _LONGEST)) for label, text in self.rows]
        return table(escaped(self.title, _LONGEST), rows)


def _print(facts: ApplicationFacts) -> None:
    sections = [_of_application(facts)]
    for bus in facts.buses:
        title = f"bus {bus.address}{' (default)' if bus.is_default else ''}"
        sections.append(_Section(title, list(_rows(bus.names))))
    sections += map(_of_actor, facts.actors)
    if is_terminal(sys.stdout):
        console = console_of(sys.stdout)
        for section in sections:
            console.print(section.as_table(), "")
        console.print(_UNKNOWN, style=QUIET)
    else:
        for section in sections:
            write_text(f"{section.as_text()}\n")
        write_text(f"{_UNKNOWN}\n")


def _of_application(facts: ApplicationFacts) -> _Section:
    name = facts.application or "without a name, so nothing is kept for it while it is away"
    section = _Section(f"application {name}, instance {facts.instance}")
    section.rows += [("setting", f"{setting}={value}") for setting, value in facts.settings.items()]
    for middleware in facts.middleware:
        around = [
            what
            for what, does in (
                ("handlers", middleware.handles),
                ("what is published", middleware.publishes),
            )
            if does
        ]
        section.rows.append(("middleware", f"{middleware.source} around {' and '.join(around)}"))
    if facts.resources:
        section.rows.append(("resources", ", ".join(facts.resources)))
    return section


def _of_actor(actor: ActorFacts) -> _Section:
    section = _Section(f"{actor.kind} {actor.name} on {actor.bus or 'no bus'}")
    rows = section.rows
    rows.append(("source", actor.source))
    if actor.kind == "producer":
        rows.append(("is called", "once" if actor.every is None else f"every {actor.every:g} s"))
    for handler in actor.handlers:
        for topic in handler.topics:
            method = "" if handler.name == actor.name else f" ({handler.name})"
            rows.append(("handles", f"{topic}: {_types(handler)}{method}"))
    rows += [("option", f"{option}={value}") for option, value in actor.options.items()]
    rows += _rows(actor.names)
    for named in actor.topics_named:
        reply = "" if named.reply is None else f" -> {named.reply}"
        rows.append(("names", f"{named.topic}: {named.payload}{reply}"))
    return section


def _types(handler: HandlerFacts) -> str:
    taken = handler.payload or "anything"
    return taken if handler.reply is None else f"{taken} -> {handler.reply}"


def _rows(names: Mapping[str, list[str]]) -> Iterator[tuple[str, str]]:
    for kind, values in names.items():
        for value in values:
            yield kind, value


def _picture(facts: ApplicationFacts) -> Iterator[str]:
    """Return a flowchart in the language of Mermaid."""
    yield "flowchart LR"
    yield f"    %% {_UNKNOWN}"
    for number, actor in enumerate(facts.actors):
        shape = '(["{}"])' if actor.kind == "producer" else '["{}"]'
        yield f"    a{number}{shape.format(_label(actor.name))}"
    topics = _Topics(facts)
    yield from topics.nodes()
    for number, actor in enumerate(facts.actors):
        for handler in actor.handlers:
            for topic in handler.topics:
                node = topics.node(actor.bus, topic)
                yield f'    {node} -->|"{_label(_types(handler))}"| a{number}'
        for named in actor.topics_named:
            node = topics.node(actor.bus, named.topic)
            types = named.payload if named.reply is None else f"{named.payload} -> {named.reply}"
            ends = f"a{number}", node
            start, end = reversed(ends) if _is_wide(named.topic) else ends
            yield f'    {start} -.->|"{_label(types)}"| {end}'
    yield from topics.ways()


class _Topics:
    """The topics of a picture: one for each filter that brokers tell apart, on each bus."""

    def __init__(self, facts: ApplicationFacts) -> None:
        self._names: dict[tuple[str | None, str], str] = {}
        self._texts: dict[str | None, dict[str, str]] = {}
        self._sent: dict[tuple[str | None, str], None] = {}
        self._handled: dict[tuple[str | None, str], None] = {}
        for actor in facts.actors:
            for handler in actor.handlers:
                for topic in handler.topics:
                    self._handled[self._add(actor.bus, topic)] = None
            for named in actor.topics_named:
                places = self._handled if _is_wide(named.topic) else self._sent
                places[self._add(actor.bus, named.topic)] = None

    def _add(self, bus: str | None, topic: str) -> tuple[str | None, str]:
        place = bus, _pattern(topic)
        if place not in self._names:
            self._names[place] = f"t{len(self._names)}"
            self._texts.setdefault(bus, {})[self._names[place]] = topic
        return place

    def node(self, bus: str | None, topic: str) -> str:
        """Return what a topic is called in the picture."""
        return self._names[bus, _pattern(topic)]

    def nodes(self) -> Iterator[str]:
        """Yield the topics, with a frame around those of each bus if there are several."""
        framed = len(self._texts) > 1
        for number, (bus, texts) in enumerate(self._texts.items()):
            if framed:
                yield f'    subgraph b{number}["{_label(bus or "no bus")}"]'
            for node, topic in texts.items():
                yield f'    {"    " if framed else ""}{node}[/"{_label(topic)}"/]'
            if framed:
                yield "    end"

    def ways(self) -> Iterator[str]:
        """Yield how messages for one topic get to those who have another one, a wildcard."""
        for sent in self._sent:
            for handled in self._handled:
                if sent[0] != handled[0] or sent == handled:
                    continue
                if covers(handled[1], sent[1]):
                    yield f"    {self._names[sent]} --> {self._names[handled]}"
                elif overlap(sent[1], handled[1]):
                    yield f'    {self._names[sent]} -.->|"some"| {self._names[handled]}'


def _pattern(topic: str) -> str:
    """Return a topic as brokers know it."""
    try:
        return TopicFilter.parse(topic).pattern
    except ConfigurationError:
        # Braces that were filled in are no captures.
        return topic


def _is_wide(topic: str) -> bool:
    """Return whether a topic has wildcards: nobody can publish there, only subscribe."""
    return any(level in ("+", "#") for level in topic.split("/"))


def _label(text: str) -> str:
    """Return a text that means nothing else to Mermaid."""
    safe = escaped(text).replace("#", "#35;")
    for letter, entity in (('"', "#quot;"), ("<", "#lt;"), (">", "#gt;")):
        safe = safe.replace(letter, entity)
    return safe
