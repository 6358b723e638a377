"""The generator's bookkeeping on a model that stands in: what ends an answer, and what leaves the batch."""

from types import SimpleNamespace

import pytest
import torch

from nemo_moslim.config import GenerationConfig

EOS, STOP, WORD = 2, 5, 7


@pytest.fixture
def generate(monkeypatch):
    """generate(ends, answers): answers of scripted tokens; rows of the pass over the prompts and of each step."""
    from nemo_moslim.rollout import generate as module

    def made(ends, answers, logprob=-1.0, samples=1):
        """`answers` of the prompts, all samples of a prompt alike."""
        rows = []

        class Runner:
            """Its logits are the next token of each row's script."""

            def __init__(self, module, batch, length):
                self.rows, self.place = torch.arange(batch), -1

            def read(self, tokens, lengths):
                assert lengths.tolist() == [2] * len(tokens) and tokens.shape[1] == 2
                return self.step(tokens)

            def step(self, tokens):
                rows.append(len(tokens))
                assert len(tokens) == len(self.rows)
                self.place += 1
                script = [answers[row][min(self.place, len(answers[row]) - 1)] for row in self.rows]
                return torch.tensor(script)[:, None]

            def select(self, rows):
                self.rows = self.rows[rows]

        def draw(self, logits, draws):
            return logits[:, 0], torch.full((len(logits),), logprob)

        monkeypatch.setattr(module, "_Runner", Runner)
        monkeypatch.setattr(module, "_expert_ranks_maximum", lambda value: value)
        monkeypatch.setattr(module.MegatronGenerator, "_draw", draw)
        stand_in = torch.nn.Linear(1, 1)
        stand_in.config = SimpleNamespace(sequence_parallel=False)
        settings = GenerationConfig(9, 1.0, 1.0, 0, [], 8)  # eight rows at a time
        generator = module.MegatronGenerator(stand_in, settings, ends, vocab_size=10, max_length=20)
        seeds = [(row,) for row in range(len(answers) * samples)]
        return generator.generate([[1, 1]] * len(answers), seeds, samples), rows

    return made


def test_rows_whose_answer_has_ended_leave_the_batch(generate):
    answers = [[WORD] * (length - 1) + [EOS] for length in (1, 2, 3, 9)]
    made, (_, *decoded) = generate([EOS], answers)
    assert [tokens.tolist() for tokens in made.tokens] == answers and made.finished.all()
    # dropped once no more than three quarters of the rows still run; all four to the end would be 32
    assert decoded == [3, 2, 1, 1, 1, 1, 1, 1]


def test_a_prompt_is_read_once_for_all_its_answers(generate):
    answers = [[WORD, EOS], [WORD] * 3 + [EOS]]
    made, rows = generate([EOS], answers, samples=3)
    assert [tokens.tolist() for tokens in made.tokens] == [answers[0]] * 3 + [answers[1]] * 3
    assert rows == [2, 6, 3, 3]  # two prompts, then six answers until three have ended


def test_a_stop_token_ends_an_answer_as_eos_does(generate):
    answers = [[WORD, STOP, WORD, EOS], [WORD, EOS], [WORD] * 9]
    made, _ = generate([EOS, STOP], answers)
    assert [tokens.tolist() for tokens in made.tokens] == [[WORD, STOP], [WORD, EOS], [WORD] * 9]
    assert made.finished.tolist() == [True, True, False]
    made, _ = generate([EOS], answers)
    assert made.tokens[0].tolist() == answers[0]


def test_logits_that_are_no_numbers_are_told_with_their_place(generate):
    with pytest.raises(FloatingPointError, match="the logits of token 1 of an answer to prompt 1 of this rank are not"):
        generate([EOS], [[WORD, EOS]], logprob=torch.nan)


def test_what_ends_an_answer(encoder, tmp_path):
    """EOS, the start's list, and texts of one token."""
    from nemo_moslim.huggingface.sources import _stop_ids
    from nemo_moslim.rollout.answer import answer_ends

    def ends(stop_ids, *texts):
        model = SimpleNamespace(config=SimpleNamespace(stop_ids=stop_ids))
        return answer_ends(encoder, model, GenerationConfig(9, 1.0, 1.0, 0, list(texts), 8))

    number = encoder.tokenizer.convert_tokens_to_ids
    eos, start, letter = number("<|im_end|>"), number("<|im_start|>"), number("z")
    assert ends(None) == ends([eos]) == [eos] == [encoder.eos_id]
    assert ends([start], "z", "<|endoftext|>") == sorted([eos, start, letter, number("<|endoftext|>")])
    for text, count in (("zz", 2), ("", 0)):
        with pytest.raises(ValueError, match=rf"generation\.stop_tokens=\['{text}'\]: '{text}' is {count} tokens"):
            ends(None, text)
    assert _stop_ids(tmp_path) is None
    for value, expected in (("[4, 3]", [4, 3]), ("4", None), ("null", None)):
        (tmp_path / "generation_config.json").write_text(f'{{"eos_token_id": {value}}}')
        assert _stop_ids(tmp_path) == expected
