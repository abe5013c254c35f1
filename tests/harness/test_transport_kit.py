"""The transport kit, on a transport that is not the package's own."""

from __future__ import annotations

import ast
import asyncio
import importlib
import inspect
import subprocess
import sys
import textwrap
from typing import Any

import msgspec
import pytest

import support.shelf
import support.shelf_transport
from spa_dat import DistributedApplication, Socket
from spa_dat.testing import Harness
from spa_dat.testing.conformance import (
    ConformanceSuite,
    TransportHarness,
    VirtualEnvironment,
    VirtualLoop,
)
from spa_dat.transports import Delivery, Envelope, Receiver, SocketProvider, Subscription, Tracker
from support.shelf import Box, Shelf, Stored
from support.shelf_transport import ShelfBus, ShelfConsumer, ShelfProvider

pytest_plugins = ("pytester",)


class ShelfHarness(TransportHarness):
    """A shelf needs no network, so its tests need no time.

    Args:
        parts: what to use in place of parts of the broker and of the transport.
    """

    counts_bytes = False
    has_qos_0 = False
    has_retained = False
    keeps_all = True
    keeps_filters = False
    tells_no_responder = False

    def __init__(self, *parts: type) -> None:
        super().__init__()
        self.environment = VirtualEnvironment(1)
        self._box = next((part for part in parts if issubclass(part, Box)), Box)
        self._bus = next((part for part in parts if issubclass(part, ShelfBus)), ShelfBus)
        consumers = [part for part in parts if issubclass(part, ShelfConsumer)]
        if consumers:
            self._bus = type("Bus", (self._bus,), {"consumer_type": consumers[0]})

    def new_loop(self) -> asyncio.AbstractEventLoop:
        return VirtualLoop()

    async def start_broker(self) -> None:
        self.shelf = Shelf(self._box)

    async def stop_broker(self) -> None:
        """Do nothing: the broker goes with the event loop."""

    def provider(self, **options: Any) -> SocketProvider:
        return ShelfProvider(self.shelf, self._bus, **options)

    async def cut(self) -> None:
        for line in list(self.shelf.lines.values()):
            self.shelf.cut(line)

    async def go_away(self) -> None:
        self.shelf.refuses = True
        await self.cut()

    async def come_back(self) -> None:
        self.shelf.refuses = False


def test_applications_and_their_test_harness_take_it_as_any_other() -> None:
    app = DistributedApplication(ShelfProvider(Shelf()), name="plant")

    @app.application("plant/{machine}/temperature")
    async def watch(celsius: float, machine: str, socket: Socket) -> None:
        await socket.publish("plant/alarms", f"{machine}: {celsius}")

    with Harness(app) as harness:
        harness.publish("plant/boiler/temperature", 95.0)
        harness.settle()
        assert harness.published("plant/alarms") == ["boiler: 95.0"]


class TestShelf(ConformanceSuite):
    @pytest.fixture
    def harness(self) -> TransportHarness:
        return ShelfHarness()


# The same transport with mistakes.


class AcknowledgesAtReceipt(ShelfConsumer):
    def arrived(self, envelope: Envelope, number: int) -> None:
        super().arrived(envelope, number)
        self.acknowledge(number)


class ForgetsWhatRuns(ShelfConsumer):
    def resume(self, *, kept: bool) -> None:
        super().resume(kept=kept)
        self.earlier.clear()


class KeepsSilent(ShelfConsumer):
    def lost(self) -> None:
        self._connected.clear()


class HidesItsTrouble(ShelfConsumer):
    trouble = None


class AcknowledgesPastGaps(ShelfConsumer):
    def __init__(self, bus: ShelfBus, subscription: Subscription, receiver: Receiver) -> None:
        super().__init__(bus, subscription, receiver)
        self.tracker = _UpToHere(self.release)


class _UpToHere(Tracker):
    def settled(self, delivery: Delivery) -> None:
        self._release([d for d in self.unreleased() if d.token <= delivery.token])


