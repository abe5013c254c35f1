"""Applications as programs: signals, exit codes and what stands on standard error."""

from __future__ import annotations

import signal
import threading

import pytest

from spa_dat import DistributedApplication, Socket, run
from spa_dat.errors import ConfigurationError
from support.program import Start


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains_and_the_program_ends_well(start: Start, number: signal.Signals) -> None:
    program = start(
        """
        app = DistributedApplication("memory://", name="plant")

        @app.application("a", ressources={"db": resource})
        async def handler(payload: str, socket: Socket) -> None:
            say("handling")
            await asyncio.sleep(0.5)
            await socket.publish("out", "x")
            say("handled")

        @app.producer()
        async def produce(socket: Socket) -> None:
            await socket.publish("a", "x")

        app.run()
        say("after run")
        """
    )
    program.read_until("handling")
    program.signal(number)
    assert program.end() == (0, ["handled", "close", "after run"], "")


def test_a_second_signal_ends_the_program_at_once(start: Start) -> None:
    program = start(
        """
        logging.basicConfig(level="INFO", stream=sys.stdout, format="%(message)s")
        app = DistributedApplication("memory://", name="plant", stop_timeout=1000)

        @app.application("a")
        def handler(payload: str) -> None:
            say("handling")
            time.sleep(1000)

        @app.producer()
        async def produce(socket: Socket) -> None:
            await socket.publish("a", "x")

        app.run()
        """
    )
    program.read_until("handling")
    program.signal(signal.SIGTERM)
    program.read_until("SIGTERM: stopping; a second signal ends the program at once")
    program.signal(signal.SIGINT)
    code, said, _ = program.end()
    assert code == 128 + signal.SIGINT
    assert said == ["SIGINT again: ending at once"]


def test_a_signal_during_the_start_ends_it(start: Start) -> None:
    program = start(
        """
        app = DistributedApplication("memory://", name="plant")

        @contextlib.asynccontextmanager
        async def hanging():
            say("hanging")
            await asyncio.sleep(1000)
            yield

        @app.application("a", ressources={"one": resource, "two": hanging})
        async def handler(payload: str) -> None: ...

        app.run()
        """
    )
    program.read_until("hanging")
    program.signal(signal.SIGTERM)
    assert program.end() == (0, ["close"], "")


@pytest.mark.parametrize("hangs", ["on_start", "resource"])
def test_stop_ends_a_start_that_hangs(start: Start, hangs: str) -> None:
    program = start(
        f"""
        app = DistributedApplication("memory://", name="plant", stop_timeout=0.5)

        async def hang(where):
            if where == {hangs!r}:
                say("hanging")
                try:
                    await asyncio.sleep(1000)
                except asyncio.CancelledError:
                    say("cancelled")
                    raise

        @contextlib.asynccontextmanager
        async def hanging():
            await hang("resource")
            yield

        class Boiler(Actor):
            topics = "a"

            async def on_start(self) -> None:
                await hang("on_start")

            async def on_message(self, payload: str) -> None: ...

        app.resource("used", hanging)
        app.configure(app.add(Boiler), ressources={{"one": resource}})
        threading.Timer(1.0, app.stop).start()
        app.run()
        """.replace("app = ", "import threading; app = ", 1)
    )
    code, said, error = program.end()
    if hangs == "resource":
        assert (code, said, error) == (0, ["hanging", "cancelled"], "")
    else:
        assert (code, said) == (1, ["open", "hanging", "cancelled", "close"])
        assert error.endswith(
            "spa_dat: not stopped cleanly: actor 'Boiler' did not finish in time and was cut off\n"
        )


def test_a_handler_that_exits_while_a_signal_stops_the_program_has_the_last_word(
    start: Start,
) -> None:
    program = start(
        """
        app = DistributedApplication("memory://", name="plant")

        @app.application("a")
        async def handler(payload: str) -> None:
            say("handling")
            await asyncio.sleep(0.5)
            sys.exit(3)

        @app.producer()
        async def produce(socket: Socket) -> None:
            await socket.publish("a", "x")
            await asyncio.sleep(1000)

        app.run()
        """
    )
    program.read_until("handling")
    program.signal(signal.SIGTERM)
    assert program.end()[0] == 3


