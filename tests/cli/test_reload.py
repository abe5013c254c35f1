"""``spa-dat run --reload``: each change starts the application again, whatever became of it."""

from __future__ import annotations

import builtins
import os
import shutil
import signal
from pathlib import Path

import pytest

from spa_dat.cli._main import main
from support.command import Command
from support.waiting import eventually

APP = """
import os
from spa_dat import DistributedApplication

app = DistributedApplication("memory://", name="plant")

@app.application("never")
async def never(payload: int) -> None: ...

@app.producer()
async def announce() -> None:
    print("version {version}", os.getpid(), flush=True)
"""


async def is_watched(command: Command, folder: Path) -> None:
    """How long it takes until a folder is watched nobody says: change something until it shows."""
    number = 0

    def changed() -> bool:
        nonlocal number
        number += 1
        (folder / "part.py").write_text(f"number = {number}\n")
        return bool(command.found("^spa-dat: changed: .*part.py; starting again$"))

    await eventually(changed, 60.0, 1.0)


async def test_a_change_starts_it_again_and_a_broken_file_is_reported_until_it_is_mended(
    tmp_path: Path,
) -> None:
    main_file = tmp_path / "main.py"
    main_file.write_text(APP.format(version=1))
    with Command(tmp_path, "run", "main.py", "--reload") as command:
        await command.says("^version 1 ")
        await is_watched(command, tmp_path)
        (tmp_path / "notes.txt").write_text("no Python")
        main_file.write_text(APP.format(version=2))
        await command.says("^spa-dat: changed: .*main.py")
        pid = int((await command.says(r"^version 2 (\d+)$"))[1])
        # The one before has stopped in good order.
        assert command.found("INFO spa_dat: SIGTERM: stopping")
        assert not command.found("notes")
        main_file.write_text("app = (\n")
        await command.says(
            r"^spa-dat: changed: main.py; not started again: SyntaxError: .*\(main.py, line 1\)$"
        )
        # What runs goes on, also when a file changes that is right.
        (tmp_path / "part.py").write_text("number = 0\n")
        await command.says(r"^spa-dat: changed: part.py; not started again: SyntaxError: ")
        os.kill(pid, 0)
        main_file.write_text(APP.format(version=3) + "import helper\n")
        await command.says("cannot be imported: ModuleNotFoundError: No module named 'helper'")
        await command.says("^spa-dat: the application has ended with exit code 2; it is started")
        (tmp_path / "helper.py").touch()
        await command.says("^version 3 ")
        main_file.write_text(APP.format(version=4) + "    os._exit(5)\n")
        await command.says("^spa-dat: the application has ended with exit code 5; it is started")
        assert command.found("^version 4 ")
        command.signal(signal.SIGINT)
        assert await command.end() == 0
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


async def test_only_the_folders_that_are_named_are_watched(tmp_path: Path) -> None:
    (tmp_path / "main.py").write_text(APP.format(version=1))
    watched = tmp_path / "watched"
    watched.mkdir()
    with Command(tmp_path, "run", "main", "--reload", "--reload-dir", "watched") as command:
        await command.says("^version 1 ")
        (tmp_path / "main.py").write_text(APP.format(version=2))
        await is_watched(command, watched)
        await command.says("^version 2 ")
        assert not command.found("changed: main.py")
        command.signal(signal.SIGTERM)
        assert await command.end() == 0


async def test_a_folder_that_is_deleted_and_made_again_is_watched_and_run_in_again(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "checkout"
    folder.mkdir()
    (folder / "main.py").write_text(APP.format(version=1))
    with Command(folder, "run", "main.py", "--reload") as command:
        await command.says("^version 1 ")
        await is_watched(command, folder)
        shutil.rmtree(folder)
        await command.says(f"^spa-dat: the application has no folder '{folder}' to run in")
        await command.says("^spa-dat: changes cannot be watched: ")
        folder.mkdir()
        (folder / "main.py").write_text(APP.format(version=2))
        await command.says("^version 2 ")
        (folder / "main.py").write_text(APP.format(version=3))
        await command.says("^version 3 ")
        command.signal(signal.SIGTERM)
        assert await command.end() == 0


async def test_links_that_lead_out_of_the_folder_are_followed(tmp_path: Path) -> None:
    folder, elsewhere = tmp_path / "folder", tmp_path / "elsewhere"
    for each in (folder, elsewhere / "old", elsewhere / "new"):
        each.mkdir(parents=True)
    (elsewhere / "main.py").write_text(APP.format(version=1))
    (folder / "main.py").symlink_to(elsewhere / "main.py")
    # As Kubernetes mounts files: a link of its own leads to the newest edition of them all.
    (elsewhere / "old" / "plan.py").write_text("number = 1\n")
    (elsewhere / "new" / "plan.py").write_text("number = 2\n")
    (folder / "current").symlink_to(elsewhere / "old")
    (folder / "circle").symlink_to(folder)
    (folder / "gone.py").symlink_to(folder / "nowhere")
    with Command(folder, "run", "main.py", "--reload") as command:
        await command.says("^version 1 ")
        await is_watched(command, folder)
        # Editors write another file and rename it.
        (elsewhere / "next.py").write_text(APP.format(version=2))
        (elsewhere / "next.py").rename(elsewhere / "main.py")
        await command.says("^spa-dat: changed: .*main.py")
        await command.says("^version 2 ")
        (elsewhere / "main.py").write_text(APP.format(version=3))
        await command.says("^version 3 ")
        (folder / "next").symlink_to(elsewhere / "new")
        (folder / "next").rename(folder / "current")
        await command.says("^spa-dat: changed: .*current")
        (elsewhere / "new" / "plan.py").write_text("number = 3\n")
        await command.says("^spa-dat: changed: .*plan.py")
        command.signal(signal.SIGTERM)
        assert await command.end() == 0


def test_without_watchfiles_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    imported = builtins.__import__

    def without(name: str, *args: object, **kwargs: object) -> object:
        if name == "watchfiles":
            raise ImportError(name)
        return imported(name, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(builtins, "__import__", without)
    assert main(["run", "main", "--reload"]) == 2
    assert capsys.readouterr().err == (
        "spa-dat: --reload needs the package watchfiles: pip install 'spa-dat[reload]'\n"
    )
