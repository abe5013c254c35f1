"""Failures to connect to a broker of any kind: what is an outage, and what is said of it."""

from __future__ import annotations

import errno
import os
import socket
import ssl
from dataclasses import dataclass
from typing import TypeVar

from ..errors import SpaDatError, TransportError

__all__ = ["ConnectProblem", "OtherEnd", "describe_failure", "is_wrong_setup", "not_outage"]

E = TypeVar("E", bound=TransportError)

# The peer ended the connection within the handshake: it may be starting, or not speak TLS.
_CUT_OFF = (ssl.SSLEOFError, ssl.SSLZeroReturnError)
# X509_V_ERR_... of OpenSSL.
_NOT_YET_VALID, _EXPIRED = 9, 10
_UNKNOWN_ISSUERS = (2, 18, 19, 20, 21)
_OTHER_NAMES = (62, 64)
# The names of OpenSSL differ in what is in front: TLSV1_ALERT_..., SSLV3_ALERT_...
_TLS_REASONS = {
    "CERTIFICATE_REQUIRED": "the broker requires a certificate from its clients: give tls_cert",
    "UNKNOWN_CA": "the broker does not know the authority that issued our certificate (tls_cert)",
    "ALERT_CERTIFICATE_EXPIRED": "our certificate (tls_cert) has expired: renew it",
    "CERTIFICATE_REVOKED": "our certificate (tls_cert) has been revoked: renew it",
    "BAD_CERTIFICATE": (
        "the broker does not accept our certificate, or requires one: check the option tls_cert"
    ),
    "CERTIFICATE_UNKNOWN": "the broker does not accept our certificate: check the option tls_cert",
    "UNSUPPORTED_CERTIFICATE": (
        "the broker does not accept our certificate: check the option tls_cert"
    ),
    "HANDSHAKE_FAILURE": (
        "the broker refused the handshake: it requires a certificate from its clients (tls_cert),"
        " or the two ends have no cipher in common"
    ),
    "PROTOCOL_VERSION": "the broker does not speak TLS 1.2 or newer",
    "UNSUPPORTED_PROTOCOL": "the broker does not speak TLS 1.2 or newer",
    "WRONG_VERSION_NUMBER": "what answers at this port does not speak TLS",
    "RECORD_LAYER_FAILURE": "what answers at this port does not speak TLS",
}


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


class OtherEnd(OSError):
    """What is at the other end of a connection is not what the configuration says."""


def is_wrong_setup(cause: BaseException) -> bool:
    """Return whether an attempt to connect would fail again, as something is set up wrongly."""
    if isinstance(cause, _CUT_OFF):
        return False
    return isinstance(cause, (ssl.SSLError, OtherEnd))


def not_outage(error: E) -> E:
    """Mark an error as not caused by a lost connection."""
    error.outage = False
    return error


def describe_failure(cause: BaseException) -> str:
    """Describe an exception of the system, of TLS or of any library in one line."""
    if isinstance(cause, socket.gaierror):
        return f"unknown host ({cause.strerror})"
    if isinstance(cause, ssl.SSLCertVerificationError):
        return _untrusted(cause)
    if isinstance(cause, _CUT_OFF):
        return "it closed the connection during the TLS handshake"
    if isinstance(cause, ssl.SSLError):
        reason = cause.reason or str(cause)
        for name, words in _TLS_REASONS.items():
            if reason.endswith(name):
                return f"TLS failed: {words} ({reason})"
        return f"TLS failed: {reason}"
    if isinstance(cause, TimeoutError):
        return str(cause) or "no answer in time"
    if isinstance(cause, OSError) and cause.errno is not None and cause.errno in errno.errorcode:
        return os.strerror(cause.errno)
    return str(cause) or type(cause).__name__


def _untrusted(cause: ssl.SSLCertVerificationError) -> str:
    reason = str(getattr(cause, "verify_message", cause)).removesuffix(".")
    code = getattr(cause, "verify_code", 0)
    advice = ""
    if code in _UNKNOWN_ISSUERS:
        advice = "; if it is the right broker, give the authority that issued it as tls_ca"
    elif code in _OTHER_NAMES:
        advice = "; connect to a name that it is for"
    elif code == _EXPIRED:
        advice = "; renew it on the broker, and check the clock here"
    elif code == _NOT_YET_VALID:
        advice = "; check the clocks"
    return f"the broker's certificate is not accepted: {reason}{advice}"
