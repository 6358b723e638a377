"""`serve_reward.py`: the reward model (and PPO's critic) on all ranks, of which rank 0 serves them."""

import signal
from collections.abc import Callable
from contextlib import suppress
from functools import wraps

from nemo_moslim.keys import service_token
from nemo_moslim.parallel.layout import is_rank_zero, leave_process_group
from nemo_moslim.parallel.start import start
from nemo_moslim.rollout.open_model import open_reward_model
from nemo_moslim.rollout.score import LocalScorer
from nemo_moslim.serve_config import ServeConfig
from nemo_moslim.serving.app import ServedModel
from nemo_moslim.serving.critic import WORK, ServedCritic
from nemo_moslim.serving.critic_keeper import CriticFailed
from nemo_moslim.serving.lead import lead, listen
from nemo_moslim.serving.ranks import SCORE, Ranks

SEED = 1  # of process groups that draw nothing


def serve(config: ServeConfig) -> None:
    """Serve until SIGTERM or SIGINT; what waits is still scored.

    Raises:
        ValueError: no reward model there, statistics that Eq. 11 cannot use, a layout that does not divide it, an
            address that cannot be had, or a token that cannot be sent.
    """
    token = service_token()
    start(config.parallel, SEED, config.cpu_threads)
    listener = listen(config.host, config.port) if is_rank_zero() else None
    model, tokenizer = open_reward_model(config.run, config.parallel, config.precision)
    scorer = LocalScorer(model, tokenizer, config.normalize, config.batch.micro_size, offload=False)
    critic = ServedCritic(config, tokenizer, scorer.reward_model.encoder) if config.critic else None
    ranks = Ranks()
    if listener:
        lead(config, served(scorer), scorer.reward_model.probabilities, ranks, listener, critic, token)
    else:
        for number in (signal.SIGTERM, signal.SIGINT):  # rank 0 says when it is over
            signal.signal(number, signal.SIG_IGN)
        ranks.follow({SCORE: scorer.reward_model.probabilities, **critic_work(critic)})
    leave_process_group()


def critic_work(critic: ServedCritic | None) -> dict[str, Callable]:
    """What the other ranks do for it; a failure that all ranks see alike is rank 0's to answer."""

    def followed(do: Callable) -> Callable:
        @wraps(do)
        def quiet(*work) -> None:
            with suppress(CriticFailed):
                do(*work)

        return quiet

    return {name: followed(getattr(critic, name)) for name in WORK} if critic else {}


def served(scorer: LocalScorer) -> ServedModel:
    """The reward model as the interface sees it."""
    model = scorer.reward_model
    config = model.model.config
    average, deviation = scorer.average.cpu(), scorer.deviation.cpu()
    return ServedModel(scorer.schema, config.loss, average, deviation, config.seq_length, model.encoder)
