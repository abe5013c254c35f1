"""``spa-dat run --reload``: the application is started again whenever a Python file changes."""

from __future__ import annotations

import enum
import os
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from .._texts import describe_exit, reason_of
from ..errors import ConfigurationError
from ._child_link import Child
from ._child_processes import Processes, exit_code

if TYPE_CHECKING:
    from types import ModuleType

__all__ = ["Reloader"]

_AGAIN = 1.0
_LOOK = 1000  # milliseconds
_MOST_NAMED = 3
_SHARE = 0.02
"""Of the time, for looking for links."""


class ReloadState(enum.Enum):
    """What the application is doing."""

    RUNNING = "it runs, or starts"
    RESTARTING = "it stops, to be started again"
    ENDED = "it has ended by itself, and waits for a change"
    STOPPING = "it stops for good"


class Reloader:
    """Runs an application until a signal, and starts it again whenever a Python file changes.

    Whatever becomes of the application, the next change starts it again, unless a changed file has
    a syntax error: what runs goes on then.

    Args:
        arguments: of the command.
        folders: where to look for changes; none for the current folder.
        as_json: whether its own lines are JSON.

    Raises:
        ConfigurationError: watchfiles is not installed, or there is no such folder.
    """

    def __init__(
        self, arguments: Sequence[str], folders: Sequence[str], *, as_json: bool = False
    ) -> None:
        self._watchfiles = _watchfiles()
        for folder in folders:
            if not Path(folder).is_dir():
                raise ConfigurationError(f"--reload-dir: there is no folder {folder!r}")
        # A folder that is deleted and made again, as by version control, is another one.
        self._here = os.getcwd()
        self._folders = [os.path.abspath(folder) for folder in folders] or [self._here]
        self._arguments = arguments
        self._processes = Processes(self, as_json=as_json)
        self._state = ReloadState.RUNNING
        self._child: Child | None = None
        # Files with syntax errors, for which what runs goes on.
        self._flawed: set[str] = set()
        self._end = threading.Event()

    def run(self) -> int:
        """Run the application; returns 0, or how its last process has failed to stop."""
        # Python takes a compiled file for up to date if size and second of the source are the same,
        # and so would run what was there before two quick changes.
        os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
        self._processes.call_later(0.0, self._start)
        watcher = threading.Thread(target=self._watch, name="spa_dat reload", daemon=True)
        watcher.start()
        try:
            return self._processes.run()
        finally:
            self._end.set()
            watcher.join(_AGAIN)

    def _watch(self) -> None:
        """Tell of changes, in a thread of its own."""
        missing: set[str] = set()
        said = ""
        while not self._end.is_set():
            missing |= {folder for folder in self._folders if not os.path.isdir(folder)}
            try:
                self._watch_these(missing)
                said = ""
            except Exception as error:  # noqa: BLE001 (a folder may go away meanwhile)
                text = f"changes cannot be watched: {reason_of(error)}"
                if text != said:
                    self._processes.call_soon_threadsafe(partial(self._processes.say, text))
                said = text
            self._end.wait(_AGAIN)

    def _watch_these(self, new: set[str]) -> None:
        """Tell of changes until a folder is no longer the one that is watched.

        Args:
            new: folders that count as changed once they are watched; emptied then.
        """
        python = self._watchfiles.PythonFilter()
        watched = [_identity(folder) for folder in self._folders]
        links = _Links(self._folders, lambda path: python(self._watchfiles.Change.modified, path))
        changes = self._watchfiles.watch(
            *self._folders,
            watch_filter=python,
            stop_event=self._end,
            raise_interrupt=False,
            rust_timeout=_LOOK,
            yield_on_timeout=True,
        )
        for changed in changes:
            paths = sorted({path for _, path in changed} | links.changed() | new)
            new.clear()
            if paths:
                self._processes.call_soon_threadsafe(partial(self._changed, paths))
            others = [
                folder
                for folder, identity in zip(self._folders, watched, strict=True)
                if _identity(folder) != identity
            ] + links.elsewhere()
            if others:
                new |= set(others)
                return

    def _changed(self, paths: Sequence[str]) -> None:
        if self._state is ReloadState.STOPPING:
            return
        shown = ", ".join(
            os.path.relpath(path, self._here) if path.startswith(self._here) else path
            for path in paths[:_MOST_NAMED]
        )
        more = f" and {len(paths) - _MOST_NAMED} more" if len(paths) > _MOST_NAMED else ""
        if self._state is ReloadState.RUNNING and (flaw := self._flaw(paths)) is not None:
            self._processes.say(f"changed: {shown}{more}; not started again: {flaw}")
            return
        self._processes.say(f"changed: {shown}{more}; starting again")
        if self._state is ReloadState.RUNNING and self._child is not None:
            self._enter(ReloadState.RESTARTING)
            self._processes.stop_child(self._child)
        elif self._state is ReloadState.ENDED:
            self._start()

    def _flaw(self, paths: Sequence[str]) -> str | None:
        """Return why one of the files, or of those with an error before, is no Python code."""
        flaws = {path: _syntax_error(path, self._here) for path in {*self._flawed, *paths}}
        self._flawed = {path for path, flaw in flaws.items() if flaw is not None}
        return next((flaws[path] for path in sorted(self._flawed)), None)

    def _start(self) -> None:
        if self._state is ReloadState.STOPPING:
            return
        self._enter(ReloadState.RUNNING)
        self._flawed.clear()
        try:
            os.chdir(self._here)
        except OSError as error:
            self._wait(f"has no folder {self._here!r} to run in ({error.strerror or error})")
            return
        try:
            self._child = self._processes.start(self._arguments)
        except OSError as error:
            self._wait(f"cannot be started: {error.strerror or error}")

    def ended(self, child: Child, code: int) -> None:
        """See `Owner.ended`."""
        self._child = None
        if self._state is ReloadState.STOPPING:
            self._processes.end(0 if code == -signal.SIGTERM else exit_code(code))
        elif self._state is ReloadState.RESTARTING:
            self._start()
        else:
            self._wait(describe_exit(code))

    def _wait(self, how: str) -> None:
        self._enter(ReloadState.ENDED)
        self._processes.say(
            f"the application {how}; it is started again when a Python file changes"
        )

    def _enter(self, state: ReloadState) -> None:
        self._state = state

    def reported(self, child: Child, report: str) -> None:
        """See `Owner.reported`."""

    def stop(self) -> None:
        """See `Owner.stop`."""
        self._enter(ReloadState.STOPPING)
        if self._child is None:
            self._processes.end(0)


