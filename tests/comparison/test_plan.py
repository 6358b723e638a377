"""Which stages a comparison asks for: shared ones once, new folders from a change on, each method's own needs."""

import json
from functools import partial

import pytest
from grids import grid
from omegaconf import OmegaConf
from test_recipes import check_policy, check_supervised

from nemo_moslim.baseline_config import PairTrainingConfig
from nemo_moslim.cli import compose_config
from nemo_moslim.comparison import study
from nemo_moslim.comparison.bench import Bench
from nemo_moslim.comparison.compare import check_files, planned
from nemo_moslim.comparison.methods import METHODS, moslim_variants
from nemo_moslim.comparison.results import needed
from nemo_moslim.comparison.study import Study
from nemo_moslim.comparison_config import COMPARED_METHODS, CompareConfig
from nemo_moslim.config import RewardModelTrainingConfig, SFTConfig, parse
from nemo_moslim.evaluation_config import EvaluateConfig, GenerateConfig

DIMENSIONS = ("helpfulness", "honesty", "harmless")


def configured(tmp_path, *overrides):
    arguments = [f"output={tmp_path}/out", *overrides]
    composed = compose_config("compare", arguments, path_keys=("data", "output"), open_keys=("sizes",))
    return parse(composed, CompareConfig)


def plan(tmp_path, *overrides):
    config = configured(tmp_path, *overrides)
    bench = Bench(Study(tmp_path / "out", config.ranks), config)
    return bench, planned(bench)


def names(stages):
    return [stage.folder.name.rpartition("-")[0] for stage in stages]


def test_every_method_is_planned_and_shared_stages_run_once(tmp_path):
    assert set(METHODS) == set(COMPARED_METHODS)
    bench, entries = plan(tmp_path, "seeds=2")
    assert set(entries) == {*COMPARED_METHODS, "start"} and all(len(seeds) == 2 for seeds in entries.values())
    found = names(bench.study.stages.values())
    for shared in ("sft-tiny", "tokenizer", "sft-data", "reward-honesty", "pairs-honesty", "weighted-honesty1-seed1"):
        assert found.count(shared) == 1, shared
    assert found.count("cpsft-seed2") == 1  # CPSFT's and CDPO's first stage
    assert sum(name.startswith("answers-") for name in found) == 17  # the start's are the same for all seeds


BUDGETS = ("world", "world_short", "smoke", "folder", "folder_short")
PLANS = [(budget, first) for budget in BUDGETS for first in ("rloo", "ppo")]


@pytest.mark.parametrize(("budget", "first"), grid(PLANS, ("world", "rloo"), ("folder_short", "ppo")))
def test_every_training_takes_its_settings(budget, first, tmp_path):
    """Every training of every method, with each algorithm for MOSLIM and either of two for the others."""
    others = [name for name in ("rloo", "ppo", "online_dpo") if name != first]
    settings = [f"budget={budget}", f"algorithms=[{','.join([first, *others])}]", "seeds=1"]
    if first == "ppo":
        settings.append("methods=[moslim,morlhf,rewarded_soups]")  # GDPO needs groups of answers
    if budget.startswith("folder"):
        settings.append(f"data={tmp_path}")  # a folder; its files are not looked at
    bench, _ = plan(tmp_path, *settings)
    checks = {
        "train_sft.py": partial(check_supervised, SFTConfig),
        "train_rm.py": partial(check_supervised, RewardModelTrainingConfig),
        "train_policy.py": check_policy,
    }
    if first == "rloo":
        checks["train_dpo.py"] = partial(check_supervised, PairTrainingConfig)
    assert {stage.script for stage in bench.study.stages.values()} >= set(checks)
    checks |= {
        "evaluate.py": partial(parse, schema=EvaluateConfig),
        "generate.py": partial(parse, schema=GenerateConfig),
    }
    for stage in bench.study.stages.values():
        if stage.script in checks:
            written = "run_dir" if "run_dir" in stage.composed else "output"
            checks[stage.script](OmegaConf.create({**stage.composed, written: str(stage.folder)}))


