"""Word dropout leaves out the share of tokens that it is told to, never the last, the same for the same step."""

import numpy as np
import torch

from nemo_moslim.batches import Packing, RewardBatch
from nemo_moslim.data.token_dropout import TokenDropout


def batch_of(lengths, width=400):
    rows = len(lengths)
    tokens = torch.arange(1, rows * width + 1).reshape(rows, width)
    return RewardBatch(tokens, torch.tensor(lengths) - 1, torch.zeros(rows, 2), torch.ones(rows, 1).bool())


def test_the_share_is_left_out_and_the_last_token_is_kept():
    batch, rows = batch_of([400, 200, 1, 300, 250, 400, 400, 400]), np.arange(8)
    dropout, hits = TokenDropout(0.25, pad_id=0, seed=3), 0
    for step in range(10):
        dropped = dropout(batch, step, rows)
        left_out = dropped.tokens == 0
        hits += int(left_out.sum())
        assert dropped.tokens[~left_out].equal(batch.tokens[~left_out])
        assert not left_out[torch.arange(8), batch.last_index].any()
    assert batch.tokens.min() == 1  # what the data set gave is untouched
    expected = 10 * (8 * 400 - 8) * 0.25
    assert abs(hits - expected) < 4 * (expected * 0.75) ** 0.5  # four standard deviations


def test_the_draw_depends_on_step_rows_and_seed_alone():
    batch, dropout = batch_of([400, 400]), TokenDropout(0.5, pad_id=0, seed=3)
    first = dropout(batch, 7, np.array([4, -1])).tokens
    assert first.equal(dropout(batch, 7, np.array([4, -1])).tokens)
    others = [dropout(batch, 8, np.array([4, -1])), dropout(batch, 7, np.array([5, -1]))]
    others.append(TokenDropout(0.5, pad_id=0, seed=4)(batch, 7, np.array([4, -1])))
    for other in others:
        assert 300 < int((other.tokens != first).sum()) < 500  # half of 800


def test_packed_rows_keep_the_last_token_of_each():
    ends = torch.tensor([0, 50, 120, 128], dtype=torch.int32)
    packed = RewardBatch(
        torch.arange(1, 129)[None],
        torch.tensor([49, 119]),
        torch.zeros(2, 2),
        torch.ones(2, 1).bool(),
        Packing(ends, 70),
    )
    dropped = TokenDropout(0.9, pad_id=0, seed=1)(packed, 0, np.array([0]))
    assert dropped.tokens[0, [49, 119]].tolist() == [50, 120] and int((dropped.tokens == 0).sum()) > 100
