"""A process that a handler forks off never goes on in the place of the program."""

from __future__ import annotations

import pytest

from support.program import Start

_FORK = """
        import os, warnings
        warnings.simplefilter("ignore")
        parent, how = os.getpid(), {how!r}
        app = DistributedApplication("memory://", name="app")
        children, handled = [], []

        def fork():
            child = os.fork()
            if child:
                children.append(child)
                return
            if how == "raises":
                raise ValueError("in the child")
            if how == "exits":
                sys.exit(7)

        def tell(number):
            say("handled", number)
            handled.append(number)

        async def main():
            async with app:
                for number in range(3):
                    await app.socket().publish("n", number)
                while not children or len(handled) < 3:
                    await asyncio.sleep(0.01)
                _, status = await asyncio.to_thread(os.waitpid, children[0], 0)
                say("child", os.waitstatus_to_exitcode(status))
                await app.socket().publish("last", 0)
                await app.wait()
            say("healthy" if not children[1:] else children)

        @app.application("last")
        async def last(number: int) -> None:
            app.stop()
"""

_KINDS = {
    "async": """
        @app.application("n", name="actor")
        async def handle(number: int) -> None:
            tell(number)
            if number == 0:
                fork()
""",
    "after a wait": """
        @app.application("n", name="actor")
        async def handle(number: int, socket: Socket) -> None:
            tell(number)
            if number == 0:
                await asyncio.sleep(0.01)
                fork()
                socket.post("elsewhere", 1)
""",
    "thread": """
        @app.application("n", name="actor")
        async def handle(number: int) -> None:
            tell(number)
            if number == 0:
                await asyncio.to_thread(fork)
""",
    "executor": """
        @app.application("n", name="actor")
        async def handle(number: int) -> None:
            tell(number)
            if number == 0:
                await asyncio.get_running_loop().run_in_executor(None, fork)
""",
    "deadline": """
        @app.application("n", name="actor", deadline=10)
        async def handle(number: int) -> None:
            tell(number)
            if number == 0:
                fork()
""",
    "def": """
        @app.application("n", name="actor")
        def handle(number: int) -> None:
            tell(number)
            if number == 0:
                fork()
""",
    "batch": """
        @app.application("n", name="actor", batch=(2, 0.01))
        async def handle(numbers: list[int]) -> None:
            for number in numbers:
                tell(number)
            if 0 in numbers:
                fork()
""",
    "timer": """
        @app.application("n", name="actor")
        async def handle(number: int, context: Context) -> None:
            tell(number)
            if number == 0:
                context.later(0.01, fork)
""",
    "local": """
        class Local(Actor):
            topics = "n"

            async def on_message(self, number: int) -> None:
                tell(number)
                if number == 0:
                    self.actor_ref.tell("fork")

            async def on_receive(self, message: str) -> None:
                fork()

        app.configure(app.add(Local), name="actor")
""",
    "producer": """
        @app.application("n", name="actor")
        async def handle(number: int) -> None:
            tell(number)

        @app.producer()
        async def produce() -> None:
            await asyncio.sleep(0.05)
            fork()
""",
}


@pytest.mark.parametrize("how", ["returns", "raises", "exits"])
@pytest.mark.parametrize("kind", _KINDS)
def test_a_process_that_comes_back_from_a_handler_is_ended(
    start: Start, kind: str, how: str
) -> None:
    program = start(
        _FORK.format(how=how)
        + _KINDS[kind]
        + """
        asyncio.run(main())
        say("the end of", "the program" if os.getpid() == parent else "the child")
"""
    )
    code, said, err = program.end()
    assert code == 0
    assert sorted(line for line in said if line.startswith("handled")) == [
        "handled 0",
        "handled 1",
        "handled 2",
    ]
    assert f"child {7 if how == 'exits' else 1}" in said
    assert said[-2:] == ["healthy", "the end of the program"]
    assert [line for line in said if line.startswith("the end")] == ["the end of the program"]
    told = "has forked has returned from that code, and is ended"
    assert err.count(told) == (0 if how == "exits" else 1)
    if how != "exits":
        assert ("a thread of an executor" if kind == "executor" else "app/0/") in err


def test_an_application_of_a_process_that_a_handler_forks_off_can_be_used(start: Start) -> None:
    program = start(
        """
        import multiprocessing, os, warnings
        warnings.simplefilter("ignore")
        app = DistributedApplication("memory://", name="app")

        def work(pipe):
            other = DistributedApplication("memory://", name="other")

            @other.application("n")
            async def handle(number: int) -> int:
                return number + 1

            async def main():
                async with other:
                    return await other.socket().request("n", 1, reply=int)

            pipe.send(asyncio.run(main()))

        @app.application("start")
        async def handler(payload: str) -> None:
            fork = multiprocessing.get_context("fork")
            ours, theirs = fork.Pipe()
            child = fork.Process(target=work, args=(theirs,))
            child.start()
            say(ours.recv() if await asyncio.to_thread(ours.poll, 20) else "nothing")
            child.join()
            app.stop()

        @app.producer()
        async def begin(socket: Socket) -> None:
            await socket.publish("start", "now")

        app.run()
        """
    )
    code, said, _ = program.end()
    assert (code, said) == (0, ["2"])
