"""What a run began with, and must find again when it is resumed. A run directory among it stands for the checkpoint
that it names now."""

import json
from pathlib import Path

from nemo_moslim.config import SupervisedConfig
from nemo_moslim.policy_config import PolicyTrainingConfig, is_service
from nemo_moslim.run_folder import is_run, resolve_checkpoint, write_atomically

SPREAD = "parallel.expert > 1"  # megatron-core's experts then have an optimizer of their own, with a state of its own
START_FILE = "start.json"  # of a supervised run; a policy's run keeps it with every checkpoint


def starting_points(config: PolicyTrainingConfig) -> dict:
    """The folders of models and data, and the seed; JSON. A service's address is not among them: it may move."""
    return {
        "policy": _place(config.policy),
        "reward": [_place(path) for path in config.reward if not is_service(path)],
        "data": _place(config.data),
        "trainer.seed": config.trainer.seed,
        SPREAD: config.parallel.expert > 1,
    }


def supervised_starting_points(config: SupervisedConfig) -> dict:
    """The same of a training on fixed data: where its weights came from, the data, the seed and the loss; JSON."""
    return {
        "model.init": _place(config.model.init) if config.model.init else None,
        "data": _place(config.data),
        "trainer.seed": config.trainer.seed,
        "loss": getattr(config, "loss", None),
        SPREAD: config.parallel.expert > 1,
    }


def _place(path: str) -> str:
    return str((resolve_checkpoint(path) if is_run(path) else Path(path)).resolve())


def write_start(run_dir: Path, start: dict) -> None:
    """Keep what a supervised run begins with."""
    write_atomically(run_dir / START_FILE, json.dumps(start, indent=1) + "\n")


def read_start(run_dir: Path) -> dict:
    """What a supervised run began with; {} for one that does not tell."""
    file = run_dir / START_FILE
    return json.loads(file.read_text()) if file.is_file() else {}


def check_starting_points(then: dict, now: dict, run_dir: str) -> None:
    """ValueError unless a run is resumed from the `starting_points` it had; none are known of a new or an old one.

    Reward models that were folders and are services now, or the other way round, are not compared.
    """
    for key, value in then.items():
        both = value != [] and now[key] != []
        if both and value != now[key]:
            raise ValueError(
                f"{key} was {value} when run_dir={run_dir} began, and is {now[key]} now: give another run_dir, or the "
                f"old {key} to resume it"
            )
