"""How an actor works its mailbox off."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from contextvars import copy_context
from types import CoroutineType
from typing import TYPE_CHECKING, Any

from .._texts import forget_earlier, inspectable, reason_of
from ..errors import ActorError
from ._chain import CURRENT, Frame
from ._envelope import Envelope
from ._guard import end_attempt
from ._interop import is_handed_on
from ._isolation import DONE, Isolated, go_on_apart, raised_by_hand, run_apart

if TYPE_CHECKING:
    from ._cell import Cell

__all__ = ["call_hook", "receive_message", "work"]

# So many messages may be handled before the event loop gets a turn: few enough that what they have
# sent goes out while the next ones are handled.
BURST = 64


# One loop on purpose: a call for each step would cost more than the steps.
async def work(cell: Cell[Any]) -> None:  # noqa: C901, PLR0912, PLR0915
    """Handle one item after the other, until the mailbox is closed and there is no more to do.

    Only ending the actor gets out of here.
    """
    mailbox, instance, receive, guard = cell.mailbox, cell.instance, cell.receive, cell.guard
    assert instance is not None
    items = mailbox.items
    # Calling it runs none of its code yet.
    is_async = inspect.iscoroutinefunction(instance.on_receive)
    left = BURST
    while not cell.discard:
        if not items:
            if mailbox.closed:
                return
            # What was handled last must not live on while the actor is idle.
            item = result = frame = context = rest = None
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
                # As run_apart(), without the price of a call.
                context = copy_context()
                try:
                    if type(item) is not Envelope:
                        result = context.run(item.hand_to, instance)
                    elif is_async:
                        result = instance.on_receive(item.message)
                    else:
                        result = context.run(instance.on_receive, item.message)
                except GeneratorExit as error:
                    raised_by_hand(error)
                if type(result) is CoroutineType:
                    try:
                        if item.reply is None:
                            waits_for = context.run(next, result.__await__(), DONE)
                        else:
                            waits_for = context.run(result.send, None)
                    except StopIteration as done:
                        result = done.value
                    except GeneratorExit as error:
                        raised_by_hand(error)
                    else:
                        if waits_for is not DONE:
                            rest = Isolated(context, result, waits_for)
                            del waits_for
                            result = await rest
                elif hasattr(result, "__await__") and not is_handed_on(item, result):
                    result = await go_on_apart(context, result)
                if item.reply is not None:
                    item.answer(result)
            else:
                await receive(instance, item)
        except asyncio.CancelledError as error:
            if guard.end is not None:
                if isinstance(item, Envelope):
                    item.fail(cell.stopped())
                raise
            await _failed(cell, item, _cancelled(cell, error))
        except GeneratorExit:
            # Nobody goes on with this coroutine.
            raise
        except BaseException as error:  # noqa: BLE001  (an actor outlives what its code raises)
            await _failed(cell, item, inspectable(error))
        finally:
            # frame.end(), without the price of a call
            frame.active = False
            frame.parent = frame.waiter = None
        if guard.interrupted:
            await guard.recover()
        if cell.replaced:
            instance = await cell.current()
            if instance is None:
                return
            cell.replaced = False
            is_async = inspect.iscoroutinefunction(instance.on_receive)


async def call_hook(cell: Cell[Any], hook: Callable[..., Any], *args: Any) -> BaseException | None:
    """Call one of the actor's hooks, plain or async; returns what it raised."""
    frame = Frame(cell)
    CURRENT.set(frame)
    raised: BaseException | None = None
    try:
        await run_apart(hook, *args)
    except asyncio.CancelledError as error:
        if cell.guard.end is not None:
            raise
        raised = _cancelled(cell, error)
    except GeneratorExit:
        raise
    except BaseException as error:  # noqa: BLE001  (the caller decides what becomes of it)
        raised = inspectable(error)
    finally:
        frame.end()
    try:
        if cell.guard.interrupted:
            await cell.guard.recover()
        return raised
    finally:
        # Its traceback refers to this frame.
        del raised


async def receive_message(instance: Any, item: Any) -> None:
    """What happens with an item that came without a reference, where nothing else is wanted."""
    await run_apart(instance.on_receive, item)


async def _failed(cell: Cell[Any], item: Any, error: BaseException) -> None:
    forget_earlier(error, by_frame=True)
    # Whatever the code of the message has started is not part of what follows.
    await end_attempt()
    if not isinstance(item, Envelope):
        cell.report(error, "receive")
    elif item.reply is not None:
        item.fail(_for_askers(cell, error))
    else:
        cell.failures += 1
        cell.report(error, "on_receive")
        instance = cell.current_instance()
        assert instance is not None
        raised = await call_hook(cell, instance.on_failure, error)
        if raised is not None:
            cell.report(raised, "on_failure")


def _for_askers(cell: Cell[Any], error: BaseException) -> BaseException:
    """The error as it can be raised where the answer is waited for, in any task."""
    if not isinstance(error, KeyboardInterrupt | SystemExit):
        return error
    cell.report(error, "on_receive")
    result = ActorError(f"actor {cell.address!r} raised {reason_of(error)}")
    result.__cause__ = error
    return result


def _cancelled(cell: Cell[Any], error: BaseException) -> ActorError:
    result = ActorError(f"something that actor {cell.address!r} waited for was cancelled")
    result.__cause__ = error
    return result
