"""How an actor works its mailbox off."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import CoroutineType
from typing import TYPE_CHECKING, Any

from ..errors import ActorError
from ._chain import CURRENT, Frame
from ._envelope import Envelope

if TYPE_CHECKING:
    from ._cell import Cell

__all__ = ["call_hook", "receive_message", "work"]

# So many messages may be handled before the event loop gets a turn: few enough that what they have
# sent goes out while the next ones are handled.
BURST = 64


async def work(cell: Cell[Any]) -> None:
    """Handle one item after the other, until the mailbox is closed and there is no more to do.

    Only cancelling the task, and what ends the whole program, gets out of here.
    """
    mailbox, instance, receive = cell.mailbox, cell.instance, cell.receive
    assert instance is not None
    items = mailbox.items
    left = BURST
    while not cell.discard:
        if not items:
            if mailbox.closed:
                return
            # What was handled last must not live on while the actor is idle.
            item = result = frame = None
            await mailbox.arrival()
            left = BURST
            continue
        if not left:
            left = BURST
            await asyncio.sleep(0)
            continue
        left -= 1
        # get_nowait(), without the price of a call
        item = items.popleft()
        if mailbox.looks_after:
            item = mailbox.taken(item)
        frame = Frame(cell)
        CURRENT.set(frame)
        try:
            if isinstance(item, Envelope):
                if item.reply is not None:
                    if item.reply.done():
                        continue
                    frame.parent, frame.waiter = item.asker, item.reply
                if type(item) is Envelope:
                    result = instance.on_receive(item.message)
                else:
                    result = item.hand_to(instance)
                if type(result) is CoroutineType or hasattr(result, "__await__"):
                    result = await result
                if item.reply is not None:
                    item.answer(result)
            else:
                await receive(instance, item)
        except Exception as error:  # noqa: BLE001  (an actor outlives what its handlers raise)
            await _failed(cell, item, error)
        except BaseException as error:
            if not isinstance(error, asyncio.CancelledError) or _is_cancelled():
                if isinstance(item, Envelope):
                    item.fail(cell.stopped())
                raise
            await _failed(cell, item, _cancelled(cell, error))
        finally:
            # frame.end(), without the price of a call
            frame.active = False
            frame.parent = frame.waiter = None


async def call_hook(cell: Cell[Any], hook: Callable[..., Any], *args: Any) -> Exception | None:
    """Call one of the actor's hooks, plain or async; returns what it raised."""
    frame = Frame(cell)
    CURRENT.set(frame)
    try:
        result = hook(*args)
        if hasattr(result, "__await__"):
            await result
    except asyncio.CancelledError as error:
        if _is_cancelled():
            raise
        return _cancelled(cell, error)
    except Exception as error:  # noqa: BLE001  (the caller decides what becomes of it)
        return error
    finally:
        frame.end()
    return None


async def receive_message(instance: Any, item: Any) -> None:
    """What happens with an item that came without a reference, where nothing else is wanted."""
    result = instance.on_receive(item)
    if hasattr(result, "__await__"):
        await result


async def _failed(cell: Cell[Any], item: Any, error: Exception) -> None:
    if not isinstance(item, Envelope):
        cell.report(error, "receive")
    elif item.reply is not None:
        item.fail(error)
    else:
        cell.failures += 1
        cell.report(error, "on_receive")
        instance = cell.current_instance()
        assert instance is not None
        raised = await call_hook(cell, instance.on_failure, error)
        if raised is not None:
            cell.report(raised, "on_failure")


def _cancelled(cell: Cell[Any], error: BaseException) -> ActorError:
    result = ActorError(f"something that actor {cell.address!r} waited for was cancelled")
    result.__cause__ = error
    return result


def _is_cancelled() -> bool:
    """Whether somebody cancelled the running task, other than by cancelling what it awaits."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
