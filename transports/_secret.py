"""A text that must not show up in logs, errors or representations."""

from __future__ import annotations

import hmac

__all__ = ["Secret"]


class Secret:
    """A password or key that never shows itself.

    Its representation, its text and whatever is formatted from it are ``***``. Two secrets are
    equal when what they hide is equal. It can not be pickled.

    Args:
        value: what to hide; a Secret is taken over as it is.
    """

    __slots__ = ("_value",)

    def __init__(self, value: str | Secret) -> None:
        self._value: str = value._value if isinstance(value, Secret) else value

    def reveal(self) -> str:
        """What is hidden. Only for the call that hands it to the broker's client."""
        return self._value

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Secret):
            return NotImplemented
        return hmac.compare_digest(_encoded(self._value), _encoded(other._value))

    def __hash__(self) -> int:
        return hash((Secret, self._value))

    def __bool__(self) -> bool:
        return bool(self._value)

    def __repr__(self) -> str:
        return "***"

    def __reduce__(self) -> tuple[object, ...]:
        raise TypeError("a Secret can not be pickled: hand the password over another way")


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")