def test_stages_come_after_what_they_need(tmp_path):
    bench, _ = plan(tmp_path, "seeds=1")
    seen = set()
    for stage in bench.study.stages.values():
        text = " ".join(stage.settings[:-1])
        for setting in stage.settings[:-1]:
            if "/specifications/" in setting:
                text += open(setting.partition("=")[2]).read()
        for other in bench.study.stages:
            assert str(other) not in text or other in seen, (stage.folder.name, other.name)
        seen.add(stage.folder)


def test_what_each_method_needs(tmp_path):
    _, entries = plan(tmp_path, "seeds=1", "budget.ric_rounds=2")
    bench, _ = plan(tmp_path, "seeds=1", "budget.ric_rounds=2")
    counts = {}
    for name, (entry,) in entries.items():
        stages = needed(bench.study, entry)
        kinds = [stage.kind for stage in stages]
        counts[name] = (kinds.count("reward model"), kinds.count("policy"), kinds.count("sampling and scoring"))
        assert kinds.count("language model") == 2  # the quiz, then SFT
    assert counts == {
        "moslim": (1, 1, 0), "morlhf": (3, 5, 0), "rewarded_soups": (3, 3, 0), "gdpo": (3, 5, 0), "modpo": (2, 5, 1),
        "cpsft": (0, 1, 0), "cdpo": (0, 2, 0), "ric": (3, 3, 5), "start": (0, 0, 0),
    }  # fmt: skip


def test_modpo_scores_only_what_gives_margins(tmp_path):
    bench, entries = plan(tmp_path, "seeds=1", "methods=[modpo]")
    stages = {stage.folder.name.rpartition("-")[0]: stage for stage in bench.study.stages.values()}
    (runs,) = (s for s in stages["scored-answers-honesty-harmless"].settings if s.startswith("runs="))
    assert "reward-honesty" in runs and "reward-harmless" in runs and "reward-helpfulness" not in runs
    assert "margins=[honesty]" in stages["pairs-helpfulness-honesty"].settings
    alone = stages["pairs-helpfulness"]
    assert "margins=[]" in alone.settings and any("/ratings-datatype4-" in setting for setting in alone.settings)
    kinds = [stage.kind for stage in bench.study.needed_by(entries["modpo"][0].points[0].policy)]
    assert "reward model" not in kinds  # all the weight on one dimension: DPO


def test_policies_for_weight_vectors_train_as_long_as_moslims_one(tmp_path):
    for first, total in (("rloo", 260), ("ppo", 130)):
        bench, _ = plan(tmp_path, "seeds=1", "methods=[moslim,morlhf]", f"algorithms=[{first}]")
        steps = {stage.folder.name: stage.composed["trainer"]["max_steps"] for stage in bench.study.stages.values()
                 if stage.kind == "policy"}  # fmt: skip
        assert sorted(steps.values()) == [total // 5] * 5 + [total]


def test_a_base_model_keeps_its_tokenizer(tmp_path):
    for size, given in (("model.init=base", False), ("model=small", True)):
        bench, _ = plan(tmp_path, "seeds=1", "methods=[moslim]", f"sizes.tiny=['{size}']")
        stages = {stage.folder.name.rpartition("-")[0]: stage for stage in bench.study.stages.values()}
        assert ("tokenizer" in stages) == given
        assert any(s.startswith("tokenizer=") for s in stages["quiz-tiny"].settings) == given
        assert size in stages["quiz-tiny"].settings


def test_points_of_each_method(tmp_path):
    bench, entries = plan(tmp_path, "seeds=1")
    for name, (entry,) in entries.items():
        grid = [point.weights for point in entry.points if point.on_grid]
        assert grid == bench.grid, name
        prefixes = {point.prefix for point in entry.points}
        expected = {"moslim": "levels", "cpsft": "levels", "cdpo": "levels", "ric": "scores"}.get(name, "none")
        assert prefixes == {expected}, name
        own = [point for point in entry.points if point.weights is None]
        assert len(own) == (expected != "none"), name
    soups = entries["rewarded_soups"][0].points
    assert len(soups) == 5 + 3 * 5 and all(abs(sum(p.mixture.values()) - 1) < 1e-6 for p in soups)
    assert soups[7].mixture and list(soups[7].mixture.values()) == [0.5, 0.5]
    assert len(soups[0].mixture) == 1  # all of one policy


def test_a_changed_setting_gives_new_folders_from_there_on(tmp_path):
    one, _ = plan(tmp_path, "seeds=1", "methods=[moslim]")
    other, _ = plan(tmp_path, "seeds=1", "methods=[moslim]", "budget.reward=['trainer.max_steps=7']")
    before, after = (dict(zip(names(b.study.stages.values()), b.study.stages, strict=True)) for b in (one, other))
    assert before.keys() == after.keys()
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {"reward-tiny-datatype4", "moslim-rloo-tiny-datatype4-seed1", "answers-moslim-seed1"}


def test_defaults_files_and_versions_count(tmp_path, monkeypatch):
    def named(folder):
        return Study(tmp_path / "out", 1).stage(
            "d", "data", "prepare_data.py", "task=sft", f"input={folder}/a", output="output"
        )

    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "a").write_text("x")
    first = named(tmp_path / "files")
    assert named(tmp_path / "files") == first
    (tmp_path / "files" / "a").write_text("y")
    study.content.cache_clear()
    second = named(tmp_path / "files")
    monkeypatch.setattr(study, "__version__", "another")
    third = named(tmp_path / "files")
    composed = study.composed_settings
    monkeypatch.setattr(study, "composed_settings", lambda *given: composed(*given) | {"max_chars": 5})  # the yaml's
    assert len({first, second, third, named(tmp_path / "files")}) == 4


