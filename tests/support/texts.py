"""Texts and bytes that nobody would think of."""

from __future__ import annotations

import functools
import random
import unicodedata

__all__ = ["CATEGORIES", "any_bytes", "any_text"]


@functools.cache
def _by_category() -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for number in range(0x110000):
        found.setdefault(unicodedata.category(chr(number)), []).append(number)
    # What is no character is but a few among the many that are not assigned.
    found["no character"] = [
        *range(0xFDD0, 0xFDF0),
        *(plane << 16 | last for plane in range(17) for last in (0xFFFE, 0xFFFF)),
    ]
    return found


# Named here, because sorting all characters by category takes most of a second.
_OF_UNICODE = (
    "Cc Cf Cn Co Cs Ll Lm Lo Lt Lu Mc Me Mn Nd Nl No Pc Pd Pe Pf Pi Po Ps Sc Sk Sm So Zl Zp Zs"
)
CATEGORIES = (*_OF_UNICODE.split(), "no character", "levels", "long", "syntax")
"""Every category of Unicode, and some of our own."""


def any_text(category: str, choice: random.Random) -> str:
    """Return a text with characters of the category among others; never empty."""
    if category == "levels":
        return "/".join("a" * choice.choice((2, 150, 199, 201, 250)))
    if category == "long":
        return choice.choice("aé€😀") * choice.choice((16_000, 30_000, 65_535, 65_536, 70_000))
    if category == "syntax":
        return (
            choice.choice(
                (
                    "#",
                    "+",
                    "a/+",
                    "$SYS/x",
                    "",
                    "/",
                    "//",
                    "_spa/reply/x/y/z",
                    "%s",
                    "{}",
                    "\\",
                    "'\"",
                )
            )
            or " "
        )
    characters = _by_category()[category]
    picked = [chr(choice.choice(characters)) for _ in range(choice.randint(1, 4))]
    mixed = [*picked, *choice.choices("abc é", k=choice.randint(0, 4))]
    choice.shuffle(mixed)
    return "".join(mixed)


def any_bytes(category: str, choice: random.Random) -> bytes:
    """Return the same as bytes, which need not be UTF-8."""
    if choice.random() < 0.3:
        return choice.randbytes(choice.randint(0, 40))
    return any_text(category, choice).encode("utf-8", "surrogatepass")
