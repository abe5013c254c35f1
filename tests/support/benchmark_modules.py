"""Modules of the benchmarks, which are no part of the package."""

from __future__ import annotations

import importlib.util
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

_FILE = Path(__file__).parent.parent.parent / "benchmarks" / "__init__.py"


def benchmark(name: str) -> Any:
    """Import a module of the benchmarks, and nothing else from the root of the repository."""
    if "benchmarks" not in sys.modules:
        spec = importlib.util.spec_from_file_location("benchmarks", _FILE)
        assert spec is not None
        assert spec.loader is not None
        package = importlib.util.module_from_spec(spec)
        sys.modules["benchmarks"] = package
        spec.loader.exec_module(package)
    return import_module(f"benchmarks.{name}")
