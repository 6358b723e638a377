"""A policy on real prompts: SFT on real text, the real reward model, PPO, control on unseen prompts.

python examples/real_policy.py data=DIR output=DIR        (make real-policy DATA=DIR RUN=DIR)
"""

from pathlib import Path

from nemo_moslim.cli import hydra_main


@hydra_main("real_policy", path_keys=("data", "output", "reward"))
def main(config):
    from nemo_moslim.stages import Recipe

    data, out = Path(config.data), Path(config.output)
    files = [data / name for name in (*config.sft_files, config.train_prompts, config.test_prompts)]
    for file in files:
        if not file.is_file():
            raise ValueError(f"data={data}: no {file.relative_to(data)} there")
    reward = Path(config.reward) if config.reward else out / "reward-model/reward"
    recipe = Recipe(out, stages=6 if config.reward else 7)
    if not config.reward:
        recipe.run("reward model", "real_reward_model.py", f"data={data}/ratings", f"output={out}/reward-model")
    sft, prompts = out / "data/sft", out / "data/prompts"
    text = f"input=[{','.join(map(str, files[:-2]))}]"
    recipe.run("sft data", "prepare_data.py", "task=sft", "source=table", text, "on_bad_row=quarantine",
               f"output={sft}")  # fmt: skip
    recipe.run("prompts", "prepare_data.py", "task=prompts", "source=hh_rlhf", f"input={files[-2]}",
               f"validation={files[-1]}", f"exclude={sft}/train.jsonl", f"output={prompts}")  # fmt: skip
    # the reward model's tokenizer: PPO's critic begins as that model and reads what the policy writes
    recipe.run("sft", "train_sft.py", f"data={sft}", f"tokenizer={reward}", f"run_dir={out}/sft", *config.sft,
               ranks=2)  # fmt: skip
    ask = (f"data={prompts}/validation.jsonl", f"reward={reward}", *config.evaluate)
    recipe.run("control before", "evaluate.py", "task=controllability", f"policy={out}/sft", *ask,
               f"output={out}/report/before", ranks=2)  # fmt: skip
    recipe.run("policy", "train_policy.py", f"policy={out}/sft", f"reward={reward}", f"data={prompts}",
               f"run_dir={out}/policy", *config.policy, ranks=2)  # fmt: skip
    recipe.run("control after", "evaluate.py", "task=controllability", f"policy={out}/policy", *ask,
               f"output={out}/report/after", ranks=2)  # fmt: skip
    print(f"\npolicy: {out}/policy; control on unseen prompts: {out}/report; seconds per stage: {recipe.seconds}")


if __name__ == "__main__":
    main()
