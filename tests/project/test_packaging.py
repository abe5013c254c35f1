"""What is packaged, and how the scripts look."""

from __future__ import annotations

import configparser
import os
import subprocess
import tomllib
from importlib.metadata import requires, version
from pathlib import Path

import pytest

import spa_dat

ROOT = Path(__file__).parent.parent.parent
SCRIPTS = (
    "scripts/demo",
    "scripts/docs",
    "scripts/release",
    "scripts/test",
    "scripts/test-pythons",
    "scripts/check",
    "scripts/bench",
    "scripts/soak",
    "scripts/soak-keys",
    ".ci/run",
)

pytestmark = pytest.mark.repository


def test_every_folder_is_packaged() -> None:
    cfg = configparser.ConfigParser()
    cfg.read(ROOT / "setup.cfg")
    listed = set(cfg["options"]["packages"].split())
    lines = cfg["options"]["package_dir"].strip().splitlines()
    dirs = dict(line.split(" = ") for line in lines)
    found = {
        ".".join((name, *init.parent.relative_to(ROOT / folder).parts))
        for name, folder in dirs.items()
        for init in (ROOT / folder).rglob("__init__.py")
    }
    assert listed == found


def test_every_file_that_is_no_module_is_packaged() -> None:
    cfg = configparser.ConfigParser()
    cfg.read(ROOT / "setup.cfg")
    patterns = {
        (*name.split(".")[1:], *pattern.split("/"))
        for name, data in cfg["options.package_data"].items()
        for pattern in data.split()
    }
    listed = {path for parts in patterns for path in (ROOT / "src/spa_dat").glob("/".join(parts))}
    found = {
        folder / path.relative_to(ROOT / top)
        for top, folder in [("src/spa_dat", ROOT / "src/spa_dat")]
        + [
            (name, ROOT / "src/spa_dat" / name)
            for name in ("actors", "runtime", "transports", "harness")
        ]
        for path in (ROOT / top).rglob("*")
        if path.is_file() and path.suffix not in (".py", ".pyc")
    }
    assert listed == found


def test_what_is_installed_is_this_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert spa_dat.__version__ == version("spa-dat") == project["version"]
    installed = [entry for entry in requires("spa-dat") or [] if "extra ==" not in entry]
    assert len(installed) == len(project["dependencies"]), "install the project again"


def test_the_three_folders_are_linked_for_type_checkers() -> None:
    for name in ("actors", "runtime", "transports"):
        link = ROOT / "src" / "spa_dat" / name
        assert link.is_symlink()
        assert os.readlink(link) == f"../../{name}"


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_are_executable_and_parse(script: str) -> None:
    assert os.access(ROOT / script, os.X_OK)
    subprocess.run(["bash", "-n", str(ROOT / script)], check=True)


def test_the_changelog_has_a_place_for_the_next_change() -> None:
    assert "## [Unreleased]" in (ROOT / "CHANGELOG.md").read_text()
