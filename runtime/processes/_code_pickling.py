"""Shipping: an actor's code and what it uses, pickled for its child processes."""

from __future__ import annotations

import ast
import contextlib
import importlib.machinery
import inspect
import io
import pickle
import sys
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from contextvars import Context, ContextVar
from dataclasses import dataclass, fields
from typing import Any

import msgspec

from ..._texts import describe, error_name
from ...errors import ConfigurationError
from ..injection._signatures import MISSING, Unresolved
from ..messaging._middleware import Middleware
from ..options._actor_options import ActorOptions
from ..options._resources import Resource
from ..registration._specs import Handler, Spec

__all__ = ["Shipment", "pack", "unpack"]

_MAIN = "__main__"
_DEEPEST = 12
_WIDEST = 200


@dataclass(frozen=True)
class Shipment:
    """An actor as its child process registers it.

    Attributes:
        kind: as in `Spec`.
        name: the actor's.
        source: the function or class.
        factory: makes an instance of the class; None for a function.
        topics: filters of a function.
        options: fields of `ActorOptions`, but for those that only the parent uses.
        resources: those of the application that it uses, by name.
        middleware: the application's.
        annotations: types of the parameters, by attribute of a class and "" for a function.
    """

    kind: typing.Literal["application", "producer"]
    name: str
    source: Callable[..., Any]
    factory: Callable[[], Any] | None
    topics: tuple[str, ...]
    options: Mapping[str, Any]
    resources: Mapping[str, Resource]
    middleware: tuple[Middleware, ...]
    annotations: Mapping[str, Mapping[str, Any]]


# What means something in the parent only.
_OF_THE_PARENT = (
    "socket_provider",
    "placement",
    "processes",
    "subscription",
    "overflow",
    "mailbox",
)


def pack(
    spec: Spec[Any], resources: Mapping[str, Resource], middleware: Sequence[Middleware] = ()
) -> bytes:
    """Return an actor as bytes for `unpack` in a child process.

    Args:
        spec: its registration.
        resources: those of the application.
        middleware: the application's.

    Raises:
        ConfigurationError: something cannot be pickled; the way to it is named.
    """
    options = {
        option.name: getattr(spec.options, option.name)
        for option in fields(ActorOptions)
        if option.name not in _OF_THE_PARENT
    }
    if spec.options.lanes == 1:
        # It says to which process a message goes, and there it has no use.
        options["key"] = None
    of_class = isinstance(spec.source, type)
    handlers = [*spec.handlers, *spec.hooks.values()]
    shipment = Shipment(
        spec.kind,
        spec.name,
        spec.source,
        spec.factory if of_class else None,
        () if of_class else tuple(filter_.text for filter_ in spec.filters),
        options,
        {name: it for name, it in resources.items() if any(_uses(one, name) for one in handlers)},
        tuple(middleware),
        {one.attribute: _annotations(one) for one in handlers},
    )
    by_value = _ByValue(_modules_of(shipment))
    try:
        names = _names_of(shipment, by_value.names)
        # A second time if more modules were found on the way, which `names` is to know of.
        while True:
            known = set(by_value.names)
            try:
                packed = _dumps((shipment, names, known), by_value)
            except Exception as error:
                raise _not_shippable(shipment, by_value, error) from error
            if by_value.names == known:
                return packed
            names = _names_of(shipment, by_value.names)
    finally:
        by_value.close()


def unpack(data: bytes) -> Shipment:
    """Return what was shipped, in the child process.

    Raises:
        Exception: whatever importing the user's modules raises.
    """
    # It comes from the parent, which is the program itself.
    shipment, names, by_value = pickle.loads(data)  # noqa: S301
    for module, values in names.items():
        if module not in by_value:
            # It has been imported: it came along as an object.
            continue
        if module not in sys.modules:
            sys.modules[module] = types.ModuleType(module)
        vars(sys.modules[module]).update(values)
    for attribute, types_ in shipment.annotations.items():
        function = shipment.source
        if attribute:
            function = inspect.getattr_static(function, attribute, None)
            function = getattr(function, "__func__", function)
        function = inspect.unwrap(_innermost(function))
        if isinstance(function, types.FunctionType) and not _is_of_its_module(function, by_value):
            function.__annotations__ = dict(types_)
    packed: Shipment = shipment
    return packed


