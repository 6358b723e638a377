"""Fine-tune a language model on instructions and answers.

torchrun --nproc-per-node 2 examples/train_sft.py tokenizer=DIR data=DIR run_dir=RUN parallel.tensor=2
"""

from nemo_moslim.cli import hydra_main


@hydra_main("train_sft", path_keys=("run_dir", "data", "tokenizer", "model.init"))
def main(config):
    from nemo_moslim.config import SFTConfig, parse
    from nemo_moslim.console import quiet_libraries

    checked = parse(config, SFTConfig)
    quiet_libraries()
    from nemo_moslim.training.supervised import train_sft

    train_sft(checked)


if __name__ == "__main__":
    main()
