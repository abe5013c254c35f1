"""The pipe between a runner and its child process: frames, whole and in pieces."""

from __future__ import annotations

import os
import random
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from typing import Any

import msgspec
import pytest

from spa_dat.runtime.processes._channel import LONGEST_FRAME, BrokenFrame, Channel
from spa_dat.runtime.processes._frames import Confirmed, ToChild, tag_of
from spa_dat.runtime.processes._shared_memory import Arena
from support.waiting import eventually


class Pair:
    """A channel, the bare pipes at its other end, and what the channel has received."""

    def __init__(self) -> None:
        ours, theirs = os.pipe(), os.pipe()
        self.out, self.into = FileIO(ours[0], "rb"), FileIO(theirs[1], "wb")
        for end in (self.out, self.into):
            os.set_blocking(end.fileno(), False)
        self.received: list[Any] = []
        self.ends: list[BaseException | None] = []
        self.channel = Channel(
            FileIO(theirs[0], "rb"),
            FileIO(ours[1], "wb"),
            ToChild,
            self.received.append,
            self.ends.append,
            Arena(memoryview(bytearray(1024))),
            Arena(memoryview(bytearray(1024))),
        )

    def sent(self) -> bytes | None:
        """Return what has come out at the other end by now; None when nothing has."""
        return self.out.read(2**20)


@contextmanager
def pair() -> Iterator[Pair]:
    made = Pair()
    try:
        yield made
    finally:
        made.channel.close()
        made.out.close()
        made.into.close()


def frame(*numbers: int) -> bytes:
    body = msgspec.msgpack.encode((tag_of(Confirmed), numbers))
    return struct.pack("!I", len(body)) + body


async def test_what_the_pipe_has_no_room_for_follows_when_it_is_read() -> None:
    with pair() as one:
        numbers = [*range(100_000)]
        one.channel.send(Confirmed(numbers), at_once=True)
        one.channel.send(Confirmed([7]), at_once=True)
        assert one.channel.pending
        came = bytearray()

        def all_came() -> bool:
            came.extend(one.sent() or b"")
            return not one.channel.pending

        await eventually(all_came)
        came.extend(one.sent() or b"")
        assert bytes(came) == frame(*numbers) + frame(7)


async def test_what_is_sent_to_an_end_that_is_gone_is_dropped() -> None:
    with pair() as one:
        one.out.close()
        one.channel.send(Confirmed([1]), at_once=True)
        assert one.channel.pending == 0
        one.into.close()
        await eventually(lambda: one.ends)
    assert one.ends == [None]


async def test_what_is_sent_at_once_takes_with_it_what_was_gathered() -> None:
    with pair() as one:
        one.channel.send(Confirmed([1]))
        assert one.sent() is None
        one.channel.send(Confirmed([2]), at_once=True)
        assert one.sent() == frame(1) + frame(2)
        one.channel.send(Confirmed([3]))
        await eventually(lambda: one.channel.pending == 0)
        assert one.sent() == frame(3)


@pytest.mark.parametrize("seed", range(5))
async def test_frames_arrive_whole_in_whatever_pieces_they_come(seed: int) -> None:
    print(f"seed {seed}")
    chance = random.Random(seed)
    sizes = [chance.choice([0, 1, 50, 20_000, 90_000]) for _ in range(12)]
    stream = b"".join(frame(*range(size)) for size in sizes)
    with pair() as one:
        at = 0
        while at < len(stream):
            piece = stream[at : at + chance.choice([1, 3, 5, 1_000, 100_000])]
            at += one.into.write(piece) or 0
            await eventually(lambda: not one.channel._read())
        assert [len(got.numbers) for got in one.received] == sizes
        assert one.received == [Confirmed(list(range(size))) for size in sizes]
    assert one.ends == []


@pytest.mark.parametrize(
    ("bytes_", "why"),
    [
        (struct.pack("!I", LONGEST_FRAME + 1), "claims"),
        (frame(1)[:-1], "in the middle"),
        (struct.pack("!I", 3) + b"\xc1\xc1\xc1", "MessagePack"),
    ],
)
async def test_what_the_other_end_cannot_have_written_ends_the_channel(
    bytes_: bytes, why: str
) -> None:
    with pair() as one:
        one.into.write(frame(7) + bytes_)
        one.into.close()
        await eventually(lambda: one.ends)
        (error,) = one.ends
        assert isinstance(error, BrokenFrame | msgspec.MsgspecError)
        assert why in str(error)
        assert one.received == [Confirmed([7])]
