"""``spa-dat top``."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Sequence

from ..errors import ConfigurationError
from ._admin_client import AdminClient
from ._live_pictures import LiveApplication
from ._standard_output import printing, write_text

__all__ = ["top"]

_SHORTEST = 0.1


def top(admin: Sequence[str], *, as_json: bool, interval: float) -> int:
    """Show what running applications do until somebody quits; return the exit code.

    Args:
        admin: the addresses of their admin endpoints.
        as_json: print one live picture of each, and end.
        interval: seconds from one picture to the next.

    Raises:
        ConfigurationError: an address is wrong, there is no terminal, or Textual is not installed;
            with ``as_json`` also if something else answers.
        ConnectFailed: nobody answers, with ``as_json``.
        NotAuthorised: the token is another one, with ``as_json``.
    """
    if interval < _SHORTEST:
        raise ConfigurationError(f"--interval {interval:g}: give at least {_SHORTEST:g} seconds")
    applications = [LiveApplication(AdminClient(address, "--admin ")) for address in admin]
    if as_json:
        documents = [asyncio.run(application.document()) for application in applications]
        with printing():
            for document in documents:
                write_text(json.dumps(document) + "\n")
        return 0
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise ConfigurationError("top needs a terminal; with --json it prints one picture")
    try:
        from ._top_screen import TopScreen
    except ImportError as error:
        raise ConfigurationError(
            "top needs Textual, which is not installed: pip install 'spa-dat[top]'"
        ) from error
    screen = TopScreen(applications, interval)
    screen.run()
    return screen.return_code or 0
