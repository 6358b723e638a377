"""What a rollout tells about the policy: rewards, hits of the asked levels, lengths; per dimension and level.

Shapes: R answers, N dimensions.
"""

import numpy as np
import torch
from torch import Tensor

from nemo_moslim.batches import PolicyBatch, Rollout
from nemo_moslim.functional.masked import inside
from nemo_moslim.parallel.layout import maximum_over_data_ranks, sum_over_data_ranks
from nemo_moslim.preferences import PreferenceSchema
from nemo_moslim.rollout.scorer import asked_levels

MISMATCH_SUMS = ("mismatch", "mismatch_max")  # of `mismatch_sums`


def rollout_metrics(rollout: Rollout, schema: PreferenceSchema, by_level: bool = True) -> dict[str, float]:
    """Means over the answers, and over those that ask for a dimension (and level).

    `cut_for_scoring` is the share of answers that the reward model could not read whole, `reward` Eq. 11 or Eq. 1,
    `reward/DIM` what the dimension adds where it is asked for (to all answers, where no prompt asks for anything);
    `level/DIM` the mean of the reward model's most likely levels over all answers, `hit_rate/DIM` how often it is the
    asked one; with `by_level` these and `length` also per `DIM=LEVEL`.
    """
    asked = asked_levels(rollout.preferences, schema)  # [R, N]
    hits, lengths = (rollout.obtained == asked).float(), torch.tensor([float(len(a)) for a in rollout.answers])
    metrics = {
        "reward": float(rollout.rewards.mean()),
        "reward_std": float(rollout.rewards.std(correction=0)),
        "length": float(lengths.mean()),
        "finished": float(np.mean(rollout.finished)),
        "cut_for_scoring": rollout.cut_for_scoring / len(rollout),
    }
    for column, dimension in enumerate(schema.dimensions):
        metrics[f"level/{dimension.name}"] = float(rollout.obtained[:, column].float().mean())
        if not asked.any():
            metrics[f"reward/{dimension.name}"] = float(rollout.parts[:, column].mean())
        levels = range(1, dimension.levels + 1) if by_level else ()
        for suffix, rows in [
            ("", asked[:, column] > 0),
            *((f"={level}", asked[:, column] == level) for level in levels),
        ]:
            if not rows.any():
                continue
            name = dimension.name + suffix
            metrics[f"reward/{name}"] = float(rollout.parts[rows, column].mean())
            metrics[f"hit_rate/{name}"] = float(hits[rows, column].mean())
            if suffix:
                metrics[f"length/{name}"] = float(lengths[rows].mean())
    return metrics


def mismatch(rollout: Rollout, batches: list[PolicyBatch]) -> dict[str, float]:
    """Generator against trainer: mean and maximum of |difference| of the sampled tokens' log-probabilities."""
    total, largest = torch.zeros(2, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    for batch in batches:
        for place, row in enumerate(batch.rows.tolist()):
            if not batch.response_mask[place, 0]:
                continue
            theirs = torch.from_numpy(rollout.generator_logprobs[row])
            gap = (batch.old_logprobs[place, : len(theirs)] - theirs).abs().double()
            total += torch.tensor([float(gap.sum()), float(len(gap))])
            largest = torch.maximum(largest, gap.max())
    total, largest = sum_over_data_ranks(total), maximum_over_data_ranks(largest)
    return {"mismatch": float(total[0] / total[1].clamp(min=1)), "mismatch_max": float(largest)}


def mismatch_sums(logprobs: Tensor, batch: PolicyBatch) -> dict[str, Tensor]:
    """What `mismatch` is made of, of a micro-batch whose `old_logprobs` are the generator's: sum and maximum."""
    gap = inside(logprobs.detach() - batch.old_logprobs, batch.response_mask).abs().double()
    return {"mismatch": gap.sum(), "mismatch_max": gap.amax()}


def sample_table(rollout: Rollout, schema: PreferenceSchema, count: int, title: str):
    """A rich table of the first answers: asked levels, obtained levels, reward, text."""
    from rich.table import Table
    from rich.text import Text

    table = Table("asked", "obtained", "reward", "prompt", "answer", title=title, show_lines=True)
    for row in sample_rows(rollout, schema, count):
        asked = " ".join(f"{name} {level}" for name, level in row["preferences"].items()) or "-"
        obtained = " ".join(f"{name} {row['levels'][name]}" for name in row["preferences"]) or "-"
        prompt = row["prompt"] if isinstance(row["prompt"], str) else row["prompt"][-1]["content"]
        table.add_row(asked, obtained, f"{row['reward']:.2f}", Text(prompt[-200:]), Text(row["response"][:500]))
    return table


def sample_rows(rollout: Rollout, schema: PreferenceSchema, count: int) -> list[dict]:
    """The first answers to different prompts as rows of samples.jsonl."""
    first = [int((rollout.groups == group).nonzero()[0, 0]) for group in rollout.groups.unique()[:count]]
    return [
        {
            "prompt": rollout.prompts[row],
            "preferences": rollout.preferences[row],
            "response": rollout.texts[row],
            "levels": dict(zip(schema.names, rollout.obtained[row].tolist(), strict=True)),
            "reward": float(rollout.rewards[row]),
        }
        for row in first
    ]


def update_metrics(totals: list[dict[str, float]], first: dict[str, float]) -> dict[str, float]:
    """Means over all counted positions of an epoch from the sums of its updates; of the step's first update what it
    says of the log-probabilities that the answers were sampled with."""
    sums = {name: sum(t[name] for t in totals) for name in totals[0]}
    count, tokens = max(sums["count"], 1.0), max(sums.get("tokens", sums["count"]), 1.0)
    metrics = {
        "loss": sums["loss"] / count,
        "entropy": sums["entropy"] / tokens,
        "grad_norm": sums["grad_norm"] / len(totals),
        "first_ratio_deviation": first["ratio_deviation_max"],
        "ratio_deviation_max": max(t["ratio_deviation_max"] for t in totals),
    }
    for name, label in (
        ("clipped", "clip_fraction"), ("ratio", "ratio"), ("approx_kl", "approx_kl"),
        ("accuracy", "pair_accuracy"), ("margin", "margin"), ("value_clipped", "value_clip_fraction"),
    ):  # fmt: skip
        if name in sums:
            metrics[label] = sums[name] / count
    if "mismatch" in first:
        metrics["mismatch"] = first["mismatch"] / max(first.get("tokens", first["count"]), 1.0)
        metrics["mismatch_max"] = first["mismatch_max"]
    if "value_error" in sums:
        variance = sums["returns_squared"] - sums["returns"] ** 2 / count
        metrics |= {
            "value_loss": sums["value_loss"] / count,
            "explained_variance": 1 - sums["value_error"] / variance if variance > 0 else 0.0,
            "value_grad_norm": sums["value_grad_norm"] / len(totals),
        }
    return metrics
