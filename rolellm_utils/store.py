"""The store of replies: one SQLite file for all runs, cache and ledger in one, which several processes may share.

A reply is in the file before anyone sees it. WAL mode, so on a local disk: a kill or a full disk loses what is in
flight and nothing else. A power cut can also lose the commits that the disk had not written yet, never the file; with
ROLELLM_SYNC=full in the environment every commit waits for the disk, and nothing is lost (a commit then takes
milliseconds).
"""

import json
import os
import socket
import sqlite3
import time
import weakref
from contextlib import contextmanager
from pathlib import Path

from rolellm_utils.files import outputs_dir, read_jsonl, shown, write_jsonl
from rolellm_utils.records import InputError

VERSION = 2
OPEN = weakref.WeakSet()  # the stores of this process: its other claims are those of stores that are gone
COLUMNS = (
    "key", "sample", "attempt", "text", "status", "reason", "finish_reason", "prompt_tokens", "completion_tokens",
    "usd", "seconds", "finished", "model", "run", "stage", "role",
)  # fmt: skip
# replies: an attempt is asked again only where its status is not "ok". spent: the running sum of replies and losses.
# claims: who is asking what right now, and what it may cost. losses: what may have been billed without a reply.
# batches: what the Batch API has in hand.
TABLES = """
CREATE TABLE IF NOT EXISTS requests (key TEXT PRIMARY KEY, body TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS replies (
    key TEXT NOT NULL, sample INTEGER NOT NULL, attempt INTEGER NOT NULL, text TEXT NOT NULL, status TEXT NOT NULL,
    reason TEXT, finish_reason TEXT, prompt_tokens INTEGER, completion_tokens INTEGER, usd REAL, seconds REAL,
    finished TEXT, model TEXT, run TEXT, stage TEXT, role TEXT, PRIMARY KEY (key, sample, attempt));
CREATE INDEX IF NOT EXISTS replies_of_run ON replies (run, stage);
CREATE TABLE IF NOT EXISTS claims (
    key TEXT PRIMARY KEY, owner TEXT NOT NULL, expires REAL NOT NULL, usd REAL NOT NULL, model TEXT, run TEXT,
    stage TEXT, role TEXT);
CREATE INDEX IF NOT EXISTS claims_of_owner ON claims (owner);
CREATE TABLE IF NOT EXISTS losses (
    key TEXT, usd REAL NOT NULL, reason TEXT, finished TEXT, model TEXT, run TEXT, stage TEXT, role TEXT);
CREATE TABLE IF NOT EXISTS spent (run TEXT PRIMARY KEY, usd REAL NOT NULL);
CREATE TABLE IF NOT EXISTS batches (
    token TEXT PRIMARY KEY, base_url TEXT, model TEXT, batch_id TEXT, file_id TEXT, state TEXT NOT NULL, created TEXT,
    owner TEXT, run TEXT, stage TEXT);
"""
# From the first layout, which had no attempts and no costs.
MIGRATION = """
ALTER TABLE replies RENAME TO old;
{tables}
INSERT INTO replies SELECT key, sample, 0, text, CASE finish_reason WHEN 'length' THEN 'cut_off' ELSE 'ok' END, '',
    finish_reason, prompt_tokens, completion_tokens, 0.0, seconds, finished, '', run, stage, role FROM old;
DROP TABLE old;
"""