def test_the_place_of_the_output_does_not_matter(tmp_path):
    here, there = (plan(tmp_path / name, "seeds=1") for name in ("here", "there"))
    folders = [[stage.name for stage in bench.study.stages] for bench, _ in (here, there)]
    assert folders[0] == folders[1]


def test_variants_of_moslim(tmp_path):
    sizes = "+sizes.wide=['model=small']"
    bench, entries = plan(
        tmp_path, "seeds=1", "methods=[moslim,morlhf]", "datatypes=[1,4]", "algorithms=[rloo,ppo]", sizes
    )
    variants = moslim_variants(bench)
    assert set(entries) == {"moslim", "morlhf", "start", *variants} and set(variants) == {
        "moslim-rloo-tiny-datatype1", "moslim-rloo-wide-datatype1", "moslim-ppo-tiny-datatype1",
        "moslim-rloo-wide-datatype4", "moslim-ppo-tiny-datatype4",
    }  # fmt: skip
    one_level = entries["moslim-rloo-tiny-datatype1"][0].points
    assert all(point.weights is not None for point in one_level)  # the test prompts ask for DataType 4's levels
    stage = next(s for s in bench.study.stages.values() if s.folder.name.startswith("reward-tiny-datatype1"))
    assert "loss=joint" in stage.settings
    wide = next(s for s in bench.study.stages.values() if s.folder.name.startswith("reward-wide-datatype4"))
    assert "model=small" not in wide.settings and any("/sft-wide-" in setting for setting in wide.settings)
    policy = next(s for s in bench.study.stages.values() if s.folder.name.startswith("moslim-rloo-wide-datatype4"))
    assert any(setting.startswith("policy=") and "/sft-tiny-" in setting for setting in policy.settings)


def test_another_first_algorithm_or_size_trains_nothing_anew(tmp_path):
    def policies(*overrides):
        bench, _ = plan(tmp_path, "seeds=1", "methods=[moslim]", *overrides)
        return {stage.folder.name for stage in bench.study.stages.values() if stage.kind == "policy"}

    both = policies("algorithms=[rloo,ppo]")
    assert len(both) == 2 and policies("algorithms=[ppo,rloo]") == both
    assert policies("algorithms=[ppo]") < both and policies() == both - policies("algorithms=[ppo]")


def test_settings_that_an_entry_point_lacks_are_refused_at_the_start(tmp_path):
    with pytest.raises(ValueError, match="unknown setting 'trainer.steps'"):
        plan(tmp_path, "methods=[moslim]", "budget.reward=['trainer.steps=7']")


