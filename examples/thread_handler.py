"""Blocking work: a ``def`` handler runs in a thread of its own, with a blocking socket.

Run it on memory, or on a broker::

    python examples/thread_handler.py
    python examples/thread_handler.py mqtt://127.0.0.1:1883
"""

import hashlib
import sys
import threading

from spa_dat import Context, DistributedApplication, Socket, SyncSocket

URL = sys.argv[1] if len(sys.argv) > 1 else "memory://"

app = DistributedApplication(URL, name="thread-example")


@app.application("keys/derive")
def derive(password: str, socket: SyncSocket) -> str:
    salt = socket.request("keys/salt", password, timeout=5)
    # Some tens of milliseconds of work, which would hold up all actors on the event loop.
    key = hashlib.pbkdf2_hmac("sha256", password.encode(), salt, 100_000)
    print(f"derived in thread {threading.current_thread().name}")
    return key.hex()[:16]


@app.application("keys/salt")
async def salt(password: str) -> bytes:
    return hashlib.sha256(password.encode()).digest()


@app.producer(every=0.01)
async def heartbeat(context: Context) -> None:
    context.stats["heartbeats"] += 1


@app.producer()
async def user(socket: Socket) -> None:
    for password in ("correct", "horse", "battery"):
        key = await socket.request("keys/derive", password, reply=str, timeout=10)
        print(f"{password}: {key}")
    print(f"the event loop beat {app.stats['heartbeats']} times meanwhile")
    app.stop()


if __name__ == "__main__":
    app.run()
