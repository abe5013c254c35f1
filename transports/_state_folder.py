"""The folder in which an application keeps files from one run to the next."""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import ConfigurationError

__all__ = ["state_folder"]


def state_folder(given: str | os.PathLike[str] | None, *, of: str, option: str) -> Path:
    """Return the folder that was given, or the one that the system has for this.

    That is the first of the environment variable ``STATE_DIRECTORY``, which systemd sets for a
    unit with ``StateDirectory=``, or else ``spa-dat`` in ``XDG_STATE_HOME``, which is
    ``~/.local/state`` by default (https://specifications.freedesktop.org/basedir-spec/latest/).

    Args:
        given: by the user; None for that of the system.
        of: what is to be kept there, for errors.
        option: which option gives it, for errors.

    Raises:
        ConfigurationError: none is given, and the user has no home.
    """
    if given is not None:
        return Path(given).absolute()
    state = os.environ.get("STATE_DIRECTORY", "").split(":")[0]
    if state:
        return Path(state).absolute()
    home = os.environ.get("XDG_STATE_HOME")
    try:
        # As its specification says, relative ones are ignored.
        base = Path(home) if home and Path(home).is_absolute() else Path.home() / ".local/state"
    except RuntimeError as error:
        raise ConfigurationError(
            f"{of} needs a folder, and the user has no home: give {option}"
        ) from error
    return base / "spa-dat"
