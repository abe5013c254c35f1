"""The formats of configuration documents: TOML, JSON and YAML. All are parsed by libraries."""

from __future__ import annotations

import functools
import json
import tomllib
from collections.abc import Callable, Mapping
from pathlib import PurePosixPath
from typing import Any

from ..._texts import escaped, quoted
from ...errors import ConfigurationError
from .._url_options import repeated_name
from ._reading import Content

__all__ = ["parsed"]

_LONGEST_TEXT = 200
# Aliases of YAML stand for what they name: with all of them written out, a document has at the
# most this many values. A few lines can stand for more than any memory holds.
_MOST_VALUES = 50_000
# The library keeps each part of a dotted name with all before it: a name with 100,000 dots would
# take tens of gigabytes.
_MOST_DOTS = 1_000


# PyYAML goes through all lists that are open for each further one, so a document of nothing but
# brackets would take minutes in a program with a high limit of recursion.
_DEEPEST = 200


class _Unreadable(Exception):
    """Says why a text is not a document; never shows anything of it that may be a value."""


def parsed(content: Content, shown: str) -> dict[str, Any]:
    """Return what a document says, as a new dict.

    The format is that of the name's ending, else that of the media type; without both it is JSON
    if it begins with ``{``, else TOML.

    Args:
        content: the document.
        shown: its address, for errors.

    Raises:
        ConfigurationError: it is not UTF-8, not in that format, or no table.
    """
    try:
        # Some editors put a byte order mark in front of UTF-8.
        text = content.data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigurationError(
            f"{shown} is not UTF-8 text, from byte {error.start} on: save it as UTF-8"
        ) from None
    kind = _format_of(content, text)
    try:
        value = _PARSERS[kind](text)
    except _Unreadable as error:
        raise ConfigurationError(f"{shown} is not {kind}: {error}") from None
    except RecursionError:
        raise ConfigurationError(
            f"{shown} is not {kind} that can be used: it is nested too deeply"
        ) from None
    if not isinstance(value, dict):
        raise ConfigurationError(
            f'{shown} is not a table of options: write for example url = "mqtt://host" in TOML, or'
            ' {"url": "mqtt://host"} in JSON'
        )
    for name in value:
        if not isinstance(name, str):
            # In YAML many words are not texts: on, no, null, 1.
            raise ConfigurationError(
                f"{shown} is not a table of options: its name {quoted(name, _LONGEST_TEXT)} is not"
                " a text: write it in quotes"
            )
    return dict(value)


def _format_of(content: Content, text: str) -> str:
    ending = PurePosixPath(content.path).suffix.lower()
    found = _ENDINGS.get(ending) or _MEDIA_TYPES.get(content.media_type)
    return found or ("JSON" if text.lstrip()[:1] == "{" else "TOML")


def _toml(text: str) -> object:
    if any(line.count(".") > _MOST_DOTS for line in text.splitlines()):
        raise _Unreadable(f"it has a line with more than {_MOST_DOTS} dots")
    try:
        return tomllib.loads(text)
    except ValueError as error:
        raise _Unreadable(escaped(str(error), _LONGEST_TEXT)) from None


def _json(text: str) -> object:
    try:
        return json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        raise _Unreadable(f"{error.msg} (at line {error.lineno}, column {error.colno})") from None
    except ValueError:
        raise _Unreadable("it has a number with too many digits") from None


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    twice = repeated_name(pairs)
    if twice is not None:
        raise _Unreadable(f"{escaped(twice, _LONGEST_TEXT)!r} is in one table twice")
    return dict(pairs)


def _no_constant(name: str) -> object:
    raise _Unreadable(f"{name} is not a value")


def _yaml(text: str) -> object:
    try:
        import yaml
    except ImportError:
        raise _Unreadable(
            "reading YAML needs PyYAML: install spa-dat[yaml], or use TOML or JSON"
        ) from None

    loader = None
    try:
        loader = _yaml_loader(yaml)(text)
        root = loader.get_single_node()
        if root is None:
            return None
        _count(root, {})
        _check_keys(root, yaml.ScalarNode, set())
        return loader.construct_document(root)
    except yaml.MarkedYAMLError as error:
        # Its text quotes the document.
        mark = error.problem_mark or error.context_mark
        where = "" if mark is None else f" at line {mark.line + 1}, column {mark.column + 1}"
        raise _Unreadable(f"there is something wrong{where}") from None
    except (yaml.YAMLError, ValueError, TypeError, ArithmeticError):
        raise _Unreadable("it has a character or a value that YAML does not allow") from None
    finally:
        if loader is not None:
            loader.dispose()


@functools.cache
def _yaml_loader(yaml: Any) -> type[Any]:
    """Return the safe loader, which makes texts, numbers, tables and lists, with a bound."""
    base: type[Any] = yaml.SafeLoader

    class Loader(base):  # type: ignore[misc]
        depth = 0

        def compose_node(self, parent: object, index: object) -> object:
            self.depth += 1
            if self.depth > _DEEPEST:
                raise RecursionError
            node = super().compose_node(parent, index)
            self.depth -= 1
            return node

    return Loader


def _count(node: Any, known: dict[int, int | None]) -> int:
    """Return how many values a node stands for, with all aliases written out."""
    if id(node) in known:
        found = known[id(node)]
        if found is None:
            raise _Unreadable("an alias is inside the value that it names")
        return found
    known[id(node)] = None
    total = 1
    if not isinstance(node.value, str):
        for entry in node.value:
            for one in entry if isinstance(entry, tuple) else (entry,):
                total += _count(one, known)
    if total > _MOST_VALUES:
        raise _Unreadable(f"with its aliases written out it has more than {_MOST_VALUES} values")
    known[id(node)] = total
    return total


def _check_keys(node: Any, scalar: type[Any], seen: set[int]) -> None:
    """Refuse tables that have a key twice: the first value would be lost without a word."""
    if id(node) in seen or isinstance(node.value, str):
        return
    seen.add(id(node))
    names: set[str] = set()
    for entry in node.value:
        if not isinstance(entry, tuple):
            _check_keys(entry, scalar, seen)
            continue
        key, value = entry
        if isinstance(key, scalar) and key.value != "<<":
            if key.value in names:
                line = key.start_mark.line + 1
                raise _Unreadable(f"a name is in one table twice (the second time at line {line})")
            names.add(key.value)
        _check_keys(value, scalar, seen)


_ENDINGS: Mapping[str, str] = {".toml": "TOML", ".json": "JSON", ".yaml": "YAML", ".yml": "YAML"}
_MEDIA_TYPES: Mapping[str, str] = {
    "application/toml": "TOML",
    "application/json": "JSON",
    "application/yaml": "YAML",
    "application/x-yaml": "YAML",
    "text/yaml": "YAML",
    "text/x-yaml": "YAML",
}
_PARSERS: Mapping[str, Callable[[str], object]] = {"TOML": _toml, "JSON": _json, "YAML": _yaml}
