"""The rules that hold for every file."""

from __future__ import annotations

import ast
import functools
import importlib
import inspect
import re
import types
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest

import spa_dat

ROOT = Path(__file__).parent.parent.parent
PACKAGES = ("actors", "harness", "runtime", "transports")
# Those that runtime uses know nothing of each other, and nothing knows of the harness.
MAY_IMPORT = {
    "actors": {
        "actors",
        "_environment",
        "_unknown_names",
        "_limited_log",
        "_logs",
        "_texts",
        "_busy_threads",
        "errors",
    },
    "transports": {
        "transports",
        "_environment",
        "_unknown_names",
        "_limited_log",
        "_logs",
        "_moments",
        "_texts",
        "_busy_threads",
        "errors",
    },
    "runtime": {
        "runtime",
        "actors",
        "transports",
        "_environment",
        "_json_formatter",
        "_unknown_names",
        "_limited_log",
        "_logs",
        "_moments",
        "_service_manager",
        "_texts",
        "_busy_threads",
        "errors",
    },
    "harness": {
        "harness",
        "runtime",
        "actors",
        "transports",
        "_environment",
        "_unknown_names",
        "_limited_log",
        "_logs",
        "_texts",
        "_busy_threads",
        "errors",
    },
}
LAYERS = (
    "diagnostics",
    "options",
    "metrics",
    "payloads",
    "messaging",
    "dead_letters",
    "injection",
    "registration",
    "description",
    "routing",
    "handling",
    "processes",
    "hosting",
    "admin",
    "application",
    "child",
    "recording",
    "tracing",
)
"""The folders of the runtime; each may import those before it."""
HARNESS_LAYERS = (
    {"loop"},
    {"_errors", "_eventually", "_faults", "_trace"},
    {"kafka_cluster"},
    {"brokers"},
    {"simulated"},
    {"world"},
    {
        "_async_harness",
        "_dead_letter",
        "_explore",
        "_harness",
        "_harness_base",
        "_harness_core",
        "_replay",
    },
    {"live"},
    {"_pytest_fixture"},
    {"conformance"},
)
"""The same of the harness, with the modules that are in no folder."""
FOLDERS = {"runtime": tuple({folder} for folder in LAYERS), "harness": HARNESS_LAYERS}
KAFKA_FENCE = "transports/kafka/_aiokafka_private.py"
"""The only module of the Kafka transport that uses what aiokafka does not document."""
DOCUMENTED_BY_AIOKAFKA = {"aiokafka", "aiokafka.abc", "aiokafka.errors", "aiokafka.structs"}
SLEEPS_ALLOWED: frozenset[str] = frozenset()
"""Tests, as ``file::function``, for which letting real time pass is what is tested."""

pytestmark = pytest.mark.repository


def modules() -> list[Path]:
    return sorted(path for name in PACKAGES for path in (ROOT / name).rglob("*.py"))


