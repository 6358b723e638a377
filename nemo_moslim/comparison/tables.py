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
    tables += [cost_table(numbers), control_table(numbers), line_table(numbers), point_table(numbers)]
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
    for method in methods:
        cells = []
        for datatype in datatypes:
            cells += _levels(numbers, variant_name(*base, datatype, base) if method == "moslim" else method)
        rows.append([method, *cells])
    note = (
        f"Mean obtained level at the weights {_even_weights(numbers)}; 95 % bootstrap intervals over seeds and "
        "prompts. The rivals do not depend on MOSLIM's DataType."
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
        "dominate; reference point: the lowest levels. A point that is best in every dimension is a front by itself. "
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
    ours = costs.get("moslim", {}).get("all")
    rows = [
        [method, *(float(cost.get(kind, 0.0)) for kind in COST_KINDS), float(cost["all"]),
         cost["all"] / ours if ours else None, cost["reward models"], cost["policies"], int(cost["answers"])]
        for method, cost in costs.items()
    ]  # fmt: skip
    header = ["method", *COST_KINDS, "all", "all / MOSLIM's", "reward models", "policy trainings", "answers sampled"]
    note = (
        "Device-seconds of training and sampling for one seed and all common weight vectors, shared stages counted for "
        "every method that needs them; start-up, evaluation and data preparation are left out. How long each training "
        "is was chosen in the budget (configuration below)."
    )
    return Table("table8_cost", "Cost (the paper's Table 8)", note, header, rows)


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
            rows.append([method, *cells, found["control"]["overall"]["all_hit"]])
    header = ["method", *(f"{name} {key.replace('_', ' ')}" for name in names for key in CONTROL_COLUMNS), "all hit"]
    note = (
        "Test prompts that ask for one to three random levels, answers of all seeds together and taken as independent "
        "for the intervals. Methods without tags are not in it: nothing can be asked of them."
    )
    return Table("control", "Control", note, header, rows)


def line_table(numbers: Numbers) -> Table:
    """The linear-mode check of soups."""
    rows = []
    for method, found in numbers["methods"].items():
        for line in found["lines"]:
            for name in line["between"]:
                fall, monotone = line["largest_fall_below_the_chord"][name], line["monotonicity"][name]
                rows.append([f"{method}: {' - '.join(line['between'])}", name, float(monotone), float(fall)])
    header = ["line", "dimension", "steps in its direction", "largest fall below the chord (of 0 to 1)"]
    note = "Mixtures of two policies in steps of a quarter: does each objective change towards its own policy's end?"
    return Table("linear_mode", "Linear mode of the soups", note, header, rows)


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
