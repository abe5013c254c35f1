"""Share work among processes: one application, run as often as there is work for.

Run it in one process, on memory or on a broker::

    python examples/workers.py
    python examples/workers.py mqtt://127.0.0.1:1883

Or in three that share the jobs, without a change; the one that gives them out ends when all are
done, and Ctrl-C ends the others::

    spa-dat run examples/workers.py:make_app --workers 3 --url mqtt://127.0.0.1:1883
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass

from spa_dat import DistributedApplication, Socket, SyncSocket

JOBS = 12


@dataclass
class Job:
    number: int
    below: int


def make_app(url: str = "memory://") -> DistributedApplication:
    app = DistributedApplication(url, name="workers-example")

    # Each job goes to one of the instances. A plain `def` runs in a thread, so it may compute.
    @app.application("primes/jobs", deliver="share")
    def count_primes(job: Job, socket: SyncSocket) -> None:
        primes = sum(all(n % d for d in range(2, int(n**0.5) + 1)) for n in range(2, job.below))
        print(f"instance {app.identity.instance}: {primes} primes below {job.below}")
        socket.publish("primes/results", job.number)

    # What is to happen once is left to one instance: they are 0, 1, ...
    if app.identity.instance == "0":

        @app.producer(every=0.25, state=lambda: iter(range(JOBS)))
        async def give_out(socket: Socket, state: Iterator[int]) -> None:
            number = next(state, None)
            if number is not None:
                await socket.publish("primes/jobs", Job(number, 2_000 + 100 * number))

        @app.application("primes/results", deliver="share", state=set)
        async def collect(number: int, state: set[int]) -> None:
            state.add(number)
            if len(state) == JOBS:
                print(f"all {JOBS} jobs are done")
                app.stop()

    return app


if __name__ == "__main__":
    make_app(*sys.argv[1:2]).run()
