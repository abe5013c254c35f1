"""The terminal view of ``spa-dat top``, on Textual."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, ClassVar, Literal, NamedTuple

from rich.text import Text
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.css.query import NoMatches
from textual.events import Resize
from textual.screen import ModalScreen
from textual.widgets import DataTable, Footer, Input, Static
from textual.widgets.data_table import ColumnKey

from .._texts import escaped
from ._live_pictures import LiveActor, LiveApplication

__all__ = ["TopScreen"]

_NARROWEST, _LOWEST = 60, 10
_LONGEST_NAME = 40
_LONGEST_TEXT = 300
# More than anybody reads; each of them is made anew with every picture.
_MOST_ROWS = 2_000
_MOST_TOPICS = 20
_NOTHING = "·"
_STATES = {
    "running": "green",
    "starting": "cyan",
    "paused": "yellow",
    "stalled": "bold red",
    "ended": "dim",
}
_HEALTHY = ("ready",)


class _Row(NamedTuple):
    """An actor, and the application that it is of."""

    application: LiveApplication
    actor: LiveActor

    @property
    def key(self) -> str:
        # Several applications may have the same name, on several hosts for example.
        return f"{id(self.application)}\n{self.actor.name}"


class _Column(NamedTuple):
    """A column: its heading, and by what its rows are put in order."""

    heading: str
    highest_first: bool


_COLUMNS = (
    _Column("APPLICATION", False),
    _Column("ACTOR", False),
    _Column("STATE", False),
    _Column("MSG/S", True),
    _Column("P50", True),
    _Column("P99", True),
    _Column("MAILBOX", True),
    _Column("OLDEST", True),
    _Column("FAILED", True),
    _Column("RETRY", True),
    _Column("DEAD", True),
    _Column("LAG", True),
)


def _values(row: _Row) -> tuple[Any, ...]:
    """Return by what a row is put in order, in each column."""
    actor = row.actor
    latency = actor.latency
    return (
        row.application.name,
        actor.name,
        actor.state,
        row.application.rate(actor.name),
        None if latency is None else latency.p50,
        None if latency is None else latency.p99,
        actor.mailbox,
        actor.oldest_unsettled,
        actor.failed,
        actor.retrying,
        actor.dead_letters,
        actor.lag,
    )


def _cells(row: _Row) -> Iterator[Text]:
    name, actor, state, rate, p50, p99, _, oldest, failed, retrying, dead, lag = _values(row)
    yield _plain(name, _LONGEST_NAME)
    yield _plain(actor, _LONGEST_NAME)
    yield Text(state, style=_STATES.get(state, "bold red"))
    yield _number(None if rate is None else f"{rate:,.1f}")
    yield _number(None if p50 is None else _seconds(p50))
    yield _number(None if p99 is None else _seconds(p99))
    yield _mailbox(row.actor)
    yield _number(None if oldest is None else _seconds(oldest))
    for count in (failed, retrying, dead):
        yield _number(None if count is None else f"{count:,}", style="red" if count else "")
    yield _number(None if lag is None else f"{lag:,}")


def _plain(text: str, longest: int = _LONGEST_TEXT) -> Text:
    # Never markup: names, topics and errors may be anything.
    return Text(escaped(text, longest))


def _number(text: str | None, style: str = "") -> Text:
    return Text(_NOTHING if text is None else text, style=style, justify="right")


def _mailbox(actor: LiveActor) -> Text:
    if actor.mailbox_limit is None:
        return _number(f"{actor.mailbox:,}")
    is_full = actor.mailbox >= actor.mailbox_limit > 0
    return _number(f"{actor.mailbox:,}/{actor.mailbox_limit:,}", "bold yellow" if is_full else "")


def _seconds(seconds: float) -> str:
    if seconds == 0:
        return "0 s"
    if seconds < 0.001:
        return f"{seconds * 1_000_000:.0f} µs"
    if seconds < 1:
        return f"{seconds * 1_000:.3g} ms"
    if seconds < 120:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.0f} min"


class _Question(ModalScreen[bool]):
    """Asks before something is done that cannot be undone."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("y", "dismiss(True)", "Yes"),
        Binding("n,escape", "dismiss(False)", "No"),
    ]

    def __init__(self, question: Text) -> None:
        super().__init__()
        self._question = question

    def compose(self) -> ComposeResult:
        yield Static(self._question + Text("\n\ny: yes   n: no"), id="question")


