"""Reporting to the service manager that has started the program, such as systemd: sd_notify(3)."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable, Mapping

from ._texts import quoted

__all__ = ["ServiceManager", "without_service_manager"]

_ADDRESS = "NOTIFY_SOCKET"
_INTERVAL, _WHOSE = "WATCHDOG_USEC", "WATCHDOG_PID"
_MICROSECONDS = 1e6
_MOST_DIGITS = 20
# Seconds. What is asked for more often than the shortest would be nothing but load.
_SHORTEST, _LONGEST = 0.001, 86_400.0
_AGAIN = 0.1
# It does not read at the moment, or the program has no file or memory to spare at the moment.
_PASSING = (errno.EAGAIN, errno.ENOBUFS, errno.ENOMEM, errno.EMFILE, errno.ENFILE)


class ServiceManager:
    """Tells the service manager what it has asked for; where there is none, nothing.

    It asks by environment variables. Nothing here waits or raises: a program is not to fail over
    whoever looks after it.

    Args:
        call_later: calls a function after so many seconds.
        complain: is told, once, why it cannot be told anything.
        environment: the variables; by default those of the process.
    """

    def __init__(
        self,
        call_later: Callable[[float, Callable[[], object]], object],
        complain: Callable[[str], object],
        environment: Mapping[str, str] = os.environ,
    ) -> None:
        self._call_later = call_later
        self._complain = complain
        self._address = environment.get(_ADDRESS, "")
        self._interval = _interval(environment)
        self._is_stopping = False

    def ready(self) -> None:
        """Tell that all has started, and from now on that it still runs, if that is wanted."""
        # Who is never told ends the program when the time for a start is over.
        if self._is_stopping:
            return
        if not self._tell("READY=1"):
            self._call_later(_AGAIN, self.ready)
        elif self._address and self._interval:
            # Not earlier: it would only take the room that there is for the other.
            self._alive()

    def stopping(self) -> None:
        """Tell that it stops. It still tells that it runs, until nothing is called later."""
        self._is_stopping = True
        self._tell("STOPPING=1")

    def _alive(self) -> None:
        self._tell("WATCHDOG=1")
        if self._address:
            self._call_later(self._interval, self._alive)

    def _tell(self, text: str) -> bool:
        """Tell it something; return False if that cannot be done at the moment."""
        if not self._address:
            return True
        # "@" stands for the null byte of names that are in no folder.
        path = "\0" + self._address[1:] if self._address[0] == "@" else self._address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
                sender.setblocking(False)
                sender.sendto(text.encode(), path)
        except (OSError, ValueError, AttributeError) as error:
            if isinstance(error, OSError) and error.errno in _PASSING:
                return False
            what = f"{_ADDRESS}={quoted(self._address)}"
            self._address = ""
            self._complain(f"the service manager at {what} cannot be notified: {error}")
        return True


def without_service_manager(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables of a process that has nothing to tell, as this one does that itself."""
    asked = (_ADDRESS, _INTERVAL, _WHOSE)
    return {name: value for name, value in environment.items() if name not in asked}


def _interval(environment: Mapping[str, str]) -> float:
    """Return after how many seconds to tell that it runs: half of what is allowed; 0 for never."""
    text, whose = environment.get(_INTERVAL, ""), environment.get(_WHOSE, "")
    if not (text.isascii() and text.isdigit() and len(text) <= _MOST_DIGITS) or not int(text):
        return 0.0
    if whose not in ("", str(os.getpid())):
        return 0.0
    return min(max(int(text) / _MICROSECONDS / 2, _SHORTEST), _LONGEST)
