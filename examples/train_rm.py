"""Train the multi-head reward classification model on prepared ratings.

torchrun --nproc-per-node 2 examples/train_rm.py model.init=RUN data=DIR run_dir=RUN parallel.tensor=2
"""

from nemo_moslim.cli import hydra_main


@hydra_main("train_rm", path_keys=("run_dir", "data", "tokenizer", "model.init"))
def main(config):
    from nemo_moslim.config import RewardModelTrainingConfig, parse
    from nemo_moslim.console import quiet_libraries

    checked = parse(config, RewardModelTrainingConfig)
    quiet_libraries()
    from nemo_moslim.training.supervised import train_reward_model

    train_reward_model(checked)


if __name__ == "__main__":
    main()
