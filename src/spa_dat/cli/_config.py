"""``spa-dat config``."""

from __future__ import annotations

import dataclasses
import difflib
import json
import os
from collections.abc import Iterator, Mapping
from typing import Any

from .._texts import escaped
from ..errors import ConfigurationError
from ..transports import KafkaConfig, MemoryConfig, MqttConfig, Secret
from ..transports._effective_config import EffectiveConfig, effective_config
from ..transports._factory import provider_of
from ..transports._url_options import environment_prefix, option_types
from ._standard_output import printing, write_notice, write_text

__all__ = ["show_config"]

_DEFAULT = "default"
_LONGEST = 200
_SIMILAR = 0.85
_ALL = "SPA_DAT_"
_KINDS = (KafkaConfig, MemoryConfig, MqttConfig)


def show_config(
    url: str | None, *, name: str | None, allow_http: bool, as_json: bool, schema: bool
) -> int:
    """Print the options of a bus, and where they come from; returns the exit code.

    Args:
        url: of the bus or document.
        name: of the provider in the document.
        allow_http: whether the document may come over ``http://``.
        as_json: print it for programs.
        schema: print the schema of documents instead.

    Raises:
        ConfigurationError: there is no URL, or what `SocketProviderFactory.from_url` raises.
    """
    if schema:
        from ..transports.documents._schema import SCHEMA_FILE

        with printing():
            write_text(SCHEMA_FILE.read_text(encoding="utf-8"))
        return 0
    if not url:
        raise ConfigurationError(
            "there is no URL: give one, or set the environment variable SPA_DAT_URL"
        )
    found = effective_config(url, name=name, allow_http=allow_http, options={})
    # No broker would take some logins.
    provider_of(found)
    rows = dict(_rows(found))
    with printing():
        write_text(_as_json(found, rows) if as_json else _as_table(found, rows))
    for line in _unused(found):
        write_notice(line)
    return 0


def _rows(found: EffectiveConfig) -> Iterator[tuple[str, tuple[object, str]]]:
    """Return for each option its value, as JSON can have it, and its origin."""
    config = found.config
    kept = {entry.name for entry in dataclasses.fields(config)}
    others = [option for option in found.given if option not in kept]
    for option in option_types(type(config)):
        given = found.given.get(option)
        if option in kept:
            origin = given.origin if given is not None else _DEFAULT
            if option == "password" and given is None and others:
                # Given in another way, which has a line of its own.
                origin = others[0]
            yield option, (_plain(getattr(config, option)), origin)
        elif given is not None:
            yield option, (_plain(given.value), given.origin)


def _plain(value: Any) -> object:
    if isinstance(value, Secret):
        return str(value)
    if isinstance(value, Mapping):
        return {str(name): _plain(topic) for name, topic in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    return value


def _as_json(found: EffectiveConfig, rows: Mapping[str, tuple[object, str]]) -> str:
    shown = {
        "provider": found.name,
        "address": found.config.address,
        "options": {
            option: {"value": value, "from": origin} for option, (value, origin) in rows.items()
        },
    }
    return json.dumps(shown, indent=2) + "\n"


def _as_table(found: EffectiveConfig, rows: Mapping[str, tuple[object, str]]) -> str:
    lines = [
        ("option", "value", "from"),
        *(
            (option, _text(value), escaped(origin, _LONGEST))
            for option, (value, origin) in rows.items()
        ),
    ]
    widths = [max(len(line[column]) for line in lines) for column in range(2)]
    title = f"provider {found.name}: " if found.name is not None else ""
    table = "\n".join(
        f"{option:{widths[0]}}  {value:{widths[1]}}  {origin}" for option, value, origin in lines
    )
    return f"{title}{escaped(found.config.address, _LONGEST)}\n\n{table}\n"


def _text(value: object) -> str:
    if value is None:
        return "-"
    shown = value if isinstance(value, str) and value else json.dumps(value)
    return escaped(shown, _LONGEST)


def _unused(found: EffectiveConfig) -> Iterator[str]:
    """Say of variables that seem to be meant for this provider why they are not used."""
    kind = type(found.config)
    prefix = environment_prefix(found.name)
    used = {
        given.origin.removeprefix("the environment variable ") for given in found.given.values()
    }
    valid = {prefix + option.upper(): option for option in option_types(kind)}
    of_all = {option.upper() for one in _KINDS for option in option_types(one)}
    for variable in sorted(os.environ):
        if not variable.startswith(_ALL) or variable in used:
            continue
        rest = variable.removeprefix(_ALL)
        if variable in valid:
            if os.environ[variable]:
                said = "something that takes precedence over the environment gives the same option"
                yield f"{variable} is not used: {said}"
        elif found.name is not None and rest in of_all:
            yield f"{variable} is not used: provider {found.name!r} has {prefix}{rest}"
        elif rest in of_all:
            yield f"{variable} is not used: {kind.__name__} has no such option"
        elif close := difflib.get_close_matches(variable, valid, n=1, cutoff=_SIMILAR):
            yield f"{escaped(variable, _LONGEST)} is not used: did you mean {close[0]}?"
