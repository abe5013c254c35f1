"""Where the runtime takes wall time, randomness and identifiers from."""

from __future__ import annotations

import random
import time

__all__ = ["Environment"]


class Environment:
    """The one source of wall time, randomness and identifiers of an application.

    Without a seed the randomness is the operating system's, so tokens can not be guessed.
    With a seed everything repeats, which is for tests only.

    Args:
        seed: makes every token, identifier and jitter repeatable; None for production.
    """

    def __init__(self, seed: int | None = None) -> None:
        self.random: random.Random = random.SystemRandom() if seed is None else random.Random(seed)

    def now(self) -> float:
        """Wall time in seconds since 1970 (UTC). Only for stamps on messages, never for waiting."""
        return time.time()

    def token(self, size: int = 16) -> str:
        """A random lower-case hexadecimal token of ``size`` bytes; unguessable without a seed."""
        return self.random.randbytes(size).hex()

    def new_id(self) -> str:
        """A random UUID (version 4, RFC 9562) as text."""
        # By hand: uuid.UUID takes twice as long, and every publish needs an id.
        digits = self.random.randbytes(16).hex()
        variant = "89ab"[int(digits[16], 16) & 3]
        return (
            f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-{variant}{digits[17:20]}-{digits[20:]}"
        )
