"""The environment: wall time, randomness and identifiers."""

from __future__ import annotations

import os
import random
import time

__all__ = ["Environment"]


class Environment:
    """The one source of wall time, randomness and identifiers of an application.

    Without a seed the operating system provides the randomness, so tokens cannot be guessed. With a
    seed everything is repeatable, which is for tests only.

    Args:
        seed: makes every token, identifier and jitter repeatable; None for production.
    """

    def __init__(self, seed: int | None = None) -> None:
        self.random: random.Random = random.SystemRandom() if seed is None else random.Random(seed)
        self._digits = ""
        self._prefix = ""
        self._number = 0
        self._forks = 0

    def now(self) -> float:
        """Return the wall time in seconds since 1970 (UTC); for timestamps, never for waiting."""
        return time.time()

    def token(self, size: int = 16) -> str:
        """Return ``size`` random bytes in lower-case hexadecimal; unguessable without a seed."""
        if self._forks != _forks:
            self._new_prefix()
        digits = self._digits
        if len(digits) < 2 * size:
            # Many at once: one call of the operating system costs as much as many tokens.
            digits = self.random.randbytes(_DRAWN_AT_ONCE + size).hex()
        self._digits = digits[2 * size :]
        return digits[: 2 * size]

    def new_id(self) -> str:
        """Return a new unique identifier: a UUID (version 8, RFC 9562) as text.

        Its first 74 free bits are random, and the same for some thousand identifiers; the last 48
        are a counter. That makes it unique, and cheap enough for every publish, but it can be
        guessed from another one: use `token` for what must not be guessed.
        """
        number = self._number
        if not number & _IDS_WITH_ONE_PREFIX or self._forks != _forks:
            self._new_prefix()
        self._number = number + 1
        return f"{self._prefix}{number:012x}"

    def _new_prefix(self) -> None:
        digits = self.random.randbytes(10).hex()
        variant = "89ab"[int(digits[16], 16) & 3]
        self._prefix = f"{digits[:8]}-{digits[8:12]}-8{digits[13:16]}-{variant}{digits[17:20]}-"
        self._forks = _forks
        self._digits = ""


_DRAWN_AT_ONCE = 512
_IDS_WITH_ONE_PREFIX = 0xFFF
_forks = 0


def _forked() -> None:
    global _forks
    _forks += 1


# A forked process must not continue the counter of its parent.
os.register_at_fork(after_in_child=_forked)
