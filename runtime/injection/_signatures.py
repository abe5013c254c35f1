"""Signatures: the parameters of a function with their types, seen through wrappers."""

from __future__ import annotations

import contextlib
import functools
import inspect
import sys
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ...errors import ConfigurationError
from ..payloads._generics import substituted

__all__ = ["MISSING", "Parameter", "Signature", "Unresolved", "read_signature"]

MISSING: Any = inspect.Parameter.empty
"""Stands for a missing default or annotation."""


@dataclass(frozen=True, slots=True)
class Unresolved:
    """An annotation with a name that cannot be found at run time.

    Attributes:
        text: the annotation as written.
        reason: what went wrong.
    """

    text: str
    reason: str


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter.

    Attributes:
        name: its name.
        annotation: its type, `Unresolved`, or `MISSING`.
        default: its default, or `MISSING`.
    """

    name: str
    annotation: Any
    default: Any

    @property
    def required(self) -> bool:
        """Whether the function cannot be called without it."""
        return self.default is MISSING


@dataclass(frozen=True, slots=True)
class Signature:
    """The parameters and the return annotation of a function.

    Attributes:
        name: the name of the function, for errors.
        parameters: those that can be given by name, in order.
        takes_anything: whether it has ``**kwargs``.
        fixed: the names that a ``functools.partial`` has given already.
        returns: the return annotation, `Unresolved`, or `MISSING`.
        is_async: whether calling it returns an awaitable.
    """

    name: str
    parameters: tuple[Parameter, ...]
    takes_anything: bool
    fixed: frozenset[str]
    returns: Any
    is_async: bool


def read_signature(
    function: Callable[..., Any],
    *,
    has_self: bool = False,
    variables: Mapping[Any, Any] | None = None,
) -> Signature:
    """Return the signature of a function, method, partial, callable object or wrapper.

    Args:
        function: what is going to be called.
        has_self: whether it comes from a class and its first parameter is the instance.
        variables: what type variables stand for.

    Raises:
        ConfigurationError: it cannot be called with arguments by name, or is a generator.
    """
    layers = tuple(_layers(function))
    name = _name_of(layers)
    if any(inspect.isgeneratorfunction(f) or inspect.isasyncgenfunction(f) for f in layers):
        raise ConfigurationError(
            f"{name} is a generator; a handler returns its reply and publishes anything else"
        )
    if any(hasattr(f, "dispatch") and hasattr(f, "registry") for f in layers):
        raise ConfigurationError(
            f"{name} is a functools.singledispatch, which looks at its first argument, but"
            " arguments are given by name; write a handler that calls it"
        )
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError, NameError) as error:
        raise ConfigurationError(f"the parameters of {name} cannot be read: {error}") from error
    raw = list(signature.parameters.values())
    if has_self:
        if not raw or raw[0].kind not in (raw[0].POSITIONAL_ONLY, raw[0].POSITIONAL_OR_KEYWORD):
            raise ConfigurationError(f"{name} has no self; make it a method of the actor")
        if raw[0].name != "self" and raw[0].annotation is not MISSING:
            raise ConfigurationError(
                f"{name}: the first parameter of a method is the actor itself, so {raw[0].name!r}"
                " gets no payload; put self before it"
            )
        del raw[0]
    fixed = {key for f in layers if isinstance(f, functools.partial) for key in f.keywords}
    resolver = _Resolver(layers[-1])

    def resolve(annotation: Any) -> Any:
        return substituted(resolver.resolve(annotation), variables or {})

    parameters: list[Parameter] = []
    takes_anything = False
    for parameter in raw:
        if parameter.kind is parameter.VAR_KEYWORD:
            takes_anything = True
            continue
        _check_kind(name, parameter)
        # A positional-only parameter that got here has a default, and keeps it.
        if parameter.kind is parameter.POSITIONAL_ONLY or parameter.name in fixed:
            continue
        parameters.append(
            Parameter(parameter.name, resolve(parameter.annotation), parameter.default)
        )
    return Signature(
        name=name,
        parameters=tuple(parameters),
        takes_anything=takes_anything,
        fixed=frozenset(fixed),
        returns=resolve(signature.return_annotation),
        is_async=any(inspect.iscoroutinefunction(f) for f in layers),
    )


def _check_kind(name: str, parameter: inspect.Parameter) -> None:
    if parameter.kind is parameter.VAR_POSITIONAL:
        raise ConfigurationError(
            f"{name} takes *{parameter.name}, but arguments are given by name; write the"
            " parameters out, and use functools.wraps if a decorator hides them"
        )
    if parameter.kind is parameter.POSITIONAL_ONLY and parameter.default is MISSING:
        raise ConfigurationError(
            f"{name}: parameter {parameter.name!r} is positional-only, but arguments are given by"
            " name; remove the / after it"
        )


def _layers(function: Any) -> Iterator[Any]:
    """Yield the callable, and what it wraps, down to the function as written."""
    if isinstance(function, type):
        raise ConfigurationError(
            f"{function!r} cannot be a handler; give a function, or register a class that is"
            f" derived from Actor with add({function.__name__}, ...)"
        )
    if not callable(function):
        raise ConfigurationError(f"{function!r} cannot be a handler; give a function")
    while True:
        yield function
        if isinstance(function, functools.partial):
            function = function.func
        elif inspect.ismethod(function):
            function = function.__func__
        elif hasattr(function, "__wrapped__"):
            function = function.__wrapped__
        elif not inspect.isroutine(function) and inspect.isroutine(type(function).__call__):
            function = type(function).__call__
        else:
            return


def _name_of(layers: tuple[Any, ...]) -> str:
    name = getattr(layers[-1], "__qualname__", None) or type(layers[-1]).__qualname__
    return f"{name.rpartition('<locals>.')[2]}()"


class _Resolver:
    """Resolves the names in the annotations of a function."""

    def __init__(self, function: Any) -> None:
        self._globals: dict[str, Any] = getattr(function, "__globals__", {})
        self._code: types.CodeType | None = getattr(function, "__code__", None)
        self._closure: dict[str, Any] = {}
        if self._code is not None:
            cells = zip(self._code.co_freevars, function.__closure__ or (), strict=False)
            for name, cell in cells:
                # A cell is empty while its own variable is being assigned.
                with contextlib.suppress(ValueError):
                    self._closure[name] = cell.cell_contents

    def resolve(self, annotation: Any) -> Any:
        if annotation is MISSING or annotation is None:
            return annotation
        with contextlib.suppress(Exception):
            return self._evaluate(annotation, self._closure)
        # A local name of the function in which the handler is being defined right now.
        try:
            return self._evaluate(annotation, {**self._defining_locals(), **self._closure})
        except Exception as error:  # noqa: BLE001  (an annotation may be any expression)
            return Unresolved(str(annotation), f"{type(error).__name__}: {error}")

    def _evaluate(self, annotation: Any, names: Mapping[str, Any]) -> Any:
        holder = types.SimpleNamespace(__annotations__={"it": annotation})
        return typing.get_type_hints(
            holder, globalns=self._globals, localns=dict(names), include_extras=True
        )["it"]

    def _defining_locals(self) -> dict[str, Any]:
        found: list[Mapping[str, Any]] = []
        frame: types.FrameType | None = sys._getframe()
        while frame is not None:
            if self._code is not None and _contains(frame.f_code, self._code):
                found.append(frame.f_locals)
            frame = frame.f_back
        return {key: value for names in reversed(found) for key, value in names.items()}


def _contains(outer: types.CodeType, inner: types.CodeType) -> bool:
    return any(
        constant is inner or _contains(constant, inner)
        for constant in outer.co_consts
        if isinstance(constant, types.CodeType)
    )
