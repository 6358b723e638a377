"""`train_policy.py`: models, data and the algorithm put together, then `training/rl_loop.py` runs."""

import json
from dataclasses import replace
from pathlib import Path

import torch
from omegaconf import OmegaConf

from nemo_moslim.clock import Clock
from nemo_moslim.config import OptimizerConfig, to_plain
from nemo_moslim.data.chat import ChatEncoder, load_tokenizer, vocabulary_digest
from nemo_moslim.data.prompt_dataset import PromptDataset
from nemo_moslim.data.ratings import read_prompts, read_untagged_prompts
from nemo_moslim.huggingface.sources import open_source
from nemo_moslim.parallel import cpu
from nemo_moslim.parallel.layout import (
    data_parallel_place,
    initialize,
    is_rank_zero,
    leave_process_group,
    world_size,
)
from nemo_moslim.parallel.start_checks import check_policy
from nemo_moslim.policy_config import PolicyTrainingConfig, is_service
from nemo_moslim.rollout.answer import answer_ends
from nemo_moslim.rollout.collect import Collector
from nemo_moslim.rollout.generate import MegatronGenerator
from nemo_moslim.rollout.open_model import open_critic, open_level_critic, open_policy, open_reward_model
from nemo_moslim.rollout.remote_score import RemoteRewardModel, RemoteScorer, RewardService
from nemo_moslim.rollout.score import LocalRewardModel, LocalScorer
from nemo_moslim.rollout.scorer import Scorer
from nemo_moslim.rollout.weighted_score import WeightedScorer
from nemo_moslim.run_folder import write_atomically
from nemo_moslim.stop_request import StopRequest
from nemo_moslim.training.checkpoint import write_in_this_process
from nemo_moslim.training.critic import Critic, LevelHeads, LocalCritic, ValueHead
from nemo_moslim.training.experiment_loggers import experiment_loggers
from nemo_moslim.training.online_dpo import OnlineDPO
from nemo_moslim.training.ppo import PPO
from nemo_moslim.training.remote_critic import RemoteCritic
from nemo_moslim.training.rl_checkpoint import last_state, remove_unfinished, write_context
from nemo_moslim.training.rl_loop import PolicyTraining
from nemo_moslim.training.rloo import RLOO
from nemo_moslim.training.starting_points import check_starting_points, starting_points
from nemo_moslim.training.telemetry import peak_memory_over_ranks, read_metrics
from nemo_moslim.training.trained_model import TrainedModel
from nemo_moslim.versions import package_versions

ALGORITHM_CLASSES = {"ppo": PPO, "rloo": RLOO, "online_dpo": OnlineDPO}


def train_policy(config: PolicyTrainingConfig) -> None:
    """Train a policy by an online algorithm towards an objective; writes the run directory.

    Raises:
        ValueError: configuration, data, models or layout that cannot run.
        FloatingPointError: a loss or reward that is not finite.
    """
    if config.trainer.cpu_threads:
        torch.set_num_threads(config.trainer.cpu_threads)
    if not torch.cuda.is_available():
        cpu.enable()
    check_policy(config, world_size())
    initialize(config.parallel, config.trainer.seed)
    training = prepare_training(config)
    finished = training.run()
    write_summary(config, training, finished)
    leave_process_group()


def prepare_training(config: PolicyTrainingConfig) -> PolicyTraining:
    """Models, data and algorithm put together, resumed where the run directory holds a checkpoint.

    `parallel.layout.initialize` comes first.

    Raises:
        ValueError: data or models that cannot be used, or others than those that the run began with.
    """
    run_dir, parallel = Path(config.run_dir), config.parallel
    start = starting_points(config)
    check_starting_points(last_state(run_dir).get("start", {}), start, config.run_dir)
    if is_rank_zero():
        run_dir.mkdir(parents=True, exist_ok=True)
        write_atomically(run_dir / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(to_plain(config))))
    remove_unfinished(config.run_dir)
    write_in_this_process()

    stop = StopRequest()
    services = {path: RewardService(path, config.reward_patience, stop) for path in config.reward if is_service(path)}
    scorer = open_scorer(config, services)
    asked = scorer.schema if config.objective.name == "preferences" else None
    model, tokenizer_folder = open_policy(config.policy, parallel, config.precision, asked, config.recompute)
    encoder = ChatEncoder(load_tokenizer(tokenizer_folder))
    ends = answer_ends(encoder, model, config.generation)
    max_length = config.max_length or model.config.seq_length
    train, validation = prompt_data(config, scorer, encoder, max_length)
    algorithm = ALGORITHM_CLASSES[config.algorithm.name](config.algorithm)
    policy = TrainedModel(model, config.optimizer, config.precision, max_length)
    critic: Critic | None = None
    if algorithm.uses_critic and config.algorithm.critic == "service":
        critic = RemoteCritic(services[config.reward[0]], config, encoder.tokenizer, max_length)
    elif algorithm.uses_critic:
        head = LevelHeads(scorer) if config.algorithm.critic == "levels" else ValueHead(config.algorithm.value_clip)
        critic = LocalCritic(open_trained_critic(config, tokenizer_folder, max_length), head)
    contexts = {"": write_context(model, run_dir / "context" / "policy")}
    for name, trained in critic.models.items() if critic else ():
        contexts[name] = write_context(trained.model, run_dir / "context" / name)
    vocab_size = len(encoder.tokenizer)
    generator = MegatronGenerator(policy.module, config.generation, ends, vocab_size, max_length)
    collector = Collector(
        generator, scorer, encoder.tokenizer, algorithm.samples, config.trainer.seed, config.cut_penalty, Clock()
    )
    return PolicyTraining(
        config, algorithm, policy, critic, collector, train, validation, vocab_size, encoder.pad_id, contexts,
        start, experiment_loggers(config), stop,
    )  # fmt: skip


