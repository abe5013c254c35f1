"""Requests and their replies, against a model of who waits for what."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, cast

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, rule

from spa_dat.errors import NoResponder, OutboxFull, PublishNotSent, RequestTimeout
from spa_dat.runtime.messaging._requests import Requests
from spa_dat.transports import Bus, Envelope
from support.machine import VirtualMachine, machine_case, step


class Post:
    """A bus that only takes requests."""

    def __init__(self) -> None:
        self.connected = True
        self.full = False
        self.posts: dict[str, asyncio.Future[None]] = {}

    def reply_address(self, correlation: str) -> str:
        return f"reply/{correlation}"

    def post(self, envelope: Envelope) -> asyncio.Future[None]:
        if self.full:
            raise OutboxFull("full")
        assert envelope.correlation is not None
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.posts[envelope.correlation.decode()] = future
        return future


@dataclass
class Asked:
    """What the model knows of one request."""

    correlation: str
    wanted: int | None
    deadline: float
    task: asyncio.Task[list[Envelope]]
    replies: list[Envelope] = field(default_factory=list)
    outcome: Any = None
    """The replies, or the class of the error."""

    def takes(self, reply: Envelope) -> bool:
        """Return whether the reply counts."""
        if self.outcome is not None:
            return False
        known = [(one.source, one.id) for one in self.replies]
        if reply.id is not None and (reply.source, reply.id) in known:
            return False
        self.replies.append(reply)
        if len(self.replies) == self.wanted:
            self.outcome = self.replies
        return True


REPLIES = st.builds(
    Envelope,
    topic=st.just("reply"),
    id=st.sampled_from(["one", "one", "two", None]),
    source=st.sampled_from([None, "a/0/b"]),
    payload=st.sampled_from([b"x", b"y"]),
)


class RequestsMachine(VirtualMachine):
    """Requests, of which some get too few replies, too many, or the wrong ones."""

    @initialize()
    def begin(self) -> None:
        self.bus = Post()
        self.stats: Counter[str] = Counter()
        self.tokens = 0
        self.requests = Requests(cast(Bus, self.bus), self.token, self.stats)
        self.asked: list[Asked] = []
        self.dropped = 0

    def token(self) -> str:
        self.tokens += 1
        return f"{self.tokens:04x}"

    @rule(wanted=st.sampled_from([2, 1, 3, None]), seconds=st.sampled_from([2.5, 7.5]))
    @step
    async def ask(self, wanted: int | None, seconds: float) -> None:
        def make(address: str, correlation: bytes) -> Envelope:
            return Envelope(topic="q", response_topic=address, correlation=correlation)

        task = self.spawn(self.requests.request(make, timeout=seconds, wanted=wanted))
        await self.settle()
        asked = Asked(f"{self.tokens:04x}", wanted, self.loop.time() + seconds, task)
        if self.bus.full:
            asked.outcome = OutboxFull
        self.asked.append(asked)

    @rule(full=st.booleans(), connected=st.booleans())
    def change_bus(self, full: bool, connected: bool) -> None:
        self.bus.full, self.bus.connected = full, connected

    def reply_to(self, asked: Asked, replies: list[Envelope]) -> None:
        for reply in replies:
            if not asked.takes(reply):
                self.dropped += 1
            self.requests.on_reply(asked.correlation, reply)

    @rule(data=st.data(), replies=st.lists(REPLIES, min_size=1, max_size=4))
    @step
    async def replies_come(self, data: st.DataObject, replies: list[Envelope]) -> None:
        """To one that waits, or too late."""
        if self.asked:
            waiting = [asked for asked in self.asked if asked.outcome is None]
            whose = st.sampled_from(self.asked)
            asked = data.draw(st.sampled_from(waiting) | whose if waiting else whose)
            self.reply_to(asked, replies)
            await self.settle()

    @rule(reply=REPLIES, correlation=st.sampled_from(["", "ffff", "0001 ", "guess"]))
    def a_foreign_reply_comes(self, reply: Envelope, correlation: str) -> None:
        self.dropped += 1
        self.requests.on_reply(correlation, reply)

    @rule(data=st.data(), replies=st.lists(REPLIES, max_size=2))
    @step
    async def give_up(self, data: st.DataObject, replies: list[Envelope]) -> None:
        """Who waits is cancelled; replies come before it has noticed."""
        if self.asked:
            asked = data.draw(st.sampled_from(self.asked))
            asked.task.cancel()
            if asked.outcome is None:
                asked.outcome = asyncio.CancelledError
            self.reply_to(asked, replies)
            await self.settle()

    @rule(
        data=st.data(),
        error=st.sampled_from([None, NoResponder("nobody"), PublishNotSent("closed")]),
        replies=st.lists(REPLIES, max_size=2),
    )
    @step
    async def the_post_ends(
        self, data: st.DataObject, error: Exception | None, replies: list[Envelope]
    ) -> None:
        """Confirmed or refused; replies come at the same moment."""
        pending = [one for one in self.asked if one.outcome is None]
        pending = [one for one in pending if not self.bus.posts[one.correlation].done()]
        if not pending:
            return
        asked = data.draw(st.sampled_from(pending))
        post = self.bus.posts[asked.correlation]
        if error is None:
            post.set_result(None)
        else:
            post.set_exception(error)
        self.reply_to(asked, replies)
        if error is not None and asked.outcome is None:
            asked.outcome = type(error)
        await self.settle()

    @rule(seconds=st.integers(1, 4))
    @step
    async def time_goes_by(self, seconds: int) -> None:
        await asyncio.sleep(seconds)
        for asked in self.asked:
            if asked.outcome is None and asked.deadline < self.loop.time():
                asked.outcome = asked.replies if asked.wanted is None else RequestTimeout
        await self.settle()

    @invariant()
    def each_has_its_own_outcome(self) -> None:
        for asked in self.asked:
            task = asked.task
            assert task.done() is (asked.outcome is not None)
            if asked.outcome is None:
                continue
            assert self.bus.posts.get(asked.correlation) is None or (
                self.bus.posts[asked.correlation].done()
            ), "a request that nobody waits for is withdrawn"
            if isinstance(asked.outcome, list):
                assert task.result() == asked.outcome
            elif asked.outcome is asyncio.CancelledError:
                assert task.cancelled()
            else:
                assert type(task.exception()) is asked.outcome

    @invariant()
    def a_timeout_says_how_many_came(self) -> None:
        for asked in self.asked:
            if asked.outcome is RequestTimeout:
                came = f"{len(asked.replies)} of {asked.wanted}" if asked.replies else "no reply"
                assert came in str(asked.task.exception())

    @invariant()
    def nothing_is_left_and_the_rest_is_counted(self) -> None:
        assert len(self.requests) == sum(asked.outcome is None for asked in self.asked)
        assert self.stats["replies.dropped"] == self.dropped

    async def finish(self) -> None:
        await asyncio.sleep(10)
        await self.settle()
        assert all(asked.task.done() for asked in self.asked)
        assert len(self.requests) == 0


TestRequests = machine_case(RequestsMachine)


@pytest.mark.virtual
async def test_requests_with_one_timeout_share_a_timer_and_end_each_at_its_own_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loop = asyncio.get_running_loop()
    tokens = iter("abc")
    requests = Requests(cast(Bus, Post()), lambda: next(tokens), Counter())
    running: list[str] = []
    schedule = loop.call_at

    def call_at(when: float, callback: Any, *args: Any, **options: Any) -> asyncio.TimerHandle:
        if getattr(callback, "__module__", "") == Requests.__module__:
            running.append(callback.__name__)
        return schedule(when, callback, *args, **options)

    monkeypatch.setattr(loop, "call_at", call_at)

    def make(address: str, correlation: bytes) -> Envelope:
        return Envelope(topic="q", response_topic=address, correlation=correlation)

    async def lasted() -> float:
        began = loop.time()
        with pytest.raises(RequestTimeout):
            await requests.request(make, timeout=7.0, wanted=1)
        return loop.time() - began

    asked = []
    for _ in range(3):
        asked.append(asyncio.ensure_future(lasted()))
        await asyncio.sleep(2.0)
    assert len(running) == 1
    assert await asyncio.gather(*asked) == [pytest.approx(7.0)] * 3
    assert len(requests) == 0
