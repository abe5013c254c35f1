"""Strict type checkers, run over what users would write."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import spa_dat

__all__ = ["check_types", "check_with_pyright", "errors"]


def check_types(
    folder: Path, *texts: str, options: Sequence[str] = (), python: Path | None = None
) -> list[list[str]]:
    """Write programs to files and return what mypy says of each, without the names of the files.

    All of them at once, because it takes seconds to start.

    Args:
        folder: where to write them.
        texts: the programs.
        options: further arguments of mypy.
        python: an interpreter that has the package; None for the one that runs this.
    """
    files = _written(folder, texts)
    # What mypy has found out of the package serves all tests of the run, in all its processes.
    run = folder.parents[1 if "PYTEST_XDIST_WORKER" in os.environ else 0]
    arguments = ["--strict", "--follow-imports=silent", "--cache-dir", str(run / "mypy-cache")]
    arguments += options
    if python is not None:
        arguments += ["--python-executable", str(python), "--config-file="]
    # In this process it would leave another limit of recursion and other thresholds of the garbage
    # collector behind.
    ended = subprocess.run(
        [sys.executable, "-m", "mypy", *arguments, *map(str, files)],
        capture_output=True,
        text=True,
        check=False,
        # Without the sources that are in this folder, and the configuration.
        cwd=None if python is None else folder,
    )
    assert ended.stderr == ""
    said: list[list[str]] = [[] for _ in files]
    for line in ended.stdout.splitlines():
        for file, lines in zip(files, said, strict=True):
            _, found, rest = line.partition(f"{file.name}:")
            if found:
                lines.append(rest.replace(f"{file.stem}.", ""))
    return said


def check_with_pyright(
    folder: Path,
    *texts: str,
    options: Mapping[str, bool] | None = None,
    python: Path | None = None,
) -> list[list[str]]:
    """As `check_types`, with pyright.

    Args:
        folder: where to write them.
        texts: the programs.
        options: rules of pyright, by name, and whether they hold.
        python: as in `check_types`.
    """
    files = _written(folder, texts)
    settings = {"typeCheckingMode": "strict", "include": ["program_*.py"], **(options or {})}
    if python is None:
        # It does not find what is installed as editable.
        settings["extraPaths"] = [str(Path(spa_dat.__file__).parents[1])]
    config = folder / "pyrightconfig.json"
    config.write_text(json.dumps(settings))
    interpreter = sys.executable if python is None else str(python)
    arguments = ["--outputjson", "-p", str(config), "--pythonpath", interpreter]
    ended = subprocess.run(
        [sys.executable, "-m", "pyright", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode in (0, 1), ended.stdout + ended.stderr
    said: list[list[str]] = [[] for _ in files]
    for found in json.loads(ended.stdout)["generalDiagnostics"]:
        number = int(Path(found["file"]).stem.removeprefix("program_"))
        line = found["range"]["start"]["line"] + 1
        said[number].append(f"{line}: error: {found['message']} [{found.get('rule', '')}]")
    return said


def errors(said: list[str]) -> list[int]:
    """Return the numbers of the lines with errors, each once."""
    return [*dict.fromkeys(int(line.split(":")[0]) for line in said if " error: " in line)]


def _written(folder: Path, texts: Sequence[str]) -> list[Path]:
    files = [folder / f"program_{number}.py" for number in range(len(texts))]
    for file, text in zip(files, texts, strict=True):
        file.write_text(text, encoding="utf-8")
    return files
