"""Options of all configurations: how URLs and texts are parsed, and which values are valid."""

from __future__ import annotations

import dataclasses
import functools
import json
import re
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any, TypeAlias
from urllib.parse import unquote

from .._texts import bracketed, quoted, text_advice
from .._unknown_names import nearest_or_all
from ..errors import ConfigurationError
from ._credentials import Secret

__all__ = [
    "NOT_AN_OPTION",
    "PROVIDER_NAME",
    "BusUrl",
    "Limits",
    "check_choices",
    "check_flag",
    "check_limits",
    "check_names",
    "check_numbers",
    "check_provider_name",
    "check_text",
    "environment_prefix",
    "flag_from_text",
    "option_hints",
    "option_types",
    "parse_url",
    "repeated_name",
    "scheme_of",
    "value_from_text",
]

Limits: TypeAlias = Mapping[str, tuple[float, float]]
"""By option: the lowest and the highest value."""
NOT_AN_OPTION: Mapping[str, bool] = types.MappingProxyType({"option": False})
"""The metadata of a field of a configuration that is no option."""
PROVIDER_NAME = "[A-Za-z][A-Za-z0-9_-]{0,63}"
"""The names that a provider may have, as a regular expression."""

_URL = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://(?P<rest>.*)", re.DOTALL)
_BAD_PERCENT = re.compile(r"%(?![0-9A-Fa-f]{2})")
_SEVERAL_HOSTS = ("kafka", "kafkas")
# For examples in errors.
_PORTS = {"kafka": 9092, "kafkas": 9093, "mqtts": 8883, "ws": 8080, "wss": 443}
_WITH_PATH = ("mqtt+unix", "ws", "wss")
# A longer one may be a password, of a URL whose host was forgotten.
_LONGEST_PORT = 5
_FLAGS = {
    "true": True, "1": True, "yes": True, "on": True,
    "false": False, "0": False, "no": False, "off": False,
}  # fmt: skip


@dataclass(frozen=True)
class BusUrl:
    """A parsed URL: ``scheme://username:password@host:port?option=value&...``.

    Attributes:
        scheme: in lower case.
        username: decoded; None if the URL has none.
        password: decoded.
        host: as written, IPv6 addresses without brackets; may be empty. With ``several`` everything
            between user and options, including ports and brackets.
        port: None if the URL has none, and with ``several``.
        path: what begins with the first slash after host and port, as written; only for schemes
            that have one.
        options: the value of each option as a string, decoded.
        several: whether there may be several hosts, separated by commas.
    """

    scheme: str
    username: str | None = None
    password: Secret | None = None
    host: str = ""
    port: int | None = None
    path: str = ""
    options: Mapping[str, Secret] = field(default_factory=dict)
    several: bool = False

    def __str__(self) -> str:
        """Return the URL without user, password and options, for messages."""
        host = self.host if self.several else bracketed(self.host)
        return f"{self.scheme}://{host}" + ("" if self.port is None else f":{self.port}")


def scheme_of(url: str) -> str:
    """Return the scheme of a URL, in lower case.

    Raises:
        ConfigurationError: it is not a string, or has none.
    """
    if not isinstance(url, str):
        of_path = ", or the absolute().as_uri() of a path" if isinstance(url, PurePath) else ""
        raise ConfigurationError(
            f"{type(url).__name__} is not a URL; give a str, or a configuration to from_config"
            f"{of_path}"
        )
    match = _URL.fullmatch(url)
    if match is None:
        raise ConfigurationError(
            "the address of a bus is a URL such as 'memory://' or 'mqtt://host:1883', and that of a"
            " configuration document one such as 'file:///etc/plant.toml'"
            + ("; this one has no scheme before '://'" if "://" not in url else "")
            + ("; this one has blanks around it" if url != url.strip() else "")
            + _hint_at_file(url)
        )
    return match["scheme"].lower()


