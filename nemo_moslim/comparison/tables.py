"""The numbers of a comparison as tables: the paper's 2, 3, 4 and 8, and what it does not tabulate.

A cell is text, a number, None (undefined) or an interval {"mean", "low", "high"}.
"""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nemo_moslim.comparison.methods import variant_name
from nemo_moslim.comparison.study import KINDS

Numbers = Mapping[str, Any]
CONTROL_COLUMNS = ("spearman", "hit_rate")
PAPER_HOURS = {"moslim": 164, "morlhf": 196, "rewarded_soups": 400}  # Table 8, GPU hours at 7B
COST_KINDS = tuple(kind for kind in KINDS if kind not in ("data", "evaluation"))


@dataclass(frozen=True)
class Table:
    """Rows under a header; `name` is its file's."""

    name: str
    title: str
    note: str
    header: list[str]
    rows: list[list[Any]]

    def markdown(self) -> str:
        """A pipe table under its title."""
        lines = [self.header, ["---"] + ["---:"] * (len(self.header) - 1), *(map(cell_text, row) for row in self.rows)]
        body = "".join("| " + " | ".join(cells) + " |\n" for cells in lines)
        return f"### {self.title}\n\n{self.note}\n\n{body}"

    def csv(self) -> str:
        """All digits; an interval takes three columns."""
        header, rows = self.header[:1], [[row[0]] for row in self.rows]
        for column, title in enumerate(self.header[1:], 1):
            cells = [row[column] for row in self.rows]
            if any(isinstance(cell, Mapping) for cell in cells):
                header += [title, f"{title} low", f"{title} high"]
                for row, cell in zip(rows, cells, strict=True):
                    is_interval = isinstance(cell, Mapping)
                    row += [cell[key] for key in ("mean", "low", "high")] if is_interval else [cell, None, None]
            else:
                header.append(title)
                for row, cell in zip(rows, cells, strict=True):
                    row.append(cell)
        buffer = io.StringIO()
        csv.writer(buffer, lineterminator="\n").writerows([header, *rows])
        return buffer.getvalue()


def cell_text(cell: Any) -> str:
    """A cell as it is shown: three digits, an interval in brackets, a dash for what is undefined."""
    if isinstance(cell, Mapping):
        if cell["mean"] is None:
            return "-"
        spread = "" if cell["low"] is None else f" [{cell['low']:.3f}, {cell['high']:.3f}]"
        return f"{cell['mean']:.3f}{spread}"
    if cell is None or cell == "":
        return "-"
    if isinstance(cell, float):
        return f"{cell:,.0f}" if abs(cell) >= 100 or cell == int(cell) else f"{cell:.3f}"
    return str(cell)


def all_tables(
    numbers: Numbers, methods: Sequence[str], datatypes: Sequence[int], sizes: Sequence[str], algorithms: Sequence[str]
) -> list[Table]:
    """Every table that there is something for."""
    base = (sizes[0], algorithms[0])
    tables = [reward_table(numbers, methods, datatypes, base), hypervolume_table(numbers), weights_table(numbers)]
    if len(sizes) > 1:
        rows = {f"MOSLIM, reward model {size}": (size, base[1]) for size in sizes}
        title = "Reward-model sizes (the paper's Table 3)"
        tables.append(variant_table(numbers, "table3_reward_model_sizes", title, rows, datatypes, base))
    if len(algorithms) > 1:
        rows = {f"MOSLIM, {algorithm}": (base[0], algorithm) for algorithm in algorithms}
        title = "Algorithms (the paper's Table 4)"
        tables.append(variant_table(numbers, "table4_algorithms", title, rows, datatypes, base))
    tables += [cost_table(numbers), effort_table(numbers), control_table(numbers), control_difference_table(numbers),
               line_table(numbers), soup_table(numbers), seed_table(numbers), point_table(numbers)]  # fmt: skip
    return [table for table in tables if table.rows]


def _levels(numbers: Numbers, method: str) -> list[Any]:
    """A method's mean level per dimension at the even weight vector; dashes for a method that was not run."""
    names = list(numbers["schema"])
    if method not in numbers["methods"]:
        return [None] * len(names)
    levels = numbers["methods"][method]["points"][numbers["even_point"]]["levels"]
    return [levels[name] for name in names]


def _even_weights(numbers: Numbers) -> str:
    return ", ".join(f"{name} {weight:g}" for name, weight in numbers["grid"][numbers["even_point"]].items())


