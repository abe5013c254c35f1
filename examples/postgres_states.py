"""Keep the states of durable keys in PostgreSQL instead of in a file.

Needs psycopg (pip install "psycopg[binary]"), and the address of a database::

    python examples/postgres_states.py "postgresql://user:password@127.0.0.1/fleet"
    python examples/postgres_states.py "postgresql://..." mqtt://127.0.0.1:1883
"""

import sys
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import psycopg

from spa_dat import DistributedApplication, Durable, Socket
from spa_dat.errors import StateNotWritten
from spa_dat.states import (
    MOST_HANDLED,
    SECONDS_HANDLED,
    Change,
    Handled,
    MessageIdentity,
    StateStore,
    StoredKey,
    envelopes_from_bytes,
    envelopes_to_bytes,
)

SCHEMA = """
CREATE TABLE IF NOT EXISTS key_state (
    owner text, actor text, key bytea, value bytea NOT NULL, revision bigint NOT NULL,
    wake double precision, PRIMARY KEY (owner, actor, key)
);
CREATE INDEX IF NOT EXISTS key_state_wake ON key_state (owner, actor, wake)
    WHERE wake IS NOT NULL;
CREATE TABLE IF NOT EXISTS handled_message (
    n bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, owner text NOT NULL, actor text NOT NULL,
    name bytea, digest bytea, at double precision NOT NULL, stage smallint NOT NULL, outputs bytea
);
CREATE UNIQUE INDEX IF NOT EXISTS handled_message_name ON handled_message (owner, name, digest)
    WHERE name IS NOT NULL;
CREATE INDEX IF NOT EXISTS handled_message_stage ON handled_message (owner, stage, n)
"""
# What has become of a message: its outputs may not have been sent, they have, or it does not come
# again either.
UNSENT, SENT, ACKNOWLEDGED = 0, 1, 2


class Conflict(Exception):
    """Undoes what one change has written."""