def test_a_folder_of_files(tmp_path):
    overrides = ["methods=[moslim]", "seeds=1", f"data={tmp_path}/data"]
    with pytest.raises(ValueError, match="no sft/alpaca_random_9k.jsonl.gz there; name the files with files.sft="):
        check_files(configured(tmp_path, *overrides))
    files = {"sft": "a.jsonl", "ratings": "b.parquet", "prompts": "c.jsonl", "test_prompts": "d.jsonl"}
    (tmp_path / "data").mkdir()
    for file in files.values():
        (tmp_path / "data" / file).touch()
    overrides += [f"files.{group}=[{file}]" for group, file in files.items()]
    check_files(configured(tmp_path, *overrides))
    bench, entries = plan(tmp_path, *overrides)
    found = names(bench.study.stages.values())
    assert "judge" in found and "test-prompts" in found
    evaluation = [s for s in bench.study.stages.values() if s.folder.name.startswith("answers-")][0]
    assert "judge=reward_model" in evaluation.settings and any("/judge-" in setting for setting in evaluation.settings)
    assert "judge" not in names(needed(bench.study, entries["moslim"][0]))  # no method's cost


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("methods=[moslem]", "methods='moslem': expected one of moslim"),
        ("methods=[]", "methods=.*: expected at least one"),
        ("datatypes=[5]", "datatypes=5: expected one of 1, 2, 3, 4"),
        ("algorithms=[grpo]", "algorithms='grpo'"),
        ("budget.weights=[{honesty:0.5}]", r"budget.weights=.*sum to 1"),
        ("budget.weights=[{honesty:1},{honesty:1}]", "different weight vectors"),
        ("budget.weights=[{honesty:-1,harmless:2}]", r"budget.weights=.*0 or above"),
        ("budget.weights=[0.5,0.5]", r"budget.weights=0.5: expected"),
        ("seeds=0", "seeds=0: expected a number above 0"),
        ("ric_map=l1", "ric_map='l1'"),
        ("algorithms=[ppo]", r"algorithms=\['ppo'\]: expected another one first with methods=\['gdpo'\]"),
        ("algorithms=[online_dpo]", r"methods=\['morlhf', 'rewarded_soups', 'gdpo'\], which train with the first"),
    ],
)
def test_settings_that_cannot_be_are_refused(tmp_path, override, message):
    with pytest.raises(ValueError, match=message):
        configured(tmp_path, override)


def test_costs_are_those_that_stages_report(tmp_path):
    study = Study(tmp_path, 2)
    sft = study.stage("sft", "language model", "train_sft.py", ranks=2)
    policy = study.stage("policy", "policy", "train_policy.py", f"policy={sft}", ranks=2)
    answers = study.stage("answers", "sampling and scoring", "generate.py", f"policy={policy}", output="output",
                          file="a.jsonl", ranks=2)  # fmt: skip
    data = study.stage("data", "data", "prepare_data.py", output="output")
    for folder, summary in ((sft, {"device_seconds": 10.0}), (policy, {"device_seconds": 5.0, "answers": 64})):
        folder.mkdir(parents=True)
        (folder / "summary.json").write_text(json.dumps(summary))
    answers.parent.mkdir()
    (answers.parent / "a.summary.json").write_text(json.dumps({"device_seconds": 1.5, "answers": 8}))
    (tmp_path / "seconds.json").write_text(json.dumps({data.name: 3.0}))
    assert names(study.needed_by(answers)) == ["sft", "policy", "answers"]
    assert study.cost(study.needed_by(answers)) == {
        "language model": 10.0, "policy": 5.0, "sampling and scoring": 1.5, "all": 16.5, "answers": 72
    }  # fmt: skip
    assert study.cost([study.stages[data]]) == {"data": 3.0, "all": 3.0, "answers": 0}


def test_paths_of_any_characters_reach_the_entry_points(tmp_path):
    folder = tmp_path / "a b, [c] 'd'={e}"
    config = configured(tmp_path, "budget=smoke", "seeds=1", "methods=[morlhf]")
    bench = Bench(Study(folder, 1), config)
    planned(bench)
    paths = ("run_dir", "data", "tokenizer", "model.init", "policy", "output", "input", "points", "offline", "reward")
    for stage in bench.study.stages.values():
        composed = compose_config(stage.script.removesuffix(".py"), stage.settings, path_keys=paths)
        if stage.kind == "policy":
            assert composed.reward[0] == str(bench.single_reward_model("helpfulness"))
