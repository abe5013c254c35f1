"""Finds the application that the command line names."""

from __future__ import annotations

import importlib
import os
import sys
import traceback

from .._texts import reason_of
from ..errors import ConfigurationError
from ..runtime import DistributedApplication
from ..runtime.application._run import IMPORTING

__all__ = ["load_application"]


def load_application(name: str) -> DistributedApplication:
    """Return the application that is called so in a module, as in ``package.module:app``.

    Modules are looked for in the current folder, too.

    Raises:
        ConfigurationError: there is no such module or application, or importing it fails.
    """
    module_name, colon, path = name.partition(":")
    if not colon or not path or not module_name or module_name.startswith("."):
        raise ConfigurationError(
            f"{name!r} names no application: write module:application, for example package.main:app"
        )
    here = os.getcwd()
    if here not in sys.path:
        sys.path.insert(0, here)
    found: object = _import(module_name)
    for part in path.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            raise ConfigurationError(
                f"module {module_name!r} has no {path!r}; its applications:"
                f" {', '.join(_applications(sys.modules[module_name])) or 'none'}"
            ) from None
    if not isinstance(found, DistributedApplication):
        raise ConfigurationError(
            f"{name!r} is of type {type(found).__name__}, and no DistributedApplication"
        )
    return found


def _import(name: str) -> object:
    token = IMPORTING.set(True)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            raise ConfigurationError(
                f"there is no module {error.name!r} in the current folder or on the Python path"
            ) from error
        raise _not_imported(name, error) from error
    except (Exception, SystemExit) as error:
        raise _not_imported(name, error) from error
    finally:
        IMPORTING.reset(token)


def _not_imported(name: str, error: BaseException) -> ConfigurationError:
    frames = traceback.extract_tb(error.__traceback__)
    # A SyntaxError says itself where it is.
    here = frames and not isinstance(error, SyntaxError)
    where = f" ({frames[-1].filename}:{frames[-1].lineno})" if here else ""
    return ConfigurationError(f"module {name!r} cannot be imported: {reason_of(error)}{where}")


def _applications(module: object) -> list[str]:
    return [name for name, value in vars(module).items() if _is_application(value)]


def _is_application(value: object) -> bool:
    return isinstance(value, DistributedApplication)