class PostgresStates(StateStore):
    """Keeps states in two tables, which several applications may share.

    Args:
        address: of the database.
        owner: whose states they are; the application's and the instance's name.
    """

    def __init__(self, address: str, owner: str) -> None:
        self._address = address
        self._owner = owner
        self._connection: psycopg.Connection[Any] | None = None
        with self._database() as database:
            # Two that start at the same time must not both make them.
            database.execute("SELECT pg_advisory_xact_lock(7205759)")
            database.execute(SCHEMA)

    @contextmanager
    def _database(self) -> Generator[psycopg.Connection[Any]]:
        """Return the connection, in a transaction; a new one if the last one was lost."""
        try:
            if self._connection is None:
                self._connection = psycopg.connect(self._address, connect_timeout=10)
            with self._connection.transaction():
                yield self._connection
        except psycopg.Error as error:
            # Whether it was committed is found out when the key is loaded again.
            self.close()
            raise StateNotWritten(f"the database of states cannot be used: {error}") from error

    def load(self, actor: str, keys: Iterable[str]) -> Mapping[str, StoredKey]:
        with self._database() as database:
            rows = database.execute(
                "SELECT key, value, revision FROM key_state"
                " WHERE owner = %s AND actor = %s AND key = ANY(%s)",
                (self._owner, actor, [to_bytes(key) for key in keys]),
            ).fetchall()
        return {to_text(key): StoredKey(value, revision) for key, value, revision in rows}

    def find(self, message: MessageIdentity) -> Handled | bool:
        with self._database() as database:
            rows = database.execute(
                "SELECT digest, n, actor, at, outputs FROM handled_message"
                " WHERE owner = %s AND name = %s",
                (self._owner, message.name),
            ).fetchall()
        for digest, *handled in rows:
            if digest == message.digest:
                return handled_of(*handled)
        return bool(rows)

    def commit(
        self, changes: Sequence[Change], sent: Sequence[int], acknowledged: Sequence[int] = ()
    ) -> Sequence[int | None]:
        with self._database() as database:
            numbers = [self._write(database, change) for change in changes]
            for stage, done in ((SENT, sent), (ACKNOWLEDGED, acknowledged)):
                if done:
                    database.execute(
                        "UPDATE handled_message SET stage = %s, outputs = NULL WHERE n = ANY(%s)",
                        (stage, list(done)),
                    )
            return numbers

    def _write(self, database: psycopg.Connection[Any], change: Change) -> int | None:
        key, message, outputs = to_bytes(change.key), change.message, change.outputs
        with suppress(Conflict), database.transaction():
            row = database.execute(
                "INSERT INTO handled_message (owner, actor, name, digest, at, stage, outputs)"
                " VALUES (%s, %s, %s, %s, %s, %s, %s) ON CONFLICT DO NOTHING RETURNING n",
                (
                    self._owner,
                    change.actor,
                    None if message is None else message.name,
                    None if message is None else message.digest,
                    change.at,
                    UNSENT if outputs else SENT,
                    envelopes_to_bytes(outputs) if outputs else None,
                ),
            ).fetchone()
            if row is None:
                raise Conflict
            (number,) = row
            where = self._owner, change.actor, key
            if change.value and not change.revision:
                written = database.execute(
                    "INSERT INTO key_state VALUES (%s, %s, %s, %s, %s, %s) ON CONFLICT DO NOTHING",
                    (*where, change.value, number, change.wake),
                ).rowcount
            elif change.value:
                written = database.execute(
                    "UPDATE key_state SET value = %s, revision = %s, wake = %s"
                    " WHERE owner = %s AND actor = %s AND key = %s AND revision = %s",
                    (change.value, number, change.wake, *where, change.revision),
                ).rowcount
            elif change.value is not None and change.revision:
                written = database.execute(
                    "DELETE FROM key_state"
                    " WHERE owner = %s AND actor = %s AND key = %s AND revision = %s",
                    (*where, change.revision),
                ).rowcount
            else:
                found = database.execute(
                    "SELECT revision FROM key_state"
                    " WHERE owner = %s AND actor = %s AND key = %s FOR UPDATE",
                    where,
                ).fetchone()
                written = (found[0] if found else 0) == change.revision
            if not written:
                raise Conflict
            return int(number)
        return None

    def first_due(self, actor: str, most: int) -> Sequence[tuple[str, float]]:
        with self._database() as database:
            rows = database.execute(
                "SELECT key, wake FROM key_state WHERE owner = %s AND actor = %s"
                " AND wake IS NOT NULL ORDER BY wake LIMIT %s",
                (self._owner, actor, most),
            ).fetchall()
        return [(to_text(key), wake) for key, wake in rows]

    def unsent(self) -> Sequence[Handled]:
        with self._database() as database:
            rows = database.execute(
                "SELECT n, actor, at, outputs FROM handled_message"
                " WHERE owner = %s AND stage = %s ORDER BY n",
                (self._owner, UNSENT),
            ).fetchall()
        return [handled_of(*row) for row in rows]

    def trim(self, now: float) -> None:
        with self._database() as database:
            database.execute(
                "DELETE FROM handled_message WHERE owner = %(owner)s AND stage = %(stage)s AND ("
                " name IS NULL OR at < least(%(now)s, (SELECT at FROM handled_message"
                "  WHERE owner = %(owner)s ORDER BY n DESC LIMIT 1)) - %(seconds)s"
                " OR n <= (SELECT max(n) FROM handled_message) - %(most)s)",
                {
                    "owner": self._owner,
                    "stage": ACKNOWLEDGED,
                    "now": now,
                    "seconds": SECONDS_HANDLED,
                    "most": MOST_HANDLED,
                },
            )

    def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(psycopg.Error):
                connection.close()


def handled_of(number: int, actor: str, at: float, outputs: bytes | None) -> Handled:
    """Return a row as what it stands for."""
    return Handled(number, actor, at, () if outputs is None else envelopes_from_bytes(outputs))


def to_bytes(key: str) -> bytes:
    """Return a key as it is stored: it may have what no text in PostgreSQL can have."""
    return key.encode("utf-8", "surrogatepass")


def to_text(key: bytes) -> str:
    """Return what `to_bytes` was given."""
    return key.decode("utf-8", "surrogatepass")


@dataclass
class Truck:
    """What is known of one truck."""

    km: int = 0


def fleet(database: str, bus: str) -> DistributedApplication:
    """Return an application whose states are in a database."""
    app = DistributedApplication(bus, name="postgres-example")
    durable = Durable(store=partial(PostgresStates, database))

    @app.application("fleet/{truck}/drive", per="truck", state=Truck, durable=durable)
    async def drive(km: int, state: Truck) -> int:
        state.km += km
        return state.km

    @app.producer()
    async def dispatcher(socket: Socket) -> None:
        for truck, km in (("old", 1), ("new", 30), ("old", 2)):
            total = await socket.request(f"fleet/{truck}/drive", km, reply=int)
            print(f"{truck} has driven {total} km")
        app.stop()

    return app


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit("give the address of a PostgreSQL database")
    fleet(sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else "memory://").run()