def identifier(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def breaches(rule: Callable[[Path], Iterable[str]], paths: Iterable[Path]) -> list[str]:
    """Return what breaks a rule, with the file in front."""
    return [f"{identifier(path)}: {breach}" for path in paths for breach in rule(path)]


@functools.cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Line and what is imported, relative imports resolved to ``package.module``."""
    package = ("spa_dat", *path.relative_to(ROOT).parent.parts)
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.lineno, node.module or ""
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1]
            for name in [node.module] if node.module else [alias.name for alias in node.names]:
                yield node.lineno, "relative:" + ".".join((*base, name))


def imports_too_much(path: Path) -> Iterator[str]:
    own = path.relative_to(ROOT).parts[0]
    for line, name in imports(path):
        if name.startswith("relative:"):
            top = name.removeprefix("relative:spa_dat").removeprefix(".").split(".")[0]
            if top not in MAY_IMPORT[own]:
                yield f"line {line}: {own} must not import {top or 'the root package'}"
        elif name.split(".")[0] in {"spa_dat", *PACKAGES}:
            yield f"line {line}: import {name} relatively"


def test_modules_import_only_what_they_may() -> None:
    assert breaches(imports_too_much, modules()) == []


def in_rooms() -> list[Path]:
    """Modules of the packages whose folders have an order, but for those that show all of it."""
    return [
        path
        for path in modules()
        if path.relative_to(ROOT).parts[0] in FOLDERS
        and path.relative_to(ROOT).parts[1:] != ("__init__.py",)
    ]


def imports_from_above(path: Path) -> list[str]:
    package, folder, *_ = path.relative_to(ROOT).with_suffix("").parts
    layers = FOLDERS[package]
    own = next(number for number, layer in enumerate(layers) if folder in layer)
    above = set().union(*layers[own + 1 :])
    return [
        f"line {line}: {folder} must not import {name.split('.')[2]}"
        for line, name in imports(path)
        if name.startswith(f"relative:spa_dat.{package}.") and name.split(".")[2] in above
    ]


def test_rooms_import_only_those_below() -> None:
    assert breaches(imports_from_above, in_rooms()) == []


def test_every_room_of_the_runtime_has_its_place() -> None:
    folders = {path.parent.name for path in (ROOT / "runtime").glob("*/__init__.py")}
    assert folders == set(LAYERS)


def reaches_into_aiokafka(path: Path) -> list[str]:
    """Return imports of what aiokafka does not document, and private names but of ``self``."""
    found = [
        f"line {line}: import {name}"
        for line, name in imports(path)
        if name.split(".")[0] == "aiokafka" and name not in DOCUMENTED_BY_AIOKAFKA
    ]
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Attribute):
            if _is_private(node.attr) and ast.unparse(node.value) not in {"self", "super()"}:
                found.append(f"line {node.lineno}: {ast.unparse(node)}")
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("attr"):
            names = [arg.value for arg in node.args if isinstance(arg, ast.Constant)]
            if any(isinstance(name, str) and _is_private(name) for name in names):
                found.append(f"line {node.lineno}: {ast.unparse(node)}")
    return found


def _is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def test_one_module_reaches_into_aiokafka() -> None:
    fence = ROOT / KAFKA_FENCE
    assert len(reaches_into_aiokafka(fence)) > 50
    others = [path for path in (ROOT / "transports/kafka").rglob("*.py") if path != fence]
    reaches = breaches(reaches_into_aiokafka, others)
    assert reaches == [], f"put it into {KAFKA_FENCE}, which is checked at the start"


def test_everything_in_the_harness_has_its_place() -> None:
    folders = {path.parent.name for path in (ROOT / "harness").glob("*/__init__.py")}
    others = {path.stem for path in (ROOT / "harness").glob("_[!_]*.py")}
    assert folders | others == set().union(*HARNESS_LAYERS)


def reaches_into_an_application(path: Path) -> list[str]:
    return [
        f"line {node.lineno}: {ast.unparse(node)}: use runs_of"
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Attribute)
        and node.attr.startswith("_")
        and not node.attr.startswith("__")
        and ast.unparse(node.value).split(".")[-1] in {"app", "application", "_application"}
    ]


def test_nobody_reaches_into_an_application() -> None:
    own = ROOT / "runtime/application/_application.py"
    others = [path for path in modules() if path != own]
    assert breaches(reaches_into_an_application, others) == []


def declares_what_is_public(path: Path) -> bool:
    names = {
        target.id
        for node in tree(path).body
        if isinstance(node, (ast.Assign, ast.AnnAssign))
        for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
        if isinstance(target, ast.Name)
    }
    only_a_docstring = all(isinstance(node, ast.Expr) for node in tree(path).body)
    return "__all__" in names or only_a_docstring


def test_modules_declare_what_is_public() -> None:
    assert [identifier(path) for path in modules() if not declares_what_is_public(path)] == []


def makes_a_logger(path: Path) -> list[str]:
    # The first looks at what the program has set; the second silences the client library.
    if identifier(path) in {
        "harness/loop/_tasks_and_timers.py",
        "transports/kafka/_client_options.py",
    }:
        return []
    return [
        f"line {node.lineno}"
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Call) and _last_name(node.func) == "getLogger"
    ]


def test_every_logger_is_made_by_the_one_function() -> None:
    calls = breaches(makes_a_logger, modules())
    assert calls == [], "use get_logger: what it logs is one line, whoever wrote it"


def changes_a_state(path: Path) -> list[str]:
    if identifier(path) in {"transports/_delivery.py", "harness/loop/_executor_threads.py"}:
        return []
    return [
        f"line {node.lineno}"
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)
        if node.attr == "state" and ast.unparse(node.value) not in {"self", "self._owner"}
    ]


def test_the_state_of_a_delivery_is_changed_by_its_own_methods() -> None:
    changes = breaches(changes_a_state, modules())
    assert changes == [], "call start, settle, requeue or withdraw: what waits for it hears of it"


def calls_with_many_arguments(path: Path) -> list[str]:
    calls = [node for node in ast.walk(tree(path)) if isinstance(node, ast.Call)]
    large = [node for node in calls if len(node.args) + 2 * len(node.keywords) > 30]
    # What is called once for a whole run may have as many as it likes.
    of_messages = [node for node in large if ast.unparse(node.func) in ("Envelope", "Message")]
    return [f"line {node.lineno}: {ast.unparse(node.func)}" for node in of_messages]


def test_the_modules_that_tests_run_in_full_are_there() -> None:
    lines = (ROOT / "scripts/core-modules").read_text(encoding="utf-8").splitlines()
    modules = [line for line in lines if not line.startswith("#")]
    assert modules
    assert [module for module in modules if not (ROOT / module).is_file()] == []
    assert len(set(modules)) == len(modules)


def test_calls_have_few_enough_arguments() -> None:
    """With more, Python passes them in a tuple and a dict, for a microsecond in each call."""
    assert breaches(calls_with_many_arguments, modules()) == []


def test_the_root_shows_exactly_its_public_names() -> None:
    public = set(spa_dat.__all__)
    for name in public:
        assert getattr(spa_dat, name) is not None
    its_own = {"annotations", "import_module", "TYPE_CHECKING", "Any"}
    visible = {
        name
        for name, value in vars(spa_dat).items()
        if not name.startswith("_") and not isinstance(value, types.ModuleType)
    }
    assert visible - its_own == public
    with pytest.raises(AttributeError, match="'Actors'"):
        _ = spa_dat.Actors  # type: ignore[attr-defined]
    assert list(spa_dat.__all__) == sorted(spa_dat.__all__, key=_as_ruff_sorts)


_PUBLIC = (
    "spa_dat",
    "spa_dat.actors",
    "spa_dat.errors",
    "spa_dat.recording",
    "spa_dat.runtime",
    "spa_dat.states",
    "spa_dat.testing",
    "spa_dat.testing.conformance",
    "spa_dat.transports",
)


@pytest.mark.parametrize("name", _PUBLIC)
def test_public_names_are_described(name: str) -> None:
    """Ruff looks at docstrings of public modules only, and most of these live in others."""
    module = importlib.import_module(name)
    bare = []
    for shown in module.__all__:
        value = getattr(module, shown)
        if not inspect.isclass(value):
            if inspect.isroutine(value) and not inspect.getdoc(value):
                bare.append(shown)
            continue
        if not vars(value).get("__doc__"):
            bare.append(shown)
        for method in vars(value):
            found = inspect.getattr_static(value, method)
            described = f" {method}: " in (value.__doc__ or "")
            if method.startswith(("_", "test_")) or described:
                continue
            is_code = inspect.isroutine(found) or isinstance(found, property)
            if is_code and not inspect.getdoc(getattr(value, method)):
                bare.append(f"{shown}.{method}")
    assert bare == []


def _as_ruff_sorts(name: str) -> tuple[int, str]:
    kind = 0 if name.isupper() and len(name) > 1 else 1 if name[:1].isupper() else 2
    return kind, name


def test_tests_do_not_sleep_to_synchronise() -> None:
    """A test body waits for events; what it starts may take its time to play slow."""
    wrong = []
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        # Parsing all tests would take seconds.
        if not re.search(r"sleep\((?!0(\.0)?\))", path.read_text("utf-8")):
            continue
        module = tree(path)
        if _is_virtual(module):
            continue
        for function in _tests(module.body):
            name = f"{identifier(path)}::{function.name}"
            if name in SLEEPS_ALLOWED or any(_marks_virtual(d) for d in function.decorator_list):
                continue
            wrong += [f"{name} line {line}" for line in _sleeps(function)]
    assert wrong == []


def _tests(body: list[ast.stmt]) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in body:
        if isinstance(node, ast.ClassDef):
            yield from _tests(node.body)
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.name.startswith(
            "test_"
        ):
            yield node


def _is_virtual(module: ast.Module) -> bool:
    return any(
        isinstance(node, ast.Assign)
        and any(isinstance(t, ast.Name) and t.id == "pytestmark" for t in node.targets)
        and _marks_virtual(node.value)
        for node in module.body
    )


def _marks_virtual(node: ast.expr) -> bool:
    return "pytest.mark.virtual" in ast.unparse(node)


def _last_name(node: ast.expr) -> str:
    # As ast.unparse() and rpartition("."), in a fiftieth of the time.
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""


def _sleeps(function: ast.AST) -> Iterator[int]:
    """Lines of ``sleep`` calls in the function itself, not in functions that it defines."""
    for node in ast.iter_child_nodes(function):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            continue
        if isinstance(node, ast.Call) and _last_name(node.func) == "sleep":
            yields = bool(node.args) and ast.unparse(node.args[0]) in ("0", "0.0")
            if not yields:
                yield node.lineno
        yield from _sleeps(node)


def test_nothing_names_a_place_on_one_machine() -> None:
    place = re.compile(r"(?<![\w.{}*/-])/(?:home|root|work|Users)/\w")
    wrong = []
    for path in _texts():
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if place.search(line):
                wrong.append(f"{identifier(path)}:{number}: {line.strip()}")
    assert wrong == []


def _texts() -> Iterator[Path]:
    for folder in (*PACKAGES, "src", "tests", "examples", "benchmarks", "docs", "scripts", ".ci"):
        for path in sorted((ROOT / folder).rglob("*")):
            below = path.relative_to(ROOT / folder).parts
            generated = any(part.startswith((".", "__pycache__")) for part in below)
            is_text = path.is_file() and path.suffix != ".png"
            if is_text and not generated and not _is_linked(path):
                yield path
    yield from sorted(path for path in ROOT.glob("*.*") if path.is_file() and path.name != ".git")


def _is_linked(path: Path) -> bool:
    return any(parent.is_symlink() for parent in path.parents if parent != ROOT)
