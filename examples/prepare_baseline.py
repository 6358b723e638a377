"""The data of CDPO, MODPO and RiC.

python examples/prepare_baseline.py task=cdpo_pairs input=data/ratings output=data/cdpo
python examples/evaluate.py task=score runs=[RM,RM] input=data/ratings output=data/scored        # then, of the scored:
python examples/prepare_baseline.py task=modpo_pairs dimension=helpfulness input=data/scored output=data/modpo
python examples/prepare_baseline.py task=ric_offline input=data/scored output=data/ric
python examples/prepare_baseline.py task=ric_prompts input=data/prompts offline=data/ric output=data/ric-prompts
python examples/prepare_baseline.py task=ric_online 'input=[scored.jsonl]' offline=data/ric output=data/ric-online
"""

from nemo_moslim.cli import hydra_main


@hydra_main("prepare_baseline", path_keys=("input", "output", "offline"))
def main(config):
    from nemo_moslim.baseline_config import PrepareBaselineConfig
    from nemo_moslim.config import parse

    checked = parse(config, PrepareBaselineConfig)
    from nemo_moslim.baselines.prepare import prepare_baseline

    manifest = prepare_baseline(checked)
    rows = ", ".join(f"{split} {count}" for split, count in manifest["rows"].items())
    print(f"{manifest['task']}: {rows} rows; written to {checked.output}")


if __name__ == "__main__":
    main()
