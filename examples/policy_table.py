"""Policies from one start, trained with different settings and measured alike: algorithms, or one thing at a time.

python examples/policy_table.py start=runs/quickstart output=DIR policy_runs=algorithms|ablations
"""

import json
from pathlib import Path

from nemo_moslim.cli import hydra_main


@hydra_main("policy_table", path_keys=("start", "output"), open_keys=("rewards", "runs"))
def main(config):
    from nemo_moslim.run_folder import write_atomically
    from nemo_moslim.stages import Recipe, flat

    start, out = Path(config.start), Path(config.output)
    for name in ("sft", "reward", "data/prompts", "data/ratings"):
        if not (start / name).is_dir():
            raise ValueError(f"start={start}: no {name} there; give the folder of a finished quickstart")
    prompts = start / "data/prompts"
    resumed = sum("then" in run for run in config.runs.values())
    recipe = Recipe(out, stages=len(config.rewards) + 2 * len(config.runs) + resumed)
    for name, settings in config.rewards.items():
        recipe.run(f"reward model {name}", "train_rm.py", f"model.init={start}/sft", f"data={start}/data/ratings",
                   f"run_dir={out}/reward-{name}", *config.reward, *settings, ranks=config.ranks)  # fmt: skip
    reports = {}
    for name, run in config.runs.items():
        reward = out / f"reward-{run.reward}" if run.reward else start / "reward"
        command = ["train_policy.py", f"policy={start}/sft", f"reward={reward}", f"data={prompts}",
                   f"run_dir={out}/{name}", *config.policy, *flat(run.settings)]  # fmt: skip
        recipe.run(name, *command, ranks=config.ranks)
        if "then" in run:
            recipe.run(f"{name}, second part", *command, *flat(run.then), ranks=config.ranks)
        recipe.run(f"{name} evaluation", "evaluate.py", "task=controllability", f"policy={out}/{name}",
                   f"reward={reward}", f"data={prompts}/test.jsonl", f"train={prompts}/train.jsonl",
                   f"output={out}/{name}/report", *config.evaluate, ranks=config.ranks)  # fmt: skip
        control = json.loads((out / name / "report/control.json").read_text())
        summary = json.loads((out / name / "summary.json").read_text())
        reports[name] = {"control": control, "policy": summary}
        write_atomically(out / "table.md", table(reports))
    print((out / "table.md").read_text())


def table(reports):
    """Markdown: a row per run, Spearman and hit rate of each dimension by the exact graders, KL of the last step."""
    names = [name for name, part in next(iter(reports.values()))["control"].items() if "spearman" in part]
    head = ["run", *(f"{name} {what}" for name in names for what in ("Spearman", "hit rate")), "KL", "steps", "seconds"]
    rows = [
        [
            run,
            *(shown(report["control"][name][what]) for name in names for what in ("spearman", "hit_rate")),
            f"{report['policy']['train']['kl']:.2f}",
            str(report["policy"]["steps"]),
            f"{report['policy']['seconds']['step']:.0f}",
        ]
        for run, report in reports.items()
    ]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in (head, ["---"] * len(head), *rows))


def shown(value):
    """Three decimals; a dash where a figure is not defined (one level obtained throughout)."""
    return "-" if value is None else f"{value:.3f}"


if __name__ == "__main__":
    main()
