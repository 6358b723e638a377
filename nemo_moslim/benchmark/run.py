"""examples/benchmark.py: the models' folders, our side by `what`, the contest with the peer, the report."""

import shutil
from functools import partial
from pathlib import Path

import torch
from omegaconf import OmegaConf, open_dict

from nemo_moslim.benchmark.contest import Contest
from nemo_moslim.benchmark.model_folders import language_model, reward_model, reward_settings
from nemo_moslim.benchmark.operators import ProfiledRounds
from nemo_moslim.benchmark.report import profile_report, report
from nemo_moslim.benchmark_config import BenchmarkConfig
from nemo_moslim.cli import compose_config
from nemo_moslim.config import RewardModelTrainingConfig, parse, to_plain
from nemo_moslim.huggingface.sources import open_source
from nemo_moslim.parallel import cpu
from nemo_moslim.parallel.layout import initialize, is_rank_zero, leave_process_group, world_size
from nemo_moslim.parallel.start_checks import check_policy
from nemo_moslim.policy_config import PolicyTrainingConfig

QUIET = 500  # steps between the lines of our log: Trainer's default
NEVER = 10**6
NOT_NEEDED = {"rm": "reward", "scoring": "policy"}  # which model's folder a benchmark does without


def benchmark(config: BenchmarkConfig) -> None:
    """Time both sides in turns; prints a table and writes `output`.

    Raises:
        ValueError: configuration, data or models that cannot run, a peer that died, or sides that compute different
            things.
    """
    config.threads = config.threads or torch.get_num_threads()
    torch.set_num_threads(config.threads)
    if config.what == "serve":
        from nemo_moslim.benchmark import serving

        return serving.run(config)
    if not torch.cuda.is_available():
        cpu.enable()
    work = Path(config.output).absolute().with_suffix(".work")
    policy, reward = work / "policy", work / "reward"
    settings = _settings(config, work)
    initialize(settings.parallel, config.seed)
    if is_rank_zero():
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        for folder, make in ((policy, language_model), (reward, reward_model)):
            if NOT_NEEDED.get(config.what) == folder.name:
                continue
            made = make(config, work)
            if made != folder:
                folder.symlink_to(made)
    torch.distributed.barrier()
    contest = _run(config, settings, work)
    contest.close()
    if is_rank_zero():
        if config.profile:
            profile_report(config, contest)
        else:
            start = reward if config.what == "scoring" else policy
            architecture = open_source(str(start)).architecture
            recompute = settings.model.recompute if config.what == "rm" else settings.recompute
            everywhere = settings.parallel.sequence or recompute == "full" or settings.precision == "fp8"
            leaves_out = not (everywhere or architecture.get("num_moe_experts"))  # as models/read_positions.py says
            models = len(reward_settings(reward)["preferences"]) if config.what == "scoring" else 1
            report(config, contest, architecture, settings.precision, leaves_out, models)
        shutil.rmtree(work)


def _settings(config: BenchmarkConfig, work: Path) -> RewardModelTrainingConfig | PolicyTrainingConfig:
    """Those of our side's entry point, from `settings`."""
    common = [f"run_dir={work / 'run'}", f"data={config.data}", f"trainer.max_steps={NEVER}",
              f"trainer.validate_every={NEVER}", f"trainer.checkpoint_every={NEVER}", f"trainer.log_every={QUIET}",
              "trainer.tensorboard=false", f"trainer.seed={config.seed}",
              f"trainer.cpu_threads={config.threads}"]  # fmt: skip
    paths = ("run_dir", "data", "policy", "reward", "model.init")
    if config.what == "rm":
        own = [f"model.init={work / 'policy'}", f"model.max_length={config.model.max_length}"]
        composed = compose_config("train_rm", [*common, *own, *config.settings.split()], path_keys=paths)
        with open_dict(composed):
            composed.preferences = OmegaConf.create(to_plain(config.preferences))
        return parse(composed, RewardModelTrainingConfig)
    own = [f"policy={work / 'policy'}", f"reward={work / 'reward'}", "algorithm=rloo"]
    settings = parse(
        compose_config("train_policy", [*common, *own, *config.settings.split()], path_keys=paths), PolicyTrainingConfig
    )
    check_policy(settings, world_size())
    return settings


def _run(
    config: BenchmarkConfig, settings: RewardModelTrainingConfig | PolicyTrainingConfig, work: Path
) -> Contest | ProfiledRounds:
    make = partial(ProfiledRounds if config.profile else Contest, config, work, settings.precision)
    policy, reward = work / "policy", work / "reward"
    if config.what == "rm":
        from nemo_moslim.benchmark import ours_reward_training

        if is_rank_zero():
            ours_reward_training.write_task(config, settings, policy, work)
        leave_process_group()  # the training makes its own
        return ours_reward_training.run(config, settings, make)
    if config.what == "scoring":
        from nemo_moslim.benchmark import ours_scoring

        contest = ours_scoring.run(config, settings, (work, reward), partial(make, None))
    else:
        from nemo_moslim.benchmark import ours_policy
        from nemo_moslim.training.train_policy import prepare_training

        contest = ours_policy.run(config, prepare_training(settings), (work, policy, reward), make)
    leave_process_group()
    return contest
