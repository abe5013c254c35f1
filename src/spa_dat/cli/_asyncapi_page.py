"""An AsyncAPI document as a page for browsers, which is complete in itself."""

from __future__ import annotations

import html
import json
from collections.abc import Iterator, Mapping
from typing import Any

from .._texts import escaped

__all__ = ["asyncapi_page"]

_LONGEST = 100_000
_ACTIONS = {"receive": "receives", "send": "sends"}
_STYLE = """
:root { color-scheme: light dark; --line: #c8c8c8; --soft: #f3f3f3; --link: #0645ad; }
@media (prefers-color-scheme: dark) {
  :root { --line: #555; --soft: #262626; --link: #8ab4f8; }
  body { background: #181818; color: #e6e6e6; }
}
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 0 auto; padding: 1rem; }
a { color: var(--link); }
h2 { border-bottom: 1px solid var(--line); margin-top: 2.5rem; }
h3 { margin: 2rem 0 .3rem; overflow-wrap: anywhere; }
h3 small { font-weight: normal; }
p { margin: .3rem 0; white-space: pre-line; overflow-wrap: anywhere; }
code, pre { font: .9em/1.45 ui-monospace, monospace; }
pre { background: var(--soft); padding: .7rem; overflow-x: auto; margin: .4rem 0; }
table { border-collapse: collapse; margin: .4rem 0; width: 100%; }
th, td { border: 1px solid var(--line); padding: .25rem .5rem; text-align: left; }
th, td { vertical-align: top; overflow-wrap: anywhere; }
th { font-weight: 600; width: 30%; }
.note { background: var(--soft); padding: .6rem .8rem; }
.action { border: 1px solid var(--line); border-radius: .3rem; padding: 0 .35rem; }
"""
# Nothing is fetched, and nothing runs, whatever is in the texts.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
_PARTS = ("servers", "operations", "channels", "messages", "schemas")
_HEADINGS = [f'<a href="#{part}">{part.capitalize()}</a>' for part in _PARTS]
_LINKED = {
    "#/servers/": "servers",
    "#/channels/": "channels",
    "#/components/messages/": "messages",
    "#/components/schemas/": "schemas",
}


def asyncapi_page(document: Mapping[str, Any]) -> str:
    """Return the page for a document that `DistributedApplication.asyncapi` has made.

    It has no scripts, and takes nothing from elsewhere. All texts are escaped.
    """
    info = document["info"]
    title = _text(info["title"])
    return "\n".join(
        [
            "<!DOCTYPE html>",
            '<html lang="en">',
            "<head>",
            '<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{_text(_POLICY)}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta name="referrer" content="no-referrer">',
            f"<title>{title}</title>",
            f"<style>{_STYLE}</style>",
            "</head>",
            "<body>",
            f"<header><h1>{title}</h1>",
            f"<p>Version {_text(info['version'])}, AsyncAPI {_text(document['asyncapi'])}</p>",
            *_paragraph(info.get("description")),
            *_paragraph(info.get("x-spa-dat-note"), kind="note"),
            f"<nav><p>{' · '.join(_HEADINGS)}</p></nav></header>",
            "<main>",
            *_sections(document),
            "</main>",
            "</body>",
            "</html>",
            "",
        ]
    )


def _sections(document: Mapping[str, Any]) -> Iterator[str]:
    components = document["components"]
    parts: dict[str, Mapping[str, Any]] = {
        "servers": document["servers"],
        "operations": document["operations"],
        "channels": document["channels"],
        "messages": components.get("messages", {}),
        "schemas": components.get("schemas", {}),
    }
    show = {
        "servers": _server,
        "operations": _operation,
        "channels": _channel,
        "messages": _message,
        "schemas": _schema,
    }
    for part in _PARTS:
        yield f'<section aria-labelledby="{part}"><h2 id="{part}">{part.capitalize()}</h2>'
        if not parts[part]:
            yield "<p>There are none.</p>"
        for name, entry in parts[part].items():
            yield f'<article id="{part}-{_text(name)}">'
            yield from show[part](name, entry)
            yield "</article>"
        yield "</section>"


def _server(name: str, server: Mapping[str, Any]) -> Iterator[str]:
    yield f"<h3>{_text(name)}</h3>"
    yield from _paragraph(server.get("description"))
    protocol = " ".join([server["protocol"], *filter(None, [server.get("protocolVersion")])])
    address = server["host"] + server.get("pathname", "")
    rows = [("protocol", _text(protocol)), ("host", _code(address))]
    for variable, facts in server.get("variables", {}).items():
        values = ", ".join(_code(value) for value in facts["enum"])
        rows.append((variable, f"{values}<br>{_text(facts['description'])}"))
    login = ", ".join(_code(one["$ref"].rpartition("/")[2]) for one in server.get("security", ()))
    if login:
        rows.append(("login", login))
    yield from _table(rows)
    yield from _bindings(server)


