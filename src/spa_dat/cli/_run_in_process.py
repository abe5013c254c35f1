"""Running applications in this process, which may be one of several."""

from __future__ import annotations

import asyncio
import io
import logging
import os
import sys
import threading
from collections.abc import Sequence
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING

from .._json_formatter import JsonFormatter
from .._logs import ACTOR, OWN, get_logger
from ..errors import ConfigurationError
from ..runtime import DistributedApplication
from ..runtime.application._application import runs_of
from ..runtime.application._program import new_loop, run_until_stopped
from ..runtime.options._admin_address import AdminAddress
from ..runtime.options._option_checks import check_name
from ..runtime.registration._specs import Spec
from ..transports import MemoryConfig, MqttConfig, SocketProvider, SocketProviderFactory
from ._application import load_application

if TYPE_CHECKING:
    from ._child_link import Parent

__all__ = ["serve"]

log = get_logger("spa_dat")

_INSTANCE = "SPA_DAT_INSTANCE"
_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
_SIGN_OF_LIFE = 1.0


def serve(
    targets: Sequence[str],
    *,
    url: str | None,
    instance: str | None,
    log_level: str | None,
    log_format: str | None,
    admin: str | None,
    parent: Parent | None,
) -> int:
    """Run applications until a signal, or until none has anything left to do.

    Args:
        targets: name the applications, one or several.
        url: the bus in place of the applications' default one; None for that one.
        instance: None for the applications' own.
        log_level: None for what the applications have set up.
        log_format: "text" or "json"; None for what the applications have set up.
        admin: where to answer probes; None for the applications' own. Each application and each
            worker has a port of its own.
        parent: the process that looks after this one; None for nobody.

    Returns:
        The exit code.

    Raises:
        ConfigurationError: there is no such application, or it cannot be run like this.
        SystemExit: as `spa_dat.run` does.
    """
    address = None if admin is None else AdminAddress.given(admin, None, "--admin ")
    provider = None if url is None else SocketProviderFactory.from_url(url)
    number = None if parent is None else parent.number
    if instance is not None:
        check_name("--instance", instance)
    given = instance if instance is not None else os.environ.get(_INSTANCE)
    wanted = _numbered(given, number)
    if wanted is not None:
        # For whatever the modules make of it while they are imported.
        os.environ[_INSTANCE] = wanted
    if parent is not None:
        parent.watch()
        if isinstance(sys.stdout, io.TextIOWrapper):
            # A pipe has a buffer otherwise, which is lost when the process is killed.
            sys.stdout.reconfigure(line_buffering=True)
    applications = [_loaded(target) for target in targets]
    if provider is not None:
        _replace_providers(applications, provider)
    for application in applications:
        if instance is None and application.identity.instance != wanted:
            # Its program has named it.
            own = application.identity.instance
            _name_instance(application, _numbered(own, number) or own)
        elif wanted is not None:
            _name_instance(application, wanted)
    _refuse_equal(targets, applications)
    _place_admin(applications, number or 0, address, is_given=admin is not None)
    _set_up_log(log_level, as_json=log_format == "json")
    if parent is not None and parent.count is not None and parent.count > 1:
        for application in applications:
            _check_several(runs_of(application).specs)
        if number == 0 and not parent.again:
            for application in applications:
                _tell_of_several(application, runs_of(application).specs, parent.count)
    return _run(applications, parent)


def _loaded(target: str) -> DistributedApplication:
    application = load_application(target)
    if runs_of(application).current is not None:
        raise ConfigurationError(
            f"application {application.name!r} is already running, because its module runs it when"
            ' it is imported: write `if __name__ == "__main__":` above that'
        )
    return application


def _replace_providers(
    applications: Sequence[DistributedApplication], provider: SocketProvider
) -> None:
    replaced = [runs_of(application).replace_provider(provider) for application in applications]
    if any(replaced):
        return
    names = ", ".join(repr(application.name) for application in applications)
    whose = f"application {names}" if len(replaced) == 1 else f"applications {names}"
    raise ConfigurationError(
        f"--url is the bus of actors that name none, but all actors of {whose} name their own"
    )


def _name_instance(application: DistributedApplication, instance: str) -> None:
    if instance != application.identity.instance:
        runs = runs_of(application)
        identity = replace(application.identity, instance=check_name("instance", instance))
        runs.settings = replace(runs.settings, identity=identity)


def _refuse_equal(targets: Sequence[str], applications: Sequence[DistributedApplication]) -> None:
    known: dict[tuple[str, str], tuple[str, DistributedApplication]] = {}
    for target, application in zip(targets, applications, strict=True):
        identity = application.identity
        names = (identity.application, identity.instance)
        if names not in known:
            known[names] = (target, application)
            continue
        first, other = known[names]
        who = f"application {names[0]!r} instance {names[1]!r}"
        if first == target or other is application:
            raise ConfigurationError(f"{target!r}: {who} is named twice: leave one out")
        raise ConfigurationError(
            f"{first!r} and {target!r} are both {who}: brokers would take them for one; give one of"
            " them another name"
        )


def _place_admin(
    applications: Sequence[DistributedApplication],
    worker: int,
    address: AdminAddress | None,
    *,
    is_given: bool,
) -> None:
    """Give each application a port of its own, with several in several workers, too."""
    for place, application in enumerate(applications):
        runs = runs_of(application)
        own = runs.settings.admin
        if is_given:
            own = None if address is None else address.moved(worker * len(applications) + place)
        elif own is not None and own.is_everybodys:
            own = own.moved(worker * len(applications) + place)
        elif own is not None:
            own = own.moved(worker)
        runs.settings = replace(runs.settings, admin=own)