def _hint_at_file(text: str) -> str:
    """Return how to write the path of a file as a URL; nothing for other texts."""
    try:
        path = Path(text).absolute()
        return f"; write {path.as_uri()} for the file" if path.is_file() else ""
    except (OSError, ValueError):
        return ""


def parse_url(url: str) -> BusUrl:
    """Parse the URL of a bus. Secrets in it never show up in an error.

    Raises:
        ConfigurationError: it is not a valid URL; says which part and what to write.
    """
    scheme = scheme_of(url)
    rest = url.partition("://")[2]
    authority, tail, query = _split(scheme, rest)
    if re.search(r"[\s\x00-\x1f\x7f\\]", url):
        raise ConfigurationError(
            f"a {scheme}:// URL has a space, a control character or a backslash:"
            " write them as %20, %5C and so on"
        )
    if scheme not in _WITH_PATH and tail not in ("", "/"):
        raise ConfigurationError(
            f"a {scheme}:// URL has something after host and port that is not an option:"
            " options come after '?', and topics are not part of the address"
        )
    user, _, place = authority.rpartition("@")
    username, colon, password = user.partition(":")
    several = scheme in _SEVERAL_HOSTS
    if several:
        if "@" in user:
            raise ConfigurationError(
                f"a {scheme}:// URL has more than one '@': user and password go once in front"
                " of all hosts; write '@' itself as %40"
            )
        for one in place.split(",") if place else ():
            _host_and_port(scheme, one)
        host, port = place, None
    else:
        host, port = _host_and_port(scheme, place)
    return BusUrl(
        scheme=scheme,
        username=_decoded(scheme, "user name", username) if username else None,
        password=Secret(_decoded(scheme, "password", password)) if colon else None,
        host=_decoded(scheme, "host", host),
        port=port,
        path=tail if scheme in _WITH_PATH else "",
        options=_query(scheme, query),
        several=several,
    )


def _split(scheme: str, rest: str) -> tuple[str, str, str]:
    """Return authority, path (or what is in its place) and query."""
    end = min((rest.find(mark) for mark in "/?#" if mark in rest), default=len(rest))
    authority, behind = rest[:end], rest[end:]
    if "@" in behind or "#" in behind:
        # A secret with one of these in it ends up in the wrong part: name the rule, show nothing.
        raise ConfigurationError(
            f"a {scheme}:// URL has '@' or '#' in the wrong place; in a user name, password or"
            " option write '/' as %2F, '?' as %3F, '#' as %23, '@' as %40 and '%' as %25"
        )
    path, _, query = behind.partition("?")
    return authority, path, query


def _host_and_port(scheme: str, place: str) -> tuple[str, int | None]:
    example = f"{scheme}://[::1]:{_PORTS.get(scheme, 1883)}"
    if place.startswith("["):
        host, bracket, behind = place[1:].partition("]")
        if not bracket or ":" not in host or (behind and not behind.startswith(":")):
            raise ConfigurationError(
                f"a {scheme}:// URL has a broken IPv6 address: write {scheme}://[::1] or {example}"
            )
        port = behind[1:] if behind else None
    else:
        host, colon, text = place.partition(":")
        port = text if colon else None
        if port is not None and ":" in port:
            several = scheme in _SEVERAL_HOSTS
            rule = "separate hosts with ','" if several else "give one host and one port"
            raise ConfigurationError(
                f"a {scheme}:// URL has more than one ':' in a host and its port: {rule}, and write"
                f" an IPv6 address in brackets, as in {example}"
            )
    if port is None:
        return host, None
    if len(port) > _LONGEST_PORT:
        raise ConfigurationError(
            f"the port of {scheme}://{host} is longer than {_LONGEST_PORT} characters: give a whole"
            f" number from 1 to 65535; if it is a password, '@' and the host are missing behind it"
        )
    if not (port.isascii() and port.isdigit() and 1 <= int(port) <= 65_535):
        raise ConfigurationError(
            f"port {quoted(port)} of {scheme}://{host}: give a whole number from 1 to 65535"
        )
    return host, int(port)


