"""Each enum of states in the design has one method in which its state changes."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
PACKAGES = ("actors", "harness", "runtime", "transports", "src/spa_dat")
SPREAD = {"DeliveryState": "Delivery"}
"""States that all methods of a class may change, each to a state of its own."""

pytestmark = pytest.mark.repository


def documented() -> dict[str, str]:
    """Return the enums in the section "States" of docs/design.md, with their modules."""
    page = ROOT / "docs/design.md"
    if not page.exists():
        # Beside the built package there are the tests alone, and these are left out of them.
        return {}
    text = page.read_text(encoding="utf-8")
    section = text.split("\n## States\n")[1].split("\n## ")[0]
    found = {"DeliveryState": "transports/_delivery.py"}
    for match in re.finditer(r"\((`\w+`(?: and `\w+`)*)\s+in\s+`([\w/]+/\w+\.py)`\)", section):
        found |= dict.fromkeys(re.findall(r"\w{3,}", match[1].replace(" and ", " ")), match[2])
    return found


def members(module: ast.Module, enum: str) -> set[str]:
    """How the module spells members of the enum: ``State.NAME`` and names bound to one."""
    spelled = {
        ast.unparse(node)
        for node in ast.walk(module)
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == enum
    }
    for node in module.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.value) in spelled:
            spelled |= {ast.unparse(target) for target in node.targets}
    return spelled


def assignments(module: ast.Module) -> Iterator[tuple[str, str, ast.expr | None]]:
    """Of each assignment to an attribute: the function, the attribute, and the value."""

    def visit(node: ast.AST, where: str) -> Iterator[tuple[str, str, ast.expr | None]]:
        for child in ast.iter_child_nodes(node):
            inner = where
            if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                inner = f"{where}.{child.name}".lstrip(".")
            if isinstance(child, ast.Assign | ast.AnnAssign | ast.AugAssign | ast.NamedExpr):
                targets = child.targets if isinstance(child, ast.Assign) else [child.target]
                for target in targets:
                    for part in ast.walk(target):
                        if isinstance(part, ast.Attribute) and isinstance(part.ctx, ast.Store):
                            yield where, part.attr, child.value
            elif isinstance(child, ast.Call) and ast.unparse(child.func) == "setattr":
                yield where, ast.unparse(child.args[1]).strip("'\""), child.args[2]
            yield from visit(child, inner)

    return visit(module, "")


def states(module: ast.Module, enum: str) -> set[str]:
    """Return the attributes that have a member of the enum from the start."""
    spelled = members(module, enum)
    fields = {
        ast.unparse(node.target)
        for outer in ast.walk(module)
        if isinstance(outer, ast.ClassDef)
        for node in outer.body
        if isinstance(node, ast.AnnAssign) and node.value and ast.unparse(node.value) in spelled
    }
    return fields | {
        attribute
        for where, attribute, value in assignments(module)
        if where.endswith("__init__") and value is not None and ast.unparse(value) in spelled
    }


def changes(module: ast.Module, enum: str, attributes: set[str]) -> set[str]:
    """Return the functions that set an attribute; those of another module, to a member."""
    own = any(isinstance(node, ast.ClassDef) and node.name == enum for node in module.body)
    spelled = members(module, enum)
    return {
        where
        for where, attribute, value in assignments(module)
        if attribute in attributes
        and not where.endswith("__init__")
        and (own or (value is not None and {ast.unparse(x) for x in ast.walk(value)} & spelled))
    }


def problem(enum: str, found: set[str]) -> str | None:
    if enum in SPREAD:
        outside = sorted(name for name in found if name.split(".")[-2] != SPREAD[enum])
        return f"outside of {SPREAD[enum]}: {outside}" if outside else None
    return None if len(found) == 1 else f"in {len(found)} functions: {sorted(found)}"


@pytest.mark.parametrize(("enum", "path"), sorted(documented().items()))
def test_a_state_changes_in_one_method(enum: str, path: str) -> None:
    home = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    attributes = states(home, enum)
    assert attributes, f"{path} has no attribute that starts with a member of {enum}"
    found: set[str] = set()
    for package in PACKAGES:
        for file in sorted((ROOT / package).rglob("*.py")):
            text = file.read_text(encoding="utf-8")
            # The symlinks in src show the packages a second time.
            if enum in text and not any(parent.is_symlink() for parent in file.parents):
                name = file.relative_to(ROOT).as_posix()
                found |= {f"{name}.{where}" for where in changes(ast.parse(text), enum, attributes)}
    assert problem(enum, found) is None, f"{enum} changes {problem(enum, found)}"


def test_the_enums_of_the_design_are_found() -> None:
    assert {
        "ActorCellState",
        "ConsumerState",
        "MemberState",
        "ReadingState",
        "WritingState",
    } <= set(documented())


@pytest.mark.parametrize(
    "change",
    [
        "self.state = _ON",
        "self.state = Light.ON",
        "other.light.state = state",
        "before, self.state = self.state, _ON",
        "setattr(self, 'state', _ON)",
    ],
)
def test_a_second_place_is_found(change: str) -> None:
    source = f"""
class Light(Enum):
    OFF = 0
    ON = 1

_ON = Light.ON

class Lamp:
    def __init__(self):
        self.state = Light.OFF

    def become(self, state):
        self.state = state

    def shortcut(self, other, state):
        {change}
"""
    module = ast.parse(source)
    assert states(module, "Light") == {"state"}
    found = changes(module, "Light", {"state"})
    assert found == {"Lamp.become", "Lamp.shortcut"}
    assert problem("Light", found) is not None
    assert problem("Light", {"Lamp.become"}) is None


def test_an_attribute_set_to_a_member_in_another_module_is_found() -> None:
    source = "def meddle(lamp):\n    lamp.state = Light.ON\n    lamp.colour = Light.ON\n"
    assert changes(ast.parse(source), "Light", {"state"}) == {"meddle"}
