"""The method on the embedded world, on this machine's CPU: data, SFT, reward model, evaluation, export.

python examples/quickstart.py        (make quickstart)
"""

import json
import shutil
from pathlib import Path

from nemo_moslim.cli import hydra_main


@hydra_main("quickstart", path_keys=("output",))
def main(config):
    from nemo_moslim.stages import Recipe

    out = Path(config.output)
    recipe = Recipe(out, stages=8)
    sft, ratings, tokenizer = out / "data/sft", out / "data/ratings", out / "data/tokenizer"
    recipe.run("sft data", "prepare_data.py", "task=sft", "source=world", f"output={sft}", "seed=1")
    recipe.run("ratings", "prepare_data.py", "task=ratings", "source=world", f"output={ratings}", "seed=1")
    recipe.run("tokenizer", "prepare_data.py", "task=tokenizer", f"input={sft}/train.jsonl", "vocab_size=1024",
               f"output={tokenizer}")  # fmt: skip
    recipe.run("sft", "train_sft.py", f"data={sft}", f"tokenizer={tokenizer}", f"run_dir={out}/sft",
               *config.sft, ranks=2)  # fmt: skip
    recipe.run("reward model", "train_rm.py", f"model.init={out}/sft", f"data={ratings}", f"run_dir={out}/reward",
               *config.reward, ranks=2)  # fmt: skip
    recipe.run("evaluation", "evaluate.py", "task=reward", f"run={out}/reward", f"data={ratings}/test.jsonl",
               f"output={out}/report/reward.json")  # fmt: skip
    for name in ("reward", "sft"):
        export = out / "export" / ("reward" if name == "reward" else "policy")
        if f"export {name}" not in recipe.seconds:
            shutil.rmtree(export, ignore_errors=True)
        recipe.run(f"export {name}", "export_hf.py", f"run={out}/{name}", f"output={export}")
    metrics = json.loads((out / "report/reward.json").read_text())
    summary = {"reward": metrics, "seconds": recipe.seconds}
    (out / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    total = sum(recipe.seconds.values())
    print(f"""
Reward model on unseen prompts: intensity accuracy {metrics["intensity_accuracy"]:.3f}; {total:.0f} s in all.
  {out}/report/reward_confusion.png     confusion matrices, reward_reliability.png beside it
  {out}/reward/metrics.jsonl            one object per step; tensorboard --logdir {out}/reward
  {out}/export/reward                   Hugging Face folder of the reward model; export/policy: the language model
Next: train on your own ratings (README, "Own data"), or see every setting with
  .venv/bin/python examples/train_rm.py --help""")


if __name__ == "__main__":
    main()