def _query(scheme: str, query: str) -> dict[str, Secret]:
    options: dict[str, Secret] = {}
    for part in query.split("&") if query else ():
        name, equals, text = part.partition("=")
        name = _decoded(scheme, "option", name)
        if not equals or not name.isidentifier():
            # Without '=' it may be the end of a password with '?' in it.
            raise ConfigurationError(
                f"a {scheme}:// URL has something after '?' that is not an option:"
                " options are written ?name=value&name=value"
            )
        if name in options:
            raise ConfigurationError(
                f"option {name!r} is given twice in a {scheme}:// URL: leave one out"
            )
        options[name] = Secret(_decoded(scheme, f"option {name}", text))
    return options


def _decoded(scheme: str, part: str, text: str) -> str:
    if not _BAD_PERCENT.search(text):
        try:
            return unquote(text, errors="strict")
        except UnicodeDecodeError:
            pass
    raise ConfigurationError(
        f"the {part} of a {scheme}:// URL has a '%' that is not followed by the hexadecimal code"
        " of UTF-8 text: write '%' itself as %25"
    )


def option_types(config: type[Any]) -> Mapping[str, tuple[type, ...]]:
    """Return the types that each option may have, including options that are not kept."""
    of_any_kind: Any = config
    return _option_types(of_any_kind)


@functools.cache
def _option_types(config: type[Any]) -> Mapping[str, tuple[type, ...]]:
    return types.MappingProxyType(
        {name: _members(hint) for name, hint in option_hints(config).items()}
    )


def option_hints(config: type[Any]) -> dict[str, object]:
    """Return the annotation of each option, including options that are not kept."""
    hints = typing.get_type_hints(config)
    found = {
        entry.name: hints[entry.name]
        for entry in dataclasses.fields(config)
        if entry.metadata.get("option", True)
    }
    for name, hint in hints.items():
        if isinstance(hint, dataclasses.InitVar):
            found[name] = hint.type
    return found


def _members(hint: object) -> tuple[type, ...]:
    parts: Sequence[Any] = [hint]
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        parts = [part for part in typing.get_args(hint) if part is not types.NoneType]
    return tuple(typing.get_origin(part) or part for part in parts)


def check_names(config: type[Any], options: Iterable[str], origin: str) -> None:
    """Check that a configuration has these options.

    Raises:
        ConfigurationError: one is unknown; names the nearest that there is.
    """
    valid = option_types(config)
    for option in options:
        if option not in valid:
            raise ConfigurationError(
                f"option {quoted(option)} of {origin} is not known: {nearest_or_all(option, valid)}"
            )


def environment_prefix(name: str | None) -> str:
    """Return how the environment variables of a provider's options begin."""
    return "SPA_DAT_" if name is None else f"SPA_DAT_{name.upper().replace('-', '_')}_"


def check_provider_name(name: object, of: str = "") -> None:
    """Check that a provider may have the name.

    Args:
        name: the name.
        of: for errors: whose it is, such as " of file:///etc/plant.toml".

    Raises:
        ConfigurationError: it is not a str, or another than `PROVIDER_NAME` allows.
    """
    if not isinstance(name, str) or not re.fullmatch(PROVIDER_NAME, name):
        raise ConfigurationError(
            f"provider {quoted(name)}{of}: give a name of at most 64 letters, digits, '_' and '-'"
            " that begins with a letter"
        )


def flag_from_text(text: str) -> bool | None:
    """Return what a text such as ``true``, ``1`` or ``no`` says; None if it is none of them."""
    return _FLAGS.get(text.lower())