def open_scorer(config: PolicyTrainingConfig, services: dict[str, RewardService]) -> Scorer:
    """What the objective makes of the reward model (or models), on these ranks or in the services of these addresses.

    Raises:
        ValueError: as `open_reward_model`, `LocalScorer` and `WeightedScorer`.
    """
    size, offload = config.batch.score_size, config.offload

    def opened(path: str) -> tuple:
        return open_reward_model(path, config.parallel, config.precision)

    if config.objective.name != "preferences":
        models = [
            RemoteRewardModel(services[path]) if is_service(path) else LocalRewardModel(*opened(path), size, offload)
            for path in config.reward
        ]
        return WeightedScorer(models, config.objective.weights)
    if is_service(config.reward[0]):
        return RemoteScorer(services[config.reward[0]], config.normalize)
    return LocalScorer(*opened(config.reward[0]), config.normalize, size, offload)


def prompt_data(
    config: PolicyTrainingConfig, scorer: Scorer, encoder: ChatEncoder, max_length: int
) -> tuple[PromptDataset, PromptDataset | None]:
    """Training prompts, and the first of the validation prompts where there are any; without their tags where the
    objective does not read them."""
    room = max_length - config.generation.max_new_tokens
    if room < 1:
        raise ValueError(
            f"generation.max_new_tokens={config.generation.max_new_tokens} leaves no room for a prompt in {max_length} "
            "tokens: lower it, or raise max_length"
        )
    datasets = []
    for name in ("train", "validation"):
        path = Path(config.data) / f"{name}.jsonl"
        if not path.is_file() and name == "validation":
            datasets.append(None)
            continue
        if not path.is_file():
            raise ValueError(f"data={config.data}: no train.jsonl there; make it with prepare_data.py task=prompts")
        tagged = config.objective.name == "preferences"
        rows = read_prompts(path, scorer.schema) if tagged else read_untagged_prompts(path)
        if name == "validation":
            ranks = data_parallel_place()[1] if config.parallel.expert > 1 else 1  # experts: as many for every rank
            rows = rows[: min(len(rows), config.trainer.validation_prompts) // ranks * ranks]
        datasets.append(
            PromptDataset.build(rows, scorer.schema, encoder, room, config.long_prompts, str(path)) if rows else None
        )
    if is_rank_zero():
        train = datasets[0]
        print(f"{len(train):,} prompts ({train.cut} cut, {train.dropped} dropped as over {room} tokens)", flush=True)
    return datasets[0], datasets[1]


def open_trained_critic(config: PolicyTrainingConfig, tokenizer_folder: Path, max_length: int) -> TrainedModel:
    """PPO's critic from the (first) reward model, all of it or its backbone; with a learning rate of its own."""
    layout = config.parallel, config.precision
    vocabularies = {
        vocabulary_digest(load_tokenizer(folder))
        for folder in (tokenizer_folder, open_source(config.reward[0], "reward").tokenizer_folder)
    }
    if len(vocabularies) > 1:
        raise ValueError(
            f"reward={config.reward[0]}: it numbers tokens otherwise than policy={config.policy}, whose tokens PPO's "
            "critic reads: train the reward model with the policy's tokenizer, or use algorithm=rloo"
        )
    if config.algorithm.critic == "levels":
        model = open_level_critic(config.reward[0], *layout, config.recompute)
    else:
        model = open_critic(config.reward[0], tokenizer_folder, *layout, config.trainer.seed, config.recompute)
    lr = config.algorithm.critic_lr
    optimizer: OptimizerConfig = replace(config.optimizer, lr=lr, min_lr=min(config.optimizer.min_lr, lr))
    return TrainedModel(model, optimizer, config.precision, max_length)


def write_summary(config: PolicyTrainingConfig, training: PolicyTraining, finished: bool) -> None:
    """summary.json: prompts, last metrics, seconds per phase, rates, peak memory over ranks, versions."""
    peak = peak_memory_over_ranks()
    if not is_rank_zero():
        return
    rows = [row for row in read_metrics(config.run_dir) if row["step"]]
    phases: dict[str, float] = {}
    for row in rows:
        for name, value in row["seconds"].items():
            phases[name] = phases.get(name, 0.0) + value
    total = phases.get("step", 0.0)
    validations = [row["validation"] for row in rows if "validation" in row]
    summary = {
        "steps": training.step,
        "finished": finished,
        "prompts": {"train": counts(training.train), "validation": counts(training.validation)},
        "train": {k: v for k, v in rows[-1].items() if k not in ("validation", "seconds")} if rows else {},
        "validation": validations[-1] if validations else {},
        "seconds": {name: round(value, 3) for name, value in phases.items()},
        "answers": sum(r["answers"] for r in rows),
        "answers_per_second": round(sum(r["answers"] for r in rows) / max(total, 1e-9), 2),
        "tokens_per_second": round(sum(r["tokens"] for r in rows) / max(total, 1e-9), 1),
        "ranks": world_size(),
        "device_seconds": round(total * world_size(), 3),
        "peak_memory_gigabytes_per_rank": round(peak, 3),
        "versions": package_versions(),
    }
    write_atomically(Path(config.run_dir) / "summary.json", json.dumps(summary, indent=2, allow_nan=False) + "\n")


def counts(data: PromptDataset | None) -> dict[str, int] | None:
    """How many prompts are used, were cut, and were left out; None where there are none."""
    return {"used": len(data), "cut": data.cut, "dropped": data.dropped} if data else None