class IgnoresTheWindow(ShelfConsumer):
    def connect(self) -> None:
        super().connect()
        assert self.line is not None
        self.line.window = 1_000
        self.line.changed()


class LeavesEventsClosed(ShelfConsumer):
    """Hands out documents as they come."""

    def arrived(self, envelope: Envelope, number: int) -> None:
        super().arrived(msgspec.structs.replace(envelope, content_type="text/plain"), number)


class BringsNoNewFilters(ShelfConsumer):
    def __init__(self, bus: ShelfBus, subscription: Subscription, receiver: Receiver) -> None:
        super().__init__(bus, subscription, receiver)
        self._declared = dict(self.filters)

    def connect(self) -> None:
        self.filters = dict(self._declared)
        super().connect()


class NeverComplains(ShelfConsumer):
    def on_lost(self, taken_over: bool) -> None:
        super().on_lost(False)


class NeverGivesUp(ShelfBus):
    consumer_type = NeverComplains

    def on_lost(self, taken_over: bool) -> None:
        super().on_lost(False)


class MixesReplies(ShelfBus):
    def arrived(self, envelope: Envelope, number: int) -> None:
        correlation = (envelope.correlation or b"").decode()
        super().arrived(Envelope(topic=self.inbox + correlation, payload=envelope.payload), number)


class ConfirmsTooEarly(ShelfBus):
    def post(self, envelope: Envelope) -> asyncio.Future[None]:
        if self.line is not None:
            return super().post(envelope)
        done = asyncio.get_running_loop().create_future()
        done.set_result(None)
        return done


class PutsBackAtTheEnd(Box):
    def put_back(self, unsettled: list[Stored], waiting: list[Stored]) -> list[Stored]:
        return [*waiting, *unsettled]


def catching(mistake: type, test: str, **arguments: Any) -> Any:
    return pytest.param(mistake, test, arguments, id=mistake.__name__)


@pytest.mark.parametrize(
    ("mistake", "test", "arguments"),
    [
        catching(AcknowledgesAtReceipt, "test_what_is_not_settled_comes_again_after_a_cut"),
        catching(AcknowledgesPastGaps, "test_settling_out_of_order_runs_nothing_twice"),
        catching(BringsNoNewFilters, "test_changed_filters_survive_a_reconnect", durable=False),
        catching(ConfirmsTooEarly, "test_what_is_published_while_the_broker_is_away_arrives_later"),
        catching(ForgetsWhatRuns, "test_a_running_handler_settles_what_comes_again_meanwhile"),
        catching(HidesItsTrouble, "test_what_keeps_messages_from_arriving_is_told"),
        catching(IgnoresTheWindow, "test_no_more_than_the_window_is_unsettled"),
        catching(KeepsSilent, "test_hold_and_resume_say_whether_it_comes_again", durable=True),
        catching(LeavesEventsClosed, "test_an_event_in_structured_mode_is_opened"),
        catching(MixesReplies, "test_every_reply_is_handed_over_also_late_and_twice"),
        catching(NeverGivesUp, "test_two_programs_with_one_identity_end_with_an_error"),
        catching(
            PutsBackAtTheEnd,
            "test_what_waits_behind_the_window_stays_behind_what_comes_again",
        ),
    ],
)
def test_a_mistake_is_caught(mistake: type, test: str, arguments: dict[str, Any]) -> None:
    suite = ConformanceSuite()
    getattr(suite, test)(ShelfHarness(), **arguments)
    with pytest.raises(AssertionError):
        getattr(suite, test)(ShelfHarness(mistake), **arguments)


async def _waits_for_ever() -> None:
    await asyncio.Event().wait()


def test_what_hangs_is_ended() -> None:
    with pytest.raises(AssertionError, match="over its deadline of 120 s"):
        ShelfHarness().run(_waits_for_ever())


