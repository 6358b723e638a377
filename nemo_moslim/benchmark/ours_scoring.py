"""what=scoring: answers scored on every dimension by one multi-head model, and by a model per dimension."""

import json
from collections.abc import Callable
from pathlib import Path

import torch

from nemo_moslim.benchmark.contest import Contest
from nemo_moslim.benchmark.model_folders import reward_settings, single_dimension_folder, single_dimension_models
from nemo_moslim.benchmark.operators import ProfiledRounds
from nemo_moslim.benchmark.peer_process import Round
from nemo_moslim.benchmark.stopwatch import Stopwatch
from nemo_moslim.benchmark_config import BenchmarkConfig
from nemo_moslim.data.ratings import read_ratings
from nemo_moslim.data.reward_dataset import RewardDataset
from nemo_moslim.functional.flops import causal_pairs
from nemo_moslim.parallel.layout import is_rank_zero
from nemo_moslim.policy_config import PolicyTrainingConfig
from nemo_moslim.rollout.open_model import open_reward_model
from nemo_moslim.rollout.score import LocalScorer, score_rows

THREE = "a model per dimension, ours"
CHECKED = 8


class ScoringSide:
    """Our scorers, and rated answers that they score anew."""

    def __init__(self, config: BenchmarkConfig, settings: PolicyTrainingConfig, reward: Path, singles: list[Path]):
        self.settings = settings
        self.whole, *self.parts = (self._scorer(folder) for folder in (reward, *singles))
        file = Path(config.data) / "train.jsonl"
        self.rows = read_ratings(file, self.whole.schema)
        data = self._encoded(self.whole, self.rows, "drop", str(file))
        self.rows = [self.rows[i] for i in data.rows.kept[: config.rows]]
        self.lengths = data.lengths[: config.rows].tolist()

    def _scorer(self, folder: Path) -> LocalScorer:
        settings = self.settings
        model, tokenizer = open_reward_model(str(folder), settings.parallel, settings.precision)
        return LocalScorer(model, tokenizer, settings.normalize, settings.batch.score_size, settings.offload)

    def _encoded(self, scorer: LocalScorer, rows: list[dict], long_rows: str, origin: str) -> RewardDataset:
        known = [{**row, "labels": {}} for row in rows]
        length = scorer.reward_model.model.config.seq_length
        return RewardDataset.build(known, scorer.schema, scorer.reward_model.encoder, length, long_rows, 8, origin)

    def write_task(self, work: Path, singles: list[Path]) -> None:
        """task.json and rows.json for the peer."""
        encoder = self.whole.reward_model.encoder
        prompts = [encoder.tokenizer.decode(ids) for ids in encoder.encode_prompts([r["prompt"] for r in self.rows])]
        lengths = self._encoded(self.whole, self.rows, "raise", "rows").lengths.tolist()
        rows = [
            {"prompt": prompt, "answer": row["response"], "tokens": length}
            for prompt, row, length in zip(prompts, self.rows, lengths, strict=True)
        ]
        (work / "rows.json").write_text(json.dumps(rows))
        dtype = "float32" if self.settings.precision == "fp32" else "bfloat16"
        task = {"what": "scoring", "rewards": [str(f) for f in singles], "dtype": dtype, "seed": 0}
        (work / "task.json").write_text(json.dumps(task))

    def compare(self, contest: Contest | ProfiledRounds) -> None:
        """Probabilities of the models per dimension, ours and the peer's."""
        checked = list(range(0, len(self.rows), max(1, len(self.rows) // CHECKED)))[:CHECKED]
        rows = [self.rows[row] for row in checked]
        ours = torch.cat(
            [
                score_rows(part.reward_model.model, self._encoded(part, rows, "raise", "rows"), len(rows))
                for part in self.parts
            ],
            -1,
        )
        theirs = contest.check(rows=checked)
        if theirs:
            contest.compare("probabilities", ours.tolist(), theirs["probabilities"])

    def score(self, scorers: list[LocalScorer]) -> Round:
        """All rows by these scorers, one after the other."""
        prompts, responses = ([row[name] for row in self.rows] for name in ("prompt", "response"))
        nothing = [{} for _ in self.rows]
        watch = Stopwatch()
        for scorer in scorers:
            scorer.score(prompts, responses, nothing)
        spent, items = watch.read(), len(self.rows)
        pairs = sum(map(causal_pairs, self.lengths))
        return Round(**spent, tokens=sum(self.lengths), items=items, pairs=pairs, read=items)


def run(
    config: BenchmarkConfig,
    settings: PolicyTrainingConfig,
    folders: tuple[Path, Path],
    make_contest: Callable[[dict], Contest | ProfiledRounds],
) -> Contest | ProfiledRounds:
    """Compare, then all rounds; the contest, finished.

    Args:
        folders: work, and the Hugging Face folder of the reward model.
    """
    work, reward = folders
    if is_rank_zero():
        single_dimension_models(reward, work)
    torch.distributed.barrier()
    singles = [single_dimension_folder(work, part["name"]) for part in reward_settings(reward)["preferences"]]
    side = ScoringSide(config, settings, reward, singles)
    if is_rank_zero():
        side.write_task(work, singles)
    contest = make_contest({THREE: lambda: side.score(side.parts)})
    side.compare(contest)
    contest.begin()
    while contest.take(side.score([side.whole])):
        pass
    return contest
