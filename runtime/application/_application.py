"""The application: registering actors, starting and stopping them."""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Never, ParamSpec, Self, TypeVar, Unpack, overload

from ..._environment import Environment
from ..._texts import quoted
from ..._unknown_names import keywords_of, unexpected_keyword
from ...actors import Actor, RestartPolicy
from ...errors import ConfigurationError
from ...transports import Identity, SocketProvider, as_provider
from ...transports._wire_formats import WireName
from ..hosting._application_settings import LoopFactory, Settings
from ..messaging._middleware import Middleware, check_middleware
from ..messaging._socket import Socket
from ..messaging._sync_socket import SyncSocket
from ..messaging._typed_topic import R, Topic
from ..options._actor_options import HandlerOptions
from ..options._custom_codecs import Codec
from ..options._option_checks import check_name, parse_reply_topics
from ..options._resources import Resource
from ..registration._registry import ProviderLike, Registry
from ..registration._specs import Spec
from ..registration._typed_handlers import FunctionDecorator, Topics
from ._forgotten_starts import tell_if_never_started
from ._lifecycle import Run
from ._runs import Runs
from ._stopping import shielded_from_scopes

if TYPE_CHECKING:
    from ...transports._outbox_options import OutboxFile
    from ..diagnostics._health import Health
    from ..diagnostics._stop_report import StopReport
    from ..metrics._measurements import Measurements
    from ..options._admin_address import AdminAddress
    from ..options._exporters import Exporter
    from ._background import Background

__all__ = ["DistributedApplication", "ProviderLike", "runs_of"]

F = TypeVar("F", bound=Callable[..., Any])
A = TypeVar("A", bound=Actor)
P = ParamSpec("P")
T = TypeVar("T")


class RegistrationOptions(HandlerOptions, total=False):
    """The options of `DistributedApplication.application`, which explains them."""

    socket_provider: ProviderLike | None
    state: Any
    ressources: Mapping[str, Resource]
    name: str | None
    replace: bool | None


