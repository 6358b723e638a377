import torch

from nemo_moslim.batches import Packing, RewardBatch, TokenBatch, context_positions


def test_context_ranks_hold_a_piece_from_either_end():
    values = torch.arange(16).view(1, 16) + torch.tensor([[0], [100]])
    first, second = (context_positions(values, rank, 2) for rank in range(2))
    assert first.tolist() == [[0, 1, 2, 3, 12, 13, 14, 15], [100, 101, 102, 103, 112, 113, 114, 115]]
    assert second.tolist() == [[4, 5, 6, 7, 8, 9, 10, 11], [104, 105, 106, 107, 108, 109, 110, 111]]
    assert torch.equal(context_positions(values, 0, 1), values)


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
    assert calls == ["pin", True] * 4


def test_tokens_labels_and_mask_are_split_alike():
    tokens = torch.arange(24).view(2, 12)
    batch = TokenBatch(tokens, tokens + 1, (tokens % 3 == 0).float())
    shares = [batch.context_share(rank, 3) for rank in range(3)]
    for share in shares:
        assert torch.equal(share.labels, share.tokens + 1)
        assert torch.equal(share.loss_mask, (share.tokens % 3 == 0).float())
    assert sorted(torch.cat([share.tokens for share in shares]).flatten().tolist()) == list(range(24))
