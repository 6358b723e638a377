"""Train a policy on preference pairs: DPO (CDPO where prompts carry tags) or MODPO.

torchrun --nproc-per-node 2 examples/train_dpo.py model.init=RUN data=DIR run_dir=RUN
torchrun --nproc-per-node 2 examples/train_dpo.py model.init=RUN data=DIR run_dir=RUN loss=modpo \
    'weights={helpfulness:0.5,honesty:0.5}'
"""

from nemo_moslim.cli import hydra_main


@hydra_main("train_dpo", path_keys=("run_dir", "data", "tokenizer", "model.init"))
def main(config):
    from nemo_moslim.baseline_config import PairTrainingConfig
    from nemo_moslim.config import parse
    from nemo_moslim.console import quiet_libraries

    checked = parse(config, PairTrainingConfig)
    quiet_libraries()
    from nemo_moslim.training.pairs import train_pairs

    train_pairs(checked)


if __name__ == "__main__":
    main()