MINE = """
    import asyncio

    import pytest

    from spa_dat.testing.conformance import ConformanceSuite, TransportHarness, Replies, scenario
    from spa_dat.transports import MemoryConfig, MemoryProvider


    class MyHarness(TransportHarness):
        tells_correlation = True

        async def start_broker(self): ...

        async def stop_broker(self): ...

        def provider(self, **options):
            return MemoryProvider(MemoryConfig(name="mine", **options))

        async def cut(self): ...

        async def go_away(self): ...

        async def come_back(self): ...


    class TestMine(Replies):
        @pytest.fixture
        def harness(self):
            return MyHarness()

        @scenario
        async def test_of_my_own(self, harness):
            asyncio.create_task(asyncio.Event().wait(), name="left behind")


    class TestNothing(Replies):
        pass
"""


MISTAKEN = """
    import pytest

    from spa_dat.testing.conformance import Replies, TransportHarness
    from mine import MyHarness


    class Forgetful(MyHarness):
        def __init__(self):
            self.port = 1


    class TestForgetful(Replies):
        @pytest.fixture
        def harness(self):
            return Forgetful()


    class TestClass(Replies):
        @pytest.fixture
        def harness(self):
            return MyHarness


    ONE = MyHarness()


    class TestOneForAll(Replies):
        @pytest.fixture
        def harness(self):
            return ONE
"""


def test_mistakes_of_a_harness_are_said(pytester: pytest.Pytester) -> None:
    mine = textwrap.dedent(MINE).partition("class TestMine")[0]
    pytester.makepyfile(MISTAKEN, mine=mine)
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider", "-W", "error", "-k", "reply")
    result.stdout.fnmatch_lines(
        [
            "*TypeError: Forgetful.__init__ has to call super().__init__()",
            "*'harness' of TestClass returned <class 'mine.MyHarness'>; it has to return a Trans*",
            "*TypeError: MyHarness was used before: make a new one for each test",
        ]
    )


class NeverCloses(ShelfConsumer):
    async def close(self) -> None:
        await asyncio.Event().wait()


class FailsToClose(ShelfConsumer):
    async def close(self) -> None:
        raise RuntimeError("not closed")


class Stopped(ShelfHarness):
    stopped = False

    async def stop_broker(self) -> None:
        self.stopped = True


@pytest.mark.parametrize(
    ("mistake", "error"),
    [(NeverCloses, "over its deadline of 120 s"), (FailsToClose, "not closed")],
)
def test_the_broker_is_stopped_whatever_happens(mistake: type, error: str) -> None:
    harness = Stopped(mistake)

    async def hangs() -> None:
        async with harness:
            await harness.inbox(await harness.bus(), "in/#")
            if mistake is NeverCloses:
                await _waits_for_ever()

    with pytest.raises(Exception, match=error):
        harness.run(hangs())
    assert harness.stopped


def test_it_needs_nothing_but_pytest(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(MINE)
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider", "-W", "error")
    result.assert_outcomes(passed=4, failed=2, errors=5)
    result.stdout.fnmatch_lines(
        [
            "*TestNothing has no transport to test: give it a fixture 'harness'*",
            # Assertions of the kit show what they have compared, as those of one's own do.
            "*At index 2 diff: ('ab', None) != ('ab', b'ab')*",
            "*the test ended with tasks still running:*",
            "*left behind*",
        ]
    )


def test_without_pytest_it_says_what_is_missing() -> None:
    program = "import sys; sys.modules['pytest'] = None; import spa_dat.testing.conformance"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert result.returncode == 1
    assert result.stderr.endswith(
        "ModuleNotFoundError: the transport kit needs pytest, which is not installed:"
        " pip install pytest\n"
    )


def test_the_harness_itself_needs_no_pytest() -> None:
    program = "import sys; sys.modules['pytest'] = None; import spa_dat.testing"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_a_transport_is_made_of_public_names_only() -> None:
    """The example shows it only as long as it needs nothing else."""
    for module in (support.shelf, support.shelf_transport):
        for node in ast.walk(ast.parse(inspect.getsource(module))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("spa_dat"):
                public = importlib.import_module(node.module or "").__all__
                assert node.module in ("spa_dat.errors", "spa_dat.transports")
                assert {alias.name for alias in node.names} <= set(public)
