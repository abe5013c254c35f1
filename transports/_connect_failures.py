"""Failures to connect to a broker of any kind: what is an outage, and what is said of it."""

from __future__ import annotations

import errno
import os
import socket
import ssl
from dataclasses import dataclass
from typing import TypeVar

from ..errors import SpaDatError, TransportError

__all__ = ["ConnectProblem", "describe_failure", "not_outage"]

E = TypeVar("E", bound=TransportError)


@dataclass(frozen=True)
class ConnectProblem:
    """Why an attempt to connect failed.

    Attributes:
        error: what to raise.
        final: whether, during the start, retrying is pointless.
        later: whether retrying is pointless for a while.
    """

    error: SpaDatError
    final: bool
    later: bool = False


def not_outage(error: E) -> E:
    """Mark an error as not caused by a lost connection."""
    error.outage = False
    return error


def describe_failure(cause: BaseException) -> str:
    """Describe an exception of the system, of TLS or of any library in one line."""
    if isinstance(cause, socket.gaierror):
        return f"unknown host ({cause.strerror})"
    if isinstance(cause, ssl.SSLCertVerificationError):
        reason = getattr(cause, "verify_message", cause)
        return f"the broker's certificate is not accepted: {reason}"
    if isinstance(cause, ssl.SSLError):
        return f"TLS failed: {cause.reason or cause}"
    if isinstance(cause, TimeoutError):
        return str(cause) or "no answer in time"
    if isinstance(cause, OSError) and cause.errno is not None and cause.errno in errno.errorcode:
        return os.strerror(cause.errno)
    return str(cause) or type(cause).__name__
