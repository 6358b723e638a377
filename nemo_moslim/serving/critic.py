"""The critic that a service holds, on the reward model's ranks and in its layout; it works for `critic_keeper.py`.

CRITIC_DIR/RUN/checkpoints/step=000100/   weights/ and context/ with its optimizer; loop.json: updates behind it
"""

import gc
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from nemo_moslim.batches import PolicyBatch
from nemo_moslim.data.chat import ChatEncoder, vocabulary_digest
from nemo_moslim.data.length_batches import evaluation_batches, pad_length, rank_share
from nemo_moslim.parallel.layout import data_parallel_place, gather_over_data_ranks, is_rank_zero
from nemo_moslim.parallel.layout_checks import row_multiple
from nemo_moslim.rollout.open_model import open_critic
from nemo_moslim.run_folder import checkpoint_name, checkpoints_folder, list_checkpoints, remove_checkpoint
from nemo_moslim.serve_config import ServeConfig
from nemo_moslim.serving.critic_keeper import CriticFailed, CriticRow
from nemo_moslim.training.checkpoint import write_in_this_process
from nemo_moslim.training.critic import ValueHead, critic_update, critic_values, update_place
from nemo_moslim.training.rl_checkpoint import (
    LOOP_STATE,
    load_checkpoint,
    remove_unfinished,
    save_checkpoint,
    write_context,
)
from nemo_moslim.training.trained_model import TrainedModel

WORK = ("values", "update", "start", "save", "load")  # of all ranks
FIRST_SEED = 1  # of the value head until a training says which; that of train_policy.py unless told otherwise
PAD = 0  # follows the last token, where causal attention never reads it


class ServedCritic:
    """See `CriticWork`."""

    def __init__(self, config: ServeConfig, tokenizer: Path, encoder: ChatEncoder):
        self.config, self.folder, self._tokenizer = config, Path(config.critic_dir), tokenizer
        self.vocabulary, self.vocab_size = vocabulary_digest(encoder.tokenizer), len(encoder.tokenizer)
        write_in_this_process()
        self._build(FIRST_SEED)
        self.max_length = self.model.max_length
        self._context = write_context(self.model.model, self.folder / "context")

    def values(self, rows: list[CriticRow]) -> list[list[float]]:
        """See `CriticWork`."""
        shares, batches = self._micro_batches(rows)
        mine = {}
        for share, values in zip(shares, critic_values(self.model, ValueHead(None), batches), strict=True):
            for row, found in zip(share.tolist(), values, strict=True):
                if row >= 0:
                    mine[row] = found[: answer_length(rows[row])].tolist()
        together = {row: values for part in gather_over_data_ranks(mine) for row, values in part.items()}
        return [together[row] for row in range(len(rows))]

    def update(
        self, rows: list[CriticRow], learning_rate: float, value_clip: float | None, step: int, epoch: int, update: int
    ) -> dict[str, float]:
        """See `CriticWork`."""
        self._fresh_with = None
        _, batches = self._micro_batches(rows)
        self.model.set_rate(learning_rate)
        try:
            return critic_update(self.model, ValueHead(value_clip), batches, update_place(step, epoch, update))
        except FloatingPointError as error:
            raise CriticFailed(str(error)) from error

    def start(self, seed: int) -> None:
        """See `CriticWork`."""
        if self._fresh_with != seed:
            self._build(seed)

    def save(self, run: str, step: int, number: int, previous: int) -> None:
        """See `CriticWork`."""
        remove_unfinished(self.folder / run)
        save_checkpoint(self.folder / run, step, {"": self.model}, {"number": number}, {"": self._context})
        if is_rank_zero():
            for old in list_checkpoints(self.folder / run):
                if old.name not in (checkpoint_name(step), checkpoint_name(previous)):
                    remove_checkpoint(old)

    def load(self, run: str, step: int) -> None:
        """See `CriticWork`."""
        self._fresh_with = None
        try:
            load_checkpoint(self._checkpoint(run, step), {"": self.model})
        except ValueError as error:
            raise CriticFailed(str(error)) from error

    def saved_number(self, run: str, step: int) -> int | None:
        """See `CriticWork`."""
        state = self._checkpoint(run, step) / LOOP_STATE
        return json.loads(state.read_text())["number"] if state.is_file() else None

    def _checkpoint(self, run: str, step: int) -> Path:
        return checkpoints_folder(self.folder / run) / checkpoint_name(step)

    def _build(self, seed: int) -> None:
        """The reward model's backbone with a fresh head and optimizer, in place of what there was."""
        config, settings = self.config, self.config.critic_training
        self.model = None
        gc.collect()  # wrapper, optimizer and weights refer to one another
        model = open_critic(config.run, self._tokenizer, config.parallel, config.precision, seed, settings.recompute)
        length = settings.max_length or model.config.seq_length
        self.model, self._fresh_with = TrainedModel(model, settings.optimizer.whole(), config.precision, length), seed

    def _micro_batches(self, rows: list[CriticRow]) -> tuple[list[np.ndarray], list[PolicyBatch]]:
        """This rank's share of the rows: int64 [micro_size] with -1 for fillers, and a batch of each."""
        (rank, ranks), size = data_parallel_place(), self.config.critic_training.micro_size
        lengths = np.array([len(row.tokens) for row in rows], dtype=np.int64)
        whole = pad_length(len(rows), size * ranks)
        plan = next(evaluation_batches(lengths, whole, size)) if rows else np.full((ranks, size), -1)
        shares = list(rank_share(plan, rank, ranks))
        multiple = row_multiple(self.config.parallel, self.config.precision)
        return shares, [row_batch([rows[row] if row >= 0 else None for row in share], multiple) for share in shares]


def answer_length(row: CriticRow) -> int:
    """Tokens of the answer."""
    return len(row.tokens) - row.prompt_length


def row_batch(rows: Sequence[CriticRow | None], multiple: int) -> PolicyBatch:
    """Rows of a request as a padded micro-batch; None: a filler. Without `old_values` and `returns`, these are 0."""
    real = [row for row in rows if row is not None]
    length = pad_length(max((len(row.tokens) for row in real), default=2), multiple)
    shape = (len(rows), max(map(answer_length, real), default=1))
    tokens = torch.full((len(rows), length), PAD, dtype=torch.int64)
    mask = torch.zeros(shape, dtype=torch.bool)
    old_values, returns = torch.zeros(shape), torch.zeros(shape)
    for place, row in enumerate(rows):
        if row is None:
            continue
        tokens[place, : len(row.tokens)] = torch.from_numpy(row.tokens)
        mask[place, : answer_length(row)] = True
        for column, given in ((old_values, row.old_values), (returns, row.returns)):
            column[place, : len(given)] = torch.from_numpy(given)
    empty = torch.zeros(shape)
    return PolicyBatch(
        tokens=tokens,
        prompt_lengths=torch.tensor([1 if row is None else row.prompt_length for row in rows]),
        response_mask=mask,
        rows=torch.full((len(rows),), -1),
        old_logprobs=empty,
        ref_logprobs=empty,
        old_values=old_values,
        advantages=empty,
        returns=returns,
    )
