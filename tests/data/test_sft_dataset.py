import numpy as np
import pytest
import torch

from nemo_moslim.data.sft_dataset import SFTDataset

EXAMPLES = [
    {"prompt": "nice name", "response": "good"},
    {"prompt": "apple", "response": "red and green and blue"},
    {"prompt": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "response": "they are"},
]


def naive_pairs(encoder, example, loss_on):
    """(position, label) pairs that count, by a loop over the row's tokens."""
    prompt = encoder.encode_prompts([example["prompt"]])[0]
    tokens = prompt + encoder.encode_responses([example["response"]])[0]
    first = len(prompt) if loss_on == "answers" else 1
    return [(place - 1, tokens[place]) for place in range(first, len(tokens))]


@pytest.mark.parametrize("loss_on", ["answers", "all"])
def test_counted_labels_are_those_of_a_naive_loop(encoder, loss_on):
    dataset = SFTDataset.build(EXAMPLES, encoder, loss_on, 128, "raise", 8, "file")
    batch = dataset.batch(np.arange(3))
    for row, example in enumerate(EXAMPLES):
        counted = [(p, int(batch.labels[row, p])) for p in batch.loss_mask[row].nonzero().flatten().tolist()]
        assert counted == naive_pairs(encoder, example, loss_on)
        assert counted[-1][1] == encoder.eos_id
    assert set(batch.loss_mask.unique().tolist()) == {0.0, 1.0}
    assert (batch.tokens[:, 1:] == batch.labels[:, :-1]).all()
    assert dataset.counted == batch.loss_mask.sum()


def test_hand_written_mask(encoder):
    dataset = SFTDataset.build(EXAMPLES[:1], encoder, "answers", 128, "raise", 8, "file")
    answer = len(encoder.encode_texts(["good"])[0]) + 1
    prompt = len(encoder.encode_prompts(["nice name"])[0])
    mask = dataset.batch(np.array([0])).loss_mask[0]
    expected = torch.zeros(len(mask))
    expected[prompt - 1 : prompt - 1 + answer] = 1
    assert mask.tolist() == expected.tolist()


def test_padding_and_fillers_do_not_count(encoder):
    for loss_on in ("answers", "all"):
        dataset = SFTDataset.build(EXAMPLES, encoder, loss_on, 128, "raise", 16, "file")
        batch = dataset.batch(np.array([0, -1, 1]))
        assert batch.tokens.shape[1] % 16 == 0
        assert batch.loss_mask[1].sum() == 0
        assert batch.loss_mask[0].sum() == len(naive_pairs(encoder, EXAMPLES[0], loss_on))


def test_a_row_with_a_cut_prompt_still_counts_its_whole_answer(encoder):
    example = {"prompt": "some fruits " * 30, "response": "they are red"}
    dataset = SFTDataset.build([example], encoder, "answers", 64, "cut_prompt", 8, "file")
    assert dataset.rows.cut == 1 and dataset.lengths.tolist() == [64]
    answer = encoder.encode_responses(["they are red"])[0]
    batch = dataset.batch(np.array([0]))
    assert batch.labels[batch.loss_mask.bool()].tolist() == answer