def now():
    """The time as it stands in the ledger, UTC."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def default_path():
    """The store of all runs: outputs/teacher.sqlite."""
    return outputs_dir() / "teacher.sqlite"


class Store:
    """An open store; `owner` names this process in claims. Raises InputError, in one sentence, for a damaged file."""

    def __init__(self, path=None):
        self.path = Path(path or default_path())
        self.owner = f"{socket.gethostname()}/{os.getpid()}/{time.monotonic_ns()}"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        sync = os.environ.get("ROLELLM_SYNC", "normal").upper()
        if sync not in ("NORMAL", "FULL"):
            raise InputError(f"ROLELLM_SYNC is {sync.lower()!r}; set it to normal or full")
        with self._said():
            self._db = sqlite3.connect(self.path, timeout=60, isolation_level=None, check_same_thread=False)
            self._db.row_factory = sqlite3.Row
            self._wal()
            self._db.execute(f"PRAGMA synchronous = {sync}")
        with self._transaction() as db:
            if db.execute("PRAGMA user_version").fetchone()[0] < VERSION:
                self._make(db)
            self._end_dead(db)
        OPEN.add(self)

    def _wal(self):
        # Two processes that open a new file at once: one finds it locked, and SQLite does not wait in this one case.
        for _ in range(600):
            try:
                self._db.execute("PRAGMA journal_mode = WAL")
                return
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & 0xFF not in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
                    raise
                time.sleep(0.1)

    def _make(self, db):
        old = db.execute("SELECT 1 FROM sqlite_master WHERE name = 'replies'").fetchone()
        for statement in (MIGRATION.format(tables=TABLES) if old else TABLES).split(";"):
            db.execute(statement)
        db.execute(f"PRAGMA user_version = {VERSION}")

    def close(self):
        """Give back the claims of this store and close the file; closing twice is fine."""
        if self not in OPEN:
            return
        OPEN.discard(self)
        try:
            with self._transaction() as db:
                db.execute("DELETE FROM claims WHERE owner = ?", (self.owner,))
        finally:
            self._db.close()

    def attempts(self, key):
        """What is stored of a request: its rows, by sample and attempt."""
        return self._rows("SELECT * FROM replies WHERE key = ? ORDER BY sample, attempt", (key,))

    def body(self, key):
        """The request as it was asked, with its model: a dict."""
        return json.loads(self._rows("SELECT body FROM requests WHERE key = ?", (key,))[0]["body"])

    def claim(self, key, stored, seconds, usd, labels, max_usd=0.0, owner=None, body=None):
        """Whether the caller may ask: "mine", "known", "busy", "batch" or "full".

        known: more than the `stored` rows are there by now. busy, batch: a process or a batch has it in hand. full:
        beside what other requests of the run have reserved it does not fit below `max_usd` (0: no limit). A claim
        lasts `seconds` and reserves `usd`. Raises BudgetReached where it does not fit though nothing is in flight.
        """
        with self._transaction() as db:
            if db.execute("SELECT COUNT(*) FROM replies WHERE key = ?", (key,)).fetchone()[0] != stored:
                return "known"
            if state := self.held(key):
                return state
            for held in db.execute("SELECT * FROM claims WHERE key = ?", (key,)).fetchall():
                self._end(db, held, "its process died")
            if max_usd and self._is_full(db, usd, labels["run"], max_usd):
                return "full"
            db.execute(
                "INSERT INTO claims VALUES (:key, :owner, :expires, :usd, :model, :run, :stage, :role)",
                {"key": key, "owner": owner or self.owner, "expires": time.time() + seconds, "usd": usd, **labels},
            )
            if body:
                db.execute("INSERT OR IGNORE INTO requests VALUES (?, ?)", (key, body))
            return "mine"

    def held(self, key):
        """ "busy" or "batch" when a process or a batch has a request in hand, else ""."""
        held = self._rows("SELECT owner, expires FROM claims WHERE key = ?", (key,))
        # A claim of our own that nobody answers is left from an answer that could not be stored.
        if not held or held[0]["owner"] == self.owner or _is_over(held[0]):
            return ""
        return "batch" if held[0]["owner"].startswith("batch/") else "busy"

    def _is_full(self, db, usd, run, max_usd):
        """True when a request must wait for those in flight; BudgetReached when it does not fit without them either."""
        self._end_dead(db)
        spent = self._spent(db, run)
        reserved = db.execute("SELECT TOTAL(usd) FROM claims WHERE run = ?", (run,)).fetchone()[0]
        if spent + reserved + usd <= max_usd:
            return False
        in_flight = "SELECT COUNT(*) FROM claims WHERE run = ? AND owner NOT LIKE 'batch/%'"
        if db.execute(in_flight, (run,)).fetchone()[0]:
            return True
        raise BudgetReached(
            f"max_usd {max_usd:g} is reached: run {run!r} has spent or reserved {spent + reserved:.4f} USD, the next "
            f"request may cost {usd:.4f}; raise max_usd and run again to go on from here"
        )

    def _spent(self, db, run):
        row = db.execute("SELECT usd FROM spent WHERE run = ?", (run,)).fetchone()
        return row["usd"] if row else 0.0

    def spent(self, run):
        """What a run has cost so far in USD, with what may have been billed without a reply."""
        with self._said():
            return self._spent(self._db, run)

    def release(self, key, reason=""):
        """Give a claim of this store back, if it still is one; with a `reason`, what it reserved is booked as lost."""
        with self._transaction() as db:
            held = db.execute("SELECT * FROM claims WHERE key = ? AND owner = ?", (key, self.owner)).fetchone()
            if held:
                self._end(db, held, reason)

    def _end(self, db, held, reason):
        if reason and held["usd"]:
            self._lose(db, held["key"], held["usd"], reason, held)
        db.execute("DELETE FROM claims WHERE key = ?", (held["key"],))

    def _lose(self, db, key, usd, reason, labels):
        db.execute(
            "INSERT INTO losses VALUES (:key, :usd, :reason, :finished, :model, :run, :stage, :role)",
            {name: labels[name] for name in ("model", "run", "stage", "role")}
            | {"key": key, "usd": usd, "reason": reason, "finished": now()},
        )
        self._spend(db, labels["run"], usd)

    def _spend(self, db, run, usd):
        db.execute(
            "INSERT INTO spent VALUES (?, ?) ON CONFLICT (run) DO UPDATE SET usd = usd + excluded.usd", (run, usd)
        )

    def keep(self, key, body, rows):
        """Store the rows of an answer and its request's body (JSON) in one commit; the claim ends."""
        with self._transaction() as db:
            db.execute("INSERT OR IGNORE INTO requests VALUES (?, ?)", (key, body))
            for row in rows:
                added = db.execute(INSERT, row).rowcount
                if added and row["usd"]:
                    self._spend(db, row["run"], row["usd"])
                elif row["usd"]:
                    self._lose(db, key, row["usd"], "answered twice", row)
            db.execute("DELETE FROM claims WHERE key = ? AND owner = ?", (key, self.owner))

    def _end_dead(self, db):
        """What processes that are gone had in flight may have been billed."""
        for held in db.execute("SELECT * FROM claims WHERE owner NOT LIKE 'batch/%'").fetchall():
            if held["owner"] != self.owner and _is_over(held):
                self._end(db, held, "its process died")

    def take(self, table, rows):
        """Put rows (dicts) of another store into a table; how many there were. `spent` follows."""
        count = 0
        with self._transaction() as db:
            for row in rows:
                marks = ", ".join(f":{name}" for name in row)
                db.execute(f"INSERT OR IGNORE INTO {table} ({', '.join(row)}) VALUES ({marks})", row)
                if row.get("usd") and table in ("replies", "losses"):
                    self._spend(db, row["run"], row["usd"])
                count += 1
        return count

    def open_batches(self, base_url, run=None):
        """The batches at a server that are not collected yet, of a run or of all."""
        return self._rows(
            "SELECT * FROM batches WHERE state != 'done' AND base_url = ? AND (? IS NULL OR run = ?)",
            (base_url, run, run),
        )

    def write_batch(self, batch):
        """Store the state of a batch, a dict of the table's columns."""
        names = ("token", "base_url", "model", "batch_id", "file_id", "state", "created", "owner", "run", "stage")
        with self._transaction() as db:
            db.execute(
                f"INSERT OR REPLACE INTO batches VALUES ({', '.join(':' + name for name in names)})",
                {name: batch.get(name) for name in names},
            )

    def end_batch(self, batch, reason=""):
        """Free what a batch still claims and mark it done; with a `reason`, what it reserved is booked as lost."""
        with self._transaction() as db:
            for held in db.execute("SELECT * FROM claims WHERE owner = ?", (f"batch/{batch['token']}",)).fetchall():
                self._end(db, held, reason)
            db.execute("UPDATE batches SET state = 'done' WHERE token = ?", (batch["token"],))

    def claims_of(self, key):
        """The claim on a request, in a list, or an empty list."""
        return self._rows("SELECT * FROM claims WHERE key = ?", (key,))

    def address(self, token):
        """The base URL of the server that has a batch; "" for one that nobody knows."""
        found = self._rows("SELECT base_url FROM batches WHERE token = ?", (token,))
        return found[0]["base_url"] if found else ""

    def claims(self, owner):
        """The claims of an owner."""
        return self._rows("SELECT * FROM claims WHERE owner = ?", (owner,))

    def add(self, rows):
        """Store the rows of a batch's answer in one commit; how many were new. The claim stays until the batch ends."""
        with self._transaction() as db:
            new = 0
            for row in rows:
                if db.execute(INSERT, row).rowcount:
                    new += 1
                    self._spend(db, row["run"], row["usd"] or 0.0)
            return new

    def note(self, key, body):
        """Store a request without an answer."""
        with self._transaction() as db:
            db.execute("INSERT OR IGNORE INTO requests VALUES (?, ?)", (key, body))

    def recent(self, model, stage=None, most=200):
        """The latest first attempts of a model (at a stage): what was asked and what usage was reported."""
        return self._rows(
            "SELECT body, MAX(prompt_tokens) AS prompt_tokens, SUM(completion_tokens) AS completion_tokens, "
            "COUNT(*) AS samples FROM (SELECT * FROM replies WHERE model = ? AND (? IS NULL OR stage = ?) AND "
            "attempt = 0 ORDER BY rowid DESC LIMIT ?) JOIN requests USING (key) GROUP BY key",
            (model, stage, stage, most),
        )

    def ledger(self, run, by=("stage",)):
        """What a run has asked: a dict for every value of `by` (of stage, role, model) in order.

        samples, calls, prompt_tokens, completion_tokens, seconds of waiting, usd, and usd_lost: of `usd`, what may
        have been billed without a reply.
        """
        columns = ", ".join(column for column in by if column in ("stage", "role", "model"))
        return [dict(row) for row in self._rows(LEDGER.format(columns=columns), {"run": run})]

    def _rows(self, statement, values=()):
        with self._said():
            return self._db.execute(statement, values).fetchall()

    @contextmanager
    def _transaction(self):
        with self._said():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    @contextmanager
    def _said(self):
        """SQLite's errors as one sentence with a way out."""
        try:
            yield
        except sqlite3.DatabaseError as error:
            code = getattr(error, "sqlite_errorcode", 0) & 0xFF
            if code in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR):
                what = f"cannot be written ({error}); free disk space and run again: only what is in flight is lost"
            elif code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
                what = f"is held by another program ({error}); close that and run again: only what is in flight is lost"
            elif code in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM):
                what = f"cannot be opened for writing ({error}); check its permissions and those of its folder"
            elif isinstance(error, sqlite3.ProgrammingError) and "closed" in str(error):
                what = "is closed, as its stage is finished: run the cell that makes the teacher again"
            elif code not in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
                what = f"cannot be used ({error}); it must lie on a local disk"
            else:
                what = (
                    f"is damaged ({error}); `python -m rolellm_utils.rescue` saves every reply that can still be read "
                    "into a new file"
                )
            raise InputError(f"the store of replies {shown(self.path)} {what}") from None


