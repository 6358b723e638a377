"""The whole method on the embedded world, on this machine: data, quiz, SFT, reward model, policy, evaluation, export.

python examples/quickstart.py        (make quickstart)
"""

import json
import shutil
from pathlib import Path

from nemo_moslim.cli import hydra_main


@hydra_main("quickstart", path_keys=("output",))
def main(config):
    from nemo_moslim.run_folder import write_atomically
    from nemo_moslim.stages import Recipe

    out = Path(config.output)
    recipe = Recipe(out, stages=14)
    data, world = out / "data", ("source=world", "seed=1")
    quiz, sft, ratings, prompts, tokenizer = map(data.joinpath, ("quiz", "sft", "ratings", "prompts", "tokenizer"))
    recipe.run("quiz data", "prepare_data.py", "task=sft", *world, f"output={quiz}", *config.quiz_data)
    recipe.run("sft data", "prepare_data.py", "task=sft", *world, f"output={sft}", *config.sft_data)
    recipe.run("ratings", "prepare_data.py", "task=ratings", *world, f"output={ratings}", *config.ratings)
    recipe.run("prompts", "prepare_data.py", "task=prompts", *world, f"output={prompts}", *config.prompts)
    recipe.run("tokenizer", "prepare_data.py", "task=tokenizer", f"input=[{quiz}/train.jsonl,{sft}/train.jsonl]",
               "vocab_size=1024", f"output={tokenizer}")  # fmt: skip
    recipe.run("quiz", "train_sft.py", f"tokenizer={tokenizer}", f"data={quiz}", f"run_dir={out}/quiz",
               *config.quiz, ranks=2)  # fmt: skip
    recipe.run("sft", "train_sft.py", f"model.init={out}/quiz", f"data={sft}", f"run_dir={out}/sft",
               *config.sft, ranks=2)  # fmt: skip
    recipe.run("reward model", "train_rm.py", f"model.init={out}/sft", f"data={ratings}", f"run_dir={out}/reward",
               *config.reward, ranks=2)  # fmt: skip
    recipe.run("reward evaluation", "evaluate.py", "task=reward", f"run={out}/reward", f"data={ratings}/test.jsonl",
               f"output={out}/report/reward.json", "parallel.tensor=2", ranks=2)  # fmt: skip
    recipe.run("policy", "train_policy.py", f"policy={out}/sft", f"reward={out}/reward", f"data={prompts}",
               f"run_dir={out}/policy", *config.policy, ranks=2)  # fmt: skip
    recipe.run("control evaluation", "evaluate.py", "task=controllability", f"policy={out}/policy",
               f"reward={out}/reward", f"data={prompts}/test.jsonl", f"train={prompts}/train.jsonl",
               f"output={out}/report", ranks=2)  # fmt: skip
    for name in ("reward", "policy"):
        export = out / "export" / name
        if f"export {name}" not in recipe.seconds:
            shutil.rmtree(export, ignore_errors=True)
        recipe.run(f"export {name}", "export_hf.py", f"run={out}/{name}", f"output={export}", ranks=1)
    reward = json.loads((out / "report/reward.json").read_text())
    control = json.loads((out / "report/control.json").read_text())
    summary = {"reward": reward, "control": control, "seconds": recipe.seconds}
    write_atomically(out / "summary.json", json.dumps(summary, indent=2) + "\n")
    recipe.run("report", "evaluate.py", "task=report", f"runs=[{out}]", f"output={out}/report.html")
    spearman = {name: control[name]["spearman"] for name in ("helpfulness", "honesty", "harmless")}
    followed = ", ".join(f"{name} {'undefined' if v is None else format(v, '.2f')}" for name, v in spearman.items())
    print(f"""
Spearman between the level asked for and the level obtained, on unseen prompts: {followed}.
Reward model: intensity accuracy {reward["intensity_accuracy"]:.3f}. {sum(recipe.seconds.values()):.0f} s in all.
  {out}/report.html                     everything on one page: open it in a browser
  {out}/report/control.png              obtained level against requested level; confusion and pairs beside it
  {out}/report/reward_confusion.png     the reward model's confusion matrices
  {out}/policy/metrics.jsonl            one object per step; tensorboard --logdir {out}
  {out}/export                          Hugging Face folders of the reward model and the policy
Next: ask it yourself, at every level of a dimension or in a session:
  .venv/bin/python examples/generate.py policy={out}/policy prompt="Tell me about nice birds." compare=helpfulness
  .venv/bin/python examples/generate.py policy={out}/policy""")


if __name__ == "__main__":
    main()
