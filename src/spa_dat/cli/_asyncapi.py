"""``spa-dat asyncapi``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .._texts import quoted
from ..errors import ConfigurationError
from ..runtime.application._application import runs_of
from ..transports import SocketProviderFactory
from ._application import load_application
from ._asyncapi_page import asyncapi_page
from ._standard_output import printing, write_text

__all__ = ["show_asyncapi"]

_WIDTH = 100


def show_asyncapi(
    target: str,
    *,
    url: str | None,
    form: str | None,
    page: str | None,
    title: str | None,
    version: str | None,
    description: str | None,
) -> int:
    """Print the AsyncAPI document of an application, or write it as a page; returns the exit code.

    Args:
        target: names the application.
        url: the bus in place of the application's default one.
        form: ``yaml`` or ``json``; None prints YAML if there is no page, and nothing if there is.
        page: the file to write as HTML; None for none.
        title: as for `DistributedApplication.asyncapi`.
        version: likewise.
        description: likewise.

    Raises:
        ConfigurationError: there is no such application or no library for YAML, or the page cannot
            be written.
    """
    application = load_application(target)
    if url is not None:
        runs_of(application).replace_provider(SocketProviderFactory.from_url(url))
    document = application.asyncapi(title=title, version=version, description=description)
    if form is not None or page is None:
        text = _as_json(document) if form == "json" else _as_yaml(document)
        with printing():
            write_text(text)
    if page is not None:
        try:
            Path(page).write_text(asyncapi_page(document), encoding="utf-8")
        except OSError as error:
            raise ConfigurationError(
                f"the page {quoted(page)} cannot be written: {error.strerror or error}"
            ) from error
    return 0


def _as_json(document: dict[str, Any]) -> str:
    # In ASCII: whatever texts there are, terminals and programs take no harm from them.
    return json.dumps(document, indent=2) + "\n"


def _as_yaml(document: dict[str, Any]) -> str:
    try:
        import yaml
    except ImportError:
        raise ConfigurationError(
            "writing YAML needs PyYAML: install spa-dat[yaml], or give --format json"
        ) from None

    class Dumper(yaml.SafeDumper):  # type: ignore[misc]
        """Writes every value where it stands."""

        def ignore_aliases(self, data: object) -> bool:
            return True

    def lines(dumper: Any, text: str) -> Any:
        style = "|" if "\n" in text else None
        return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)

    Dumper.add_representer(str, lines)
    written: str = yaml.dump(
        document,
        Dumper=Dumper,
        sort_keys=False,
        width=_WIDTH,
        # Otherwise with escapes, for the same reason as above.
        allow_unicode=json.dumps(document, ensure_ascii=False).isprintable(),
    )
    return written
