"""`evaluate.py task=table1`: results of several reward models laid out like the paper's Table 1."""

import json
from pathlib import Path

from nemo_moslim.evaluation.plots import table1_csv, table1_markdown
from nemo_moslim.evaluation.reward_accuracy import TABLE1_KEYS
from nemo_moslim.evaluation_config import EvaluateConfig
from nemo_moslim.run_folder import write_atomically


def write_table1(config: EvaluateConfig) -> None:
    """Read `runs` = [MODEL:DATATYPE:FILE.json,…], write `output` as markdown and a csv beside it, and print the table.

    Raises:
        ValueError: no output, no runs, an entry that is not MODEL:DATATYPE:FILE, or a file of another task or of old.
    """
    if not config.output or not config.runs:
        raise ValueError("task=table1 needs runs=[MODEL:DATATYPE:FILE.json,…] and output=FILE.md")
    rows = []
    for entry in config.runs:
        model, _, rest = entry.partition(":")
        datatype, _, file = rest.partition(":")
        if not file or not datatype.isdigit():
            raise ValueError(f"runs: {entry!r} is not MODEL:DATATYPE:FILE.json with a number as DATATYPE")
        metrics = json.loads(Path(file).read_text())
        if lost := [key for key in TABLE1_KEYS if key not in metrics]:
            raise ValueError(f"runs: {file} has no {', '.join(lost)}: measure it again with task=reward")
        rows.append(
            {
                "model": model,
                "datatype": int(datatype),
                **{key: metrics[key] for key in TABLE1_KEYS},
            }
        )
    output = Path(config.output)
    output.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(output, table1_markdown(rows))
    write_atomically(output.with_suffix(".csv"), table1_csv(rows))
    print(output.read_text(), end="")
