"""``spa-dat run``: who runs the application, and running it in this process."""

from __future__ import annotations

import os
from collections.abc import Sequence

from ..errors import ConfigurationError
from ._child_link import Parent

__all__ = ["run"]


def run(
    arguments: Sequence[str],
    *,
    targets: Sequence[str],
    url: str | None,
    instance: str | None,
    log_level: str | None,
    log_format: str | None,
    admin: str | None,
    workers: int | None,
    worker_timeout: float,
    reload: bool,
    folders: Sequence[str],
) -> int:
    """Run applications in this process, or in child processes; returns the exit code.

    Args:
        arguments: of the command, which child processes get as well.
        targets: name the applications, one or several.
        url: the bus in place of the application's default one; None for that one.
        instance: of the application; None for its own.
        log_level: None for what the application has set up.
        log_format: "text" or "json"; None for what the application has set up.
        admin: where it answers probes; None for its own.
        workers: processes that run the application; None for this one.
        worker_timeout: seconds after which a worker that stands still is replaced; 0 for never.
        reload: start it again whenever a Python file changes.
        folders: where to look for changes; none for the current folder.
    """
    if folders and not reload:
        raise ConfigurationError("--reload-dir is for --reload: give both")
    if reload and workers is not None:
        raise ConfigurationError("--reload and --workers exclude each other: leave one out")
    parent = Parent.of_this_process()
    as_json = log_format == "json"
    if parent is None:
        # Each imports only what it needs: whoever looks after others is small.
        if reload:
            from ._reload import Reloader

            return Reloader(arguments, folders, as_json=as_json).run()
        if workers is not None:
            from ._workers import Workers

            return Workers(arguments, workers, worker_timeout, as_json=as_json).run()
        if os.getpid() == 1:
            from ._child_processes import Init

            return Init(arguments, as_json=as_json).run()
    from ._run_in_process import serve

    return serve(
        targets,
        url=url,
        instance=instance,
        log_level=log_level,
        log_format=log_format,
        admin=admin,
        parent=parent,
    )
