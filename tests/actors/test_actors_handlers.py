"""The decorator that marks handlers, and what a class has of them."""

from __future__ import annotations

from typing import Any

import pytest

from spa_dat.actors import Actor, handlers_of, on
from spa_dat.errors import ConfigurationError


class Base(Actor):
    @on("b/1", "b/2")
    async def second_by_name(self, message: Any) -> None: ...

    @on("a")
    def first_by_name(self, message: Any) -> None: ...

    def plain(self) -> None: ...


def test_handlers_come_in_declared_order() -> None:
    assert handlers_of(Base) == [(("b/1", "b/2"), "second_by_name"), (("a",), "first_by_name")]


def test_the_decorator_returns_the_function_itself() -> None:
    def function() -> None: ...

    assert on("a")(function) is function


def test_decorators_add_up_from_above() -> None:
    class Stacked(Actor):
        @on("a")
        @on("b", "c")
        def handler(self) -> None: ...

    assert handlers_of(Stacked) == [(("a", "b", "c"), "handler")]


def test_an_override_keeps_the_topics_and_the_place() -> None:
    class Derived(Base):
        @on("new")
        def added(self) -> None: ...

        async def second_by_name(self, message: Any) -> None: ...

    assert handlers_of(Derived) == [
        (("b/1", "b/2"), "second_by_name"),
        (("a",), "first_by_name"),
        (("new",), "added"),
    ]


def test_a_decorated_override_has_only_its_own_topics() -> None:
    class Derived(Base):
        @on("other")
        async def second_by_name(self, message: Any) -> None: ...

    assert handlers_of(Derived) == [(("other",), "second_by_name"), (("a",), "first_by_name")]
    assert handlers_of(Base)[0] == (("b/1", "b/2"), "second_by_name")


def test_none_takes_a_handler_away() -> None:
    class Derived(Base):
        second_by_name = None  # type: ignore[assignment]

    assert handlers_of(Derived) == [(("a",), "first_by_name")]


def test_the_diamond_counts_a_handler_once() -> None:
    class Left(Base): ...

    class Right(Base):
        @on("right")
        def first_by_name(self, message: Any) -> None: ...

    class Both(Left, Right): ...

    assert handlers_of(Both) == [(("b/1", "b/2"), "second_by_name"), (("right",), "first_by_name")]


def test_no_topics_and_other_things_than_texts_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="at least one topic"):
        on()
    with pytest.raises(ConfigurationError, match="not <function"):
        on(lambda: None)