def _is_of_its_module(function: types.FunctionType, by_value: set[str]) -> bool:
    """Return whether it was imported; one made inside another has only the names it uses."""
    if function.__module__ in by_value or function.__module__ not in sys.modules:
        return False
    return vars(sys.modules[function.__module__]) is function.__globals__


def _innermost(function: Any) -> Any:
    while hasattr(function, "func") and not isinstance(function, types.FunctionType):
        function = function.func
    return function


def _uses(handler: Handler, resource: str) -> bool:
    signature = handler.signature
    return signature.takes_anything or any(it.name == resource for it in signature.parameters)


def _annotations(handler: Handler) -> dict[str, Any]:
    signature = handler.signature
    pairs = [(it.name, it.annotation) for it in signature.parameters]
    return {
        name: annotation.text if isinstance(annotation, Unresolved) else annotation
        for name, annotation in (*pairs, ("return", signature.returns))
        if annotation is not MISSING
    }


# What is pickled by value.


def _is_importable(module: str | None) -> bool:
    """Return whether a fresh process finds the module by its name."""
    if module is None or module == _MAIN:
        return False
    known = sys.modules.get(module)
    if module in sys.builtin_module_names or known is None:
        return True
    parent, _, _ = module.rpartition(".")
    path = None
    if parent:
        if not _is_importable(parent):
            return False
        path = getattr(sys.modules.get(parent), "__path__", None)
    for finder in sys.meta_path:
        find = getattr(finder, "find_spec", None)
        with contextlib.suppress(Exception):
            spec = None if find is None else find(module, path)
            if spec is not None:
                return _same_file(spec, known)
    return False


def _same_file(spec: importlib.machinery.ModuleSpec, known: types.ModuleType) -> bool:
    file = getattr(known, "__file__", None)
    return spec.origin is None or file is None or spec.origin == file or not spec.has_location


def _modules_of(shipment: Shipment) -> set[str]:
    sources = [shipment.source, *shipment.resources.values()]
    sources += [value for value in shipment.options.values() if callable(value)]
    sources += [type(one) for one in shipment.middleware]
    modules = {getattr(_innermost(source), "__module__", None) for source in sources}
    for types_ in shipment.annotations.values():
        for annotation in types_.values():
            modules |= {one.__module__ for one in _types_in(annotation)}
    return {module for module in modules if isinstance(module, str)}


class _ByValue:
    """The modules whose functions and classes are pickled by value: a child cannot import them."""

    def __init__(self, modules: set[str]) -> None:
        self.names = {_MAIN}
        self._known = {_MAIN: True}
        for module in sorted(modules):
            self.look_at(module)

    def look_at(self, module: object) -> None:
        """Decide whether objects of this module must be pickled by value."""
        if not isinstance(module, str) or module in self._known:
            return
        self._known[module] = True
        if module in sys.modules and not _is_importable(module):
            import cloudpickle

            cloudpickle.register_pickle_by_value(sys.modules[module])
            self.names.add(module)

    def close(self) -> None:
        """Let cloudpickle do with these modules as it likes."""
        import cloudpickle

        for module in self.names - {_MAIN}:
            cloudpickle.unregister_pickle_by_value(sys.modules[module])