class _Details(ModalScreen[None]):
    """One actor, with its latest failures."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,enter,q", "dismiss", "Back"),
        Binding("p", "app.order('pause')", "Pause"),
        Binding("r", "app.order('resume')", "Resume"),
        Binding("R", "app.order('restart')", "Restart"),
    ]

    def __init__(self, row: _Row) -> None:
        super().__init__()
        self.row = row

    def compose(self) -> ComposeResult:
        with VerticalScroll(id="details"):
            yield Static(_description(self.row), id="description")
        yield Footer()

    def show(self, row: _Row | None) -> None:
        """Show it as it is now; None if there is no news of it."""
        if row is not None:
            self.row = row
            self.query_one("#description", Static).update(_description(row))


def _description(row: _Row) -> Text:
    actor, application = row.actor, row.application
    text = Text.assemble((escaped(actor.name, _LONGEST_NAME), "bold"), f"  {actor.kind} of ")
    text.append(escaped(application.name, _LONGEST_NAME))
    for name, value in _facts(row):
        text.append(f"\n  {name:<18}")
        text.append(escaped(value, _LONGEST_TEXT))
    text.append("\n\nlatest failures", style="bold")
    if not actor.failures:
        text.append("\n  none")
    for failure in reversed(actor.failures):
        when = datetime.fromtimestamp(failure.at, UTC).astimezone().strftime("%H:%M:%S")
        text.append(f"\n  {when}  ")
        text.append(escaped(failure.error, _LONGEST_NAME), style="red")
        where = f" in {failure.where}" + (f", {failure.topic}" if failure.topic else "")
        text.append(escaped(where, _LONGEST_TEXT))
        text.append("\n            " + escaped(failure.text, _LONGEST_TEXT), style="dim")
    return text


def _facts(row: _Row) -> Iterator[tuple[str, str]]:
    actor = row.actor
    yield "state", actor.state
    if actor.problem is not None:
        yield "problem", actor.problem
    yield "bus", actor.bus
    for number, topic in enumerate(actor.topics[:_MOST_TOPICS]):
        yield "" if number else "topics", topic
    if len(actor.topics) > _MOST_TOPICS:
        yield "", f"and {len(actor.topics) - _MOST_TOPICS:,} more"
    if actor.every is not None:
        yield "called every", _seconds(actor.every)
    rate = row.application.rate(actor.name)
    handled = "unknown" if actor.handled is None else f"{actor.handled:,}"
    yield "handled", handled + ("" if rate is None else f", {rate:,.1f} a second")
    if actor.latency is not None:
        yield "takes", f"p50 {_seconds(actor.latency.p50)}, p99 {_seconds(actor.latency.p99)}"
    yield "mailbox", _mailbox(actor).plain
    yield "in work", f"{actor.in_work:,}" + (f" of {actor.window:,}" if actor.window else "")
    if actor.oldest_unsettled is not None:
        yield "oldest unsettled", _seconds(actor.oldest_unsettled)
    for stalled in actor.stalled:
        yield "stalled", f"{stalled.where}, for {_seconds(stalled.seconds)}"
    yield "failed", f"{actor.failed:,}"
    if actor.retrying is not None:
        yield "waiting to retry", f"{actor.retrying:,}"
    yield "dead letters", f"{actor.dead_letters:,}"
    if actor.lag is not None:
        yield "lag", f"{actor.lag:,}"
    picture = row.application.picture
    published = [] if picture is None else picture.publishes
    mine = sorted((one for one in published if one.actor == actor.name), key=lambda one: -one.count)
    for number, one in enumerate(mine[:10]):
        yield "" if number else "publishes to", f"{one.topic} ({one.count:,})"


class TopScreen(App[None]):
    """Shows the actors of running applications, until somebody quits.

    Args:
        applications: what to look at.
        interval: seconds from one look to the next.

    Attributes:
        applications: those that it looks at.
    """

    CSS = """
    #small { display: none; width: 100%; height: 100%; content-align: center middle; }
    #state { height: auto; max-height: 8; }
    #filter { display: none; height: 3; }
    #actors { height: 1fr; }
    _Question, _Details { align: center middle; }
    #question { width: 60; height: auto; padding: 1 2; border: round $warning; }
    #details { width: 100%; height: 1fr; padding: 1 2; background: $surface; }
    TopScreen.small #small { display: block; }
    TopScreen.small #state, TopScreen.small #actors, TopScreen.small Footer { display: none; }
    """
    TITLE = "spa-dat top"
    ENABLE_COMMAND_PALETTE = False
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("q", "quit", "Quit"),
        Binding("p", "order('pause')", "Pause"),
        Binding("r", "order('resume')", "Resume"),
        Binding("R", "order('restart')", "Restart"),
        Binding("s", "sort", "Sort"),
        Binding("slash", "filter", "Filter", key_display="/"),
        Binding("escape", "all", "All", show=False),
    ]

    def __init__(self, applications: Sequence[LiveApplication], interval: float) -> None:
        super().__init__()
        self.applications = applications
        self._interval = interval
        self._column = 0
        self._wanted = ""
        self._rows: dict[str, _Row] = {}
        self._left_out = 0

    def compose(self) -> ComposeResult:
        yield Static(id="small")
        yield Static(id="state")
        yield Input(placeholder="part of a name or a topic", id="filter")
        yield DataTable[Text](id="actors", cursor_type="row", zebra_stripes=True)
        yield Footer()

    def on_mount(self) -> None:
        self._table.focus()
        self._headings()
        for application in self.applications:
            self.run_worker(self._watch(application), exclusive=False)

    @property
    def _table(self) -> DataTable[Text]:
        # Not that of the screen in front, which may be another one.
        table: DataTable[Text] = self.screen_stack[0].query_one("#actors", DataTable)
        return table

    async def _watch(self, application: LiveApplication) -> None:
        while True:
            await self.look(application)
            await asyncio.sleep(self._interval)

    async def look(self, application: LiveApplication) -> None:
        """Get a new picture of an application, and show it."""
        await application.look()
        # Unless it was closed meanwhile.
        with contextlib.suppress(NoMatches):
            self._show()

    def on_resize(self, event: Resize) -> None:
        width, height = event.size
        self.set_class(width < _NARROWEST or height < _LOWEST, "small")
        self.screen_stack[0].query_one("#small", Static).update(
            f"{width} x {height} is too small: make the terminal {_NARROWEST} x {_LOWEST} or larger"
        )

    # What is shown.

    def _show(self) -> None:
        rows = [
            _Row(application, actor)
            for application in self.applications
            if application.picture is not None
            for actor in application.picture.actors
            if self._is_wanted(application, actor)
        ]
        rows.sort(key=self._place)
        self._left_out = max(0, len(rows) - _MOST_ROWS)
        self._rows = {row.key: row for row in rows[:_MOST_ROWS]}
        self.screen_stack[0].query_one("#state", Static).update(self._state())
        table = self._table
        cells = {key: tuple(_cells(row)) for key, row in self._rows.items()}
        if not self._update(table, cells):
            selected = self._selected_key()
            table.clear()
            for key, texts in cells.items():
                table.add_row(*texts, key=key)
            if selected in cells:
                table.move_cursor(row=table.get_row_index(selected))
        if isinstance(self.screen, _Details):
            self.screen.show(self._rows.get(self.screen.row.key))

    @staticmethod
    def _update(table: DataTable[Text], cells: Mapping[str, Sequence[Text]]) -> bool:
        """Change cells in place, so that nothing moves; return False if rows or widths change."""
        if [str(key.value) for key in table.rows] != list(cells):
            return False
        columns = table.ordered_columns
        changed: list[tuple[str, ColumnKey, Text]] = []
        for key, texts in cells.items():
            before = table.get_row(key)
            for column, old, new in zip(columns, before, texts, strict=True):
                if new.cell_len > column.content_width:
                    return False
                if new != old:
                    changed.append((key, column.key, new))
        for row_key, column_key, text in changed:
            # Not update_width: it measures a whole column for each cell that becomes shorter.
            table.update_cell(row_key, column_key, text)
        return True

    def _state(self) -> Text:
        lines = [self._line(application) for application in self.applications]
        if self._left_out:
            lines.append(Text(f"{self._left_out:,} more actors are not shown: filter them with /"))
        return Text("\n").join(lines)

    def _line(self, application: LiveApplication) -> Text:
        text = Text.assemble((escaped(application.name, _LONGEST_NAME), "bold"), "  ")
        picture = application.picture
        if application.trouble is not None:
            text.append(escaped(application.trouble, _LONGEST_TEXT), style="bold red")
            return text
        if picture is None:
            return text + Text("no answer yet", style="dim")
        text.append(picture.state, style="green" if picture.state in _HEALTHY else "bold red")
        text.append(f"  {len(picture.actors):,} actors")
        if picture.loop_lag is not None:
            text.append(f"  loop lag {_seconds(picture.loop_lag)}")
        for connection in picture.connections:
            is_there = connection.connected
            text.append("  " + escaped(connection.bus, 60))
            text.append(" connected" if is_there else " away", "green" if is_there else "bold red")
        for name, problem in [*picture.problems.items()][:3]:
            text.append(f"\n  {escaped(name, _LONGEST_NAME)}: ", style="red")
            text.append(escaped(problem, _LONGEST_TEXT))
        return text

    def _is_wanted(self, application: LiveApplication, actor: LiveActor) -> bool:
        wanted = self._wanted.casefold()
        return any(
            wanted in text.casefold() for text in (application.name, actor.name, *actor.topics)
        )

    def _place(self, row: _Row) -> tuple[Any, ...]:
        value = _values(row)[self._column]
        names = (row.application.name, row.actor.name)
        if not _COLUMNS[self._column].highest_first:
            return value, *names
        return value is None, 0 if value is None else -value, *names

    def _headings(self) -> None:
        table = self._table
        table.clear(columns=True)
        for number, column in enumerate(_COLUMNS):
            mark = " " + ("▼" if column.highest_first else "▲") if number == self._column else ""
            justify: Literal["right", "left"] = "right" if column.highest_first else "left"
            table.add_column(Text(column.heading + mark, justify=justify), key=column.heading)

    # What is pressed.

    def _selected_key(self) -> str:
        table = self._table
        if not table.is_valid_row_index(table.cursor_row):
            return ""
        return str(table.coordinate_to_cell_key(table.cursor_coordinate).row_key.value)

    def _selected(self) -> _Row | None:
        if isinstance(self.screen, _Details):
            return self.screen.row
        return self._rows.get(self._selected_key())

    def on_data_table_row_selected(self) -> None:
        row = self._selected()
        if row is not None:
            self.push_screen(_Details(row))

    def on_data_table_header_selected(self, event: DataTable.HeaderSelected) -> None:
        self._sort_by(event.column_index)

    def action_sort(self) -> None:
        """Put the actors in order by the next column."""
        self._sort_by((self._column + 1) % len(_COLUMNS))

    def _sort_by(self, column: int) -> None:
        self._column = column
        self._headings()
        self._show()

    def action_filter(self) -> None:
        """Ask which actors to show."""
        field = self.query_one("#filter", Input)
        field.styles.display = "block"
        field.focus()

    def action_all(self) -> None:
        """Show all actors again."""
        field = self.query_one("#filter", Input)
        field.value = ""
        field.styles.display = "none"
        self._table.focus()

    def on_input_changed(self, event: Input.Changed) -> None:
        self._wanted = event.value
        self._show()

    def on_input_submitted(self) -> None:
        self._table.focus()

    def action_order(self, action: Literal["pause", "resume", "restart"]) -> None:
        """Have something done to the actor under the cursor."""
        row = self._selected()
        if row is None:
            return

        def answered(wanted: bool | None) -> None:
            if wanted:
                self.run_worker(self._order(row, action), exclusive=False)

        if action == "restart":
            name = escaped(row.actor.name, _LONGEST_NAME)
            question = Text(f"Restart {name}? It begins with a new state.")
            self.push_screen(_Question(question), answered)
        else:
            answered(True)

    async def _order(self, row: _Row, action: Literal["pause", "resume", "restart"]) -> None:
        trouble = await row.application.order(action, row.actor.name)
        name = escaped(row.actor.name, _LONGEST_NAME)
        if trouble is None:
            self.notify(f"{action}: {name}", markup=False)
        else:
            trouble = escaped(trouble, _LONGEST_TEXT)
            self.notify(f"{action}: {name}: {trouble}", severity="error", markup=False)
        await self.look(row.application)
