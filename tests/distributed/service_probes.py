"""Probes of the reward model as a service; training_server.py runs them through training_probes.py."""


def rewards_in_process(run: str, rows: list) -> dict:
    """Scores of (prompt, response, preferences) rows by a reward model on this rank."""
    from nemo_moslim.cli import compose_config
    from nemo_moslim.config import parse
    from nemo_moslim.parallel.layout import leave_process_group
    from nemo_moslim.parallel.start import start
    from nemo_moslim.rollout.open_model import open_reward_model
    from nemo_moslim.rollout.score import LocalScorer
    from nemo_moslim.serve_config import ServeConfig

    parallel = parse(compose_config("serve_reward", [f"run={run}"], path_keys=["run"]), ServeConfig).parallel
    start(parallel, 1, None)
    scorer = LocalScorer(*open_reward_model(run, parallel, "fp32"), "total", 4, offload=False)
    scores = scorer.score(*map(list, zip(*rows, strict=True)))
    leave_process_group()
    return scores_to_json(scores)


def rewards_of_service(url: str, rows: list) -> dict:
    """The same by a service."""
    from nemo_moslim.rollout.remote_score import RemoteScorer, RewardService
    from nemo_moslim.stop_request import StopRequest

    scorer = RemoteScorer(RewardService(url, 30.0, StopRequest()), "total")
    return scores_to_json(scorer.start(*map(list, zip(*rows, strict=True)))())


def scores_to_json(scores) -> dict:
    """`Scores` as lists; parts flat."""
    return {
        "rewards": scores.rewards.tolist(),
        "parts": scores.parts.flatten().tolist(),
        "obtained": scores.obtained.tolist(),
        "cut": scores.cut,
    }