def _numbered(instance: str | None, number: int | None) -> str | None:
    if number is None:
        return instance
    return str(number) if instance in (None, "", "0") else f"{instance}-{number}"


class _TextFormatter(logging.Formatter):
    """Names the actor in every line; the runtime's own do that themselves."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        text = super().formatMessage(record)
        actor = getattr(record, ACTOR, None)
        if actor is None or hasattr(record, OWN):
            return text
        # The record is not changed: others may want it, too.
        head = text.removesuffix(record.message)
        return f"{head}actor {actor!r}: {record.message}"


def _set_up_log(level: str | None, *, as_json: bool) -> None:
    root = logging.getLogger()
    if not root.handlers:
        logging.basicConfig(level=(level or "info").upper())
        root.handlers[0].setFormatter(JsonFormatter() if as_json else _TextFormatter(_FORMAT))
    elif level is not None:
        root.setLevel(level.upper())
    if as_json:
        _log_as_json(root)


def _log_as_json(root: logging.Logger) -> None:
    """Let what goes to the standard streams be JSON, as far as it is not printed."""
    for handler in root.handlers:
        # Not those of files, and not those that others have made for a purpose of their own.
        if type(handler) is logging.StreamHandler:
            handler.setFormatter(JsonFormatter())
    logging.captureWarnings(True)
    if sys.excepthook is sys.__excepthook__:
        sys.excepthook = _log_uncaught
    if threading.excepthook is threading.__excepthook__:
        threading.excepthook = _log_uncaught_in_thread


def _log_uncaught(
    kind: type[BaseException], error: BaseException, traceback: TracebackType | None
) -> None:
    if isinstance(error, Exception):
        log.critical("the program has ended with an error", exc_info=(kind, error, traceback))
    else:
        sys.__excepthook__(kind, error, traceback)


def _log_uncaught_in_thread(given: threading.ExceptHookArgs) -> None:
    if given.exc_value is None or not isinstance(given.exc_value, Exception):
        threading.__excepthook__(given)
        return
    name = "?" if given.thread is None else given.thread.name
    log.error("thread %r has ended with an error", name, exc_info=given.exc_value)


def _check_several(specs: Sequence[Spec[object]]) -> None:
    for spec in specs:
        provider = spec.options.socket_provider
        if provider is None:
            continue
        if isinstance(provider.config, MemoryConfig):
            raise ConfigurationError(
                f"actor {spec.name!r} is on {provider.address}, which is inside one process:"
                " several workers would share nothing. Give a broker, for example with --url"
                " mqtt://host, or leave --workers out"
            )
        if spec.options.durable:
            raise ConfigurationError(
                f"actor {spec.name!r} is durable: only one process may keep the states of its keys."
                " Leave --workers out"
            )
        if spec.filters and spec.options.must_say_deliver(provider):
            raise ConfigurationError(
                f"actor {spec.name!r}: with several workers it has to say how messages are"
                " distributed: deliver='share' gives each to one worker, deliver='all' to every"
                " worker"
            )


def _tell_of_several(
    application: DistributedApplication, specs: Sequence[Spec[object]], count: int
) -> None:
    """Say what users of one process may not expect of several."""
    receiving = [spec for spec in specs if spec.filters]
    if application.identity.ephemeral and receiving:
        log.warning(
            "application %r has no name, so each of its %d workers gets every message",
            application.name,
            count,
        )
        return
    copied: list[str] = []
    shared: list[str] = []
    for spec in receiving:
        provider = spec.options.socket_provider
        if provider is not None and isinstance(provider.config, MqttConfig):
            (shared if spec.options.deliver == "share" else copied).append(spec.name)
    said = []
    if copied:
        said.append(
            f"{', '.join(copied)}: each of the {count} workers gets a copy of every message"
            " (deliver='all')"
        )
    if shared:
        said.append(
            f"{', '.join(shared)}: messages sent to a worker that is away wait for that worker"
            " (deliver='share')"
        )
    if said:
        log.warning("several workers on MQTT: %s", "; ".join(said))


def _run(applications: Sequence[DistributedApplication], parent: Parent | None) -> int:
    try:
        if parent is None:
            run_until_stopped(applications, owns_process=True)
        else:
            _run_for(parent, applications)
    except SystemExit as end:
        # Whatever it was: the command has found its applications, one of which has failed.
        raise SystemExit(end.code) from None
    return 0


def _run_for(parent: Parent, applications: Sequence[DistributedApplication]) -> None:
    is_running = False

    def started() -> None:
        nonlocal is_running
        is_running = True
        parent.tell("running")

    def made() -> asyncio.AbstractEventLoop:
        loop = new_loop()

        def alive() -> None:
            parent.tell("alive")
            loop.call_later(_SIGN_OF_LIFE, alive)

        loop.call_soon(alive)
        return loop

    # They are stopped one after the other.
    seconds = sum(runs_of(application).settings.stop_timeout for application in applications)
    parent.tell(f"loaded {seconds}")
    try:
        by_signal = run_until_stopped(applications, made, started, owns_process=True)
    except SystemExit as end:
        if is_running and isinstance(end.__cause__, ConfigurationError):
            # For example another program with the same client id: it would only come again.
            parent.tell("hopeless")
        raise
    if not by_signal:
        parent.tell("done")