def test_a_producer_that_raises_drains_and_gives_exit_code_1_and_one_traceback(
    start: Start,
) -> None:
    program = start(
        """
        app = DistributedApplication("memory://", name="plant")

        @app.application("a", ressources={"db": resource})
        async def handler(payload: str) -> None:
            say("handling")
            await asyncio.sleep(0.2)
            say("handled")

        @app.producer()
        async def produce(socket: Socket) -> None:
            await socket.publish("a", "x")
            await asyncio.sleep(0.05)
            raise ValueError("no sensor")

        app.run()
        """
    )
    code, said, error = program.end()
    assert (code, said) == (1, ["open", "handling", "handled", "close"])
    assert error.count("Traceback") == 1
    assert error.count("ValueError: no sensor") <= 2


@pytest.mark.parametrize("base", ["Exception", "BaseException"])
def test_an_error_of_no_usual_kind_ends_the_program_too(start: Start, base: str) -> None:
    program = start(
        f"""
        app = DistributedApplication("memory://", name="plant")

        class Broken({base}):
            def __str__(self):
                raise RuntimeError("no text")

            __repr__ = __str__

        @app.producer()
        async def produce() -> None:
            raise Broken

        app.run()
        """
    )
    code, _, error = program.end()
    assert code == 1
    assert "producer 'produce' failed: Broken: (its text is not available" in error


def test_an_actor_that_exits_while_it_starts_ends_the_program_at_once(start: Start) -> None:
    program = start(
        """
        app = DistributedApplication("memory://", name="plant")

        class Boiler(Actor):
            def on_start(self) -> None:
                say("starts")
                sys.exit(7)

            @on("a")
            def measured(self, payload: str) -> None: ...

        app.add(Boiler)
        app.run()
        """
    )
    code, said, _ = program.end()
    assert (code, said) == (7, ["starts"])


def test_a_mistake_in_the_program_is_one_line_and_exit_code_1(start: Start) -> None:
    program = start(
        """
        app = DistributedApplication("memory://", name="plant")

        def failing():
            raise OSError("no such host")

        @app.application("a", ressources={"one": resource, "two": failing})
        def handler(payload: str) -> None: ...

        app.run()
        """
    )
    code, said, error = program.end()
    assert (code, said) == (1, ["open", "close"])
    assert error == (
        "spa_dat: ConfigurationError: actor 'handler': resource 'two' failed to open:"
        " OSError: no such host\n"
    )


def test_a_bus_that_can_not_be_reached_is_one_line_and_exit_code_1(start: Start) -> None:
    program = start(
        """
        app = DistributedApplication("mqtt://127.0.0.1:1?start_timeout=0.3", name="plant")

        @app.application("a")
        def handler(payload: str) -> None: ...

        app.run()
        """
    )
    code, said, error = program.end()
    assert (code, said) == (1, [])
    assert "127.0.0.1:1" in error
    assert "Traceback" not in error
    assert error.count("\n") == 1


def test_an_actor_that_never_starts_gives_exit_code_1_without_a_flood_of_tracebacks(
    start: Start,
) -> None:
    program = start(
        """
        app = DistributedApplication(
            "memory://", name="plant", restart=RestartPolicy(intensity=3, backoff_min=0.01)
        )

        class Boiler(Actor):
            ressources = {"db": resource}

            async def on_start(self) -> None:
                raise ConnectionError("no boiler")

            @on("a")
            async def measured(self, payload: str) -> None: ...

        app.add(Boiler)
        app.run()
        """
    )
    code, said, error = program.end()
    assert (code, said) == (1, ["open", "close"])
    assert error.splitlines()[-1].startswith("spa_dat: RestartLimitReached: actor 'plant/0/Boiler'")
    assert error.count("Traceback") <= 1


def test_a_handler_that_exits_ends_the_program(start: Start) -> None:
    program = start(
        """
        app = DistributedApplication("memory://", name="plant")

        @app.application("a")
        async def handler(payload: str) -> None:
            sys.exit(3)

        @app.producer()
        async def produce(socket: Socket) -> None:
            await socket.publish("a", "x")

        app.run()
        """
    )
    code, _, error = program.end()
    assert code == 3
    assert error.count("Traceback") <= 1


