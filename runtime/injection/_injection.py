"""Injection: what each parameter of a handler gets, worked out once at registration."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NoReturn, Protocol

from ..options._custom_codecs import Codec
from ..payloads._codec import Decoder
from ._argument_getters import PAYLOAD, Getter, Scope
from ._batch_parameter_rules import BatchAnalysis
from ._parameter_rules import Analysis, Available, Plan
from ._signatures import MISSING, Signature, Unresolved, read_signature

__all__ = ["Filter", "Injection", "Scope"]

_NO_REPLY = (MISSING, None, type(None), NoReturn)


class Filter(Protocol):
    """What injection uses of a topic filter: its text, and (level, name) of each capture."""

    @property
    def text(self) -> str: ...

    @property
    def captures(self) -> Sequence[tuple[int, str]]: ...


class Injection:
    """The arguments of one handler.

    Attributes:
        name: the name of the handler, for errors.
        is_async: whether calling it returns an awaitable.
        returns: its return annotation; None if it has none, text if it cannot be resolved.
        returns_value: whether it is annotated to return something other than None.
        only_payload: the parameter that gets the payload, if it is the only one; else None.
        wants_message_builder: whether a parameter asks for ``message_builder``.
        payload_decoder: decodes the payload to the type asked for; None if nothing asks for it.
        required_captures: the captures that the handler cannot be called without.
        bind: returns the arguments, by name, for a `Scope`. Raises DecodeError if a capture does
            not fit its type, and whatever the scope raises.
    """

    __slots__ = (
        "bind",
        "is_async",
        "name",
        "only_payload",
        "payload_decoder",
        "required_captures",
        "returns",
        "returns_value",
        "wants_message_builder",
    )

    def __init__(self, signature: Signature, plan: Plan) -> None:
        returns = signature.returns
        self.name: str = signature.name
        self.is_async: bool = signature.is_async
        self.returns_value: bool = not any(returns is nothing for nothing in _NO_REPLY)
        self.returns: object = returns if self.returns_value else None
        if isinstance(returns, Unresolved):
            self.returns = returns.text
        self.wants_message_builder: bool = any(
            p.name == "message_builder" for p in signature.parameters
        )
        self.payload_decoder: Decoder[Any] | None = plan.payload_decoder
        self.required_captures: frozenset[str] = plan.required_captures
        self.only_payload: str | None = None
        if [*plan.getters.values()] == [PAYLOAD] and not plan.extra_captures:
            (self.only_payload,) = plan.getters
        self.bind: Callable[[Scope], dict[str, Any]] = _binder(plan)

    @classmethod
    def analyse(
        cls,
        function: Callable[..., Any],
        *,
        topics: Sequence[Filter] = (),
        resources: Sequence[str] = (),
        kind: Literal["application", "producer"] = "application",
        has_self: bool = False,
        has_state: bool = True,
        special: Mapping[type, str] | None = None,
        batch: bool = False,
        variables: Mapping[Any, Any] | None = None,
        codec: Codec | None = None,
    ) -> Injection:
        """Work out what each parameter gets.

        The rules apply in this order: the annotations ``Message[T]`` and those of ``special``; the
        reserved names; resources; captures of the topics; parts of the message; and one remaining
        annotated parameter without a default is the payload. Parameters with a default that no rule
        applies to keep it.

        Args:
            function: the handler.
            topics: its filters.
            resources: the names of its resources.
            kind: producers have neither messages nor captures.
            has_self: whether its first parameter is the actor itself.
            has_state: whether a state was given; without one a parameter ``state`` gets None, which
                its annotation must allow.
            special: types that decide whatever the parameter's name, each with the attribute of the
                scope that it stands for.
            batch: whether one call gets several messages, as lists.
            variables: what type variables in annotations stand for.
            codec: the actor's, which also decodes payloads.

        Raises:
            ConfigurationError: there is nothing to pass to a parameter; says what there is.
        """
        signature = read_signature(function, has_self=has_self, variables=variables)
        available = Available(
            captures=tuple(tuple(name for _, name in topic.captures) for topic in topics),
            topics=tuple(topic.text for topic in topics),
            resources=tuple(resources),
            has_state=has_state,
            kind=kind,
            special=special or {},
            batch=batch,
            codec=codec,
        )
        analysis = BatchAnalysis if batch else Analysis
        return cls(signature, analysis(signature, available).run())

    def is_responder(self, replies: bool = False) -> bool:
        """Return whether it answers requests, even if only with an error."""
        return replies or self.returns_value or self.wants_message_builder

    def __repr__(self) -> str:
        return f"<Injection {self.name}>"


def _binder(plan: Plan) -> Callable[[Scope], dict[str, Any]]:
    pairs: tuple[tuple[str, Getter], ...] = tuple(plan.getters.items())
    extra_captures = plan.extra_captures
    if extra_captures:

        def bind_all(scope: Scope) -> dict[str, Any]:
            arguments = {name: getter(scope) for name, getter in pairs}
            captures = scope.captures
            for name in extra_captures:
                if name in captures:
                    arguments[name] = captures[name]
            return arguments

        return bind_all
    if len(pairs) == 1:
        (only, get) = pairs[0]
        return lambda scope: {only: get(scope)}
    return lambda scope: {name: getter(scope) for name, getter in pairs}