def _dumps(value: object, by_value: _ByValue) -> bytes:
    import cloudpickle

    class Pickler(cloudpickle.Pickler):  # type: ignore[misc]
        def reducer_override(self, obj: Any) -> Any:
            if isinstance(obj, type | types.FunctionType):
                by_value.look_at(obj.__module__)
            if (
                isinstance(obj, type)
                and issubclass(obj, msgspec.Struct)
                and obj.__module__ in by_value.names
            ):
                return _reduced_struct(obj)
            if isinstance(obj, ContextVar):
                return _make_variable, (obj.name, *_default_of(obj))
            reduced = super().reducer_override(obj)
            if isinstance(obj, type) and isinstance(reduced, tuple) and len(reduced) > 2:
                # What msgspec remembers of a class cannot be pickled, and is found again.
                attributes = reduced[2][0] if isinstance(reduced[2], tuple) else {}
                attributes.pop("__msgspec_cache__", None)
            return reduced

    file = io.BytesIO()
    Pickler(file).dump(value)
    return file.getvalue()


def _make_variable(name: str, *default: Any) -> ContextVar[Any]:
    return ContextVar(name, default=default[0]) if default else ContextVar(name)


def _default_of(variable: ContextVar[Any]) -> tuple[Any, ...]:
    try:
        return (Context().run(variable.get),)
    except LookupError:
        return ()


# Struct classes, which cloudpickle takes apart and cannot put together.

_MADE_BY_MSGSPEC = {"__slots__", "__dict__", "__weakref__", "__match_args__", "__module__"}


def _reduced_struct(cls: type[msgspec.Struct]) -> Any:
    own = list(inspect.get_annotations(cls))
    infos = {info.name: info for info in msgspec.structs.fields(cls)}
    given = {}
    for name in own:
        info = infos[name]
        renamed = info.encode_name if info.encode_name != name else None
        if info.default is not msgspec.NODEFAULT:
            given[name] = msgspec.field(default=info.default, name=renamed)
        elif info.default_factory is not msgspec.NODEFAULT:
            given[name] = msgspec.field(default_factory=info.default_factory, name=renamed)
        elif renamed is not None:
            given[name] = msgspec.field(name=renamed)
    config = cls.__struct_config__
    options = {
        name: getattr(config, name)
        for name in (
            "frozen", "eq", "order", "array_like", "gc", "omit_defaults", "repr_omit_defaults",
            "forbid_unknown_fields", "weakref", "dict", "cache_hash", "tag", "tag_field",
        )
    }  # fmt: skip
    options["kw_only"] = any(name not in cls.__match_args__ for name in own)
    fields_ = {name: (one.default, one.default_factory, one.name) for name, one in given.items()}
    made = (cls.__name__, cls.__qualname__, cls.__module__, cls.__bases__)
    rest = {
        name: value
        for name, value in vars(cls).items()
        if not name.startswith("__struct_")
        and name not in _MADE_BY_MSGSPEC
        and name not in own
        and name != "__annotations__"
    }
    return (
        _make_struct,
        (*made, inspect.get_annotations(cls), fields_, options),
        rest,
        None,
        None,
        (_set_attributes),
    )


def _make_struct(
    name: str,
    qualname: str,
    module: str,
    bases: tuple[type, ...],
    annotations: dict[str, Any],
    given: dict[str, tuple[Any, Any, str | None]],
    options: dict[str, Any],
) -> type:
    namespace: dict[str, Any] = {
        "__module__": module,
        "__qualname__": qualname,
        "__annotations__": annotations,
    }
    make_field: Any = msgspec.field
    for field, (default, factory, renamed) in given.items():
        namespace[field] = make_field(default=default, default_factory=factory, name=renamed)
    meta: Any = type(msgspec.Struct)
    made: type = meta(name, bases, namespace, **options)
    return made


def _set_attributes(cls: type, attributes: dict[str, Any]) -> None:
    for name, value in attributes.items():
        with contextlib.suppress(AttributeError, TypeError):
            setattr(cls, name, value)


# Names that only annotations use, which cloudpickle leaves out.


