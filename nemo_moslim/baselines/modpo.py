"""MODPO (Zhou et al. 2023): pairs that one objective orders, with margins of the others' reward models.

One policy per weight vector; prompts carry no tags. The loss is in `functional/preference_losses.py`.
"""

from collections.abc import Iterator, Sequence

from nemo_moslim.baselines.pairing import Row, draw_pairs, rating
from nemo_moslim.preferences import PreferenceSchema


def margin_pairs(
    rows: Sequence[Row], schema: PreferenceSchema, objective: str, others: Sequence[str], per_prompt: int, seed: int
) -> Iterator[Row]:
    """Pairs ordered by the ratings of one dimension; equal or missing ratings make no pair.

    Args:
        rows: rated answers with scores of reward models ({"prompt", "response", "labels", "scores"}).
        objective: the dimension that orders the pairs.
        others: the dimensions that give margins; the rows need their scores.

    Yields:
        {"prompt", "chosen", "rejected", "objective", "margins" {dimension: score of chosen - score of rejected}}.

    Raises:
        ValueError: an unknown dimension, rows without scores.
    """
    own = schema.dimension(objective)
    for number, row in enumerate(rows, 1):
        missing = [name for name in others if name not in row.get("scores", {})]
        if missing:
            raise ValueError(
                f"row {number} has no score of {missing[0]}: add the reward models' scores with evaluate.py task=score"
            )
    for first, second, _, _ in draw_pairs(rows, per_prompt, seed):
        ratings = [rating(row["labels"].get(objective), own) for row in (first, second)]
        if ratings[0] == ratings[1] or ratings[0] != ratings[0] or ratings[1] != ratings[1]:
            continue
        chosen, rejected = (first, second) if ratings[0] > ratings[1] else (second, first)
        yield {
            "prompt": first["prompt"],
            "chosen": chosen["response"],
            "rejected": rejected["response"],
            "objective": objective,
            "margins": {name: chosen["scores"][name] - rejected["scores"][name] for name in others},
        }
