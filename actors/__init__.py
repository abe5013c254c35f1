"""Actors on one event loop: mailboxes, references, supervision. Knows nothing of brokers."""

from ._actor import Actor
from ._chain import chain_names, current_actor, enter_chain, refuse_cycle
from ._handlers import handlers_of, on
from ._mailbox import Mailbox
from ._overflow import Overflow
from ._reference import ActorRef
from ._system import ActorSystem, RestartPolicy
from ._worker import ThreadWorker

__all__ = [
    "Actor",
    "ActorRef",
    "ActorSystem",
    "Mailbox",
    "Overflow",
    "RestartPolicy",
    "ThreadWorker",
    "chain_names",
    "current_actor",
    "enter_chain",
    "handlers_of",
    "on",
    "refuse_cycle",
]