def _operation(name: str, operation: Mapping[str, Any]) -> Iterator[str]:
    action = _ACTIONS[operation["action"]]
    yield f'<h3>{_text(name)} <small class="action">{action}</small></h3>'
    yield from _paragraph(operation.get("description", operation.get("summary")))
    rows = [("channel", _link(operation["channel"])), ("messages", _links(operation["messages"]))]
    reply = operation.get("reply")
    if reply is not None:
        address = reply.get("address")
        where = "" if address is None else f", at the address in {_code(address['location'])}"
        rows.append(("reply to", _link(reply["channel"]) + where))
        rows.append(("replies", _links(reply["messages"])))
    for tag in operation.get("tags", ()):
        about = f"<p>{_text(tag['description'])}</p>" if "description" in tag else ""
        rows.append(("actor", _text(tag["name"]) + about))
    yield from _table(rows)
    yield from _bindings(operation)


def _channel(name: str, channel: Mapping[str, Any]) -> Iterator[str]:
    yield f"<h3>{_text(name)}</h3>"
    yield from _paragraph(channel.get("description"))
    address = channel["address"]
    rows = [
        ("address", "not known" if address is None else _code(address)),
        ("in the application", _code(channel["title"])),
        ("servers", _links(channel["servers"])),
        ("messages", _links(channel["messages"].values())),
    ]
    for parameter, facts in channel.get("parameters", {}).items():
        values = ", ".join(_code(value) for value in facts.get("enum", ()))
        text = _text(facts["description"]) + (f"<br>One of: {values}" if values else "")
        rows.append((f"{{{parameter}}}", text))
    yield from _table(rows)
    yield from _bindings(channel)


def _message(name: str, message: Mapping[str, Any]) -> Iterator[str]:
    yield f"<h3>{_text(name)}</h3>"
    yield from _paragraph(message.get("description"))
    rows = [("type", _code(message["title"]))]
    if "contentType" in message:
        rows.append(("content type", _code(message["contentType"])))
    if "headers" in message:
        rows.append(("headers", _link(message["headers"])))
    if "correlationId" in message:
        rows.append(("correlation id", _code(message["correlationId"]["location"])))
    rows.append(("payload", _kind(message["payload"])))
    yield from _table(rows)
    yield from _bindings(message)


def _schema(name: str, schema: Any) -> Iterator[str]:
    yield f"<h3>{_text(name)}</h3>"
    if isinstance(schema, dict):
        yield from _paragraph(schema.get("description"))
        properties = schema.get("properties")
        if properties:
            required = schema.get("required", ())
            yield from _table(
                [
                    (
                        field + ("" if field in required else " (optional)"),
                        _kind(part),
                    )
                    for field, part in properties.items()
                ]
            )
    yield "<details><summary>JSON Schema</summary>"
    yield _json(schema)
    yield "</details>"


def _kind(schema: Any) -> str:
    """Say in a cell of a table what a schema allows."""
    if not isinstance(schema, dict):
        return _code(json.dumps(schema))
    about = f"<br>{_text(schema['description'])}" if "description" in schema else ""
    if "$ref" in schema:
        return _link(schema)
    rest = {name: part for name, part in schema.items() if name not in ("description", "title")}
    if [*rest] == ["type"]:
        return _code(rest["type"] if isinstance(rest["type"], str) else json.dumps(rest)) + about
    if rest.get("type") == "array" and isinstance(rest.get("items"), dict) and len(rest) == 2:
        return f"list of {_kind(rest['items'])}{about}"
    if [*rest] == ["anyOf"]:
        return " or ".join(_kind(part) for part in rest["anyOf"]) + about
    if [*rest] == ["allOf"] and len(rest["allOf"]) == 1:
        return _kind(rest["allOf"][0]) + about
    return (_code(json.dumps(rest)) if rest else "anything") + about


def _bindings(part: Mapping[str, Any]) -> Iterator[str]:
    for protocol, binding in part.get("bindings", {}).items():
        yield f"<details><summary>{_text(protocol)} binding</summary>"
        yield _json(binding)
        yield "</details>"


def _table(rows: list[tuple[str, str]]) -> Iterator[str]:
    """Yield a table; the names are texts, the values HTML."""
    yield "<table><tbody>"
    for name, value in rows:
        yield f'<tr><th scope="row">{_text(name)}</th><td>{value}</td></tr>'
    yield "</tbody></table>"


def _paragraph(text: str | None, kind: str = "") -> Iterator[str]:
    if text:
        yield f"<p{f' class={kind}' if kind else ''}>{_text(text)}</p>"


def _links(references: Any) -> str:
    return ", ".join(_link(reference) for reference in references)


def _link(reference: Mapping[str, str]) -> str:
    target = reference["$ref"]
    if target.startswith("#/channels/") and target.count("/") == 4:
        # The messages of channels are those of all.
        target = f"#/components/messages/{target.rpartition('/')[2]}"
    for beginning, part in _LINKED.items():
        if target.startswith(beginning):
            name = _text(target.removeprefix(beginning))
            return f'<a href="#{part}-{name}">{name}</a>'
    return _code(target)


def _json(value: Any) -> str:
    return f'<pre tabindex="0">{_text(json.dumps(value, indent=2, ensure_ascii=False))}</pre>'


def _code(text: str) -> str:
    return f"<code>{_text(text)}</code>"


def _text(text: str) -> str:
    """Return a text as HTML has it, where nothing of it is a mark; lines stay lines."""
    return html.escape("\n".join(escaped(line, _LONGEST) for line in text.split("\n")))