class BudgetReached(InputError):
    """What is left of `max_usd` is less than the next request may cost."""


INSERT = f"INSERT OR IGNORE INTO replies VALUES ({', '.join(':' + name for name in COLUMNS)})"
LEDGER = """
SELECT {columns}, SUM(samples) AS samples, SUM(calls) AS calls, SUM(prompt_tokens) AS prompt_tokens,
    SUM(completion_tokens) AS completion_tokens, SUM(seconds) AS seconds, SUM(usd) AS usd, SUM(lost) AS usd_lost
FROM (
    SELECT stage, role, model, 1 AS samples, prompt_tokens > 0 AS calls, prompt_tokens, completion_tokens, seconds,
        usd, 0.0 AS lost FROM replies WHERE run = :run
    UNION ALL SELECT stage, role, model, 0, 0, 0, 0, 0.0, usd, usd FROM losses WHERE run = :run)
GROUP BY {columns} ORDER BY {columns}
"""


def _is_over(claim):
    """True when nobody will answer a claim: it has expired, or its process is gone."""
    return claim["expires"] < time.time() or is_dead(claim["owner"])


def is_dead(owner):
    """True when the owner of a claim was a process on this machine that is gone."""
    host, _, rest = owner.partition("/")
    if host != socket.gethostname() or os.name != "posix":
        return False
    number = int(rest.partition("/")[0])
    if number == os.getpid():
        return owner not in {store.owner for store in OPEN}
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    return False


def record(store, path):
    """Write every reply of a store as recorded replies, in a fixed order; how many there were."""
    opened = Store(store)
    rows = opened._rows(
        "SELECT stage, role, key, sample, attempt, text, status, reason, finish_reason, prompt_tokens, "
        "completion_tokens FROM replies ORDER BY stage, role, key, sample, attempt"
    )
    opened.close()
    write_jsonl(path, (dict(row) for row in rows))
    return len(rows)


def read_recorded(path):
    """Recorded replies as the store would give them: {key: [row]}."""
    found = {}
    for row in read_jsonl(path, ("key", "sample", "attempt", "text", "status")) if Path(path).exists() else []:
        found.setdefault(row["key"], []).append(row)
    return found
