"""Rows of files and hub data sets, one at a time: jsonl, json, csv, parquet, text, or a name on the Hugging Face hub.

A row that cannot be read is yielded as a RowError in its place, so that the caller chooses to stop or to set it aside.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import hashlib
import io
import json
import sys
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from nemo_moslim.data.rows import RowError

SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".json.gz", ".csv", ".csv.gz", ".parquet", ".txt", ".txt.gz")
_BATCH_ROWS = 1024
_BLOCK = 1 << 18


@dataclass(slots=True)
class SourceRow:
    """One row: where it is from, and its columns (``row``) or why it could not be read (``error``, with ``raw``).

    ``raw`` is what is known of such a row: its text, or the columns of a parquet row, broken text in them escaped.
    """

    file: str
    line: int  # 1-based line of a text file (of csv the row's first), row of parquet or of a hub data set
    row: dict[str, Any] | None
    error: RowError | None = None
    raw: str | dict[str, Any] | None = None
    text_numbers: bool = False  # a csv: numbers are text, an empty cell is no value


def suffix_of(path: str | Path) -> str | None:
    """The supported suffix of a file name, or None."""
    name = str(path).lower()
    return max((suffix for suffix in SUFFIXES if name.endswith(suffix)), key=len, default=None)


def is_hub_name(source: str) -> bool:
    """Whether ``source`` is read through ``datasets``: no such file, and no file's suffix; or a folder."""
    return Path(source).is_dir() or (not Path(source).exists() and suffix_of(source) is None)


def read_rows(source: str, *, hub_split: str = "train", hub_config: str | None = None) -> Iterator[SourceRow]:
    """Yield the rows of a file or of a hub data set, with flat memory.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a suffix that is not supported, or a damaged file (its name and the place are given).
    """
    if is_hub_name(source):
        yield from _read_hub(source, hub_split, hub_config)
        return
    if not Path(source).is_file():
        raise FileNotFoundError(f"no such file: {source}")
    suffix = suffix_of(source)
    if suffix is None:
        raise ValueError(f"{source}: unknown file type; expected one of {', '.join(SUFFIXES)}")
    if suffix == ".parquet":
        yield from _read_parquet(source)
        return
    readers = {".csv": _read_csv, ".txt": _read_text, ".json": _read_json, ".jsonl": _read_jsonl}
    reader = readers[suffix.removesuffix(".gz")]
    try:
        with gzip.open(source, "rb") if suffix.endswith(".gz") else open(source, "rb") as stream:
            yield from reader(source, stream)  # type: ignore[arg-type]
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{source}: damaged gzip file: {error}") from error


def _read_jsonl(source: str, stream: BinaryIO) -> Iterator[SourceRow]:
    for number, line in enumerate(stream, 1):
        if number == 1 and line.startswith(b"\xef\xbb\xbf"):
            line = line[3:]
        if not line.strip():
            continue
        try:
            row = json.loads(line.decode("utf-8"))
            if not isinstance(row, dict):
                raise RowError("not a JSON object", f"got {type(row).__name__}")
            yield SourceRow(source, number, row)
            continue
        except RowError as failure:
            error = failure
        except UnicodeDecodeError as failure:
            error = RowError("not UTF-8", f"byte {failure.start}")
        except (ValueError, RecursionError) as failure:
            error = RowError("not JSON", str(failure))
        yield SourceRow(source, number, None, error, line.decode("utf-8", "backslashreplace").rstrip("\r\n"))


def _read_json(source: str, stream: BinaryIO) -> Iterator[SourceRow]:
    """A ``.json`` file: one array of objects, decoded element by element, or an object per line."""
    text = codecs.getincrementaldecoder("utf-8-sig")()
    decoder = json.JSONDecoder()
    buffer, number, ended = "", 0, False
    while not buffer and not ended:
        block = stream.read(_BLOCK)
        buffer, ended = text.decode(block, not block).lstrip(), not block
    if not buffer.startswith("["):
        stream.seek(0)
        yield from _read_jsonl(source, stream)
        return
    buffer = buffer[1:]
    while True:
        buffer = buffer.lstrip(" \t\r\n,")
        if buffer.startswith("]"):
            return
        try:
            row, end = decoder.raw_decode(buffer)
        except (ValueError, RecursionError) as error:
            if ended:
                raise ValueError(f"{source}: not JSON after element {number} of its array: {error}") from error
            block = stream.read(max(_BLOCK, len(buffer)))
            buffer, ended = buffer + text.decode(block, not block), not block
            continue
        number += 1
        buffer = buffer[end:]
        if isinstance(row, dict):
            yield SourceRow(source, number, row)
        else:
            yield SourceRow(source, number, None, RowError("not a JSON object", f"got {type(row).__name__}"), str(row))


