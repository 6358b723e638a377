"""What a policy's run began with, and must find again when it is resumed."""

from pathlib import Path

from nemo_moslim.policy_config import PolicyTrainingConfig, is_service
from nemo_moslim.run_folder import is_run, resolve_checkpoint


def starting_points(config: PolicyTrainingConfig) -> dict:
    """The folders of models and data, and the seed; JSON, kept with every checkpoint.

    A run directory stands for the checkpoint that it names now. A service's address is not among them: it may move.
    """

    def place(path: str) -> str:
        return str((resolve_checkpoint(path) if is_run(path) else Path(path)).resolve())

    return {
        "policy": place(config.policy),
        "reward": [place(path) for path in config.reward if not is_service(path)],
        "data": place(config.data),
        "trainer.seed": config.trainer.seed,
    }


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