def reward_table(numbers: Numbers, methods: Sequence[str], datatypes: Sequence[int], base: tuple[str, str]) -> Table:
    """The paper's Table 2."""
    header = ["method"] + [f"{name} (DataType {k})" for k in datatypes for name in numbers["schema"]]
    rows = []
    for method in [*methods, *(["start"] if "start" in numbers["methods"] else [])]:
        cells = []
        for datatype in datatypes:
            cells += _levels(numbers, variant_name(*base, datatype, base) if method == "moslim" else method)
        rows.append([method, *cells])
    note = (
        f"Mean obtained level at the weights {_even_weights(numbers)}; 95 % bootstrap intervals over seeds and "
        "prompts. The rivals do not depend on MOSLIM's DataType. start: the SFT model before any method."
    )
    if base[1] == "ppo":
        note += (
            " MOSLIM's critic is the budget's (levels as shipped), the others' a value head: levels foresees Eq. 11."
        )
    return Table("table2_reward_per_dimension", "Reward per dimension (the paper's Table 2)", note, header, rows)


def variant_table(
    numbers: Numbers, name: str, title: str, rows: Mapping[str, tuple[str, str]], datatypes: Sequence[int],
    base: tuple[str, str],
) -> Table:  # fmt: skip
    """Variants of MOSLIM by DataType."""
    header = ["variant"] + [f"{dimension} (DataType {k})" for k in datatypes for dimension in numbers["schema"]]
    lines = []
    for label, (size, algorithm) in rows.items():
        cells = [_levels(numbers, variant_name(size, algorithm, datatype, base)) for datatype in datatypes]
        lines.append([label, *(cell for group in cells for cell in group)])
    note = f"Mean obtained level at the weights {_even_weights(numbers)}. Trainings are as long as the budget says."
    return Table(name, title, note, header, lines)


def hypervolume_table(numbers: Numbers) -> Table:
    """Hypervolume and differences to MOSLIM."""
    names = list(numbers["schema"])
    rows = []
    for method, found in numbers["methods"].items():
        less = found.get("less_moslim")
        differences = [less["hypervolume"], *less["levels"].values()] if less else [None] * (1 + len(names))
        rows.append([method, found["hypervolume"], sum(p["on_front"] for p in found["points"]), *differences])
    header = ["method", "hypervolume", "points on its front", "hypervolume less MOSLIM's",
              *(f"{name} less MOSLIM's" for name in names)]  # fmt: skip
    note = (
        "Share of the cube from the lowest to the highest levels that the points at the common weight vectors "
        "dominate, of the means over seeds; reference point: the lowest levels. A point that is best in every "
        "dimension is a front by itself. "
        f"Levels less MOSLIM's at {_even_weights(numbers)}; differences "
        "are paired by prompt and seed."
    )
    return Table("hypervolume", "Hypervolume, and differences to MOSLIM", note, header, rows)


def weights_table(numbers: Numbers) -> Table:
    """How points move with the weights."""
    rows = [[method, *found["follows_weights"].values()] for method, found in numbers["methods"].items()]
    note = (
        "Spearman's correlation of a dimension's weight and its mean level over the common weight vectors, few points: "
        "a dimension that is at its top at several weights has less than 1."
    )
    return Table("follows_weights", "Does it move with the weights?", note, ["method", *numbers["schema"]], rows)


def cost_table(numbers: Numbers) -> Table:
    """The paper's Table 8."""
    costs = {method: found["cost"] for method, found in numbers["methods"].items()}
    ours, vectors = costs.get("moslim", {}).get("all"), len(numbers["grid"])
    rows = [
        [method, *(float(cost.get(kind, 0.0)) for kind in COST_KINDS), float(cost["all"]), cost["all"] / vectors,
         cost["all"] / ours if ours else None, _paper_ratio(method), cost["reward models"], cost["policies"],
         int(cost["answers"])]
        for method, cost in costs.items()
    ]  # fmt: skip
    header = ["method", *COST_KINDS, "all", "per weight vector", "all / MOSLIM's", "the paper's ratio", "reward models",
              "policy trainings", "answers sampled"]  # fmt: skip
    note = (
        "Device-seconds of training and sampling for one seed and all common weight vectors, shared stages counted for "
        "every method that needs them; start-up, evaluation and data preparation are left out. Steps of the RL loop "
        "include writing their checkpoints, trainings on fixed data do not. How long each training is was chosen in "
        "the budget (configuration below). The paper's ratio is of its GPU hours: 164 to 196 (MORLHF) and 400 (soups)."
    )
    return Table("table8_cost", "Cost (the paper's Table 8)", note, header, rows)


def _paper_ratio(method: str) -> float | None:
    return PAPER_HOURS[method] / PAPER_HOURS["moslim"] if method in PAPER_HOURS else None


