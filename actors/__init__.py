"""Actors on one event loop: mailboxes, references, supervision. Knows nothing of brokers."""

from ._actor import Actor
from ._actor_cell import BURST
from ._deadlocks import (
    actor_behind,
    chain_names,
    current_actor,
    enter_chain,
    enter_chain_apart,
    refuse_cycle,
)
from ._forked_processes import leave_process
from ._handlers import handlers_of, on, on_reminder, reminders_of
from ._isolation import (
    DONE,
    Isolated,
    end_attempt,
    end_code,
    interrupted_guard,
    is_closing,
    is_ending,
    raised_by_hand,
    run_apart,
    stay_in_process,
)
from ._mailbox import Mailbox, Overflow
from ._reference import ActorRef
from ._restart import RestartCounter
from ._system import ActorSystem, RestartPolicy
from ._thread_worker import ThreadWorker
from ._unrun_results import looked_at, refuse_unrun, returns_nothing

__all__ = [
    "BURST",
    "DONE",
    "Actor",
    "ActorRef",
    "ActorSystem",
    "Isolated",
    "Mailbox",
    "Overflow",
    "RestartCounter",
    "RestartPolicy",
    "ThreadWorker",
    "actor_behind",
    "chain_names",
    "current_actor",
    "end_attempt",
    "end_code",
    "enter_chain",
    "enter_chain_apart",
    "handlers_of",
    "interrupted_guard",
    "is_closing",
    "is_ending",
    "leave_process",
    "looked_at",
    "on",
    "on_reminder",
    "raised_by_hand",
    "refuse_cycle",
    "refuse_unrun",
    "reminders_of",
    "returns_nothing",
    "run_apart",
    "stay_in_process",
]
