"""Test an application: without a broker, and the same tests on a real one.

Run the tests with pytest::

    pytest examples/testing.py
    pytest examples/testing.py --spa-dat-broker=mqtt
    pytest examples/testing.py --spa-dat-broker=kafka
"""

import asyncio
from dataclasses import dataclass, field

from spa_dat import DistributedApplication, RetryPolicy, Socket
from spa_dat.errors import RemoteError
from spa_dat.testing import Faults, Harness, HarnessFactory, explore


@dataclass
class Order:
    number: int
    item: str


@dataclass
class Stock:
    """What is left in stock; each order counts once, however often it comes."""

    left: dict[str, int] = field(default_factory=lambda: {"bolt": 3})
    sold: set[int] = field(default_factory=set[int])


def shop() -> DistributedApplication:
    """Make the application, a new one for each test; `shop().run()` is the program."""
    app = DistributedApplication("mqtt://broker.example", name="shop")

    @app.application("orders", state=Stock, retry=RetryPolicy(attempts=3))
    async def sell(order: Order, state: Stock, socket: Socket) -> None:
        if order.item not in state.left:
            raise LookupError(f"there is no {order.item}")
        if order.number not in state.sold:
            state.sold.add(order.number)
            state.left[order.item] -= 1
        await socket.publish("confirmations", order.number)

    @app.application("prices/{item}")
    async def price(item: str, amount: int) -> float:
        if amount < 1:
            raise RemoteError("bad-amount", "order at least one")
        return 0.25 * amount

    return app


def test_an_order_is_confirmed(harness: HarnessFactory) -> None:
    world = harness(shop())
    world.publish("orders", Order(1, "bolt"))
    world.publish("orders", Order(1, "bolt"))
    world.settle()
    assert world.published("confirmations") == [1, 1]
    assert world.state("sell").left == {"bolt": 2}


def test_an_order_of_what_there_is_not_is_kept(harness: HarnessFactory) -> None:
    world = harness(shop())
    world.expect_failure(LookupError)
    world.publish("orders", Order(2, "nut"))
    world.settle()
    (letter,) = world.dead_letters()
    assert letter.text == "there is no nut"


async def test_prices(harness: HarnessFactory) -> None:
    async with harness(shop()) as world:
        assert await world.request("prices/bolt", 100, reply=float) == 25.0


def test_every_order_is_confirmed_whatever_happens() -> None:
    def scenario(seed: int) -> None:
        with Harness(shop(), seed=seed, faults=Faults.all()) as world:
            for number in range(5):
                world.publish("orders", Order(number, "bolt"))
            world.settle()
            assert set(world.published("confirmations")) == set(range(5))

    explore(scenario, seeds=50)


def test_a_slow_customer_takes_no_time(harness: HarnessFactory) -> None:
    customer = DistributedApplication("mqtt://broker.example", name="customer")

    @customer.producer()
    async def buy(socket: Socket) -> None:
        for number in range(3):
            await socket.publish("orders", Order(number, "bolt"))
            await asyncio.sleep(3600.0)

    world = harness(shop(), customer)
    world.advance(3 * 3600.0)
    assert world.published("confirmations") == [0, 1, 2]