def effort_table(numbers: Numbers) -> Table:
    """How long the policies of a method train."""
    steps = [f"{kind} steps {state}" for kind in ("online", "offline") for state in ("planned", "done")]
    columns = [*steps, "answers", "pairs"]
    rows = [
        [method, *(float(found["effort"].get(column, 0)) for column in columns)]
        for method, found in numbers["methods"].items()
        if "effort" in found  # a comparison.json of an earlier version has none
    ]
    note = (
        "All policy trainings of a method together, for one seed: steps that the budget plans and that were done, in "
        "the RL loop and on fixed data; answers that the policies sample in training; pairs of train_dpo.py's data."
    )
    return Table("effort", "How long policies train", note, ["method", *columns], rows)


def control_table(numbers: Numbers) -> Table:
    """Requested against obtained level."""
    rows, names = [], list(numbers["schema"])
    for method, found in numbers["methods"].items():
        if found["control"]:
            cells = []
            for name in names:
                entry = found["control"][name]
                for key in CONTROL_COLUMNS:
                    low, high = entry["intervals"][key]
                    cells.append({"mean": entry[key], "low": low, "high": high})
            overall = found["control"]["overall"]
            rows.append([method, *cells, overall.get("all_hit_interval", overall["all_hit"])])
    header = ["method", *(f"{name} {key.replace('_', ' ')}" for name in names for key in CONTROL_COLUMNS), "all hit"]
    note = (
        "Test prompts that ask for one to three random levels, answers of all seeds together; 95 % bootstrap intervals "
        "over seeds and prompts, rows with the same text as one prompt. Methods without tags are not in it: nothing "
        "can be asked of them."
    )
    return Table("control", "Control", note, header, rows)


def control_difference_table(numbers: Numbers) -> Table:
    """Control less MOSLIM's."""
    names = list(numbers["schema"])
    rows = [
        [method, *(found["less_moslim"]["control"][name][key] for name in names for key in CONTROL_COLUMNS)]
        for method, found in numbers["methods"].items()
        if "control" in found.get("less_moslim", {})
    ]
    header = ["method", *(f"{name} {key.replace('_', ' ')}" for name in names for key in CONTROL_COLUMNS)]
    note = "Paired by seed and prompt: below 0, MOSLIM is better."
    return Table("control_less_moslim", "Control, less MOSLIM's", note, header, rows)


def line_table(numbers: Numbers) -> Table:
    """The linear-mode check of soups."""
    rows = []
    for method, found in numbers["methods"].items():
        for line in found["lines"]:
            for name in line["between"]:
                values = [line[key][name] for key in ("rising", "flat", "largest_fall_below_the_chord")]
                worst = [line["worst_seed"][key][name] for key in ("rising", "largest_fall_below_the_chord")]
                rows.append([_line_name(method, line), name, *map(float, [*values, *worst])])
    header = ["line", "dimension", "steps towards its own end", "steps without change",
              "largest fall below the chord (of 0 to 1)", "steps towards its own end, worst seed",
              "largest fall, worst seed"]  # fmt: skip
    note = (
        "Mixtures of two policies in steps of a quarter: does each objective change towards its own policy's end? Of "
        "the means over seeds, and of the seed with the least."
    )
    return Table("linear_mode", "Linear mode of the soups", note, header, rows)


def soup_table(numbers: Numbers) -> Table:
    """Levels along the lines between two policies."""
    rows = [
        [_line_name(method, line), float(share), *levels.values()]
        for method, found in numbers["methods"].items()
        for line in found["lines"]
        for share, levels in zip(line["shares"], line["levels"], strict=True)
    ]
    header = ["line", "share of the second", *numbers["schema"]]
    note = "Mean obtained levels of the mixtures; 95 % bootstrap intervals over seeds and prompts."
    return Table("soup_lines", "Levels along the soups' lines", note, header, rows)


def _line_name(method: str, line: Mapping[str, Any]) -> str:
    return f"{method}: {' - '.join(line['between'])}"


def seed_table(numbers: Numbers) -> Table:
    """Hypervolume of each seed's own means."""
    values = {
        m: found["hypervolume_per_seed"] for m, found in numbers["methods"].items() if "hypervolume_per_seed" in found
    }
    seeds = max(map(len, values.values()), default=0)
    note = "Of each seed's own mean levels; the table above has that of the means over seeds."
    header = ["method", *(f"seed {number}" for number in range(1, seeds + 1))]
    return Table("hypervolume_per_seed", "Hypervolume of each seed", note, header, [[m, *v] for m, v in values.items()])


def point_table(numbers: Numbers) -> Table:
    """Every common weight vector of every method."""
    rows = [
        [method, ", ".join(f"{k} {v:g}" for k, v in point["weights"].items()), *point["levels"].values(),
         "yes" if point["on_front"] else "no"]
        for method, found in numbers["methods"].items()
        for point in found["points"]
    ]  # fmt: skip
    header = ["method", "weights", *numbers["schema"], "on its front"]
    return Table("points", "All points", "Mean obtained levels.", header, rows)
