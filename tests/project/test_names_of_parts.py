"""Names that are imported from the wrong module: an error says which one has them."""

from __future__ import annotations

import pytest

import spa_dat
from spa_dat import errors, testing
from spa_dat._names_of_parts import check_name_of_part


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
        with pytest.raises(ImportError, match=name):
            check_name_of_part(name)


def test_what_no_module_has_is_an_error_as_ever() -> None:
    with pytest.raises(ImportError, match="cannot import name 'Depends'"):
        exec("from spa_dat import Depends", {})
    assert not hasattr(spa_dat, "__wrapped__")
