import pytest
import torch

from nemo_moslim.batches import Packing, RewardBatch, TokenBatch, context_positions


def test_context_ranks_hold_a_piece_from_either_end_of_every_sequence():
    cu_seqlens = torch.tensor([0, 8, 12, 20], dtype=torch.int32)  # in quarters of 2, 1 and 2 tokens
    (starts, positions), (_, others) = (context_positions(cu_seqlens, 10, rank, 2) for rank in range(2))
    assert starts.tolist() == [0, 0, 0, 0, 8, 8, 12, 12, 12, 12]
    assert positions.tolist() == [0, 1, 6, 7, 0, 3, 0, 1, 6, 7]
    assert others.tolist() == [2, 3, 4, 5, 1, 2, 2, 3, 4, 5]
    third = context_positions(torch.tensor([0, 16]), 4, 2, 4)  # the third of eight pieces, and the sixth
    assert sum(third).tolist() == [4, 5, 10, 11]


def test_one_rank_holds_all_of_sequences_of_any_length():
    starts, positions = context_positions(torch.tensor([0, 3, 4, 9]), 9)
    assert starts.tolist() == [0, 0, 0, 3, 4, 4, 4, 4, 4] and positions.tolist() == [0, 1, 2, 0, 0, 1, 2, 3, 4]


def test_a_row_counts_once_on_the_rank_that_holds_its_end():
    for ranks in (2, 4):
        length, rows = 8 * ranks, 8 * ranks  # a row for every place where an answer can end
        tokens = torch.arange(rows * length).view(rows, length)
        mask = torch.ones(rows, 3, dtype=torch.bool)
        mask[0] = False
        batch = RewardBatch(tokens, torch.arange(length), torch.ones(rows, 5), mask)
        counted = torch.zeros(rows, dtype=torch.long)
        for rank in range(ranks):
            share = batch.context_share(rank, ranks)
            assert share.tokens.shape == (rows, 8) and torch.equal(share.targets, batch.targets)
            here = share.label_mask.any(1)
            counted += here
            ends = share.tokens[torch.arange(rows), share.last_index]
            assert torch.equal(ends[here], tokens[torch.arange(rows), batch.last_index][here])
        assert counted.tolist() == [0] + [1] * (rows - 1)


def test_what_goes_to_a_gpu_is_pinned_first(monkeypatch):
    calls = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: calls.append("pin") or tensor)
    monkeypatch.setattr(torch.Tensor, "cuda", lambda tensor, non_blocking: calls.append(non_blocking) or tensor)
    TokenBatch(*torch.ones(3, 2, 4), Packing(torch.tensor([0, 4]), 4)).to_device()
    assert calls == ["pin", True] * 6


@pytest.mark.parametrize("ranks", [2, 3])
def test_a_packed_answer_counts_once_on_the_rank_that_holds_its_end(ranks):
    sequences = [4 * ranks, 2 * ranks, 6 * ranks]
    cu_seqlens = torch.tensor([0, *sequences]).cumsum(0)
    packing = Packing(cu_seqlens.int(), max(sequences))
    tokens = torch.arange(100, 100 + sum(sequences))[None]
    counted = torch.zeros(3, dtype=torch.long)
    for before_end in range(2 * ranks):  # wherever the answers end
        ends = cu_seqlens[1:] - 1 - before_end
        batch = RewardBatch(tokens, ends, torch.ones(3, 2), torch.ones(3, 1, dtype=torch.bool), packing)
        shares = [batch.context_share(rank, ranks) for rank in range(ranks)]
        assert sorted(torch.cat([share.tokens[0] for share in shares]).tolist()) == tokens[0].tolist()
        for share in shares:
            assert share.packing is packing
            here = share.label_mask[:, 0]
            counted += here
            assert torch.equal(share.tokens[0, share.last_index[here]], 100 + ends[here])
    assert counted.tolist() == [2 * ranks] * 3


@pytest.mark.parametrize("packing", [None, Packing(torch.tensor([0, 18, 24], dtype=torch.int32), 18)])
def test_tokens_labels_and_mask_are_split_alike(packing):
    tokens = torch.arange(24).view((1, 24) if packing else (2, 12))
    batch = TokenBatch(tokens, tokens + 1, (tokens % 3 == 0).float(), packing)
    shares = [batch.context_share(rank, 3) for rank in range(3)]
    for share in shares:
        assert torch.equal(share.labels, share.tokens + 1)
        assert torch.equal(share.loss_mask, (share.tokens % 3 == 0).float()) and share.packing is packing
    assert sorted(torch.cat([share.tokens for share in shares]).flatten().tolist()) == list(range(24))
