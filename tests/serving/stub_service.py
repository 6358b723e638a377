"""The service on a stand-in for the reward model, without NeMo: its answers follow from the texts by `stub_row`.

A response may ask for something: "sleep S" takes S seconds, "nan" gives no numbers, "crash" raises.
"""

import sys
import time
import zlib

import torch
from stub_critic import StubCritic

from nemo_moslim.preferences import PreferenceSchema

PREFERENCES = {
    "helpfulness": {"levels": 3, "score_range": [1, 5], "levels_from": 1},
    "harmless": {"levels": 2, "score_range": [0, 1], "levels_from": 0},
}
AVERAGE = [0.2, 0.3, 0.5, 0.6, 0.4]
DEVIATION = [0.1, 0.2, 0.25, 0.5, 0.5]
TOKEN = "a-secret"
LENGTH = 40  # characters; longer rows are cut


def stub_row(prompt, response: str) -> list[float]:
    """Probabilities of the five classes."""
    text = prompt if isinstance(prompt, str) else "|".join(f"{m['role']}:{m['content']}" for m in prompt)
    seed = zlib.crc32(f"{text}>{response}".encode())
    a, b, c = (1 + seed % 7, 1 + seed // 7 % 7, 1 + seed // 49 % 7)
    return [a / (a + b + c), b / (a + b + c), c / (a + b + c), a / (a + b), b / (a + b)]


def probabilities(prompts, responses):
    """As `LocalRewardModel.probabilities`."""
    for response in responses:
        if response == "crash":
            raise RuntimeError("out of memory")
        if response.startswith("sleep "):
            time.sleep(float(response.split()[1]))
    rows = [stub_row(*row) for row in zip(prompts, responses, strict=True)]
    rows = [[float("nan")] * 5 if r == "nan" else row for row, r in zip(rows, responses, strict=True)]
    return torch.tensor(rows), torch.tensor([len(r) > LENGTH for r in responses])


class Encoder:
    """A chat template that has no place for two messages of one role in a row."""

    def encode_prompts(self, prompts):
        for messages in prompts:
            roles = [message["role"] for message in messages]
            if any(a == b for a, b in zip(roles, roles[1:], strict=False)):
                raise ValueError("roles must alternate")


def main() -> None:
    from nemo_moslim.cli import compose_config
    from nemo_moslim.config import parse
    from nemo_moslim.keys import service_token
    from nemo_moslim.serve_config import ServeConfig
    from nemo_moslim.serving.app import ServedModel
    from nemo_moslim.serving.lead import lead, listen
    from nemo_moslim.serving.ranks import Ranks

    config = parse(compose_config("serve_reward", ["run=stub", "port=0", *sys.argv[1:]]), ServeConfig)
    schema = PreferenceSchema.from_dict(PREFERENCES)
    model = ServedModel(schema, "per_head", torch.tensor(AVERAGE), torch.tensor(DEVIATION), LENGTH, Encoder())
    critic = StubCritic(config.critic_dir) if config.critic else None
    lead(config, model, probabilities, Ranks(), listen(config.host, config.port), critic, service_token())


if __name__ == "__main__":
    main()