def _read_text(source: str, stream: BinaryIO) -> Iterator[SourceRow]:
    for number, line in enumerate(stream, 1):
        if line.strip():
            try:
                yield SourceRow(source, number, {"text": line.decode("utf-8")})
            except UnicodeDecodeError as failure:
                error = RowError("not UTF-8", f"byte {failure.start}")
                yield SourceRow(source, number, None, error, line.decode("utf-8", "backslashreplace").rstrip("\r\n"))


def _read_csv(source: str, stream: BinaryIO) -> Iterator[SourceRow]:
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    lines = io.TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape", newline="")
    raw: list[str] = []  # the lines of the row at hand

    def recorded() -> Iterator[str]:
        for line in lines:
            raw.append(line)
            yield line

    reader = csv.reader(recorded(), strict=True)  # else an unclosed quote makes one cell of the rest of the file
    try:
        header = next(reader, None)
    except csv.Error as error:
        raise ValueError(f"{source}: its first line, the columns' names, is not CSV: {error}") from error
    if not header:
        raise ValueError(f"{source}: empty csv file; its first line must name the columns")
    if len(set(header)) != len(header):
        raise ValueError(f"{source}: a column is named twice: {', '.join(header)}")
    while True:
        raw.clear()
        number = reader.line_num + 1
        try:
            cells = next(reader, None)
            if cells and len(cells) != len(header):
                raise RowError("wrong number of columns", f"{len(cells)} cells, {len(header)} columns in the header")
        except (csv.Error, RowError) as failure:
            error = failure if isinstance(failure, RowError) else RowError("not CSV", str(failure))
            yield SourceRow(source, number, None, error, "".join(raw).rstrip("\r\n"))
            continue
        if cells is None:
            return
        if cells:
            yield SourceRow(source, number, dict(zip(header, cells, strict=True)), text_numbers=True)


def _read_parquet(source: str) -> Iterator[SourceRow]:
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        with pyarrow.parquet.ParquetFile(source) as file:
            for batch in file.iter_batches(batch_size=_BATCH_ROWS):
                for row, error in _batch_rows(batch):
                    number += 1
                    if error is None:
                        yield SourceRow(source, number, row)
                    else:
                        yield SourceRow(source, number, None, error, row)
    except pyarrow.ArrowException as error:
        raise ValueError(f"{source}: damaged parquet file after row {number}: {error}") from error


def _batch_rows(batch: Any) -> Iterator[tuple[dict[str, Any], RowError | None]]:
    """Rows of a record batch; one with broken text has its error beside it, and its columns as far as they are read."""
    try:
        rows = batch.to_pylist()
    except UnicodeDecodeError:
        rows = None
    if rows is not None:
        yield from ((row, None) for row in rows)
        return
    for index in range(batch.num_rows):  # some cell is no text: find which
        row, error = {}, None
        for name, column in zip(batch.schema.names, batch.columns, strict=True):
            try:
                row[name] = column[index].as_py()
            except UnicodeDecodeError as failure:
                error = RowError("not UTF-8", f"byte {failure.start} of a text cell")
                row[name] = failure.object.decode("utf-8", "backslashreplace")
        yield row, error


def _read_hub(name: str, split: str, config: str | None) -> Iterator[SourceRow]:
    import datasets

    try:
        rows = datasets.load_dataset(name, config, split=split, streaming=True)
    except Exception as error:  # datasets raises many kinds; all mean that the name, split or network is at fault
        raise ValueError(
            f"cannot open {name!r}: neither a file nor a data set of the hub with the split {split!r}: {_reason(error)}"
        ) from error
    number = 0
    try:
        for number, row in enumerate(rows, 1):
            yield SourceRow(name, number, dict(row))
    except Exception as error:  # as many kinds: a damaged file, columns that change their type, a lost connection
        raise ValueError(f"{name}: cannot be read after row {number} of split {split!r}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def count_rows(source: str) -> int | None:
    """Number of rows where that is known without reading (parquet), else None."""
    if is_hub_name(source) or suffix_of(source) != ".parquet":
        return None
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(source) as file:
        return file.metadata.num_rows


def with_progress(rows: Iterable[SourceRow], source: str) -> Iterable[SourceRow]:
    """The rows of ``source``, counted by a bar where the terminal shows one."""
    if not sys.stderr.isatty():
        return rows
    from tqdm import tqdm

    total = count_rows(source) if suffix_of(source) else None
    return tqdm(rows, total=total, unit=" rows", desc=Path(source).name, mininterval=0.5)


def sha256_of(path: str | Path) -> str:
    """SHA-256 of a file's bytes, as hex."""
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