@pytest.mark.parametrize("kind", ["async", "on the loop", "in a thread"])
@pytest.mark.parametrize("how", ["signal", "stop", "start fails"])
def test_a_resource_that_exits_while_it_is_closed_gives_the_exit_code(
    start: Start, kind: str, how: str
) -> None:
    program = start(
        f"""
        app = DistributedApplication(
            "memory://", name="plant", restart=RestartPolicy(intensity=1, backoff_min=0.01)
        )
        kind, how = {kind!r}, {how!r}

        class Exits:
            def __enter__(self):
                return self

            def __exit__(self, *exception):
                sys.exit(3)

        class ExitsAsync:
            async def __aenter__(self):
                return self

            async def __aexit__(self, *exception):
                sys.exit(3)

        resources = {{
            "first": resource, "exits": ExitsAsync if kind == "async" else Exits, "last": resource,
        }}
        if kind == "in a thread":
            @app.application("a", ressources={{"exits": Exits}})
            def handle(payload: str) -> None:
                pass

            resources.pop("exits")

        @app.application("b", ressources=resources)
        async def handle_async(payload: str) -> None:
            pass

        @app.producer()
        async def produce() -> None:
            say("running")
            if how == "stop":
                app.stop()
            await asyncio.sleep(1000)

        if how == "start fails":
            class Fails(Actor):
                async def on_start(self) -> None:
                    raise ConnectionError("no boiler")

                @on("c")
                async def measured(self, payload: str) -> None: ...

            app.add(Fails)

        app.run()
        """
    )
    if how == "signal":
        program.read_until("running")
        program.signal(signal.SIGTERM)
    code, said, error = program.end()
    assert code == (1 if how == "start fails" else 3)
    assert said.count("close") == 2
    assert "'exits' of actor" in error
    assert ("spa_dat: RestartLimitReached" in error) == (how == "start fails")


@pytest.mark.parametrize(
    ("statement", "end", "line"),
    [
        (
            "asyncio.get_running_loop().stop(); await asyncio.sleep(1)",
            1,
            "spa_dat: code of the program has stopped the event loop (loop.stop);",
        ),
        (
            "[task.cancel() for task in asyncio.all_tasks() if '_serve' in repr(task)]",
            1,
            "spa_dat: code of the program has cancelled the task of run();",
        ),
        ("asyncio.get_running_loop().call_soon(raise_interrupt); await asyncio.sleep(1)", 130, ""),
    ],
    ids=["loop.stop", "cancel", "interrupt"],
)
def test_what_ends_the_event_loop_itself_ends_the_program_in_good_order_with_one_line(
    start: Start, statement: str, end: int, line: str
) -> None:
    program = start(
        f"""
        app = DistributedApplication("memory://", name="plant")

        def raise_interrupt():
            raise KeyboardInterrupt

        class Boiler(Actor):
            @on("a")
            async def measured(self, payload: str) -> None:
                {statement}

            async def on_stop(self) -> None:
                say("on_stop")

        app.add(Boiler)

        @app.producer()
        async def produce(socket: Socket) -> None:
            await socket.publish("a", "x")

        app.run()
        """
    )
    code, said, errors = program.end()
    assert (code, said) == (end, ["on_stop"])
    assert errors.startswith(line)
    assert "Traceback" not in errors


def test_several_applications_run_together_and_producers_find_everybody_listening(
    start: Start,
) -> None:
    program = start(
        """
        sender = DistributedApplication("memory://hall", name="sender")
        receiver = DistributedApplication("memory://hall", name="receiver")

        @sender.producer(ressources={"db": resource})
        async def produce(socket: Socket) -> None:
            await socket.publish("a", "x")
            say("sent")

        @receiver.application("a")
        async def handler(payload: str) -> None:
            say("received", payload)
            receiver.stop()

        run(sender, receiver)
        say("after run")
        """
    )
    code, said, error = program.end()
    assert (code, error) == (0, "")
    assert said[0] == "open"
    assert sorted(said[1:3]) == ["received x", "sent"]
    assert said[3:] == ["close", "after run"]


def test_several_applications_that_each_have_a_memory_bus_of_their_own_are_told(
    start: Start,
) -> None:
    text = """
        first, second = (DistributedApplication({bus!r}, name=name) for name in ("one", "two"))

        @first.producer()
        async def produce() -> None: ...

        @second.producer()
        async def also() -> None: ...

        run(first, second)
        """
    _, _, error = start(text.format(bus="memory://")).end()
    assert error.startswith("the applications 'one', 'two' each have a memory:// of their own")
    assert error.endswith("as in memory://one\n")
    assert start(text.format(bus="memory://plant")).end() == (0, [], "")


