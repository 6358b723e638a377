"""What the scripts hand to the trainings where nothing is edited: these accept it on the ranks that a script asks for,
and it fits into their GPUs' 80 GB as the planner counts.

The entry points are stand-ins that print their arguments.
"""

import json
import re
import shutil
from pathlib import Path

import pytest
from slurm_job import Job, finish

from nemo_moslim.cli import compose_config
from nemo_moslim.config import RewardModelTrainingConfig, parse
from nemo_moslim.parallel.platform import Platform
from nemo_moslim.parallel.start_checks import check_policy, check_supervised
from nemo_moslim.planning.layouts import architecture
from nemo_moslim.planning.settings import PlanConfig
from nemo_moslim.policy_config import PolicyTrainingConfig

PATIENCE = 240.0  # seconds; a start takes one or two on an idle machine
SCRIPTS = Path(__file__).resolve().parents[2] / "examples" / "slurm"
HOPPER = Platform((9, 0), (12, 9), True)
ENTRY = "import json, sys\nprint(json.dumps(sys.argv[1:]))\n"
PPO = dict(PRESET="ppo_7b")
MIXTURE = dict(CLUSTER="h100_57b_a14b", PRESET="reward_model_57b_a14b")
CASES = {  # script, its variables, its settings, the model that it is for, further numbers of ranks
    "reward model 7B": ("reward_model_1node", {}, [], "qwen2_7b", [64]),
    "reward model 72B": ("reward_model_multinode", {}, [], "qwen2_72b", []),
    "reward model 57B": ("reward_model_multinode", MIXTURE, [], "qwen2_57b_a14b", []),
    "RLOO 7B": ("policy_1node", {}, [], "qwen2_7b", [64]),
    "PPO 7B": ("policy_1node", PPO, ["algorithm=ppo"], "qwen2_7b", [64]),
    "RLOO 72B": ("policy_multinode", {}, [], "qwen2_72b", []),
}


@pytest.fixture(scope="module")
def given(tmp_path_factory) -> dict[str, list[str]]:
    """Case -> arguments of its training."""
    code = tmp_path_factory.mktemp("code")
    (code / "examples" / "slurm").mkdir(parents=True)
    shutil.copy(SCRIPTS / "rank.sh", code / "examples" / "slurm")
    for entry in ("train_rm", "train_policy"):
        (code / "examples" / f"{entry}.py").write_text(ENTRY)
    found = {}
    for case, (script, variables, settings, _, _) in CASES.items():
        job = Job(tmp_path_factory.mktemp("job"), nodes=1, per_node=1, CODE=code, **variables)
        if not variables:
            del job.environment["PRESET"]  # set but empty would be none
        assert finish(job.start(f"examples/slurm/{script}.sub", *settings), PATIENCE) == 0, job.log()
        found[case] = json.loads(job.rank_log(0))
    return found


def ranks(case: str) -> int:
    """GPUs of the allocation that the script asks for."""
    script = (SCRIPTS / f"{CASES[case][0]}.sub").read_text()
    nodes, tasks = re.findall(r"^#SBATCH --(?:nodes|ntasks-per-node)=(\d+)$", script, re.MULTILINE)
    return int(nodes) * int(tasks)


def is_reward_model(case: str) -> bool:
    return case.startswith("reward model")


def training(case: str, arguments: list[str]) -> RewardModelTrainingConfig | PolicyTrainingConfig:
    """The configuration that the training makes of its arguments."""
    if is_reward_model(case):
        return parse(compose_config("train_rm", arguments), RewardModelTrainingConfig)
    return parse(compose_config("train_policy", arguments), PolicyTrainingConfig)


@pytest.mark.parametrize("case", CASES)
def test_default_settings_are_accepted(given, case):
    config, model = training(case, given[case]), CASES[case][3]
    assert config.optimizer.lr <= 1e-5 and config.precision == "bf16"  # of the paper, not of the tiny models
    assert (config.model.max_length if is_reward_model(case) else config.max_length) == 4096  # as the planner's, below
    for size in [ranks(case), *CASES[case][4]]:
        if is_reward_model(case):
            planned = parse(compose_config("plan", [f"model={model}"]), PlanConfig)
            check_supervised(config, architecture(planned.model), size, HOPPER)
        else:
            check_policy(config, size)


def planner_arguments(case: str, config: RewardModelTrainingConfig | PolicyTrainingConfig) -> list[str]:
    """Of examples/plan.py, for the layout and the batches of a training and no others."""
    parallel, batch = config.parallel, config.batch
    only = {name: getattr(parallel, name) for name in ("tensor", "pipeline", "expert")}
    only |= {"micro_size": batch.micro_size}
    if is_reward_model(case):
        task, recompute = "rm", config.model.recompute
        sizes = {"batch.global_size": batch.global_size, "model.max_length": config.model.max_length}
    else:
        task, recompute = config.algorithm.name, config.recompute
        only |= {"offload": str(config.offload).lower(), "generation_size": config.generation.batch_size}
        sizes = {f"batch.{name}": getattr(batch, name) for name in ("prompts", "mini_size", "score_size")}
        sizes |= {f"{task}.samples": config.algorithm.samples, "max_new_tokens": config.generation.max_new_tokens}
    only["recompute"] = recompute or "none"
    fixed = [f"search.{name}=[{value}]" for name, value in only.items()]
    fixed += [f"{key}={value}" for key, value in sizes.items()]
    return [f"task={task}", f"model={CASES[case][3]}", f"gpus={ranks(case)}", *fixed]


def test_default_settings_fit_on_80_gigabytes(given, trainings):
    cases = [planner_arguments(case, training(case, arguments)) for case, arguments in given.items()]
    peaks = trainings.run("peak_gigabytes", cases=cases).results()[0]
    text = (SCRIPTS.parents[1] / "docs" / "gpu.md").read_text()
    documented = dict(re.findall(r"^\| ([\w ]+B) \|.* \| ([\d.]+) \|$", text, re.MULTILINE))
    assert documented == {case: f"{peak:.1f}" for case, peak in zip(given, peaks, strict=True)}
    assert max(peaks) <= 80 - 6  # the planner leaves 6 GB to CUDA and NCCL
