import gzip
import json

import pyarrow
import pyarrow.parquet
import pytest

from nemo_moslim.data.sources import count_rows, read_rows

ROWS = [{"prompt": 'a, "b"\nc', "score": 4}, {"prompt": "é 日本", "score": None}]


def rows_of(path):
    return [row.row for row in read_rows(str(path))]


def test_jsonl_and_gzip(tmp_path):
    text = "".join(json.dumps(row) + "\n" for row in ROWS)
    (tmp_path / "a.jsonl").write_text("\ufeff" + text.replace("\n{", "\n\n{"), encoding="utf-8")
    with gzip.open(tmp_path / "a.jsonl.gz", "wt", encoding="utf-8") as stream:
        stream.write(text)
    assert rows_of(tmp_path / "a.jsonl") == rows_of(tmp_path / "a.jsonl.gz") == ROWS
    assert [row.line for row in read_rows(str(tmp_path / "a.jsonl"))] == [1, 3]


def test_bad_lines_are_located(tmp_path):
    path = tmp_path / "a.jsonl"
    lines = [b'{"a": 1}', b"{", b"[1]", b'{"a": "\xff"}', b"[" * 100_000, b'{"a": ' + b"9" * 5000 + b"}", b'{"a": 2}']
    path.write_bytes(b"\n".join(lines))
    found = list(read_rows(str(path)))
    assert [row.line for row in found] == [1, 2, 3, 4, 5, 6, 7]
    kinds = [row.error and row.error.kind for row in found]
    assert kinds == [None, "not JSON", "not a JSON object", "not UTF-8", "not JSON", "not JSON", None]
    assert found[3].raw == '{"a": "\\xff"}' and found[1].row is None


def test_json_arrays(tmp_path):
    path = tmp_path / "a.json"
    many = [{"prompt": "x" * 1000, "n": n} for n in range(600)]  # over several blocks
    path.write_text(json.dumps([*many, 5, {"n": "é"}], indent=1, ensure_ascii=False), encoding="utf-8")
    found = list(read_rows(str(path)))
    assert [row.row for row in found[:600]] == many and found[601].row == {"n": "é"}
    assert found[600].error.kind == "not a JSON object" and found[600].line == 601
    path.write_text('{"n": 1}\n{"n": 2}\n')
    assert rows_of(path) == [{"n": 1}, {"n": 2}]
    path.write_text('[{"n": 1}, {"n": ')
    with pytest.raises(ValueError, match="after element 1"):
        rows_of(path)


def test_csv(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes('\ufeffprompt,score\r\n"a, ""b""\nc",4\r\né,\r\nshort\r\n'.encode() + b"\xff,1\n")
    found = list(read_rows(str(path)))
    assert found[0].row == {"prompt": 'a, "b"\nc', "score": "4"} and found[0].text_numbers
    assert found[1].row == {"prompt": "é", "score": ""}
    assert found[2].error.kind == "wrong number of columns" and found[2].raw == "short"
    assert [row.line for row in found] == [2, 4, 5, 6]
    assert found[3].row["prompt"] == "\udcff"  # refused later, as text that is not valid Unicode
    for text, match in (("", "empty csv"), ("a,a\n1,2\n", "named twice")):
        path.write_text(text)
        with pytest.raises(ValueError, match=match):
            rows_of(path)


def test_a_quote_that_is_not_closed_swallows_no_row_in_silence(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text('prompt,score\np,1\nq,"2\nr,3\ns,4\n')
    good, bad = read_rows(str(path))
    assert good.row == {"prompt": "p", "score": "1"}
    assert (bad.row, bad.line, bad.error.kind, bad.raw) == (None, 3, "not CSV", 'q,"2\nr,3\ns,4')
    path.write_text('prompt,score\n"p"x,1\nq,2\n')  # and text after a closing one
    bad, good = read_rows(str(path))
    assert (bad.line, bad.error.kind, bad.raw) == (2, "not CSV", '"p"x,1') and good.row["prompt"] == "q"
    path.write_text('"prompt,score\np,1\n')
    with pytest.raises(ValueError, match="the columns' names, is not CSV"):
        rows_of(path)


def test_parquet(tmp_path):
    path = tmp_path / "a.parquet"
    table = pyarrow.table({"prompt": ["a", "b"] * 2000, "score": pyarrow.array([1, None] * 2000, pyarrow.int8())})
    pyarrow.parquet.write_table(table, path)
    found = rows_of(path)
    assert len(found) == count_rows(str(path)) == 4000 and found[3999] == {"prompt": "b", "score": None}
    path.write_bytes(b"PAR1 not really")
    with pytest.raises(ValueError, match=r"a\.parquet"):
        rows_of(path)


def test_parquet_with_broken_text(tmp_path):
    path = tmp_path / "a.parquet"
    broken = pyarrow.Array.from_buffers(
        pyarrow.string(), 3, pyarrow.array([b"a", b"\xff", b"c"]).buffers()
    )  # a string column whose second cell is no UTF-8
    turns = pyarrow.ListArray.from_arrays([0, 1, 2, 3], broken)
    table = pyarrow.table({"prompt": broken, "turns": turns, "score": [1, 2, 3]})
    pyarrow.parquet.write_table(table, path)
    found = list(read_rows(str(path)))
    assert [row.row and row.row["prompt"] for row in found] == ["a", None, "c"]
    assert found[1].error.kind == "not UTF-8" and found[1].line == 2
    assert found[1].raw == {"prompt": "\\xff", "turns": "\\xff", "score": 2}


def test_what_is_not_a_source(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file: .*x.jsonl"):
        rows_of(tmp_path / "x.jsonl")
    (tmp_path / "a.xml").write_text("<a/>")
    with pytest.raises(ValueError, match="unknown file type"):
        rows_of(tmp_path / "a.xml")
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b'{"a": 1}\n' * 1000)[:-20])
    with pytest.raises(ValueError, match="damaged gzip"):
        rows_of(tmp_path / "a.jsonl.gz")


def test_data_sets_are_streamed_through_datasets(tmp_path, monkeypatch):
    """A folder goes through ``datasets`` as a name of the hub does."""
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    assert rows_of(folder) == ROWS
    with pytest.raises(ValueError, match="data set of the hub with the split 'other'"):
        list(read_rows(str(folder), hub_split="other"))


@pytest.mark.parametrize(
    ("second", "reason"),
    [('{"prompt": "x", "sc', "JSON"), ('{"prompt": 5, "score": "t"}', "'t'"), ('{"other": 1}', "Couldn't cast")],
)
def test_a_data_set_that_breaks_midway_ends_in_one_message(tmp_path, monkeypatch, second, reason):
    """Whatever `datasets` raises: text that is no JSON, another type, other columns."""
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "train-0.jsonl").write_text("".join(json.dumps({"prompt": "p", "score": n}) + "\n" for n in range(3)))
    (folder / "train-1.jsonl").write_text(second + "\n")
    with pytest.raises(ValueError, match=f"set: cannot be read after row 3 .*{reason}"):
        rows_of(folder)