class DistributedApplication:
    """Actors that share a name and a default bus.

    Args:
        default_socket_provider: the bus of every actor that does not name its own: a provider, a
            configuration, or a URL such as ``memory://`` or ``mqtt://host``.
        name: identifies the application to the bus, which keeps messages for it while it is away.
            Without a name it is ephemeral: nothing is kept.
        instance: tells copies of the application apart; by default the environment variable
            ``SPA_DAT_INSTANCE``, or ``0`` without it.
        stop_timeout: seconds that running handlers and pending publishes get when it stops.
        dead_letter_limit: dead letters that each actor may store in one run; at the limit the
            application is unhealthy, and an actor that needs one more takes no further messages.
        slow_after: seconds after which a handler that is still running is named in the log and
            makes the application unhealthy until it ends; None for never. An actor's ``deadline``,
            or a producer's ``every``, applies instead if it is longer.
        blocked_after: the same for code that blocks the event loop; None for never.
        restart: how often an actor that fails to start is started again.
        reply_topics: filters for the topics that replies may go to, besides the reply inboxes of
            programs that use this package; None for any topic, at the requester's choice. A reply
            never goes to a topic that an actor of the application subscribes to.
        codec: the `Codec` of every actor that does not name its own, and of `socket`; None for the
            runtime's own formats.
        admin: where to answer probes over HTTP, as ``127.0.0.1:8085``; by default the environment
            variable ``SPA_DAT_ADMIN``, or nowhere without it. It needs ``spa-dat[admin]``.
        admin_token: what clients of it have to send to learn details, at least 16 characters; by
            default ``SPA_DAT_ADMIN_TOKEN``. An address that others can reach needs one.
        metrics: where metrics go: ``prometheus``, which gets them at ``/metrics`` of ``admin`` and
            needs ``spa-dat[metrics]``, ``opentelemetry``, which needs ``opentelemetry-api``, or
            both; by default the environment variable ``SPA_DAT_METRICS``. Without it nothing is
            measured, which costs nothing.
        outbox: ``file`` records what is published in a file until the broker has it, so that it
            survives the program: `Socket.publish` returns when it is recorded, and does not wait
            for the broker. An `OutboxFile` says where the file is and how much it may have. It
            needs a ``name``. None keeps it in memory.
        state_folder: where the states of durable actors are kept, in a file for each instance;
            created for this user alone (mode 0700) if it is missing. It has to be on a local disk.
            On Kafka the files are snapshots of what the cluster keeps, and may be deleted.
            By default the first folder of the environment variable ``STATE_DIRECTORY``, which
            systemd sets, or else ``spa-dat`` in ``XDG_STATE_HOME``, which is ``~/.local/state``
            unless it is set.
        environment: where time stamps, randomness and identifiers come from.

    Raises:
        ConfigurationError: a name, the bus, the codec, the address for probes, ``metrics`` or
            ``outbox`` is wrong, or there is no such option.
    """

    def __init__(
        self,
        default_socket_provider: ProviderLike | None = None,
        *misplaced: Never,
        name: str | None = None,
        instance: str | None = None,
        stop_timeout: float = 10.0,
        dead_letter_limit: int = 1000,
        restart: RestartPolicy = RestartPolicy(),
        slow_after: float | None = 30.0,
        blocked_after: float | None = 5.0,
        reply_topics: str | Sequence[str] | None = None,
        codec: Codec | None = None,
        admin: str | None = None,
        admin_token: str | None = None,
        metrics: Exporter | Sequence[Exporter] | None = None,
        outbox: Literal["file"] | OutboxFile | None = None,
        state_folder: str | os.PathLike[str] | None = None,
        environment: Environment | None = None,
        **unknown: Never,
    ) -> None:
        if misplaced:
            raise ConfigurationError(
                f"{type(self).__name__}() takes one address and got {quoted(misplaced[0])}, too:"
                " options are given by name, as in name='plant'"
            )
        if unknown:
            _refuse_keyword(type(self), unknown)
        environment = _environment(environment)
        instance = instance if instance is not None else os.environ.get("SPA_DAT_INSTANCE", "0")
        identity = Identity(
            application=(
                f"ephemeral-{environment.token(8)}"
                if name is None
                else check_name("application name", name)
            ),
            instance=check_name("instance", instance),
            ephemeral=name is None,
        )
        exporters = _exporters(metrics)
        admin_address = _admin_address(admin, admin_token)
        self._registry = Registry(default_socket_provider, codec)
        settings = Settings(
            identity=identity,
            environment=environment,
            stats=Counter(),
            provider=self._registry.provider,
            stop_timeout=stop_timeout,
            dead_letter_limit=dead_letter_limit,
            restart=restart,
            slow=slow_after,
            blocked=blocked_after,
            reply_topics=(
                None if reply_topics is None else parse_reply_topics("application", reply_topics)
            ),
            codec=codec,
            admin=admin_address,
            exporters=exporters,
            measurements=_measurements_for(exporters, admin_address),
            outbox=_outbox(outbox, identity),
            state_folder=None if state_folder is None else _folder(state_folder),
        )
        self._runs = Runs(self._registry, settings)
        tell_if_never_started(self, self._runs)
        self._background: Background | None = None

    def __reduce__(self) -> Never:
        """Raise TypeError: it cannot be in two processes."""
        raise TypeError(f"application {self.name!r} belongs to the process that it runs in")

    @property
    def environment(self) -> Environment:
        """Where time stamps, randomness and identifiers come from."""
        return self._runs.settings.environment

    @property
    def identity(self) -> Identity:
        """The application's identity on its buses."""
        return self._runs.settings.identity

    @property
    def stats(self) -> Counter[str]:
        """Counters by dotted name, for example ``messages.handled``."""
        return self._runs.settings.stats

    @property
    def name(self) -> str:
        """The application's name; a random one when it is ephemeral."""
        return self.identity.application

    # Registration.

    def producer(
        self,
        *misplaced: Never,
        socket_provider: ProviderLike | None = None,
        state: Any = None,
        ressources: Mapping[str, Resource] = {},
        name: str | None = None,
        every: float | None = None,
        deadline: float | None = None,
        wire: WireName | None = None,
        codec: Codec | None = None,
        placement: Literal["process"] | None = None,
        replace: bool | None = None,
        **unknown: Never,
    ) -> Callable[[F], F]:
        """Register a function that publishes by itself. Decorator; returns the function.

        Args:
            socket_provider: the bus; by default the application's.
            state: a factory, or one value that only this producer owns.
            ressources: context managers, or callables that return one, by parameter name.
            name: the actor's name; by default the function's.
            every: seconds from one call to the next, the first at once; calls never overlap, and
                one that raises does not stop later ones. None calls it once.
            deadline: seconds after which one call is cut off and counts as failed.
            wire: the format of what it publishes and requests; see `ActorOptions`.
            codec: encodes what it publishes, and reads replies; see `ActorOptions`.
            placement: ``process`` runs it in a child process; see `ActorOptions`.
            replace: as for `application`.

        Raises:
            ConfigurationError: the function or an option is wrong, or the name is taken.
        """
        if misplaced:
            raise ConfigurationError(
                f"producer() got {misplaced[0]!r}: write @app.producer(), with parentheses and"
                " options by name"
            )
        if unknown:
            _refuse_keyword(self.producer, unknown)
        self._registry.check_provider("producer", socket_provider)
        options = {
            "socket_provider": socket_provider,
            "state": state,
            "ressources": ressources,
            "every": every,
            "deadline": deadline,
            "wire": wire,
            "codec": codec,
            "placement": placement,
        }

        def register(function: F) -> F:
            self._runs.refuse("register a producer")
            self._registry.add_function(function, name, "producer", (), options, replace=replace)
            return function

        return register

    @overload
    def application(
        self, topics: Topic[T, R], **options: Unpack[RegistrationOptions]
    ) -> FunctionDecorator[T, R]: ...

    @overload
    def application(
        self,
        topics: str | Sequence[str | Topic[Any, Any]],
        **options: Unpack[RegistrationOptions],
    ) -> Callable[[F], F]: ...

    def application(
        self,
        topics: Topics = (),
        *misplaced: Never,
        socket_provider: ProviderLike | None = None,
        state: Any = None,
        ressources: Mapping[str, Resource] = {},
        name: str | None = None,
        replace: bool | None = None,
        **options: Unpack[HandlerOptions],
    ) -> Any:
        """Register a function that reacts to messages. Decorator; returns the function.

        Args:
            topics: one filter or several; ``+`` and ``{name}`` match one level, ``#`` all levels
                below. Type checkers check the function against the types of a `Topic`: its first
                parameter is the payload, or the message, and it returns the reply.
            socket_provider: the bus; by default the application's.
            state: a factory, or one value that only this actor owns.
            ressources: context managers, or callables that return one, by parameter name.
            name: the actor's name; by default the function's.
            replace: replace an actor of that name. By default only in an interactive session, and
                only if the other is an earlier version of the same function, so that a cell of a
                notebook can be run again.
            options: how the actor is run; see `ActorOptions`.

        Raises:
            ConfigurationError: a filter, a parameter or an option is wrong, or the name is taken.
        """
        if callable(topics) or topics == ():
            raise ConfigurationError(
                "application() needs topics: write @app.application('plant/temperature')"
            )
        if misplaced:
            raise ConfigurationError(
                f"application() got {quoted(misplaced[0])} after its topics: give several topics"
                " as a list, and options by name"
            )
        self._registry.check_provider("application", socket_provider)
        given = {"socket_provider": socket_provider, "state": state, "ressources": ressources}

        def register(function: F) -> F:
            self._runs.refuse("register an actor")
            self._registry.add_function(
                function, name, "application", topics, given | options, replace=replace
            )
            return function

        return register

    def on_reminder(self, actor: str, *names: str) -> Callable[[F], F]:
        """Register the handler of reminders of a durable function. Decorator; returns the function.

        In a class `on_reminder` marks a method. See `Context.remind`.

        Args:
            actor: the name of the actor, which is that of its function by default.
            names: the names of the reminders, at least one.

        Raises:
            ConfigurationError: there is no such actor, it is not durable, or a name or parameter is
                wrong.
        """
        # Not at the top: most applications have no durable actors.
        from ..registration._reminder_handlers import check_reminders

        check_reminders(f"on_reminder({actor!r}, ...)", names)

        def register(function: F) -> F:
            self._runs.refuse("register a handler of reminders")
            self._registry.add_reminder(actor, names, function)
            return function

        return register

    def add(self, cls: Callable[P, A], *args: P.args, **kwargs: P.kwargs) -> Spec[A]:
        """Register an actor class; the arguments are its constructor's.

        Options (``name``, ``retry``, ``mailbox``, ...) are class attributes of the same name, or
        are given with `configure`. In an interactive session a new version of a class replaces
        the earlier one.

        Raises:
            ConfigurationError: the class has no handlers, or one of them is wrong.
        """
        self._runs.refuse("add an actor")
        return self._registry.add_class(cls, args, kwargs)

    async def peek(self, actor: str, key: str) -> Any:
        """Return a copy of the state of a durable key as it was committed last; see `Spec.peek`.

        Args:
            actor: the name of the actor.
            key: the value of the capture.

        Raises:
            NotHere, StateUnreadable, StateNotWritten: as for `Spec.peek`.
            ConfigurationError: there is no such actor; or as for `Spec.peek`.
        """
        return await self._registry.find(actor).peek(key)

    def remove(self, actor: Spec[Any] | str) -> None:
        """Remove an actor, given by its name or by what `add` returned.

        Raises:
            ConfigurationError: there is no such actor, or the application is running.
        """
        self._runs.refuse("remove an actor")
        self._registry.remove(actor)

    def configure(self, spec: Spec[Any], *, name: str | None = None, **options: Any) -> None:
        """Change how a registered actor is run; the options are those of `ActorOptions`.

        Raises:
            ConfigurationError: an option is unknown, or the application is running.
        """
        self._runs.refuse("configure an actor")
        if spec not in self._registry.specs:
            raise ConfigurationError(f"{spec!r} is not registered with application {self.name!r}")
        self._registry.configure(spec, name, options)

    def resource(self, name: str, factory: Resource) -> None:
        """Open a resource when the application starts, for every actor that asks for it by name.

        Register it before the actors that use it. In an interactive session a new version of a
        function or class (with the same module and name) replaces the earlier one.

        Raises:
            ConfigurationError: the name is taken or not an identifier, or it cannot be opened.
        """
        self._runs.refuse("register a resource")
        self._registry.add_resource(name, factory)

    if not TYPE_CHECKING:
        # Hidden from type checkers, so that they notice names that do not exist.

        def __getattr__(self, name: str) -> Any:
            # Only a wrong name needs it.
            from ..options._names_elsewhere import advice_on_attribute

            advice = advice_on_attribute(name)
            if advice is None:
                # Once more, for the error of a property that has raised an AttributeError itself.
                return object.__getattribute__(self, name)
            raise AttributeError(f"DistributedApplication has no {name!r}: {advice}")

    def use(self, middleware: Middleware) -> None:
        """Call every handler through the middleware, and show it everything that is published.

        The first that is registered is outermost, and sees first what is published. Actors with
        ``placement="process"`` have a copy of it in each of their processes.

        Raises:
            ConfigurationError: it is no `Middleware`, or it is registered already, or the
                application is running.
        """
        self._runs.refuse("register middleware")
        known, checked = self._runs.settings.middleware, check_middleware(middleware)
        if any(one is checked for one in known):
            raise ConfigurationError(
                f"use({type(checked).__name__}()): it is registered already; give another instance"
                " to have it twice"
            )
        known.append(checked)

    def asyncapi(
        self,
        *,
        title: str | None = None,
        version: str | None = None,
        description: str | None = None,
    ) -> dict[str, Any]:
        """Return the AsyncAPI 3.0 document of what is registered, to be written as JSON or YAML.

        It says what the application receives, replies and sends, where, and in which format. It is
        the same for every instance, and has no secrets. No connection is opened.

        Args:
            title: by default the application's name.
            version: by default that of the installed package that all actors come from, or 0.0.0
                if there is not exactly one.
            description: by default the summary of that package.
        """
        # Hardly any program needs it.
        from ..description._asyncapi import asyncapi_document

        return asyncapi_document(
            self.identity,
            self._runs.settings.provider,
            self._registry.specs,
            title=title,
            version=version,
            description=description,
        )

    # Running.

    @property
    def healthy(self) -> bool:
        """Whether it is running and has no `problems`."""
        return not self.problems

    @property
    def problems(self) -> dict[str, str]:
        """Why it is not `healthy`: what is wrong, in words; empty when nothing is.

        The keys are names of actors, addresses of buses, or the application's own name for what
        concerns all of it. Reading it is cheap enough for a health check.
        """
        # Other threads may read this while the application ends.
        run = self._runs.of_this_process
        if run is None:
            return {self.name: self._runs.problem_at_rest}
        return run.health_report.problems

    def health(self) -> Health:
        """Return the state of the application at this moment, as an object that does not change.

        It says what is wrong, and for each actor and connection how it is doing; see `Health`. Any
        thread may call it at any time. It costs in proportion to the number of actors and of
        messages that are here; messages cost nothing while nobody asks.
        """
        run = self._runs.of_this_process
        return self._runs.health_at_rest if run is None else run.health_report.health

    @property
    def stop_report(self) -> StopReport | None:
        """What became of the messages of the latest run; None until that has stopped.

        It says what was handled, stored as dead letters, handed back to the bus and given up; see
        `StopReport`.
        """
        last = self._runs.last
        return None if last is None else last.stop_report

    async def start(self) -> None:
        """Start: connect, open resources, subscribe, start the actors, then the producers.

        Prefer ``async with``, which also stops it. This is for notebooks, and for programs whose
        start and end are in two places; the other one calls `aclose`.

        Raises:
            ConfigurationError: the program is wrong, or a resource failed to open.
            ConnectFailed, NotAuthorised: the bus cannot be used.
            RestartLimitReached: an actor failed to start.
            ActorStopped: it was stopped in the meantime.
        """
        await self._runs.start()
        self._runs.begin()

    async def __aenter__(self) -> Self:
        """Start: see `start`, which raises the same."""
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop: see `aclose`. Cancel scopes of anyio around the block do not cut that short.

        Raises:
            Exception: what the application failed with, unless `wait` has raised it already or the
                block is left by another exception.
        """
        run = self._runs.current
        with shielded_from_scopes():
            await self.aclose()
        failure = None if run is None else run.reason.failure_to_raise
        if error is None and failure is not None:
            raise failure

    def __enter__(self) -> Self:
        """Start on an event loop in a thread of its own, and return when it has started.

        This is for programs without an event loop, such as WSGI servers; they use `sync_socket`.
        Everything that belongs to the loop runs in that thread.

        Raises:
            ConfigurationError: it is running already, or an event loop is running here.
            Exception: what `start` raises.
        """
        from ._background import Background

        self._runs.refuse("start")
        background = Background(self)
        background.start()
        self._background = background
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop, and return when it has stopped; see `aclose` for how long that may take.

        Raises:
            Exception: what the application failed with, unless another exception leaves the block.
        """
        background, self._background = self._background, None
        failure = None if background is None else background.stop()
        if error is None and failure is not None:
            raise failure

    def socket(self, *, socket_provider: ProviderLike | None = None) -> Socket:
        """Return a socket that belongs to no actor, for one of the buses in use.

        It can publish and request while the application is running. It cannot subscribe; that is
        what actors are for. A post that a handler makes with it counts as the handler's own: the
        handler's message is settled only when the post is confirmed, even if by another bus.

        Args:
            socket_provider: a bus that an actor uses; by default the application's.

        Raises:
            ConfigurationError: the application is not running, or does not use this bus.
        """
        return self._started_run().socket(_provider(socket_provider))

    def sync_socket(self, *, socket_provider: ProviderLike | None = None) -> SyncSocket:
        """Return a blocking socket for threads that the program has started itself.

        Call this, and use the socket, in any thread except that of the event loop, while the
        application is running. Otherwise like `socket`.

        Args:
            socket_provider: as for `socket`.

        Raises:
            ConfigurationError: as `socket`.
        """
        return self._started_run().sync_socket(_provider(socket_provider))

    def _started_run(self) -> Run:
        run = self._runs.current
        if run is None:
            text = f"application {self.name!r} is not running{self._runs.why}"
            if self._runs.last is None:
                text += ": it has not been started yet"
            raise ConfigurationError(
                f"{text}; use its socket between 'await app.start()' and 'await app.aclose()', or"
                " inside 'async with app:', which a web server has in its lifespan"
            )
        return run

    async def wait(self) -> None:
        """Wait until there is a reason to stop the application.

        That is when `stop` is called, or when it has only producers and all of them have ended.

        Raises:
            Exception: what it failed with, for example what a one-shot producer raised.
        """
        run = self._runs.current
        if run is None:
            raise ConfigurationError(f"application {self.name!r} is not running{self._runs.why}")
        run.refuse_other_loop("wait()")
        await run.wait()

    def stop(self) -> None:
        """Make `wait`, and with it `run`, return. Works from any thread.

        A start in progress gets ``stop_timeout`` seconds to succeed and is then given up.
        """
        run = self._runs.current
        if run is not None:
            with contextlib.suppress(RuntimeError):  # its loop is closed
                run.request_stop()

    def pause(self, actor: Spec[Any] | str) -> None:
        """Have an actor take no more messages from its mailbox until `resume`.

        The current message is finished. Messages wait in the mailbox and, once its window is full,
        with the broker; a producer makes no more calls. The pause is one of the `problems`.
        Stopping the application or the actor ends it. Works from any thread.

        Args:
            actor: its name, or what `add` returned.

        Raises:
            ConfigurationError: there is no such actor, it has ended, or the application is not
                running.
        """
        self._started_run().controls.do("pause", _name_of(actor))

    def resume(self, actor: Spec[Any] | str) -> None:
        """Have a paused actor go on; see `pause`. Works from any thread."""
        self._started_run().controls.do("resume", _name_of(actor))

    def restart(self, actor: Spec[Any] | str) -> None:
        """Give an actor a new instance and a new state after its current message.

        ``on_stop`` of the old instance is called, then ``on_start`` of the new one; if that fails,
        it is tried again as at the start. The mailbox and the subscription stay, and a paused actor
        stays paused. A handler that is stuck is not ended. Works from any thread.

        Args:
            actor: its name, or what `add` returned.

        Raises:
            ConfigurationError: as for `pause`; or it runs in child processes.
        """
        self._started_run().controls.do("restart", _name_of(actor))

    async def aclose(self) -> None:
        """Stop: producers first, then intake; running handlers get ``stop_timeout`` seconds.

        Messages that no handler has started on stay with the bus. Calling it again does nothing.
        When one of the application's own actors calls it, it does not wait for the end, because
        stopping waits for that actor.
        """
        await self._runs.stop()

    def run(self, *, loop_factory: LoopFactory | None = None) -> None:
        """Run until SIGTERM, SIGINT, or until there is nothing left to do; then stop and return.

        See `spa_dat.run`, which does the same for several applications and explains
        ``loop_factory``.

        Raises:
            SystemExit: with the reason, when the application could not start, failed, or did not
                stop cleanly.
        """
        from ._program import run

        run(self, loop_factory=loop_factory)

    def __repr__(self) -> str:
        return f"<DistributedApplication {self.name!r} instance {self.identity.instance!r}>"


