"""Prepare data: ratings, prompts, sft text (cpsft: with the tags of its labels), or a tokenizer.

python examples/prepare_data.py task=ratings source=world output=data/ratings preferences=datatype4 seed=1
python examples/prepare_data.py task=ratings source=table input=ratings.parquet validation=0.05 output=data/ratings
python examples/prepare_data.py task=prompts source=hh_rlhf input=hh.jsonl.gz exclude=sft.jsonl output=data/prompts
python examples/prepare_data.py task=sft source=table 'input=[a.jsonl,b.csv]' on_bad_row=quarantine output=data/sft
python examples/prepare_data.py task=tokenizer 'input=[data/sft/train.jsonl]' vocab_size=8192 output=data/tokenizer
"""

from __future__ import annotations

from typing import Any

from nemo_moslim.cli import hydra_main

PATH_KEYS = ("input", "output", "validation", "exclude")


@hydra_main("prepare_data", path_keys=PATH_KEYS, open_keys=("preferences", "fields"))
def main(config: Any) -> None:
    """Read rows, check them, and write train.jsonl, validation.jsonl and manifest.json into the output folder."""
    from omegaconf import OmegaConf

    from nemo_moslim.data.prepare import PrepareSettings, describe, prepare

    settings = PrepareSettings.from_config(OmegaConf.to_container(config, resolve=True, throw_on_missing=True))
    print(describe(prepare(settings)))
    print(f"written to {settings.output}")


if __name__ == "__main__":
    main()
