"""An output folder that appears all at once: written beside its place, renamed over what this tool wrote before."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

TOOL = "nemo_moslim prepare_data"
MANIFEST = "manifest.json"
QUARANTINE = "quarantine.jsonl"  # malformed rows, with file, line and reason: no rows of the data


def row_files(folder: str | Path) -> list[Path]:
    """Every jsonl of a folder but the rows that were set aside, in order of name."""
    return sorted(file for file in Path(folder).glob("*.jsonl") if file.name != QUARANTINE)


def check_output(output: str | Path) -> Path:
    """Return the output folder's path if it may be written: absent, empty, or this tool's own and nothing else in it.

    Raises:
        ValueError: it is a file, or holds something that this tool has not written.
    """
    if not str(output):
        raise ValueError("output: a folder is needed (output=DIR)")
    folder = Path(output)
    if not folder.exists():
        return folder
    if not folder.is_dir():
        raise ValueError(f"output={folder} is a file; give a folder")
    found = {path.name for path in folder.iterdir()}
    if not found:
        return folder
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        written = {MANIFEST, *manifest["files"]} if manifest["tool"] == TOOL else set()
    except (OSError, ValueError, KeyError, TypeError):
        written = set()
    strangers = sorted(found - written)
    if strangers:
        raise ValueError(f"output={folder} holds what this tool has not written ({strangers[0]}); give another folder")
    return folder


class OutputFolder:
    """Files of one run, hashed while they are written; see :func:`open_output`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._streams: dict[str, BinaryIO] = {}
        self._digests: dict[str, Any] = {}

    def write_line(self, name: str, line: str) -> None:
        """Append one line of UTF-8 to a file; UnicodeEncodeError (nothing written) on lone surrogates."""
        data = line.encode("utf-8") + b"\n"
        if name not in self._streams:
            self._streams[name] = open(self.path / name, "wb")
            self._digests[name] = hashlib.sha256()
        self._streams[name].write(data)
        self._digests[name].update(data)

    def close(self) -> dict[str, str]:
        """Close the files; name -> SHA-256 of every file of the folder, written here or by others, manifest apart."""
        for stream in self._streams.values():
            stream.close()
        for path in sorted(self.path.iterdir()):
            if path.name not in self._digests:
                self._digests[path.name] = hashlib.sha256(path.read_bytes())
        return {name: self._digests[name].hexdigest() for name in sorted(self._digests)}

    def write_manifest(self, manifest: Mapping[str, Any]) -> dict[str, Any]:
        """Close the files and write the manifest: ``manifest`` with the tool's name and the files' hashes."""
        full = {"tool": TOOL, "format": 1, **manifest, "files": self.close()}
        text = json.dumps(full, ensure_ascii=False, indent=1, allow_nan=False) + "\n"
        (self.path / MANIFEST).write_text(text, encoding="utf-8")
        return full


@contextlib.contextmanager
def open_output(output: str | Path) -> Iterator[OutputFolder]:
    """Yield a folder beside ``output``; on success it takes its place in a rename, on any error it is removed."""
    target = check_output(output)
    parent = target.absolute().parent
    parent.mkdir(parents=True, exist_ok=True)
    token = uuid.uuid4().hex[:8]
    partial = parent / f".{target.name}.partial-{token}"
    partial.mkdir()
    folder = OutputFolder(partial)
    try:
        yield folder
        folder.close()
        check_output(target)
        if target.exists() and any(target.iterdir()):
            old = parent / f".{target.name}.old-{token}"
            os.rename(target, old)
            os.rename(partial, target)
            shutil.rmtree(old)
        else:
            os.rename(partial, target)
    except BaseException:
        with contextlib.suppress(OSError):
            folder.close()
        shutil.rmtree(partial, ignore_errors=True)
        raise
