"""No line of the log is somebody else's, whatever others write."""

from __future__ import annotations

import io
import logging
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pydantic
import pytest

from spa_dat import Context, Message, RetryPolicy
from spa_dat._logs import get_logger
from spa_dat._texts import (
    describe,
    error_name,
    escaped,
    quoted,
    reason_of,
    showable,
    unfit_character,
)
from spa_dat.errors import RemoteError
from support.memory import Site
from support.program import Start
from support.texts import CATEGORIES, any_text
from support.waiting import eventually

FORGED = "\nERROR:root:forged\r\x1b[2J\u2028\u202e\x85end"


@contextmanager
def logged() -> Iterator[io.StringIO]:
    """What a program's log shows, one record after the other."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logging.Formatter("LINE:%(name)s:%(message)s"))
    root = logging.getLogger("spa_dat")
    level, root.level = root.level, logging.DEBUG
    root.addHandler(handler)
    try:
        yield stream
    finally:
        root.removeHandler(handler)
        root.level = level


def lines_of(stream: io.StringIO) -> list[str]:
    return stream.getvalue().split("\n")


def assert_harmless(stream: io.StringIO) -> None:
    for line in lines_of(stream):
        assert escaped(line, 1_000_000) == line, ascii(line)
        assert not line.startswith("ERROR:root"), ascii(line)
        assert len(line) < 11_000, line[:500]


@pytest.mark.virtual
async def test_what_strangers_write_makes_no_lines_of_its_own() -> None:
    site = Site()
    app = site.app()
    handled: list[bytes] = []

    @app.application("any/#", name="actor", retry=RetryPolicy(attempts=2))
    async def actor(message: Message[bytes]) -> None:
        if message.payload == b"good":
            handled.append(message.payload)
            return
        try:
            raise KeyError(message.topic)
        except KeyError as cause:
            error = ValueError(f"{message.topic} {message.headers}")
            error.add_note(message.topic)
            raise ExceptionGroup(message.topic, [error, RemoteError(message.topic, "x")]) from cause

    @app.application("numbers/#", name="numbers")
    async def numbers(number: dict[str, int]) -> int:
        return 1

    with logged() as stream:
        async with app:
            for text in (FORGED, "x" * 60_000 + FORGED):
                topic = f"any/{text}"
                site.publish(topic, b"bad", headers={text: text}, key=text, id=text)
                site.publish(
                    f"numbers/{text}", b'{"' + b"\\n\\u001b" + b'": []}', content_type=text
                )
                site.publish("numbers/x", b'{"\\n": "x"}', response_topic=text)
                site.publish("numbers/x", b'{"x": 1}', response_topic=f"any/{text}")
            site.publish("any/good", b"good")
            await eventually(lambda: bool(handled))
            await eventually(lambda: app.stats["dead_letters.stored"] >= 6)
    assert stream.getvalue().count("LINE:") > 8
    assert stream.getvalue().count("Traceback") > 1
    assert_harmless(stream)


@contextmanager
def mistaken(kind: str) -> Iterator[None]:
    """A handler or a filter of the program's own that raises over each record."""

    class Mistaken(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            raise KeyError("handler")

    def filter_(record: logging.LogRecord) -> bool:
        return bool(record.__dict__["request_id"])

    handler = Mistaken() if kind == "handler" else logging.StreamHandler(io.StringIO())
    root = logging.getLogger("spa_dat")
    actors = logging.getLogger("spa_dat.actor")
    if kind == "filter of a handler":
        handler.addFilter(filter_)
    elif kind == "filter of a logger":
        actors.addFilter(filter_)
    root.addHandler(handler)
    try:
        yield
    finally:
        root.removeHandler(handler)
        actors.removeFilter(filter_)


@pytest.mark.parametrize("kind", ["handler", "filter of a handler", "filter of a logger"])
@pytest.mark.virtual
async def test_a_log_that_raises_ends_no_actor_and_is_seen(
    kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    site = Site()
    app = site.app()
    seen: list[int] = []

    @app.application("n", name="actor", retry=RetryPolicy(attempts=2))
    async def handle(number: int, context: Context) -> None:
        seen.append(number)
        if number == 1:
            raise ValueError(number)
        if number == 2:
            context.log.error("mine")

    with mistaken(kind):
        async with app:
            site.number("n", 1, 2, 3)
            await site.settled()
    assert seen == [1, 1, 2, 2, 3], "what raises in a handler's own call is the handler's"
    assert len(site.letters()) == 2
    assert "--- Logging error ---" in capsys.readouterr().err


@pytest.mark.virtual
async def test_what_the_program_logs_is_left_as_it_is() -> None:
    site = Site()
    app = site.app()

    @app.application("n", name="actor")
    async def actor(number: int, context: Context) -> None:
        context.log.warning("two\nlines")

    with logged() as stream:
        async with app:
            site.number("n", 1)
            await site.settled()
    assert "two\nlines" in stream.getvalue()


def test_any_text_in_a_record_is_one_line() -> None:
    choice = random.Random(7)
    logger = get_logger("spa_dat.test")
    with logged() as stream:
        for category in CATEGORIES:
            text = any_text(category, choice)
            logger.error("%s", text)
            logger.error("a " + text.replace("%", ""))
            error = ValueError(text)
            logger.error("failed", exc_info=error)
            shown = showable(error)
            assert type(shown).__name__ == "ValueError"
            assert unfit_character(str(shown)) is None
            assert unfit_character(describe(error)) is None
    assert_harmless(stream)


def test_an_error_in_a_circle_can_be_shown() -> None:
    first, second = ValueError("a\nb"), KeyError("c")
    first.__cause__, second.__context__ = second, first
    shown = showable(first)
    assert str(shown) == "a\\nb"
    assert shown.__cause__ is not None
    assert shown.__cause__.__context__ is shown
    assert showable(RuntimeError("plain é")).args == ("plain é",)


@pytest.mark.virtual
async def test_a_record_factory_that_raises_ends_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    site = Site()
    app = site.app()
    handled: list[int] = []
    of_users: list[BaseException] = []

    @app.application("n", name="actor", retry=RetryPolicy(attempts=1))
    async def actor(number: int, context: Context) -> None:
        if number == 1:
            raise ValueError("one")
        try:
            context.log.warning("mine")
        except LookupError as error:
            of_users.append(error)
        handled.append(number)

    def factory(*args: Any, **kwargs: Any) -> logging.LogRecord:
        raise LookupError("no request here")

    monkeypatch.setattr(logging, "_logRecordFactory", factory)
    async with app:
        site.number("n", 1, 2)
        await site.settled()
        assert app.healthy
    assert handled == [2]
    assert len(of_users) == 1
    told = capsys.readouterr().err
    assert "message on 'n' failed" in told
    assert "LookupError: no request here" in told


class Raising(logging.Logger):
    """A program's own class of loggers, of which a method raises."""

    method = ""

    def _raise_in(self, method: str) -> None:
        if self.method == method:
            raise LookupError(f"in {method}")

    def isEnabledFor(self, level: int) -> bool:  # noqa: N802
        self._raise_in("isEnabledFor")
        return super().isEnabledFor(level)

    def log(self, *args: Any, **kwargs: Any) -> None:
        self._raise_in("log")
        super().log(*args, **kwargs)

    def _log(self, *args: Any, **kwargs: Any) -> None:
        self._raise_in("_log")
        super()._log(*args, **kwargs)

    def handle(self, record: logging.LogRecord) -> None:
        self._raise_in("handle")
        super().handle(record)


@pytest.mark.parametrize("method", ["isEnabledFor", "log", "_log", "handle"])
@pytest.mark.virtual
async def test_a_class_of_loggers_that_raises_ends_nothing(
    method: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    site = Site()
    app = site.app()
    handled: list[int] = []

    @app.application("n", name="actor", retry=RetryPolicy(attempts=2))
    async def actor(number: int) -> None:
        handled.append(number)
        if number == 1:
            raise ValueError("one")

    monkeypatch.setattr(Raising, "method", method)
    for name in ("spa_dat", "spa_dat.actor", "spa_dat.actors"):
        monkeypatch.setattr(logging.getLogger(name), "__class__", Raising)
    async with app:
        site.number("n", 1, 2)
        await site.settled()
        assert app.healthy
    assert handled == [1, 1, 2]
    told = capsys.readouterr().err
    assert "message on 'n' failed" in told
    assert f"LookupError: in {method}" in told


_EXITING = """
        class Exiting(logging.Handler):
            def emit(self, record):
                if record.levelno >= logging.{level}:
                    sys.exit(7)

        logging.getLogger().addHandler(Exiting())
        app = DistributedApplication("memory://", name="app")

        @app.application("n", retry=RetryPolicy(attempts=1), ressources={{"it": resource}})
        {kind} handle(number: int) -> None:
            say("handled", number)
            raise ValueError(number)

        @app.producer()
        async def produce(socket: Socket):
            await socket.publish("n", 1)
            await asyncio.sleep(3600)

"""


@pytest.mark.parametrize("kind", ["def", "async def"])
@pytest.mark.parametrize("level", ["ERROR", "DEBUG"])
def test_a_log_handler_that_exits_ends_the_program_in_good_order(
    start: Start, kind: str, level: str
) -> None:
    program = start(
        _EXITING.format(kind=kind, level=level)
        + """
        logging.getLogger("spa_dat").setLevel("INFO")
        app.run()
"""
    )
    code, said, _ = program.end()
    assert code == 7
    assert said == (["open", "handled 1", "close"] if level == "ERROR" else ["open", "close"])


def test_a_log_handler_that_raises_does_not_end_the_loop_over_what_asyncio_logs(
    start: Start,
) -> None:
    program = start(
        """
        class Mistaken(logging.Handler):
            def emit(self, record):
                raise KeyError("handler")

        logging.getLogger().addHandler(Mistaken())
        app = DistributedApplication("memory://", name="app")

        def late():
            raise ValueError("late")

        @app.producer()
        async def produce():
            asyncio.get_running_loop().call_soon(late)
            await asyncio.sleep(0.01)
            say("goes on")

        app.run()
        """
    )
    code, said, err = program.end()
    assert (code, said) == (0, ["goes on"])
    assert "ValueError: late" in err
    assert "KeyError: 'handler'" in err


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain é €", "plain é €"),
        ("a\nb\r\t\0\x1b\x85", "a\\nb\\r\\t\\0\\x1b\\x85"),
        ("\ud800\ufdd0\U0001ffff", "\\ud800\\ufdd0\\U000..."),
        ("\U0001fffe\u202e", "\\U0001fffe\\u202e"),
        ("x" * 30, "x" * 17 + "..."),
        ("\n" * 30, "\\n" * 8 + "\\..."),
    ],
)
def test_a_text_is_escaped_and_cut(text: str, shown: str) -> None:
    assert escaped(text, 20) == shown
    assert len(quoted(text, 20)) <= 200


def test_a_name_of_a_class_is_escaped_too() -> None:
    assert error_name(type("E\n", (Exception,), {})()) == "E\\n"

    class Unspeakable(Exception):
        def __str__(self) -> str:
            raise RuntimeError

        __repr__ = __str__

    assert describe(Unspeakable()) == "(its text is not available: RuntimeError)"
    assert quoted(Unspeakable()) == "<Unspeakable>"
    assert showable(Unspeakable()) is not None


def chained(length: int) -> ValueError:
    error = ValueError("a\nb")
    for number in range(length):
        outer = ValueError(f"{number}\n")
        outer.__cause__ = error
        error = outer
    return error


class Notes(Exception):
    __notes__ = 5  # type: ignore[assignment]


class Cause(Exception):
    @property
    def __cause__(self) -> BaseException:  # type: ignore[override]
        raise RuntimeError


class Note:
    def __str__(self) -> str:
        raise GeneratorExit

    __repr__ = __str__


class Text(str):
    def encode(self, encoding: str = "utf-8", errors: str = "strict") -> bytes:
        raise SystemExit


class Texts(Exception):
    def __str__(self) -> str:
        return Text("a\n")


class Named(type):
    @property
    def __name__(cls) -> str:  # type: ignore[override]
        raise SystemExit


class NamedByItself(Exception, metaclass=Named):
    pass


def suggesting() -> AttributeError:
    class Thing:
        def __dir__(self) -> list[str]:
            raise SystemExit

    return AttributeError("x", name="x", obj=Thing())


def with_notes(*notes: object) -> ValueError:
    error = ValueError("a")
    error.__notes__ = [*notes]  # type: ignore[list-item]
    return error


def nested(levels: int, width: int = 1) -> Exception:
    error = Exception("innermost")
    for _ in range(levels):
        error = ExceptionGroup("g", [error] * width)
    return error


def in_a_circle() -> Exception:
    error = ValueError("a\n")
    group = ExceptionGroup("g", [error])
    error.__cause__ = group
    return group


@pytest.mark.parametrize(
    "error",
    [
        with_notes(Note()),
        with_notes(*["note"] * 100_000),
        with_notes("note " * 1_000_000),
        Texts(),
        NamedByItself(),
        suggesting(),
        nested(2_000),
        nested(40, width=2),
        in_a_circle(),
        ExceptionGroup("g", [ValueError(str(number)) for number in range(100_000)]),
        SyntaxError("bad", ("a\nERROR:root:forged", 1, 1, "b\nERROR:root:forged", 1, 2)),
        type("Forged", (Exception,), {"__module__": "a\nERROR:root:forged"})(),
        type("Unplaced", (Exception,), {"__module__": 5})(),
    ],
    ids=[
        "note", "notes", "long note", "text", "name", "suggestion", "depth", "repetition", "circle",
        "width", "syntax", "module", "no module",
    ],
)  # fmt: skip
def test_an_error_is_logged_with_as_much_of_it_as_anybody_reads(error: BaseException) -> None:
    with logged() as stream:
        get_logger("spa_dat.test").error("it failed", exc_info=error)
    assert "it failed" in stream.getvalue()
    assert_harmless(stream)
    assert len(stream.getvalue()) < 200_000


def test_what_a_group_has_shows() -> None:
    group = ExceptionGroup("g\n", [ValueError("first"), KeyError("second"), *[OSError()] * 100])
    with logged() as stream:
        get_logger("spa_dat.test").error("it failed", exc_info=group)
    for text in ("g\\n", "ValueError: first", "KeyError: 'second'", "99 more"):
        assert text in stream.getvalue()


@pytest.mark.parametrize(
    "error",
    [
        chained(5_000),
        Notes("a\n"),
        Cause("a\n"),
        ExceptionGroup("g\n", [ValueError("x\n") for _ in range(500)]),
        ExceptionGroup("g", [ExceptionGroup("h", [chained(100)])]),
    ],
    ids=["chain", "notes", "cause", "group", "groups"],
)
def test_no_error_is_so_strange_that_it_cannot_be_logged(error: BaseException) -> None:
    with logged() as stream:
        get_logger("spa_dat.test").error("it failed", exc_info=error)
    assert "it failed" in stream.getvalue()
    assert_harmless(stream)


class Tank(pydantic.BaseModel):
    levels: list[int]


def test_a_document_with_very_many_mistakes_is_not_listed() -> None:
    with pytest.raises(pydantic.ValidationError) as few:
        Tank.model_validate({"levels": ["low"] * 900})
    with pytest.raises(pydantic.ValidationError) as many:
        Tank.model_validate({"levels": ["low"] * 1_100})
    assert "levels.0" in describe(few.value)
    assert describe(many.value) == "1100 problems, too many to list"
    assert reason_of(many.value) == "ValidationError: 1100 problems, too many to list"
    outer = ValueError("no use")
    outer.__cause__ = many.value
    for error in (many.value, outer):
        with logged() as stream:
            get_logger("spa_dat.test").error("it failed", exc_info=error)
        assert "ValidationError: 1100 problems" in stream.getvalue()
        assert "levels.0" not in stream.getvalue()
