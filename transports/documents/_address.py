"""The URL of a configuration document, which may contain secrets of its own."""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import SplitResult, unquote, urlsplit
from urllib.request import url2pathname

from ..._texts import bracketed, escaped, quoted
from ...errors import ConfigurationError
from .._credentials import Secret
from .._url_options import scheme_of

__all__ = ["DocumentAddress", "parse_address"]

_UNFIT = re.compile(r"[^\x21-\x7e]|\\")
_BAD_PERCENT = re.compile(r"%(?![0-9A-Fa-f]{2})")
_LONGEST_SHOWN = 300


@dataclass(frozen=True)
class DocumentAddress:
    """Where a document is. Its text is the URL without user, password, query and name.

    Attributes:
        scheme: ``file``, ``https`` or ``http``.
        shown: the URL without what may be secret.
        path: the path on the server, or of the file.
        url: what to request, without user and fragment.
        login: the value of the header Authorization.
        name: of the provider, from behind ``#``.
    """

    scheme: str
    shown: str
    path: str
    url: Secret = field(repr=False)
    login: Secret | None = None
    name: str | None = None

    def __str__(self) -> str:
        return self.shown

    @property
    def is_remote(self) -> bool:
        """Whether it is on a server."""
        return self.scheme != "file"


def parse_address(url: str) -> DocumentAddress:
    """Parse the URL of a document. Secrets in it never show up in an error.

    Raises:
        ConfigurationError: it is not a valid URL; says which part and what to write.
    """
    scheme = scheme_of(url)
    if _UNFIT.search(url) or _BAD_PERCENT.search(url):
        raise ConfigurationError(
            f"a {scheme}:// URL has a space, a control character, a backslash, a letter outside of"
            " ASCII or a lone '%': write them as %20, %5C, %25 and so on"
        )
    try:
        parts = urlsplit(url)
        port = parts.port
        host = parts.hostname or ""
    except ValueError:
        raise ConfigurationError(
            f"a {scheme}:// URL has an invalid host or port: write for example"
            f" {scheme}://host:8443/plant.toml"
        ) from None
    name = unquote(parts.fragment) or None
    if scheme == "file":
        return _file(parts, name)
    if not host:
        raise ConfigurationError(
            f"a {scheme}:// URL has no host: write for example {scheme}://host/plant.toml"
        )
    place = bracketed(host) + ("" if port is None else f":{port}")
    path = parts.path or "/"
    query = f"?{parts.query}" if parts.query else ""
    login = None
    if parts.username is not None or parts.password is not None:
        pair = f"{unquote(parts.username or '')}:{unquote(parts.password or '')}"
        login = Secret("Basic " + base64.b64encode(pair.encode()).decode())
    return DocumentAddress(
        scheme=scheme,
        shown=escaped(f"{scheme}://{place}{path}", _LONGEST_SHOWN),
        path=unquote(path),
        url=Secret(f"{scheme}://{place}{path}{query}"),
        login=login,
        name=name,
    )


def _file(parts: SplitResult, name: str | None) -> DocumentAddress:
    if parts.netloc not in ("", "localhost"):
        raise ConfigurationError(
            "a file:// URL has a host, or a path that does not begin at the root: write three"
            f" slashes and the whole path, for example {Path('plant.toml').absolute().as_uri()}"
        )
    if parts.query:
        raise ConfigurationError(
            "a file:// URL has options after '?': they stand in the document, in environment"
            " variables, or in the call; write '?' in a name as %3F"
        )
    path = url2pathname(parts.path)
    if not path or path.endswith("/") or "\0" in path:
        raise ConfigurationError(
            f"the path {quoted(path)} of a file:// URL is not that of a file: write for example"
            f" {Path('plant.toml').absolute().as_uri()}"
        )
    shown = escaped(f"file://{parts.path}", _LONGEST_SHOWN)
    return DocumentAddress("file", shown, path, Secret(f"file://{parts.path}"), name=name)