def test_when_one_of_several_can_not_start_the_others_are_stopped(start: Start) -> None:
    program = start(
        """
        first = DistributedApplication("memory://hall", name="same")
        second = DistributedApplication("memory://hall", name="same")

        for app in (first, second):
            @app.application("a", ressources={"db": resource})
            async def handler(payload: str) -> None: ...

            @app.producer()
            async def produce(socket: Socket) -> None:
                say("never")

        run(first, second)
        """
    )
    code, said, error = program.end()
    assert (code, said) == (1, ["open", "close"])
    assert error.count("\n") == 1
    assert "already running" in error


def test_two_that_fail_at_once_are_both_reported_and_nothing_else(start: Start) -> None:
    program = start(
        """
        apps = [DistributedApplication("memory://", name=name) for name in ("one", "two")]
        for app in apps:
            @app.producer()
            async def produce(context: Context) -> None:
                raise ValueError("no sensor in " + context.app)

        run(*apps)
        """
    )
    code, _, error = program.end()
    assert code == 1
    assert error.count("Traceback") <= 2
    assert "never retrieved" not in error


def test_run_returns_when_the_producers_have_ended() -> None:
    app = DistributedApplication("memory://", name="plant")
    published: list[str] = []

    @app.producer()
    async def produce(socket: Socket) -> None:
        socket.post("a", "x")
        published.append("x")

    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    app.run()
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
    app.run()
    run(app)
    assert published == ["x"] * 3


async def test_run_on_a_running_loop_says_what_to_do_instead() -> None:
    app = DistributedApplication("memory://", name="plant")
    with pytest.raises(ConfigurationError, match="async with app"):
        app.run()


def test_run_outside_the_main_thread_says_what_to_do_instead() -> None:
    app = DistributedApplication("memory://", name="plant")
    caught: list[BaseException] = []

    def call() -> None:
        try:
            app.run()
        except BaseException as error:
            caught.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    thread.join(10)
    assert isinstance(caught[0], ConfigurationError)
    assert "main thread" in str(caught[0])


async def test_embedding_installs_no_signal_handlers() -> None:
    app = DistributedApplication("memory://", name="plant")
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)

    @app.application("a")
    async def handler(payload: str) -> None: ...

    async with app:
        assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


@pytest.mark.parametrize(
    ("program", "text"),
    [
        (
            """
        class Tracker(Actor):
            @on("in")
            async def f(self, p: int) -> None: ...

        DistributedApplication("memory://", name="empty").run()
            """,
            "nothing is registered with application 'empty'",
        ),
        ("run()", "run() got no application"),
    ],
)
def test_a_program_with_nothing_to_do_is_told_so(start: Start, program: str, text: str) -> None:
    code, said, error = start(program).end()
    assert (code, said) == (1, [])
    assert error.startswith(f"spa_dat: ConfigurationError: {text}")
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("setting", "call"),
    [
        ("asyncio.set_event_loop_policy(Policy())", "app.run()"),
        ("", "app.run(loop_factory=Loop)"),
        ("", "run(app, loop_factory=Loop)"),
    ],
)
def test_the_event_loop_that_the_program_has_chosen_is_used(
    start: Start, setting: str, call: str
) -> None:
    program = start(
        f"""
        import warnings
        warnings.simplefilter("ignore", DeprecationWarning)

        class Loop(asyncio.SelectorEventLoop):
            pass

        class Policy(asyncio.DefaultEventLoopPolicy):
            def new_event_loop(self):
                return Loop()

        {setting}
        app = DistributedApplication("memory://", name="plant")

        @app.producer()
        async def produce() -> None:
            say(type(asyncio.get_running_loop()).__name__)

        {call}
        """
    )
    assert program.end() == (0, ["Loop"], "")


def test_a_program_runs_and_stops_on_uvloop(start: Start) -> None:
    program = start(
        """
        import warnings, uvloop
        warnings.simplefilter("ignore", DeprecationWarning)
        uvloop.install()
        app = DistributedApplication("memory://", name="plant")

        @app.application("double")
        async def double(number: int) -> int:
            return 2 * number

        @app.application("triple")
        def triple(number: int) -> int:
            return 3 * number

        @app.producer()
        async def produce(socket: Socket) -> None:
            doubled = await socket.request("double", 1, reply=int)
            say(type(asyncio.get_running_loop()).__module__, doubled)
            say(await socket.request("triple", 1, reply=int))
            await asyncio.sleep(1000)

        app.run()
        """
    )
    program.read_until("3")
    program.signal(signal.SIGTERM)
    assert program.end() == (0, [], "")
