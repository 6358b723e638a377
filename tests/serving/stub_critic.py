"""A critic of one weight, without NeMo, behind the interface that the service's keeper works with.

A value is the weight plus a thousandth of the token before; an update moves the weight by the learning rate times the
mean gap of the returns. A return of 666 crashes it, one of 665 gives no finite loss.
"""

import json
from pathlib import Path

import numpy as np

from nemo_moslim.serving.critic_keeper import CriticFailed

VOCABULARY = {"a": 0, "b": 1, "c": 2, "d": 3}


class Tokenizer:
    """As far as a vocabulary's digest needs one."""

    @staticmethod
    def get_vocab():
        return VOCABULARY


def values_of(tokens: list[int], prompt_length: int, weight: float) -> list[float]:
    """Of an answer's tokens, fp32."""
    return [float(np.float32(weight + token / 1000)) for token in tokens[prompt_length - 1 : -1]]


class StubCritic:
    """See `CriticWork`."""

    vocab_size, max_length = len(VOCABULARY), 40

    def __init__(self, folder: str):
        from nemo_moslim.data.chat import vocabulary_digest

        self.folder, self.vocabulary, self.weight = Path(folder), vocabulary_digest(Tokenizer), 0.5

    def values(self, rows):
        return [values_of(row.tokens.tolist(), row.prompt_length, self.weight) for row in rows]

    def update(self, rows, learning_rate, value_clip, step, epoch, update):
        gaps = np.concatenate([row.returns - row.old_values for row in rows] or [np.zeros(1)])
        if any(666 in row.returns for row in rows):
            raise RuntimeError("out of memory")
        if any(665 in row.returns for row in rows):
            raise CriticFailed(f"step {step}, epoch {epoch}, update {update}: loss is nan")
        self.weight += learning_rate * float(gaps.mean())
        return {"value_loss": float((gaps**2).sum()), "value_grad_norm": value_clip or 0.0, "returns": float(len(rows))}

    def start(self, seed):
        self.weight = 0.5 if seed == 1 else seed / 10

    def save(self, run, step, number, previous):
        (self.folder / run).mkdir(parents=True, exist_ok=True)
        self._file(run, step).write_text(json.dumps({"weight": self.weight, "number": number}))
        for old in (self.folder / run).iterdir():
            if old.name not in (str(step), str(previous)):
                old.unlink()

    def load(self, run, step):
        self.weight = json.loads(self._file(run, step).read_text())["weight"]

    def saved_number(self, run, step):
        file = self._file(run, step)
        return json.loads(file.read_text())["number"] if file.is_file() else None

    def _file(self, run, step):
        return self.folder / run / str(step)
