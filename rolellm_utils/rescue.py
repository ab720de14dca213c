"""`python -m rolellm_utils.rescue`: save what can still be read of a damaged store of replies into a new one."""

import os
import sqlite3
import sys
import time

from rolellm_utils.files import shown
from rolellm_utils.store import Store, default_path


def rescue(path):
    """Move a damaged store aside and fill a new one from it: (replies saved, where the damaged file is now)."""
    aside = path.with_name(f"{path.name}.damaged-{time.strftime('%Y%m%d-%H%M%S')}")
    for suffix in ("", "-wal"):
        if (part := path.with_name(path.name + suffix)).exists():
            os.replace(part, aside.with_name(aside.name + suffix))
    path.with_name(path.name + "-shm").unlink(missing_ok=True)
    new, old = Store(path), sqlite3.connect(aside)
    old.row_factory = sqlite3.Row
    old.execute("PRAGMA writable_schema = ON")  # lets SQLite open a file that has become too short
    # What costs money to lose; of the claims those of batches, whose answers are still to come.
    saved = {table: new.take(table, _readable(old, table)) for table in ("requests", "replies", "losses", "batches")}
    new.take("claims", (row for row in _readable(old, "claims") if row["owner"].startswith("batch/")))
    new.close()
    old.close()
    return saved["replies"], aside


def _readable(db, table):
    """The rows of a table that can be read; what lies on a damaged page is stepped over, ever further."""
    last, step = 0, 1
    while step < 2**40:
        try:
            for row in db.execute(f"SELECT rowid AS place, * FROM {table} WHERE rowid > ? ORDER BY rowid", (last,)):
                last, step = row["place"], 1
                yield {key: row[key] for key in row.keys() if key != "place"}  # noqa: SIM118
            return
        except sqlite3.DatabaseError:
            last, step = last + step, step * 2


def main():
    """Rescue the store of this project; the exit status."""
    path = default_path()
    if not path.exists():
        print(f"{shown(path)} does not exist: there is nothing to rescue", file=sys.stderr)
        return 1
    saved, aside = rescue(path)
    print(f"{saved} replies saved in {shown(path)}; the damaged file is now {shown(aside)}")
    print("restart notebooks that are open: they still have the damaged file in hand")
    return 0


if __name__ == "__main__":
    sys.exit(main())
