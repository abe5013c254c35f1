"""The filters of a session, against a client that answers as the broker is told to."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from spa_dat.errors import ConnectionLost
from spa_dat.transports.mqtt import _subscription_set
from spa_dat.transports.mqtt._subscription_set import SubscriptionSet

pytestmark = pytest.mark.virtual

_QUOTA_EXCEEDED = 0x97


class Limits:
    subscription_identifiers = True

    def lacking(self, pattern: str) -> str | None:
        return None


class Client:
    """Answers with the code of the filter, 1 if it has none, and remembers what it was asked."""

    def __init__(self, codes: dict[str, int] | None = None) -> None:
        self.lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.limits = Limits()
        self.codes = codes or {}
        self.subscribed: list[list[str]] = []
        self.unsubscribed: list[list[str]] = []
        self.disconnected = 0

    async def subscribe(self, patterns: Sequence[str], **options: object) -> list[int]:
        self.subscribed.append([*patterns])
        return [self.codes.get(pattern, 1) for pattern in patterns]

    async def unsubscribe(self, patterns: Sequence[str], **options: object) -> list[int]:
        if self.lost.done():
            raise ConnectionLost("it is gone")
        self.unsubscribed.append([*patterns])
        return [self.codes.get(pattern, 0) for pattern in patterns]

    async def disconnect(self, timeout: float, reason: str) -> None:
        self.disconnected += 1


def filters(*patterns: str, group: str | None = None) -> SubscriptionSet:
    return SubscriptionSet(
        patterns, qos=1, group=group or "app.sub", share=group is not None, timeout=5.0, batch=100
    )


async def test_a_filter_that_is_wanted_twice_is_subscribed_to_once() -> None:
    client: Any = Client()
    wanted = filters("a/b")
    wanted.add("a/b")
    assert await wanted.apply(client) == {}
    assert client.subscribed == [["a/b"]]


async def test_messages_of_which_the_broker_grants_less_may_be_lost(
    caplog: pytest.LogCaptureFixture,
) -> None:
    client: Any = Client({"a/b": 0})
    assert await filters("a/b").apply(client) == {}
    assert caplog.messages == [
        "the broker grants only QoS 0 for 'a/b': messages may be lost in transit"
    ]


async def test_what_is_refused_alone_too_is_refused() -> None:
    client: Any = Client({"a": _QUOTA_EXCEEDED, "b": 1})
    assert await filters("a", "b").apply(client) == {"a": _QUOTA_EXCEEDED}
    assert client.subscribed == [["a", "b"], ["a"]]


@pytest.mark.parametrize("lost", [True, False])
async def test_only_a_connection_that_is_there_is_ended(lost: bool) -> None:
    client: Any = Client()
    if lost:
        client.lost.set_result(None)
    await filters("a").connect_anew(client)
    assert client.disconnected == (0 if lost else 1)


@pytest.mark.parametrize("group", [None, "g"])
async def test_a_message_of_a_filter_that_nobody_wants_ends_it(
    group: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    client: Any = Client()
    wanted = filters("other", group=group)
    # The second time it is there again, so it is what the broker has made of a wanted one.
    assert [await wanted.discard(client, "a") for _ in range(3)] == [False, True, False]
    asked, again = client.unsubscribed
    assert asked == again
    # It may be there with and without a group: an earlier program may have had another deliver=.
    assert {f"$share/{group or 'app.sub'}/a", "a"} <= {*asked}
    assert caplog.text.count("on 'a' has shown; removed") == 1


@pytest.mark.parametrize("group", [None, "g"])
async def test_what_is_wanted_is_asked_for_again_after_a_filter_was_removed(
    group: str | None,
) -> None:
    client: Any = Client()
    wanted = filters("other", group=group)
    await wanted.apply(client)
    await wanted.discard(client, "a")
    assert client.subscribed == [[wanted.as_sent("other")]] * 2


@pytest.mark.parametrize(("group", "other"), [(None, "$share/app.sub/"), ("g", "")])
async def test_the_filters_of_a_program_with_another_deliver_are_ended(
    group: str | None, other: str
) -> None:
    client: Any = Client()
    await filters("a", "b/#", group=group).end_other(client)
    assert client.unsubscribed == [[f"{other}a", f"{other}b/#"]]


async def test_a_broker_without_groups_is_not_asked_to_end_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    client: Any = Client()
    monkeypatch.setattr(client.limits, "lacking", lambda pattern: "no" if "$" in pattern else None)
    await filters("a").end_other(client)
    assert client.unsubscribed == []


async def test_nothing_is_said_of_filters_that_were_not_there(
    caplog: pytest.LogCaptureFixture,
) -> None:
    plain = ("a", "+", "#", "+/#", "a/#")
    client: Any = Client(
        dict.fromkeys((*plain, *(f"$share/app.sub/{pattern}" for pattern in plain)), 0x11)
    )
    await filters("other").discard(client, "a")
    assert client.unsubscribed != []
    assert "has shown" not in caplog.text


async def test_unwanted_filters_stay_when_the_connection_ends_and_are_looked_for_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_subscription_set, "_MOST_DISCARDED", 1)
    gone: Any = Client()
    gone.lost.set_result(None)
    client: Any = Client()
    wanted = filters("other")
    await wanted.discard(gone, "a")
    assert gone.unsubscribed == []
    await wanted.discard(client, "b")
    await wanted.discard(client, "a")
    assert {"a", "b"} <= {pattern for asked in client.unsubscribed for pattern in asked}
