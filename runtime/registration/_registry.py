"""The registry of an application: its actors and resources."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, TypeAlias, TypeVar

from ...actors import Actor
from ...errors import ConfigurationError
from ...transports import Config, SocketProvider, as_provider
from ..injection._parameter_rules import Available
from ..options._actor_options import ActorOptions, merge_options
from ..options._custom_codecs import Codec, check_codec
from ..options._option_checks import check_name
from ..options._resources import Resource, check_name_of_resource, check_resources
from ..options._state_factory import refuse_shared_state
from ._specs import Kind, Spec
from ._specs_from_code import check_arguments, class_spec, function_spec
from ._typed_handlers import Topics

__all__ = ["ProviderLike", "Registry", "is_interactive"]

ProviderLike: TypeAlias = SocketProvider | Config | str
"""A provider, a configuration, or a URL."""

A = TypeVar("A", bound=Actor)


class Registry:
    """The actors and shared resources of one application.

    Its methods raise ConfigurationError for anything that is wrong.

    Args:
        provider: the bus of every actor that does not name its own.
        codec: the same for codecs.

    Attributes:
        specs: the actors, in the order of registration.
        resources: the resources that they share, by name.
    """

    def __init__(self, provider: ProviderLike | None, codec: Codec | None = None) -> None:
        if codec is not None:
            check_codec("application: codec", codec)
        self._codec = codec
        self.specs: list[Spec[Any]] = []
        # By name: nothing looks through thousands of actors for each of them.
        self._named: dict[str, list[Spec[Any]]] = {}
        self.resources: dict[str, Resource] = {}
        self.provider = None if provider is None else as_provider(provider)

    def replace_provider(self, provider: SocketProvider) -> int:
        """Give another bus to all actors that name none; returns how many there are."""
        without = [spec for spec in self.specs if spec.options.socket_provider is self.provider]
        for spec in without:
            spec.reconfigure(replace(spec.options, socket_provider=provider))
        self.provider = provider
        return len(without)

    def check_provider(self, kind: Kind, provider: ProviderLike | None) -> None:
        """Refuse an actor without a bus."""
        if provider is None and self.provider is None:
            raise ConfigurationError(
                f"{kind}: there is no bus; give the application a default socket provider, for"
                " example DistributedApplication('memory://'), or this actor a socket_provider"
            )

    def add_function(
        self,
        function: Callable[..., Any],
        name: str | None,
        kind: Kind,
        topics: Topics,
        options: Mapping[str, Any],
        *,
        replace: bool | None,
    ) -> None:
        """Register a function.

        Args:
            replace: replace an actor of that name; None does so in an interactive session, if that
                actor is an earlier version of the same function.
        """
        given = dict(options)
        provider = given["socket_provider"]
        given["socket_provider"] = self.provider if provider is None else as_provider(provider)
        ressources = given["ressources"]
        # What is no mapping gets its error when all options are checked.
        given["ressources"] = dict(ressources) if isinstance(ressources, Mapping) else ressources
        if given.get("codec") is None:
            given["codec"] = self._codec
        unused = () if kind == "producer" else ("every",)
        merged = merge_options(kind, ActorOptions(), given, but=unused)
        spec = function_spec(function, name, kind, topics, merged, tuple(self.resources))
        earlier = next(iter(self._named.get(spec.name, ())), None)
        if earlier is not None and not (replace or (replace is None and _redefines(spec, earlier))):
            several = (
                "; give one decorator all of its topics, as a list: application(['a', 'b'])"
                if earlier.source is spec.source and kind == earlier.kind == "application"
                else ""
            )
            raise ConfigurationError(
                f"there is already an actor {spec.name!r}{several}; give one of them another name=,"
                " or give this one replace=True to replace it"
            )
        refuse_shared_state(spec.name, merged.state, self._states(but=earlier))
        self._enter(spec, earlier)

    def add_reminder(
        self, actor: str, names: tuple[str, ...], function: Callable[..., Any]
    ) -> None:
        """Register the handler of reminders of an actor that is a function."""
        spec = self.find(actor)
        if isinstance(spec.source, type):
            raise ConfigurationError(
                f"on_reminder({actor!r}, ...): the actor is a class: decorate one of its methods"
                " with @on_reminder instead"
            )
        spec.reminder_functions.append((names, function))
        try:
            spec.reconfigure(spec.options)
        except BaseException:
            spec.reminder_functions.pop()
            raise

    def find(self, actor: str) -> Spec[Any]:
        """Return an actor by its name; raises ConfigurationError if there is none."""
        spec = next(iter(self._named.get(actor, ())), None)
        if spec is None:
            known = ", ".join(repr(spec.name) for spec in self.specs) or "none"
            raise ConfigurationError(f"no actor {actor!r} is registered; there are: {known}")
        return spec

    def add_class(
        self, cls: Callable[..., A], args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Spec[A]:
        """Register an actor class with the arguments of its constructor."""
        check_arguments(cls, args, kwargs)
        options = ActorOptions(socket_provider=self.provider, codec=self._codec)
        spec = class_spec(cls, partial(cls, *args, **kwargs), options, tuple(self.resources))
        # Only another version of the class: one class may be added twice, and renamed afterwards.
        earlier = None
        if is_interactive():
            earlier = next(
                (it for it in self.specs if it.source is not cls and _redefines(spec, it)), None
            )
        self._enter(spec, earlier)
        return spec

    def _enter(self, spec: Spec[Any], earlier: Spec[Any] | None) -> None:
        if earlier is None:
            self.specs.append(spec)
        else:
            self.specs[self.specs.index(earlier)] = spec
            self._named[earlier.name].remove(earlier)
        self._named.setdefault(spec.name, []).append(spec)

    def remove(self, actor: Spec[Any] | str) -> None:
        """Remove an actor, given by its name or its specification."""
        for spec in self.specs:
            if actor is spec or actor == spec.name:
                self.specs.remove(spec)
                self._named[spec.name].remove(spec)
                return
        names = ", ".join(repr(spec.name) for spec in self.specs) or "none"
        raise ConfigurationError(f"no actor {actor!r} is registered; there are: {names}")

    def configure(self, spec: Spec[Any], name: str | None, options: Mapping[str, Any]) -> None:
        """Change the name and options of an actor; an error leaves it as it was."""
        changes = dict(options)
        if changes.get("socket_provider") is not None:
            changes["socket_provider"] = as_provider(changes["socket_provider"])
        if "codec" in changes and changes["codec"] is None:
            changes["codec"] = self._codec
        merged = merge_options(f"actor {spec.name!r}", spec.options, changes, but=("every",))
        new_name = spec.name if name is None else check_name("actor name", name)
        refuse_shared_state(new_name, merged.state, self._states(but=spec))
        spec.reconfigure(merged)
        self._named[spec.name].remove(spec)
        spec.name = new_name
        self._named.setdefault(new_name, []).append(spec)

    def _states(self, but: Spec[Any] | None = None) -> Iterator[tuple[str, Any]]:
        return ((spec.name, spec.options.state) for spec in self.specs if spec is not but)

    def add_resource(self, name: str, resource: Resource) -> None:
        """Register a resource that actors share, or in an interactive session a new version."""
        check_name_of_resource("application", name)
        check_resources("application", {name: resource})
        Available(resources=(name,)).check("application")
        earlier = self.resources.get(name)
        if earlier is not None and not (
            is_interactive() and _place_of_resource(earlier) == _place_of_resource(resource)
        ):
            raise ConfigurationError(
                f"resource {name!r} is already registered, with {_place_of_resource(earlier)[1]};"
                " give another name"
            )
        self.resources[name] = resource


def is_interactive() -> bool:
    """Return whether somebody types the program in: a notebook, IPython, Python's prompt."""
    return hasattr(sys, "ps1")


def _redefines(spec: Spec[Any], earlier: Spec[Any]) -> bool:
    """Return whether a notebook cell was run again, or a definition was typed once more."""
    if not is_interactive():
        return False
    return spec.name == earlier.name and _place(spec.source) == _place(earlier.source)


def _place_of_resource(resource: Resource) -> tuple[object, object]:
    # Of an object that of its class: a cell that is run again makes another one.
    return _place(resource if hasattr(resource, "__qualname__") else type(resource))


def _place(source: object) -> tuple[object, object]:
    return getattr(source, "__module__", None), getattr(source, "__qualname__", source)