class _Links:
    """The symbolic links in some folders to Python files and folders.

    Watchfiles follows those to folders, but not when they lead elsewhere later, and does not see
    changes of a file that a link leads to.

    Args:
        folders: where the links are.
        counts: whether a path is one that matters.
    """

    def __init__(self, folders: Sequence[str], counts: Callable[[str], bool]) -> None:
        self._tops = folders
        self._counts = counts
        self._next_look = 0.0
        self._files: dict[str, object] = {}
        self._folders: dict[str, object] = {}
        self._look()
        self._watched = dict(self._folders)

    def changed(self) -> set[str]:
        """Return the links that lead to another file, or to one that has changed."""
        before = self._files
        if time.monotonic() >= self._next_look:
            self._look()
        self._files = {path: self._state(path) for path in self._files}
        # Links that have come or gone are seen by watchfiles.
        return {path for path, state in self._files.items() if before.get(path, state) != state}

    def elsewhere(self) -> list[str]:
        """Return links to folders that have come, have gone or lead elsewhere."""
        now = {path: _identity(path) for path in self._folders}
        return [
            path
            for path in sorted(now.keys() | self._watched.keys())
            if now.get(path) != self._watched.get(path)
        ]

    def _look(self) -> None:
        began = time.monotonic()
        self._files, self._folders = {}, {}
        seen: set[tuple[int, int] | None] = set()
        for top in self._tops:
            self._walk(top, seen)
        now = time.monotonic()
        self._next_look = now + (now - began) / _SHARE

    def _walk(self, top: str, seen: set[tuple[int, int] | None]) -> None:
        for folder, names, files in os.walk(top, followlinks=True):
            # Links may lead in circles.
            identity = _identity(folder)
            if identity in seen:
                names.clear()
                continue
            seen.add(identity)
            names[:] = [name for name in names if self._counts(os.path.join(folder, name, "x.py"))]
            for path in _links(folder, names):
                self._folders[path] = _identity(path)
            for path in _links(folder, files):
                if self._counts(path):
                    self._files[path] = self._state(path)

    def _state(self, path: str) -> object:
        """Return what tells whether a link leads to another file, or to one that has changed."""
        target = os.path.realpath(path)
        inside = any(target.startswith(os.path.realpath(top) + os.sep) for top in self._tops)
        if inside and self._counts(target):
            # Its changes are seen where it is.
            return target
        try:
            status = os.stat(target)
        except OSError:
            return target
        return target, status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size


def _syntax_error(path: str, here: str) -> str | None:
    """Return what is wrong with a Python file; None if nothing is, or if it is gone."""
    if not path.endswith(".py"):
        return None
    try:
        source = Path(path).read_bytes()
    except OSError:
        return None
    try:
        with warnings.catch_warnings():
            # Importing it will say so.
            warnings.simplefilter("ignore")
            compile(source, os.path.relpath(path, here), "exec", dont_inherit=True)
    except Exception as error:  # noqa: BLE001 (also ValueError, RecursionError and MemoryError)
        return reason_of(error)
    return None


def _links(folder: str, names: Sequence[str]) -> Iterator[str]:
    for name in names:
        path = os.path.join(folder, name)
        if os.path.islink(path):
            yield path


def _identity(folder: str) -> tuple[int, int] | None:
    """Return what tells a folder from another one of the same name; None where there is none."""
    try:
        status = os.stat(folder)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _watchfiles() -> ModuleType:
    try:
        import watchfiles
    except ImportError as error:
        raise ConfigurationError(
            "--reload needs the package watchfiles: pip install 'spa-dat[reload]'"
        ) from error
    return watchfiles