def _names_of(shipment: Shipment, by_value: set[str]) -> dict[str, dict[str, Any]]:
    names: dict[str, dict[str, Any]] = {}
    seen: set[int] = set()
    left = [it for one in shipment.annotations.values() for it in one.values()]
    while left:
        for cls in _types_in(left.pop()):
            if id(cls) in seen:
                continue
            seen.add(id(cls))
            for base in cls.__mro__:
                if base.__module__ not in by_value:
                    if "<locals>" in base.__qualname__ and base.__module__ in sys.modules:
                        # It is pickled by value, and its annotations are names of its module.
                        names[base.__module__] = {"": sys.modules[base.__module__]}
                    continue
                known = vars(sys.modules.get(base.__module__, types.ModuleType("none")))
                for annotation in inspect.get_annotations(base).values():
                    if not isinstance(annotation, str):
                        left.append(annotation)
                        continue
                    for name in _names_in(annotation):
                        if name in known:
                            names.setdefault(base.__module__, {})[name] = known[name]
                            left.append(known[name])
    return names


def _names_in(annotation: str) -> tuple[str, ...]:
    try:
        tree = ast.parse(annotation, mode="eval")
    except SyntaxError:
        return ()
    return tuple(node.id for node in ast.walk(tree) if isinstance(node, ast.Name))


def _types_in(annotation: Any, depth: int = 0) -> list[type]:
    if depth > _DEEPEST:
        return []
    found = [annotation] if isinstance(annotation, type) else []
    for part in typing.get_args(annotation):
        found += _types_in(part, depth + 1)
    return found


# What cannot be pickled, and the way to it.


def _not_shippable(
    shipment: Shipment, by_value: _ByValue, error: BaseException
) -> ConfigurationError:
    way, found, reason = _way_to(shipment, by_value, error)
    return ConfigurationError(
        f"actor {shipment.name!r} has placement='process', so it is sent to another process,"
        f" but {' -> '.join(way)}{_kind_of(found)} cannot be pickled: {reason}{_advice(way, found)}"
    )


def _kind_of(found: object) -> str:
    kind = type(found)
    return f", of type {kind.__module__}.{kind.__qualname__},".replace("builtins.", "")


def _is_application(found: object) -> bool:
    # Its class is in a room above this one.
    return type(found).__name__ == "DistributedApplication"


def _advice(way: Sequence[str], found: object) -> str:
    if way[0] == "option 'codec'" or way[0].startswith("middleware "):
        user, when = (
            ("the codec", "encodes or decodes")
            if way[0].startswith("option ")
            else ("the middleware", "uses it")
        )
        return f"; have {user} make it when it first {when}, and leave it out in __getstate__"
    if _is_application(found):
        return "; a handler publishes and requests with the socket that it is given"
    if any(step.startswith("resource ") for step in way):
        return "; give a function that opens it, which is called in the process where it is used"
    return (
        "; make it in the process where it is used: as a resource (ressources=), in on_start, or"
        " as state= with a factory"
    )


def _way_to(
    shipment: Shipment, by_value: _ByValue, error: BaseException
) -> tuple[list[str], object, str]:
    """Return the steps from the actor to what cannot be pickled, that, and why."""
    seen: set[int] = set()
    found = _search(_parts_of_shipment(shipment), by_value, seen, 0)
    if found is None:
        return ["something"], shipment, f"{error_name(error)}: {describe(error)}"
    return found


_Found = tuple[list[str], object, str]


def _search(
    parts: list[tuple[str, Any]], by_value: _ByValue, seen: set[int], depth: int
) -> _Found | None:
    """Return the way to what cannot be pickled; None when all ways lead back in a circle."""
    for label, part in parts[:_WIDEST]:
        if id(part) in seen:
            continue
        problem = _problem(part, by_value)
        if problem is None:
            continue
        seen.add(id(part))
        inner = _parts_of(part)
        deeper = _search(inner, by_value, seen, depth + 1) if depth < _DEEPEST else None
        if deeper is not None:
            way, found, reason = deeper
            return [label, *way], found, reason
        if not _leads_back(inner, by_value, seen):
            return [label], part, problem
    return None


def _leads_back(parts: list[tuple[str, Any]], by_value: _ByValue, seen: set[int]) -> bool:
    """Return whether something of the parts cannot be pickled, and was looked at before."""
    return any(id(part) in seen and _problem(part, by_value) is not None for _, part in parts)


