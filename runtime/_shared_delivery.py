"""Deliveries that several actors share."""

from __future__ import annotations

from ..transports import Delivery, DeliveryState

__all__ = ["Part", "Whole"]


class Whole:
    """A delivery that several actors share: settled when each of them is done."""

    __slots__ = ("delivery", "left", "parts")

    def __init__(self, delivery: Delivery, left: int) -> None:
        self.delivery = delivery
        self.left = left
        self.parts: list[Part] = []

    def part(self) -> Part:
        """What a further actor gets of it."""
        delivery = self.delivery
        size = delivery.size
        part = Part(delivery.envelope, delivery.epoch, delivery.token, size=size, whole=self)
        part.attempts = delivery.attempts
        self.parts.append(part)
        return part

    @property
    def begun(self) -> bool:
        """Whether one of the actors has started on it."""
        return any(part.state is not DeliveryState.QUEUED for part in self.parts)

    def withdraw(self) -> None:
        """Take back what none of the actors has started on."""
        for part in self.parts:
            part.withdraw()
        self.delivery.requeue()
        self.delivery.withdraw()


class Part(Delivery):
    """One actor's part of a shared delivery."""

    whole: Whole | None = None

    def settle(self) -> None:
        before = self.state
        super().settle()
        whole = self.whole
        if self.state is not before and whole is not None:
            whole.left -= 1
            if whole.left == 0:
                whole.delivery.settle()
