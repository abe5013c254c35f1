"""Names that are imported from the wrong module: an error says which one has them."""

from __future__ import annotations

import pytest

import spa_dat
from spa_dat import errors, testing
from spa_dat._names_of_parts import advice_on_name


@pytest.mark.parametrize(
    ("name", "module"),
    [
        ("Harness", "testing"),
        ("NoResponder", "errors"),
        ("Recorder", "recording"),
        ("Subscription", "transports"),
    ],
)
def test_the_right_module_is_named(name: str, module: str) -> None:
    with pytest.raises(ImportError, match=f"from spa_dat.{module} import {name}"):
        exec(f"from spa_dat import {name}", {})


def test_no_class_for_tests_and_no_error_is_left_without_advice() -> None:
    names = {name for name in (*testing.__all__, *errors.__all__) if name[0].isupper()}
    for name in names - {*spa_dat.__all__}:
        assert f"import {name}" in (advice_on_name(name) or "")


@pytest.mark.parametrize("name", ["Harness", "SpaMessage", "Sockets", "harnes"])
def test_who_asks_whether_there_is_a_name_is_answered(name: str) -> None:
    assert not hasattr(spa_dat, name)
    assert getattr(spa_dat, name, None) is None
    with pytest.raises(AttributeError, match=f"has no attribute '{name}'"):
        getattr(spa_dat, name)


def test_an_attribute_that_another_module_has_is_an_error_that_names_it() -> None:
    with pytest.raises(AttributeError, match=r"write .from spa_dat\.testing import Harness"):
        _ = spa_dat.Harness  # type: ignore[attr-defined]
    with pytest.raises(AttributeError, match="write 'from spa_dat import Message'"):
        _ = spa_dat.SpaMessage  # type: ignore[attr-defined]


def test_what_no_module_has_is_an_error_as_ever() -> None:
    with pytest.raises(ImportError, match="cannot import name 'Depends'"):
        exec("from spa_dat import Depends", {})
    assert not hasattr(spa_dat, "__wrapped__")
