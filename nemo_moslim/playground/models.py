"""The playground's side that holds the models: it starts the page and answers its requests.

The page, in Gradio, is a child process: Gradio answers from threads of its own, while the models belong to the thread
that started them; and its dependencies are not NeMo's (docs/decisions.md).
"""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from nemo_moslim.evaluation_config import PlaygroundConfig
from nemo_moslim.functional.reward_mapping import map_rewards
from nemo_moslim.parallel.layout import leave_process_group, world_size
from nemo_moslim.parallel.start import start
from nemo_moslim.playground.wire import Wire
from nemo_moslim.preferences import PreferenceSchema
from nemo_moslim.rollout.answer import Answerer, open_answerer
from nemo_moslim.rollout.open_model import open_reward_model
from nemo_moslim.rollout.score import LocalScorer

ROOT = Path(__file__).resolve().parents[2]


def play(config: PlaygroundConfig) -> int:
    """Open the models, show the page and serve it until either ends; the page's exit code.

    Raises:
        ValueError: no such Python, several ranks, a port that is taken, or models that cannot be opened.
    """
    if not Path(config.python).is_file():
        raise ValueError(f"python={config.python}: not there; `make playground` makes it, or name one that has Gradio")
    if world_size() > 1:
        raise ValueError("the playground runs on one rank: start it without torchrun")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((config.host, config.port))
        except OSError as error:
            raise ValueError(f"host={config.host} port={config.port}: {error.strerror}; give another") from error
    start(config.parallel, config.seed, config.cpu_threads)
    answerer = open_answerer(config.policy, config.parallel, config.precision, config.generation)
    model, tokenizer = open_reward_model(config.reward, config.parallel, config.precision)
    scorer = LocalScorer(model, tokenizer, "total", 2, offload=False)
    try:
        return serve_page(config, Models(answerer, scorer, config.long_prompts))
    finally:
        leave_process_group()


def serve_page(config: PlaygroundConfig, models: "Models") -> int:
    """Start the page's process and answer its requests until it ends."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # so that the page ends with this process
    ours, theirs = socket.socketpair()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "GRADIO_ANALYTICS_ENABLED": "False"}
    command = [config.python, "-m", "nemo_moslim.playground.page", str(theirs.fileno())]
    page = subprocess.Popen(command, env=environment, pass_fds=[theirs.fileno()])
    theirs.close()
    wire = Wire(ours)
    try:
        wire.send({"title": f"{config.policy} and {config.reward}", "host": config.host, "port": config.port,
                   "seed": config.seed, "dimensions": models.dimensions()})  # fmt: skip
        while request := wire.receive():
            try:
                reply = {"answers": models.answer(**request)}
            except ValueError as error:
                reply = {"error": str(error)}
            wire.send(reply)
    except BrokenPipeError:
        pass  # the page has ended
    finally:
        if page.poll() is None:
            ours.shutdown(socket.SHUT_RDWR)
    return page.wait()


class Models:
    """A policy that answers and a reward model that looks at the answers."""

    def __init__(self, answerer: Answerer, scorer: LocalScorer, long_prompts: str):
        self.answerer, self.scorer, self.long_prompts = answerer, scorer, long_prompts
        self.schema: PreferenceSchema = scorer.schema

    def dimensions(self) -> list[dict[str, Any]]:
        """Name, number of levels and the number that tags write for the lowest, of every dimension."""
        return [{"name": d.name, "levels": d.levels, "lowest": d.levels_from} for d in self.schema.dimensions]

    def answer(self, conversations: list[dict[str, Any]], seed: int) -> list[dict[str, Any]]:
        """An answer to every conversation and what the reward model makes of it.

        Args:
            conversations: `prompt` (text, or messages of which the last is the user's) and `preferences` (dimension ->
                level from 1).

        Returns:
            For each: `response`; `probabilities`, dimension -> of each level; `reward` (Eq. 11).

        Raises:
            ValueError: a prompt that leaves no room for an answer.
        """
        rows = [{**row, "preferences": self.schema.validate(row["preferences"])} for row in conversations]
        texts, *_ = self.answerer.answer(rows, self.schema, seed, self.long_prompts, "the conversation")
        levels = [dimension.levels for dimension in self.schema.dimensions]
        p, _ = self.scorer.reward_model.probabilities([row["prompt"] for row in rows], texts)
        asked = torch.tensor([[row["preferences"].get(name, 0) for name in self.schema.names] for row in rows])
        rewards, _ = map_rewards(p, asked.to(p.device), self.scorer.average, self.scorer.deviation, levels, "total")
        heads = [dict(zip(self.schema.names, row.split(levels), strict=True)) for row in p.cpu()]
        return [
            {"response": text, "reward": float(reward), "probabilities": {n: h.tolist() for n, h in head.items()}}
            for text, reward, head in zip(texts, rewards, heads, strict=True)
        ]
