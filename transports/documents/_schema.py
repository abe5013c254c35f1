"""The JSON Schema of configuration documents, made from the fields of the configurations.

It is a file beside this module, for editors and for checks before a document is used. After a
change of an option, `python -m spa_dat.transports.documents._schema` writes it anew.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from .._credentials import Secret
from .._url_options import PROVIDER_NAME, option_hints
from ..kafka._config import KafkaConfig
from ..memory._config import MemoryConfig
from ..mqtt._config import MqttConfig

__all__ = ["SCHEMA_FILE", "document_schema", "schema_text"]

SCHEMA_FILE = Path(__file__).with_name("configuration.schema.json")

_KINDS: Mapping[type[Any], str] = {
    KafkaConfig: "^kafkas?://",
    MemoryConfig: "^memory://",
    MqttConfig: r"^(mqtts?|mqtt\+unix|wss?)://",
}
# Types that are put together while the program runs, which type checkers do not know.
_annotated: Any = Annotated
_dict: Any = dict
_literal: Any = Literal
_REFERENCE = "#/$defs/{name}"
_ARGUMENTS = re.compile(r"^(Args|Attributes):\n((?: +.*\n|\n)*)", re.MULTILINE)
_ENTRY = re.compile(r"^    (\w+): ((?:.*\n)(?:     .*\n)*)", re.MULTILINE)


def schema_text() -> str:
    """Return the schema as it is in the file."""
    return json.dumps(document_schema(), indent=2) + "\n"


def document_schema() -> dict[str, Any]:
    """Return the schema of documents."""
    structs = [_table(kind, pattern) for kind, pattern in _KINDS.items()]
    references, definitions = msgspec.json.schema_components(structs, ref_template=_REFERENCE)
    of_url = {"type": "string", "pattern": f"({'|'.join(_KINDS.values())})"}
    definitions["Provider"] = {
        "description": "The URL of a bus, and options beside it under their own names.",
        "type": "object",
        "required": ["url"],
        "properties": {"url": of_url},
        "allOf": [
            {"if": {"properties": {"url": {"pattern": pattern}}}, "then": reference}
            for reference, pattern in zip(references, _KINDS.values(), strict=True)
        ],
    }
    reference = {"$ref": _REFERENCE.format(name="Provider")}
    several = {
        "type": "object",
        "required": ["providers"],
        "properties": {
            "$schema": {"type": "string"},
            "providers": {
                "description": "Several providers by name, each with all of its options.",
                "type": "object",
                "minProperties": 1,
                "propertyNames": {"pattern": f"^{PROVIDER_NAME}$"},
                "additionalProperties": reference,
            },
        },
        "additionalProperties": False,
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Configuration document of spa-dat",
        "type": "object",
        "if": {"required": ["providers"]},
        "then": several,
        "else": reference,
        "$defs": definitions,
    }


def _table(kind: type[Any], pattern: str) -> type[msgspec.Struct]:
    """Return a type that stands for what a document may say of one kind of provider."""
    told = _descriptions(kind)
    defaults = {entry.name: entry.default for entry in dataclasses.fields(kind)}
    url = _annotated[str, msgspec.Meta(pattern=pattern, description="The URL of the bus.")]
    fields: list[tuple[str, Any] | tuple[str, Any, Any]] = [
        ("url", url),
        ("schema_of_editors", str, msgspec.UNSET),
    ]
    for option, hint in option_hints(kind).items():
        of_document = _of_document(hint, option, kind)
        if of_document is None:
            continue
        described = _annotated[of_document, msgspec.Meta(description=told[option])]
        default = defaults.get(option)
        plain = isinstance(default, (str, int, float))
        fields.append((option, described, default if plain else msgspec.UNSET))
    return msgspec.defstruct(
        kind.__name__,
        fields,
        kw_only=True,
        forbid_unknown_fields=True,
        rename={"schema_of_editors": "$schema"},
    )


def _of_document(hint: Any, option: str, kind: type[Any]) -> Any:
    """Return the type of an option in documents; None if it can only be given in code."""
    parts = (hint,)
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        parts = tuple(part for part in typing.get_args(hint) if part is not Secret)
    found: Any = None
    for part in parts:
        one = _part(part, option, kind)
        if one is None:
            return None
        found = one if found is None else found | one
    return found


def _part(hint: Any, option: str, kind: type[Any]) -> Any:
    choices = getattr(kind, "choices", {}).get(option)
    if hint is types.NoneType:
        return hint
    if hint is str and choices is not None:
        return _literal[tuple(choice for choice in choices if choice is not None)]
    if hint in (int, float):
        lowest, highest = kind.limits[option]
        return _annotated[hint, msgspec.Meta(ge=hint(lowest), le=hint(highest))]
    if hint in (str, bool):
        return hint
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return _strict(hint)
    if typing.get_origin(hint) is Mapping:
        of_names, of_values = typing.get_args(hint)
        return _dict[of_names, _strict(of_values)]
    return None


def _strict(kind: type[Any]) -> type[msgspec.Struct]:
    """Return a type like a dataclass that has no other names."""
    told = _descriptions(kind)
    hints = typing.get_type_hints(kind)
    fields: list[Any] = []
    for entry in dataclasses.fields(kind):
        described = _annotated[hints[entry.name], msgspec.Meta(description=told[entry.name])]
        required = entry.default is dataclasses.MISSING
        fields.append((entry.name, described) if required else (entry.name, described, None))
    return msgspec.defstruct(kind.__name__, fields, forbid_unknown_fields=True)


def _descriptions(kind: type[Any]) -> dict[str, str]:
    """Return what the docstrings of a class and its bases say of each option."""
    found: dict[str, str] = {}
    for one in reversed(kind.__mro__):
        for section in _ARGUMENTS.finditer(inspect.cleandoc(one.__doc__ or "") + "\n"):
            for entry in _ENTRY.finditer(section[2]):
                found[entry[1]] = " ".join(entry[2].replace("``", "").split())
    return found


if __name__ == "__main__":
    SCHEMA_FILE.write_text(schema_text(), encoding="utf-8")
