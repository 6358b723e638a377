"""The paper's Table 1: reward models of several sizes on DataTypes 1-4, on the embedded world or on real ratings.

python examples/table1.py data=world output=DIR
python examples/table1.py data=DIR output=DIR       DIR holds train.parquet and valid.parquet
"""

from pathlib import Path

from nemo_moslim.cli import hydra_main


@hydra_main("table1", path_keys=("data", "output"), open_keys=("sizes",))
def main(config):
    from nemo_moslim.stages import Recipe

    out, world = Path(config.output), config.data == "world"
    kind = config.world if world else config.folder
    per_size = 1 + world + 2 * len(config.datatypes)
    recipe = Recipe(out, stages=3 + world + len(config.datatypes) + len(config.sizes) * per_size)
    source = "source=world" if world else f"input={config.data}/train.parquet"
    quiz, text, tokenizer = out / "data/quiz", out / "data/text", out / "data/tokenizer"
    if world:
        recipe.run("quiz data", "prepare_data.py", "task=sft", source, f"output={quiz}", *kind.quiz_data)
    recipe.run("text", "prepare_data.py", "task=sft", source, f"output={text}", *kind.text)
    read = f"[{quiz}/train.jsonl,{text}/train.jsonl]" if world else f"{text}/train.jsonl"
    recipe.run("tokenizer", "prepare_data.py", "task=tokenizer", f"input={read}", f"vocab_size={kind.vocab_size}",
               f"output={tokenizer}")  # fmt: skip
    for datatype in config.datatypes:
        recipe.run(f"ratings {datatype}", "prepare_data.py", "task=ratings", source, *kind.ratings,
                   f"preferences=datatype{datatype}", f"output={out}/data/ratings{datatype}")  # fmt: skip
    results = []
    for name, size in config.sizes.items():
        begin, model = (f"tokenizer={tokenizer}", *size), out / f"{name}-sft"
        if world:
            recipe.run(f"{name} quiz", "train_sft.py", f"data={quiz}", f"run_dir={out}/{name}-quiz", *begin,
                       *config.language_model, *kind.quiz, ranks=config.ranks)  # fmt: skip
            begin = (f"model.init={out}/{name}-quiz",)
        recipe.run(f"{name} language model", "train_sft.py", f"data={text}", f"run_dir={model}", *begin,
                   *config.language_model, *kind.sft, *config.sft, *steps(config.sft_steps),
                   ranks=config.ranks)  # fmt: skip
        for datatype in config.datatypes:
            ratings, run = out / f"data/ratings{datatype}", out / f"{name}-datatype{datatype}"
            recipe.run(f"{name} DataType {datatype}", "train_rm.py", f"model.init={model}", f"data={ratings}",
                       f"preferences=datatype{datatype}", f"run_dir={run}", *config.reward,
                       *steps(config.reward_steps), ranks=config.ranks)  # fmt: skip
            test = ratings / "test.jsonl" if world else f"{config.data}/valid.parquet"
            recipe.run(f"{name} DataType {datatype} evaluation", "evaluate.py", "task=reward", f"run={run}",
                       f"data={test}", f"output={run}.json", "plots=false", "long_rows=cut_response",
                       "batch_size=32", ranks=config.ranks)  # fmt: skip
            results.append(f"{name}:{datatype}:{run}.json")
    recipe.run("table", "evaluate.py", "task=table1", f"runs=[{','.join(results)}]", f"output={out}/table1.md")
    print((out / "table1.md").read_text())


def steps(number):
    """Validated and saved at the end alone."""
    return [f"trainer.{name}={number}" for name in ("max_steps", "validate_every", "checkpoint_every")]


if __name__ == "__main__":
    main()
