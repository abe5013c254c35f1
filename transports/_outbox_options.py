"""`OutboxFile`: where an application keeps what it has published until the broker has it."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from .._texts import quoted
from .._unknown_names import suggests_keywords
from ..errors import ConfigurationError
from ._contract import Identity
from ._state_folder import state_folder
from ._url_options import check_numbers

__all__ = ["OutboxFile", "outbox_file_meant"]

_LIMITS = {"max_messages": (1, 1_000_000_000), "max_bytes": (1, 2**50)}


@suggests_keywords
@dataclass(frozen=True, kw_only=True)
class OutboxFile:
    """Where an application keeps what it has published until the broker has it, and how much of it.

    Args:
        folder: the folder of the files, one for each instance and bus; created for this user alone
            (mode 0700) if it is missing. It has to be on a local disk. None for the first folder of
            the environment variable ``STATE_DIRECTORY``, which systemd sets, or else
            ``spa-dat`` in ``XDG_STATE_HOME``, which is ``~/.local/state`` by default.
        max_messages: the most messages that may wait in one file; one more raises OutboxFull.
        max_bytes: the most bytes of them, likewise; a single larger message may wait alone.

    Raises:
        ConfigurationError: an option has an invalid value.
    """

    folder: str | os.PathLike[str] | None = None
    max_messages: int = 1_000_000
    max_bytes: int = 1_073_741_824

    def __post_init__(self) -> None:
        folder = self.folder
        if folder is not None and not (
            isinstance(folder, str | os.PathLike) and str(folder) and "\0" not in str(folder)
        ):
            raise ConfigurationError(
                f"option folder={quoted(self.folder)} of OutboxFile: give the path of a folder"
            )
        check_numbers(self, _LIMITS, whole=True)

    def path(self, identity: Identity, address: str) -> Path:
        """Return the file of one instance of an application for the bus at an address.

        Raises:
            ConfigurationError: no folder is given, and the user has no home.
        """
        digest = hashlib.sha256(address.encode()).hexdigest()[:12]
        return self._folder() / f"{identity.client_id}.{digest}.outbox"

    def paths(self, identity: Identity) -> list[Path]:
        """Return the files that an instance of an application has for whatever addresses.

        Raises:
            ConfigurationError: as `path` does.
        """
        # Neither name has any character that means something in a pattern.
        return sorted(self._folder().glob(f"{identity.client_id}.*.outbox"))

    def _folder(self) -> Path:
        return state_folder(
            self.folder, of="the outbox in a file", option="outbox=OutboxFile(folder=...)"
        )


def outbox_file_meant(given: object) -> OutboxFile:
    """Return the option ``outbox`` of an application as an object.

    Raises:
        ConfigurationError: it is nothing of what it may be.
    """
    if isinstance(given, OutboxFile):
        return given
    if given == "file":
        return OutboxFile()
    raise ConfigurationError(
        f"outbox={quoted(given)}: give 'file', an OutboxFile, or None for an outbox in memory"
    )
