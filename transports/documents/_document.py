"""A configuration document: which options it gives to one provider."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..._texts import quoted
from ..._unknown_names import nearest_or_all
from ...errors import ConfigurationError
from .._url_options import check_provider_name, environment_prefix
from ._address import DocumentAddress, parse_address
from ._formats import parsed
from ._reading import Content, read

__all__ = ["ConfigurationDocument", "ProviderTable"]

_PROVIDERS = "providers"
# Editors look there for the schema of a JSON document.
_OF_EDITORS = "$schema"


@dataclass(frozen=True)
class ProviderTable:
    """What a document says of one provider.

    Attributes:
        name: None if the document has only one, without a name.
        url: the URL of its bus; may contain secrets.
        options: those that stand beside the URL, as the document has them.
        origin: where that is, for messages.
    """

    name: str | None
    url: str
    options: Mapping[str, object]
    origin: str


class ConfigurationDocument:
    """A document at a URL; each `load` reads it.

    Args:
        url: ``file://``, ``https://`` or ``http://``, perhaps with a provider's name after ``#``.
        name: the provider's name; None for that in the URL, or the only one of the document.

    Raises:
        ConfigurationError: the URL is wrong, or names another provider than ``name``.
    """

    def __init__(self, url: str, name: str | None) -> None:
        self._address: DocumentAddress = parse_address(url)
        named = self._address.name
        if name is not None and named is not None and name != named:
            raise ConfigurationError(
                f"the URL of {self._address} names provider {named!r}, but name={name!r} is given:"
                " leave one out"
            )
        self._name = name if name is not None else named
        self._content: Content | None = None

    @property
    def shown(self) -> str:
        """The address without user, password and query, for messages."""
        return str(self._address)

    @property
    def is_remote(self) -> bool:
        """Whether reading it takes a request to a server."""
        return self._address.is_remote

    def load(self, seconds: float) -> ProviderTable:
        """Read the document, in a thread, which may block for so long; return the provider's part.

        What can be read only once, such as a pipe, is kept.

        Raises:
            ConfigurationError: it cannot be read, is in none of the formats, or has no such
                provider.
        """
        content = self._content
        if content is None or not content.once:
            content = self._content = read(self._address, seconds)
        document = parsed(content, self.shown)
        if _PROVIDERS in document:
            return self._chosen(document)
        if self._name is not None:
            raise ConfigurationError(
                f"there is no provider {self._name!r} in {self.shown}: the document has no"
                f" [{_PROVIDERS}.{self._name}], and a single provider has no name"
            )
        return self._table(None, document, self.shown)

    def _chosen(self, document: Mapping[str, object]) -> ProviderTable:
        providers = document[_PROVIDERS]
        others = [name for name in document if name not in (_PROVIDERS, _OF_EDITORS)]
        if others:
            raise ConfigurationError(
                f"{quoted(others[0])} of {self.shown} is outside [{_PROVIDERS}]: a document has"
                " either one provider, or several that each have all of their options"
            )
        if not isinstance(providers, dict) or not providers:
            raise ConfigurationError(
                f"{_PROVIDERS!r} of {self.shown} is not a table of providers:"
                f" write [{_PROVIDERS}.NAME]"
            )
        self._check_names(list(providers))
        name = self._name
        if name is None:
            if len(providers) > 1:
                raise ConfigurationError(
                    f"{self.shown} has several providers: choose one with name=, or with #NAME at"
                    f" the end of the URL; there are: {', '.join(sorted(providers))}"
                )
            name = next(iter(providers))
        if name not in providers:
            raise ConfigurationError(
                f"there is no provider {quoted(name)} in {self.shown}:"
                f" {nearest_or_all(name, providers)}"
            )
        table = providers[name]
        origin = f"{self.shown}#{name}"
        if not isinstance(table, dict):
            raise ConfigurationError(
                f"{origin} is not a table of options: write [{_PROVIDERS}.{name}]"
            )
        return self._table(name, table, origin)

    def _check_names(self, names: list[str]) -> None:
        known: dict[str, str] = {}
        for name in names:
            check_provider_name(name, f" of {self.shown}")
            other = known.setdefault(environment_prefix(name), name)
            if other != name:
                raise ConfigurationError(
                    f"providers {other!r} and {name!r} of {self.shown} would have the same"
                    " environment variables: choose names that differ in more than case, '-' and"
                    " '_'"
                )

    def _table(self, name: str | None, table: Mapping[str, object], origin: str) -> ProviderTable:
        url = table.get("url")
        if not isinstance(url, str) or not url:
            flaw = "that is not a string"
            said = "has no option 'url'" if url is None else f"has an option 'url' {flaw}"
            raise ConfigurationError(
                f'{origin} {said}: give the address of a bus, as in url = "mqtt://host"'
            )
        options = {
            option: value for option, value in table.items() if option not in ("url", _OF_EDITORS)
        }
        return ProviderTable(name, url, options, origin)
