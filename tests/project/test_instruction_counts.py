"""Instruction counts do not depend on the machine, and more than are stored are an error."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

import spa_dat
from support.benchmark_modules import benchmark

pytestmark = pytest.mark.repository

OF_STORED_COUNTS = pytest.mark.skipif(
    sys.version_info[:2] != (3, 11), reason="each Python has other instructions"
)


_PACKAGE = Path(spa_dat.__file__).parent


def of_times(times: int, folder: Path) -> int:
    """Return what is counted of a loop in a made-up module."""
    source = "def loop(times):\n    for _ in range(times):\n        pass\n"
    names: dict[str, Any] = {}
    exec(compile(source, str(folder / "_loops.py"), "exec"), names)
    seen = benchmark("subjects.counted").Instructions()
    with seen.counted():
        names["loop"](times)
    count: int = seen.count
    return count


@OF_STORED_COUNTS
def test_each_instruction_of_the_package_is_counted_and_none_of_others() -> None:
    once, twice, thrice = (of_times(times, _PACKAGE / "runtime") for times in (100, 200, 300))
    assert 0 < twice - once == thrice - twice
    assert of_times(100, _PACKAGE / "harness") == 0
    assert of_times(100, Path("/spa_dat/aiokafka")) == 0
    assert sys.gettrace() is None


@OF_STORED_COUNTS
def test_a_loop_has_the_same_count_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONHASHSEED", "17")
    counts = benchmark("_counts")
    first = counts.count("tell", 100)
    assert first > 100
    assert counts.count("tell", 100) == first


def test_more_instructions_than_stored_are_told_and_are_an_error() -> None:
    compare = benchmark("_counts").compare
    lines, failed = compare({"fast": 101.9, "slow": 98.0}, {"fast": 100.0, "slow": 100.0})
    assert not failed
    assert lines[0].split() == ["fast", "101.9", "100.0", "+1.90%"]
    lines, failed = compare({"fast": 102.1}, {"fast": 100.0})
    assert failed
    assert lines[0].endswith("+2.10%  more than 2% more")
    lines, failed = compare({"fast": 0.0}, {"fast": 100.0})
    assert failed
    assert lines[0].endswith("nothing was counted")
    lines, failed = compare({"fast": 97.0}, {"fast": 100.0})
    assert not failed
    assert lines[0].endswith("-3.00%  store it")


def test_a_loop_that_is_not_stored_or_no_longer_there_is_an_error() -> None:
    compare = benchmark("_counts").compare
    lines, failed = compare({"new": 5.0}, {})
    assert failed
    assert lines[0].endswith("not stored")
    lines, failed = compare({}, {"old": 5.0})
    assert failed
    assert lines[0].endswith("is stored, but there is no such loop")


@pytest.fixture
def stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Have one made-up loop of 50 instructions, and return where counts are stored."""
    counts = benchmark("_counts")
    file = tmp_path / "counts.json"
    monkeypatch.setattr(counts, "_FILE", file)
    monkeypatch.setattr(counts, "_LOOPS", {"loop": ("loop", 10)})
    monkeypatch.setattr(counts, "count", lambda what, messages: 50.04)
    return file


def test_counts_are_compared_with_those_that_were_stored(
    stored: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    counts = benchmark("_counts")
    earlier = counts.Baseline(counts.this_python(), {"loop": 40.0})
    stored.write_bytes(msgspec.json.encode(earlier))
    assert counts.print_counts(store=False) == 1
    shown = capsys.readouterr()
    assert "50.0       40.0  +25.00%" in shown.out
    assert "scripts/bench --counts --store" in shown.err
    assert counts.print_counts(store=True) == 0
    assert msgspec.json.decode(stored.read_bytes())["loops"] == {"loop": 50.0}
    assert counts.print_counts(store=False) == 0


def test_counts_of_another_python_are_not_compared(
    stored: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    counts = benchmark("_counts")
    stored.write_bytes(msgspec.json.encode(counts.Baseline("cpython 2.7", {"loop": 1.0})))
    assert counts.print_counts(store=False) == 0
    assert "cpython 2.7" in capsys.readouterr().out


def test_every_loop_has_a_stored_count() -> None:
    counts = benchmark("_counts")
    stored = msgspec.json.decode(counts._FILE.read_bytes(), type=counts.Baseline)
    assert set(stored.loops) == set(counts._LOOPS)
    assert stored.python == "cpython 3.11"


def test_the_checks_of_a_change_count() -> None:
    root = Path(__file__).parent.parent.parent
    for path in (".ci/run", ".github/workflows/ci.yml"):
        assert "scripts/bench --counts" in (root / path).read_text(encoding="utf-8")
