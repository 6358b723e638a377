"""The memory that preparing takes does not grow with the file."""

import json
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from grids import exhaustive
from training_client import ROOT

ANSWER = "word " * 800  # 4 kB
RUN = """
import runpy, sys
sys.argv = sys.argv[1:]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
except SystemExit as stop:
    assert not stop.code, stop.code
for line in open("/proc/self/status"):
    if line.startswith("VmHWM"):
        print(line.split()[1])
"""  # not getrusage: what it says begins with the memory of the process that started this one


def peak_megabytes(arguments) -> float:
    """Of a process that runs examples/prepare_data.py."""
    command = [sys.executable, "-c", RUN, ROOT / "examples" / "prepare_data.py", *arguments]
    ended = subprocess.run(command, check=True, capture_output=True, text=True)
    return int(ended.stdout.splitlines()[-1]) / 1024


def write(path, count: int) -> None:
    rows = ({"prompt": f"p{i}", "response": f"{i} {ANSWER}", "helpfulness": 1 + i % 5} for i in range(count))
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(list(rows)), path, row_group_size=1000)
    else:
        with path.open("w") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)


@pytest.mark.parametrize(
    ("kind", "few", "many"),
    [("jsonl", 1_000, 10_000), exhaustive(("parquet", 16_000, 32_000))],  # the fewer fill what Arrow keeps for itself
)
def test_memory_stays_flat(kind, few, many, tmp_path):
    peaks = []
    for count in (few, many):
        file, output = tmp_path / f"{count}.{kind}", tmp_path / str(count)
        write(file, count)
        task = ["task=ratings", "source=table", f"input={file}", f"output={output}", "validation=0.1"]
        peaks.append(peak_megabytes(task))
        written = sum(path.stat().st_size for path in output.iterdir())
        assert written > 4000 * count
        print(kind, count, round(peaks[-1]), "MB", flush=True)
    assert peaks[1] - peaks[0] < 0.4 * 4000 * (many - few) / 2**20