def _environment(given: object) -> Environment:
    if given is None:
        return Environment()
    if not isinstance(given, Environment):
        raise ConfigurationError(
            f"environment={quoted(given)}: give an Environment, which says where time stamps,"
            " randomness and identifiers come from, or None; name= and instance= tell copies of an"
            " application apart, and prefix= of a KafkaConfig stands before all names on a cluster"
        )
    return given


def _outbox(given: object, identity: Identity) -> OutboxFile | None:
    if given is None:
        return None
    # Not at the top: only who asks for it pays for it.
    from ...transports._outbox_options import outbox_file_meant

    options = outbox_file_meant(given)
    if identity.ephemeral:
        raise ConfigurationError(
            "outbox='file' needs an application with a name, which finds its file again after a"
            " restart: give name="
        )
    return options


def _folder(given: object) -> str:
    if not isinstance(given, str | os.PathLike):
        raise ConfigurationError(f"state_folder={given!r:.200}: give the path of a folder")
    return str(os.fspath(given))


def runs_of(application: DistributedApplication) -> Runs:
    """Return the runs of an application, for code that runs it differently or observes it."""
    return application._runs


def _admin_address(text: str | None, token: str | None) -> AdminAddress | None:
    if text is None and not os.environ.get("SPA_DAT_ADMIN"):
        return None
    # Only who asks for it needs it.
    from ..options._admin_address import AdminAddress

    return AdminAddress.given(text, token)


def _name_of(actor: Spec[Any] | str) -> str:
    return actor if isinstance(actor, str) else actor.name


def _exporters(given: str | Sequence[str] | None) -> tuple[Exporter, ...]:
    if given is None and not os.environ.get("SPA_DAT_METRICS"):
        return ()
    # Only who asks for it needs it.
    from ..options._exporters import exporters_given

    return exporters_given(given)


def _measurements_for(
    exporters: tuple[Exporter, ...], admin: AdminAddress | None
) -> Measurements | None:
    if not exporters and admin is None:
        return None
    # Only who asks for it needs it.
    from ..metrics._measurements import Measurements

    # To tell OpenTelemetry of one duration takes longer than to handle a message.
    return Measurements(5, 2048) if "opentelemetry" in exporters else Measurements()


def _provider(given: ProviderLike | None) -> SocketProvider | None:
    return None if given is None else as_provider(given)


def _refuse_keyword(call: Callable[..., object], unknown: Mapping[str, object]) -> Never:
    raise ConfigurationError(unexpected_keyword(call.__name__, min(unknown), keywords_of(call)))
