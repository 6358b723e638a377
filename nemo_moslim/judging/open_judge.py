"""The judge that a configuration names."""

from pathlib import Path

from nemo_moslim.evaluation_config import EvaluateConfig
from nemo_moslim.judging.verdicts import Judge

CACHE = "judge_cache.sqlite"


def needs_ranks(config: EvaluateConfig) -> bool:
    """Whether the judge is a model on this launch's ranks, so that `parallel.start.start` has to come first."""
    return config.judge == "reward_model" and not is_service(config.reward)


def is_service(reward: str | None) -> bool:
    """Whether `reward=` names an HTTP service."""
    return bool(reward) and reward.startswith(("http://", "https://"))


def open_judge(config: EvaluateConfig) -> Judge:
    """`judge=` of a configuration; a reward model on the ranks is loaded.

    Raises:
        ValueError: no judge, or a setting that it needs; the setting is named.
    """
    if config.judge == "endpoint":
        from nemo_moslim.judging.endpoint_judge import EndpointJudge
        from nemo_moslim.judging.reply_cache import ReplyCache

        cache = config.endpoint.cache or Path(config.output) / CACHE
        return EndpointJudge(config.endpoint, config.rubrics, ReplyCache(cache))
    if config.judge == "reward_model":
        from nemo_moslim.judging.reward_judges import LocalRewardJudge, ServiceRewardJudge

        if not config.reward:
            raise ValueError("reward is not set: judge=reward_model needs reward=RUN|HF_DIR|http://HOST:PORT")
        if is_service(config.reward):
            return ServiceRewardJudge(config.reward, config.rubrics, config.reward_reads, config.endpoint,
                                      config.batch_size)  # fmt: skip
        return LocalRewardJudge(config.reward, config.rubrics, config.reward_reads, config.parallel, config.precision,
                                config.batch_size)  # fmt: skip
    from nemo_moslim.judging.exact_judges import ScriptedJudge, WorldJudge

    if config.judge == "world":
        return WorldJudge(config.rubrics)
    if config.judge == "scripted":
        if not config.scripted:
            raise ValueError("scripted is not set: judge=scripted needs scripted=FILE with prompt, response and scores")
        return ScriptedJudge(config.scripted, config.rubrics)
    raise ValueError(f"judge is not set: task={config.task} needs judge=endpoint|reward_model|world|scripted")