def value_from_text(name: str, secret: Secret, kinds: tuple[type, ...], where: str) -> object:
    """Return the value of an option that is given as a text.

    Args:
        name: the option.
        secret: the text, which is shown only where that is harmless.
        kinds: the types that the option may have.
        where: for errors: where the text stands.

    Raises:
        ConfigurationError: the text is not a value of such a type.
    """
    text = secret.reveal()
    if Secret in kinds:
        return secret
    expected = "a number"
    try:
        if bool in kinds:
            expected = "true or false"
            return _FLAGS[text.lower()]
        if int in kinds:
            expected = "a whole number"
            return int(text)
        if float in kinds:
            return float(text)
        if Mapping in kinds or any(map(dataclasses.is_dataclass, kinds)):
            expected = "a table as JSON, for example {}, with each name once"
            return _table(text)
    except (KeyError, ValueError, RecursionError):
        raise ConfigurationError(
            f"option {name}={quoted(text)} of {where}: give {expected}"
        ) from None
    return text


def _table(text: str) -> dict[str, object]:
    value = json.loads(text, object_pairs_hook=_unique)
    if not isinstance(value, dict):
        raise ValueError
    return value


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    if repeated_name(pairs) is not None:
        raise ValueError
    return dict(pairs)


def repeated_name(pairs: Iterable[tuple[str, object]]) -> str | None:
    """Return the first name that stands among the pairs for the second time; None without one."""
    seen: set[str] = set()
    for name, _ in pairs:
        if name in seen:
            return name
        seen.add(name)
    return None


def check_numbers(
    config: object,
    limits: Limits,
    *,
    whole: bool,
) -> None:
    """Check that every option named in ``limits`` is a number within its limits (inclusive).

    Args:
        config: the object whose attributes are checked.
        limits: option name to lowest and highest value.
        whole: whether only whole numbers are valid.

    Raises:
        ConfigurationError: naming the option, its value and what is expected.
    """
    kind = "a whole number" if whole else "a number"
    for option, (lowest, highest) in limits.items():
        value: object = getattr(config, option)
        # bool is an int in Python, but ``keepalive=True`` is a mistake.
        fits = (
            isinstance(value, int if whole else (int, float))
            and not isinstance(value, bool)
            and lowest <= value <= highest
        )
        if not fits:
            raise ConfigurationError(
                f"option {option}={quoted(value)} of {type(config).__name__}:"
                f" give {kind} from {lowest:.12g} to {highest:.12g}"
            )


def check_limits(config: Any) -> None:
    """Check all options that have ``limits``.

    The default says what an option takes: a float or a whole number, and None if it is None.

    Raises:
        ConfigurationError: naming the option, its value and what is expected.
    """
    limits: Limits = config.limits
    for option, pair in limits.items():
        default = getattr(type(config), option)
        if default is not None or getattr(config, option) is not None:
            check_numbers(config, {option: pair}, whole=not isinstance(default, float))


def check_choices(config: Any) -> None:
    """Check all options that have ``choices``.

    Raises:
        ConfigurationError: naming the option, its value and the choices.
    """
    for option, choices in config.choices.items():
        value: object = getattr(config, option)
        if value not in choices:
            raise ConfigurationError(
                f"option {option}={quoted(value)} of {type(config).__name__}: give one of"
                f" {', '.join(map(repr, choices))}"
            )


def check_flag(config: object, option: str) -> None:
    """Check that the option is True or False.

    Raises:
        ConfigurationError: naming the option and its value.
    """
    value = getattr(config, option)
    if not isinstance(value, bool):
        raise ConfigurationError(
            f"option {option}={quoted(value)} of {type(config).__name__}: give True or False"
        )


def check_text(config: object, option: str) -> None:
    """Check that the option is None or a non-empty string without U+0000.

    Raises:
        ConfigurationError: naming the option and its value.
    """
    value = getattr(config, option)
    if value is None:
        return
    advice = text_advice(value)
    if advice is not None:
        raise ConfigurationError(
            f"option {option}={quoted(value)} of {type(config).__name__}: {advice}"
        )
