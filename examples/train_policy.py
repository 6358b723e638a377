"""Train a policy that follows the preferences in its prompts, with PPO, RLOO or Online DPO.

torchrun --nproc-per-node 2 examples/train_policy.py algorithm=rloo policy=RUN reward=RUN data=DIR run_dir=RUN
"""

from nemo_moslim.cli import hydra_main


@hydra_main("train_policy", path_keys=("run_dir", "policy", "reward", "data"))
def main(config):
    from nemo_moslim.config import parse
    from nemo_moslim.console import quiet_libraries
    from nemo_moslim.policy_config import PolicyTrainingConfig

    checked = parse(config, PolicyTrainingConfig)
    quiet_libraries()
    from nemo_moslim.training.train_policy import train_policy

    train_policy(checked)


if __name__ == "__main__":
    main()
