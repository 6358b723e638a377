"""Configuration classes of the families, and the published sizes against NeMo's own."""

from training_client import Trainings

from nemo_moslim.families import FAMILIES

NEMO = "nemo.collections.llm.gpt.model."
PUBLISHED = {
    "qwen2_7b": NEMO + "qwen2.Qwen2Config7B",
    "qwen2_5_7b": NEMO + "qwen2.Qwen25Config7B",
    "qwen2_72b": NEMO + "qwen2.Qwen2Config72B",
    "qwen2_57b_a14b": "nemo_moslim.models.qwen2_moe.Qwen2MoEConfig",
    "qwen3_8b": NEMO + "qwen3.Qwen3Config8B",
    "llama3_8b": NEMO + "llama.Llama3Config8B",
    "llama3_1_8b": NEMO + "llama.Llama31Config8B",
}


def test_published_sizes_are_nemos(trainings: Trainings):
    """But for the range of fresh weights, and what NeMo leaves to be worked out (head size, vocabulary)."""
    found = trainings.run("published_sizes", pairs=PUBLISHED).results()[0]
    assert set(found) == set(PUBLISHED)
    for name, different in found.items():
        left_out = {key for key, (_, theirs) in different.items() if theirs is None}
        assert left_out <= {"kv_channels", "vocab_size"}, (name, different)
        assert set(different) - left_out <= {"init_method_std"}, (name, different)


def test_a_configuration_is_nemos_class_of_its_family(trainings: Trainings):
    *families, unnamed = trainings.run("configuration_classes").results()[0]
    for family, classes in zip(FAMILIES.values(), families, strict=True):
        nemo_class = family.nemo_config.rpartition(".")[2]
        assert classes[0] == nemo_class.removesuffix("Config") + "PolicyConfig"
        assert {"PolicyConfig", "BackboneConfig", nemo_class, "GPTConfig"} <= set(classes)
    assert unnamed[0] == "Qwen2PolicyConfig"


def test_no_two_experts_start_alike(trainings):
    """Neither on another expert-parallel rank nor on another pipeline stage, whose seeds are the launch's."""
    (stages,) = trainings.run("first_experts").results()
    values = [value for ranks in stages for weights in ranks for value in weights]
    assert len(values) == 2 * 2 * 2  # stages, ranks, experts of a rank in one layer
    assert len(set(values)) == len(values)
