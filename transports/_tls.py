"""The TLS context of a configuration."""

from __future__ import annotations

import functools
import os
import ssl
from collections.abc import Sequence

from ..errors import ConfigurationError
from ._broker_config import BrokerConfig
from ._credentials import Secret

__all__ = ["tls_context"]

_CONTEXTS = 16


def tls_context(config: BrokerConfig) -> ssl.SSLContext | None:
    """Return the TLS context; None for plain TCP.

    Looks at the certificate files each time, and reads them if they have changed.

    Raises:
        ConfigurationError: a file cannot be read or is not a certificate or key.
    """
    if not config.tls:
        return None
    login = config.login
    files = login.tls_ca, login.tls_cert, login.tls_key
    password = login.tls_key_password
    try:
        return _context(
            files,
            password if password is None else Secret(password),
            config.tls_insecure_skip_verification,
            tuple(_version(name) for name in (*files, *_system_files())),
        )
    except _Unusable as unusable:
        error = unusable.error
        named = _unreadable(unusable.files) or unusable.files
        reason = getattr(error, "strerror", None) or getattr(error, "reason", None) or error
        # OpenSSL hardly says more than that there is an error.
        hint = f" ({unusable.hint})" if isinstance(error, ssl.SSLError) else ""
        raise ConfigurationError(
            f"the TLS file{'s' if len(named) > 1 else ''} {', '.join(map(repr, named))} cannot be"
            f" used: {reason}{hint};"
            " check the options tls_ca, tls_cert, tls_key and tls_key_password"
        ) from error


class _Unusable(Exception):
    """Says which of the files cannot be used, why, and what may be wrong with their contents."""

    def __init__(self, error: OSError | ValueError, hint: str, *files: str | None) -> None:
        super().__init__(error)
        self.error = error
        self.hint = hint
        self.files = [name for name in files if name is not None]


# Reading the certificates of the system takes longer than a handshake, and takes memory each time.
@functools.lru_cache(_CONTEXTS)
def _context(
    files: tuple[str | None, str | None, str | None],
    password: Secret | None,
    skip_verification: bool,
    versions: tuple[object, ...],
) -> ssl.SSLContext:
    authority, certificate, key = files
    try:
        context = ssl.create_default_context(cafile=authority)
    except (OSError, ValueError) as error:
        raise _Unusable(error, "it is incomplete, or not PEM", authority) from error
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if certificate is not None:
        # Without a password the function would prompt for one on the terminal.
        try:
            context.load_cert_chain(certificate, key, password.reveal() if password else "")
        except (OSError, ValueError) as error:
            hint = "not PEM, incomplete, a key of another certificate, or one with another password"
            raise _Unusable(error, hint, certificate, key) from error
    if skip_verification:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _unreadable(files: Sequence[str]) -> list[str]:
    """Return those of the files that cannot be opened: OpenSSL does not say which."""
    unreadable = []
    for name in files:
        try:
            with open(name, "rb"):
                pass
        except OSError:
            unreadable.append(name)
    return unreadable


def _system_files() -> tuple[str | None, str | None]:
    paths = ssl.get_default_verify_paths()
    return paths.cafile, paths.capath


def _version(name: str | None) -> object:
    """Return what is different once a file, or what it is a link to, has been replaced."""
    if name is None:
        return None
    try:
        found = os.stat(name)
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
