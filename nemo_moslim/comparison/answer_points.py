"""`evaluate.py task=points`: the answers of every operating point of a method, judged alike.

Reads the points that `comparison/methods.py` made (a JSON list of `Point.to_dict()`), writes answers.jsonl: a row per
point and prompt with the point's index, the answer and the obtained level of every dimension.
"""

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from nemo_moslim.baselines.prepare import read_scales
from nemo_moslim.baselines.rewarded_soups import check_alike, check_mixture
from nemo_moslim.baselines.ric import desired_scores, level_scores, with_scores
from nemo_moslim.config import to_plain
from nemo_moslim.data.chat import Prompt
from nemo_moslim.data.prompt_dataset import fit_left
from nemo_moslim.data.ratings import read_prompts
from nemo_moslim.evaluation.evaluate_control import chosen_judge, judged
from nemo_moslim.evaluation_config import EvaluateConfig
from nemo_moslim.huggingface.sources import open_source
from nemo_moslim.models.weight_mixing import mix
from nemo_moslim.parallel.layout import is_rank_zero, leave_process_group
from nemo_moslim.parallel.start import start
from nemo_moslim.preferences import PreferenceSchema
from nemo_moslim.rollout.answer import Answerer
from nemo_moslim.rollout.open_model import open_policy, open_reward_model
from nemo_moslim.rollout.score import LocalScorer
from nemo_moslim.run_folder import write_atomically

ANSWERS = "answers.jsonl"


def answer_points(config: EvaluateConfig) -> None:
    """Answer the prompts of `data` at every point of `points`, judge the answers, write output/answers.jsonl.

    Points with weights answer the first `grid_prompts` prompts, points without all of them with their own levels.

    Raises:
        ValueError: a missing key, points that cannot be, a judge that cannot be.
    """
    for key in ("points", "data", "output"):
        if not getattr(config, key):
            raise ValueError(f"{key} is not set: task=points needs {key}=…")
    start(config.parallel, config.seed, config.cpu_threads)
    schema, scorer = PreferenceSchema.from_dict(to_plain(config.preferences)), None
    if config.reward:
        model, tokenizer = open_reward_model(config.reward, config.parallel, config.precision)
        scorer = LocalScorer(model, tokenizer, "total", config.batch_size, offload=False)
    rows = read_prompts(config.data, schema)
    judge = chosen_judge(config, rows)
    found, prompts_cut, unread = [], 0, 0
    policies = Policies(config)
    for number, point in enumerate(json.loads(Path(config.points).read_text())):
        asked = rows if point["weights"] is None else rows[: config.grid_prompts]
        answerer = policies.at(point)
        questions, tags = asked_rows(asked, point, schema, answerer, config)
        texts, lengths, cut = answerer.answer(questions, tags, config.seed, config.long_prompts, config.data)
        levels, too_long = judged(judge, asked, texts, schema, scorer)
        prompts_cut, unread = prompts_cut + cut, unread + too_long
        for row, text, obtained, length in zip(asked, texts, levels, lengths, strict=True):
            preferences = row["preferences"] if point["weights"] is None else {}
            kept = {"prompt": row["prompt"], "preferences": preferences, "response": text}
            found.append({"point": number, **kept, "levels": obtained, "length": length})
    if is_rank_zero():
        output = Path(config.output)
        output.mkdir(parents=True, exist_ok=True)
        write_atomically(output / ANSWERS, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in found))
        print(f"{len(found)} answers, judged by {judge}, written to {output / ANSWERS}")
        if prompts_cut or unread:
            print(f"{prompts_cut} prompts lost their beginning; the reward model could not read {unread} answers whole")
    leave_process_group()


def asked_rows(
    rows: Sequence[Mapping], point: Mapping, schema: PreferenceSchema, answerer: Answerer, config: EvaluateConfig
) -> tuple[list[dict], PreferenceSchema]:
    """The prompts as a point asks them, and the schema of their tags.

    Args:
        rows: {"prompt", "preferences"}; the preferences are asked for where the point has no weights.
        schema: of the preferences.

    Raises:
        ValueError: an unknown kind of prefix, or scores that leave no room for a prompt.
    """
    weights, tags = point["weights"], schema
    if point["prefix"] == "none":
        return [{"prompt": row["prompt"], "preferences": {}} for row in rows], tags
    if point["prefix"] == "levels":
        tags = PreferenceSchema.from_dict(point["schema"])
        highest = {d.name: d.levels for d in tags.dimensions if (weights or {}).get(d.name, 0) > 0}
        wanted = [row["preferences"] if weights is None else highest for row in rows]
        return [{"prompt": row["prompt"], "preferences": w} for row, w in zip(rows, wanted, strict=True)], tags
    if point["prefix"] == "scores":
        scales = read_scales(point["offline"])
        wanted = [
            level_scores(row["preferences"], schema, scales)
            if weights is None
            else desired_scores(weights, scales, config.ric_map)
            for row in rows
        ]
        prompts = [scored_prompt(row["prompt"], w, answerer, config) for row, w in zip(rows, wanted, strict=True)]
        return [{"prompt": prompt, "preferences": {}} for prompt in prompts], tags
    raise ValueError(f"points: prefix must be none, levels or scores, got {point['prefix']!r}")


def scored_prompt(prompt: Prompt, scores: Mapping[str, float], answerer: Answerer, config: EvaluateConfig) -> Prompt:
    """The prompt with its scores; with cut_left one too long for the policy loses the beginning of its text alone.

    Raises:
        ValueError: the scores leave no room for any text.
    """
    dress = partial(with_scores, scores=scores)
    if config.long_prompts != "cut_left":
        return dress(prompt)
    fitting = fit_left(prompt, answerer.room, answerer.encoder, dress)
    if fitting is None:
        raise ValueError(
            f"{config.data}: the scores of a prompt and the chat template alone take over {answerer.room} tokens: "
            "lower generation.max_new_tokens"
        )
    return dress(fitting)


class Policies:
    """Opens a policy when a point comes to it; of mixtures, one model is filled anew for each."""

    def __init__(self, config: EvaluateConfig):
        self.config = config
        self._name: str | None = None
        self._answerer: Answerer | None = None
        self._model = None

    def at(self, point: Mapping) -> Answerer:
        """The policy of a point, ready to answer."""
        mixture = point["mixture"]
        name = point["policy"] or ",".join(sorted(mixture))
        if name != self._name:
            self._answerer = self._model = None  # before another takes its memory
            config = self.config
            self._model, tokenizer = open_policy(point["policy"] or min(mixture), config.parallel, config.precision)
            self._answerer, self._name = Answerer(self._model, tokenizer, config.generation), name
        if mixture:
            check_mixture(list(mixture), list(mixture.values()))
            sources = [open_source(run, "points") for run in mixture]
            check_alike(list(mixture), sources)
            mix(self._model.module, [source.load_into for source in sources], list(mixture.values()))
        return self._answerer
