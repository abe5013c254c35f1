"""Finds the application that the command line names."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
import traceback
from pathlib import Path

from .._texts import reason_of
from ..errors import ConfigurationError
from ..runtime import DistributedApplication
from ..runtime.application._program import IMPORTING
from ..runtime.diagnostics._stacks import is_ours

__all__ = ["load_application"]


def load_application(target: str) -> DistributedApplication:
    """Return the application that a target names.

    A target is ``package.module:name`` or ``folder/file.py:name``. The name is that of an
    application, or of a function without parameters that returns one; where there is exactly one
    application in the module, it may be left out. Modules are looked for in the current folder,
    too. A file is imported by the name that an import would give it, so what is defined in it can
    be pickled, and it is not ``__main__``. From now on `sys.argv` is as if the target had been
    started as a program without arguments: those that there are belong to the command line.

    Raises:
        ConfigurationError: there is no such module or application, or importing it fails.
    """
    module_name, path = _split(target)
    sys.argv = [module_name]
    _look_in(os.getcwd())
    if module_name.endswith(".py") or os.sep in module_name:
        module_name = _import_file(module_name)
    else:
        _import(module_name)
    module = sys.modules[module_name]
    if not path:
        return _only_one(module_name, module)
    found: object = module
    for part in path.split("."):
        try:
            found = _attribute(target, found, part)
        except AttributeError:
            raise ConfigurationError(
                f"module {module_name!r} has no {path!r}; its applications:"
                f" {', '.join(_applications(module)) or 'none'}"
            ) from None
    if not isinstance(found, DistributedApplication) and callable(found):
        found = _made_by(target, found)
    if not isinstance(found, DistributedApplication):
        raise ConfigurationError(
            f"{target!r} is of type {type(found).__name__}, not a DistributedApplication"
        )
    return found


def _attribute(target: str, owner: object, name: str) -> object:
    """Return an attribute, which may be a property; raise AttributeError if there is none."""
    token = IMPORTING.set(True)
    try:
        return getattr(owner, name)
    except (AttributeError, KeyboardInterrupt):
        raise
    except BaseException as error:
        raise ConfigurationError(
            f"{target!r} cannot be looked up: {reason_of(error)}{_place(error)}"
        ) from error
    finally:
        IMPORTING.reset(token)


def _split(target: str) -> tuple[str, str]:
    if "://" in target:
        raise ConfigurationError(
            f"{target!r} is the address of a bus: name an application, for example package.main:app"
        )
    module_name, colon, path = target.rpartition(":") if ":" in target else (target, "", "")
    if not module_name or (module_name.startswith(".") and os.sep not in module_name):
        path, colon = "", ":"
    if colon and not path:
        raise ConfigurationError(
            f"{target!r} names no application: write module:application, for example"
            " package.main:app, or file.py:application"
        )
    return module_name, path


def _look_in(folder: str) -> None:
    if folder not in sys.path:
        sys.path.insert(0, folder)


def _import_file(name: str) -> str:
    """Import a file; returns the name of its module."""
    file = Path(name).resolve()
    if file.is_dir():
        raise ConfigurationError(f"{name!r} is a folder: name a Python file in it")
    if not file.is_file():
        raise ConfigurationError(f"there is no file {name!r}")
    if file.suffix != ".py":
        raise ConfigurationError(f"{name!r} is not a Python file: its name has to end in .py")
    folder = file.parent
    names = [] if file.stem == "__init__" else [file.stem]
    while (folder / "__init__.py").is_file():
        names.insert(0, folder.name)
        folder = folder.parent
    wrong = next((part for part in names if "." in part), None)
    if wrong is not None or names == ["__main__"]:
        raise ConfigurationError(
            f"{name!r} cannot be imported as {wrong or '__main__'!r}: give the file another name"
        )
    _look_in(str(folder))
    module_name = ".".join(names)
    _import(module_name)
    there = getattr(sys.modules[module_name], "__file__", None)
    if there is None or not Path(there).exists() or not file.samefile(there):
        raise ConfigurationError(
            f"{name!r} cannot be imported, because module {module_name!r} is"
            f" {there or 'part of Python'}: give the file another name"
        )
    return module_name


def _import(name: str) -> None:
    token = IMPORTING.set(True)
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            raise ConfigurationError(
                f"there is no module {error.name!r} in the current folder or on the Python path"
            ) from error
        raise _not_imported(name, error) from error
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise _not_imported(name, error) from error
    finally:
        IMPORTING.reset(token)


def _not_imported(name: str, error: BaseException) -> ConfigurationError:
    return ConfigurationError(
        f"module {name!r} cannot be imported: {reason_of(error)}{_place(error)}"
    )


def _place(error: BaseException) -> str:
    if isinstance(error, SyntaxError):
        return ""  # it says itself where it is
    # Not a line of ours, such as that of run(): the one that has called it.
    frames = [
        (frame, line)
        for frame, line in traceback.walk_tb(error.__traceback__)
        if not is_ours(frame)
    ]
    return f" ({frames[-1][0].f_code.co_filename}:{frames[-1][1]})" if frames else ""


def _only_one(name: str, module: object) -> DistributedApplication:
    found = _applications(module)
    if len({id(application) for application in found.values()}) == 1:
        return next(iter(found.values()))
    if not found:
        raise ConfigurationError(
            f"module {name!r} has no application; if a function creates it, name the function:"
            f" {name}:make_app"
        )
    raise ConfigurationError(
        f"module {name!r} has several applications: name one of them, as in"
        f" {name}:{next(iter(found))}; there are: {', '.join(found)}"
    )


def _made_by(target: str, factory: object) -> object:
    assert callable(factory)
    is_async = inspect.iscoroutinefunction(factory)
    try:
        inspect.signature(factory).bind()
    except TypeError:
        raise ConfigurationError(
            f"{target!r} needs arguments: name an application, or a function without parameters"
            " that returns one"
        ) from None
    except ValueError:
        pass  # nobody knows its signature
    token = IMPORTING.set(True)
    try:
        made = None if is_async else factory()
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise ConfigurationError(
            f"{target!r} did not create an application: {reason_of(error)}{_place(error)}"
        ) from error
    finally:
        IMPORTING.reset(token)
    if inspect.iscoroutine(made):
        made.close()
        is_async = True
    if is_async:
        raise ConfigurationError(
            f"{target!r} is an async function: write `def`, and do what has to be awaited when"
            " the application starts, in a resource or in an on_start"
        )
    if made is None:
        raise ConfigurationError(
            f"{target!r} has returned None: end it with a `return` of the application"
        )
    return made


def _applications(module: object) -> dict[str, DistributedApplication]:
    return {
        name: value
        for name, value in vars(module).items()
        if isinstance(value, DistributedApplication)
    }