def _problem(part: object, by_value: _ByValue) -> str | None:
    try:
        _dumps(part, by_value)
    except Exception as error:  # noqa: BLE001 (whatever the user's objects raise)
        return f"{error_name(error)}: {describe(error)}"
    return None


def _parts_of_shipment(shipment: Shipment) -> list[tuple[str, Any]]:
    is_class = isinstance(shipment.source, type)
    kind = "class" if is_class else shipment.kind.replace("application", "handler")
    name = getattr(shipment.source, "__qualname__", shipment.name)
    parts: list[tuple[str, Any]] = [(f"{kind} {name!r}", shipment.source)]
    if shipment.factory is not None:
        args = getattr(shipment.factory, "args", ())
        keywords = getattr(shipment.factory, "keywords", {})
        parts += [(f"argument {number} of add()", arg) for number, arg in enumerate(args, 1)]
        parts += [(f"argument {name!r} of add()", value) for name, value in keywords.items()]
        parts.append(("its factory", shipment.factory))
    for option, value in shipment.options.items():
        if option == "ressources":
            parts += [(f"resource {name!r}", resource) for name, resource in value.items()]
        else:
            parts.append((f"option {option!r}", value))
    parts += [
        (f"resource {name!r} of the application", it) for name, it in shipment.resources.items()
    ]
    parts += [(f"middleware {type(one).__name__!r}", one) for one in shipment.middleware]
    parts.append(("the types of its parameters", shipment.annotations))
    return parts


def _parts_of(value: Any) -> list[tuple[str, Any]]:
    """Return what an object is made of, with words for each part."""
    if _is_application(value):
        return []
    if isinstance(value, types.MethodType):
        return [("its object", value.__self__), ("its function", value.__func__)]
    if isinstance(value, types.FunctionType):
        return _parts_of_function(value)
    if isinstance(value, staticmethod | classmethod):
        return [("its function", value.__func__)]
    if isinstance(value, property):
        accessors = (value.fget, value.fset, value.fdel)
        return [("its function", accessor) for accessor in accessors if accessor is not None]
    if isinstance(value, type):
        own = [(f"attribute {name!r}", part) for name, part in vars(value).items()]
        return [*own, *((f"base {base.__name__!r}", base) for base in value.__bases__)]
    if isinstance(value, Mapping):
        items = list(value.items())
        return [(f"[{key!r:.60}]", part) for key, part in items] + [("a key", k) for k, _ in items]
    if isinstance(value, list | tuple | set | frozenset):
        return [(f"[{number}]", part) for number, part in enumerate(value)]
    if hasattr(value, "func") and hasattr(value, "keywords"):
        return [("its function", value.func), ("its arguments", (*value.args, value.keywords))]
    attributes = getattr(value, "__dict__", None)
    if not isinstance(attributes, dict):
        return []
    return [(f"attribute {name!r}", part) for name, part in attributes.items()]


def _parts_of_function(function: types.FunctionType) -> list[tuple[str, Any]]:
    parts: list[tuple[str, Any]] = []
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        with contextlib.suppress(ValueError):  # empty
            parts.append((f"variable {name!r} of an enclosing function", cell.cell_contents))
    known = function.__globals__
    names = [name for name in _global_names(function.__code__) if name in known]
    parts += [(f"global {name!r}", known[name]) for name in names]
    parts += [("a default", default) for default in function.__defaults__ or ()]
    parts += [("a default", default) for default in (function.__kwdefaults__ or {}).values()]
    annotations = inspect.get_annotations(function)
    parts += [(f"the type of {name!r}", part) for name, part in annotations.items()]
    parts += [(f"attribute {name!r}", part) for name, part in vars(function).items()]
    return parts


def _global_names(code: types.CodeType) -> list[str]:
    names = dict.fromkeys(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names |= dict.fromkeys(_global_names(constant))
    return list(names)
