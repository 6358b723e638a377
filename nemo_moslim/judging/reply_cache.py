"""Replies of a judge on disk, so that the same question is paid for once. One SQLite file, which runs may share."""

import hashlib
import json
import sqlite3
from pathlib import Path
from typing import Any


def request_key(url: str, body: dict[str, Any]) -> str:
    """A digest of what is asked of whom; secrets are no part of either."""
    return hashlib.sha256(json.dumps([url, body], sort_keys=True).encode()).hexdigest()


class ReplyCache:
    """Replies (JSON objects) by key; each is on disk when `put` returns."""

    def __init__(self, path: str | Path):
        """
        Raises:
            ValueError: a file that is no cache.
        """
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._database = sqlite3.connect(self.path, timeout=60, isolation_level=None)
        except sqlite3.Error as error:
            raise self._unusable(error) from error
        try:
            self._do("CREATE TABLE IF NOT EXISTS replies (key TEXT PRIMARY KEY, reply TEXT NOT NULL)")
        except ValueError:
            self._database.close()
            raise

    def get(self, key: str) -> dict[str, Any] | None:
        """The reply, or None. Raises ValueError as `put`."""
        found = self._do("SELECT reply FROM replies WHERE key = ?", key)
        return json.loads(found[0][0]) if found else None

    def put(self, key: str, reply: dict[str, Any]) -> None:
        """Keep a reply.

        Raises:
            ValueError: the file cannot be used: damaged, locked by another process, no room on the disk.
        """
        self._do("INSERT OR REPLACE INTO replies VALUES (?, ?)", key, json.dumps(reply))

    def _do(self, statement: str, *values: str) -> list[tuple]:
        try:
            return self._database.execute(statement, values).fetchall()
        except sqlite3.Error as error:
            raise self._unusable(error) from error

    def _unusable(self, error: sqlite3.Error) -> ValueError:
        return ValueError(f"endpoint.cache={self.path}: not a cache of replies that can be used ({error}); mend it, or "
                          "name another file")  # fmt: skip

    def close(self) -> None:
        """Let go of the file."""
        self._database.close()
