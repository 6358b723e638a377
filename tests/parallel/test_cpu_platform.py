"""The CPU platform: what each patch is for, and the layouts that train with all of them."""

import json
import threading
from types import SimpleNamespace

import pytest
import torch
from training_client import ROOT

from nemo_moslim.parallel import cpu
from nemo_moslim.parallel.cpu_optimizer import GroupStepAdam

WORKER = str(ROOT / "tests" / "distributed" / "cpu_platform_worker.py")

# Patch left out -> what a step of training, a resume or NeMo's own calls then fail with.
FAILURES = {
    "factories": "Cannot access accelerator device",
    "tensor_moves": "Cannot access accelerator device",
    "tensor_type": "Received torch.FloatTensor",
    "streams": "torch.cuda.Stream requires CUDA support",
    "device_queries": "not compiled with CUDA",
    "memory_statistics": "peak memory 0",
    "rng_state": "_cuda_getDevice",
    "all_to_all_splits": "all_to_all_single(): incompatible function arguments",
    "unequal_parts": "ProcessGroupGloo::allgather: invalid tensor size",
    "router_gemm": "name 'te_general_gemm' is not defined",
    "multi_tensor_kernels": "a CUDA kernel of Transformer Engine",
    "adam": "AssertionError",
}
DENSE = ("tensor=2", "tensor=2,sequence=1", "pipeline=2", "zero=1")
MIXTURE = ("experts=4,expert=2,zero=1", "experts=4,tensor=2,sequence=1")
RESUMED = ("zero=1,resume=1", "experts=4,expert=2,zero=1,resume=1")


def reports(output: str) -> list[dict]:
    return [json.loads(line) for line in output.splitlines() if line.startswith("{")]


@pytest.fixture(scope="module")
def single(trainings) -> list[dict]:
    return reports(trainings.run("run_script", path=WORKER, arguments=["missing"]).output())


@pytest.fixture(scope="module")
def double(trainings) -> list[dict]:
    layouts = ["timers", *DENSE, *MIXTURE, *RESUMED]
    return reports(trainings.run("run_script", 2, path=WORKER, arguments=layouts).output())


def test_every_patch_has_a_failure_to_show():
    assert set(FAILURES) == set(cpu.patch_names())


def test_all_patches_together_train_and_resume(single):
    assert [r["result"] for r in single if r.get("without") == ""] == ["ok"]


@pytest.mark.parametrize("name", FAILURES)
def test_without_the_patch_it_fails(single, double, name):
    (result,) = [r["result"] for r in (*single, *double) if r.get("without") == name]
    assert FAILURES[name] in result


@pytest.mark.parametrize("layout", DENSE + MIXTURE)
def test_layout_trains_like_one_rank(single, double, layout):
    (expected,) = [r for r in single if r.get("layout") == ("experts=4" if "experts" in layout else "")]
    (got,) = [r for r in double if r.get("layout") == layout]
    assert got["losses"] == pytest.approx(expected["losses"], rel=1e-5)
    assert got["norms"][0] == pytest.approx(expected["norms"][0], rel=1e-5)
    assert got["norms"] == pytest.approx(expected["norms"], rel=1e-4)  # rounding differs by CPU and grows
    assert len(set(got["losses"])) == 3


def test_parts_of_unequal_sizes_are_gathered_and_reduced(double):
    """Gathered, the gradient of what was gathered (each rank weighs the rows), reduced, the gradient of that."""
    first, second = ([r["found"] for r in double if r.get("rank") == rank] for rank in (0, 1))
    whole, sums = [1, 2, 3, 4], [11, 22, 33, 44]
    assert first == [[whole, sums[:3], sums[:3], [1, 1, 1, 10]], [whole, [], [], [10] * 4]]
    assert second == [[whole, sums[3:], sums[3:], [1, 1, 1, 10]], [whole, sums, sums, [10] * 4]]


@pytest.mark.parametrize("layout", RESUMED)
def test_resume_with_the_distributed_optimizer_is_bitwise(double, layout):
    assert [r["bitwise"] for r in double if r.get("layout") == layout] == [True]


def test_one_rank_that_asks_for_the_timers_waits_for_ever(double):
    assert [r["waiting"] for r in double if "waiting" in r] == [True]


def test_prepare_strategy_removes_the_timers(monkeypatch):
    strategy = SimpleNamespace(timers=object(), context_parallel_size=1)
    monkeypatch.setattr(cpu, "_enabled", True)
    assert cpu.prepare_strategy(strategy) is strategy
    assert strategy.timers is None


def test_prepare_strategy_leaves_a_gpu_alone(monkeypatch):
    strategy = SimpleNamespace(timers="kept", context_parallel_size=4)
    monkeypatch.setattr(cpu, "_enabled", False)
    assert cpu.prepare_strategy(strategy).timers == "kept"


def test_prepare_strategy_refuses_context_parallelism(monkeypatch):
    monkeypatch.setattr(cpu, "_enabled", True)
    with pytest.raises(ValueError, match="parallel.context: expected 1 on the CPU, got 2"):
        cpu.prepare_strategy(SimpleNamespace(timers=None, context_parallel_size=2))


def test_enable_refuses_where_cuda_is_available(monkeypatch):
    before = torch.empty
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(cpu, "_enabled", False)
    with pytest.raises(RuntimeError, match=r"is_available\(\) is True"):
        cpu.enable()
    assert not cpu.enabled() and torch.empty is before


def test_enable_refuses_an_unknown_patch():
    with pytest.raises(ValueError, match=r"unknown patch \['factorys'\]"):
        cpu.enable(without=["factorys"])


class TestEnabled:
    """In this process: afterwards it stays enabled, as in every entry point on a CPU."""

    @pytest.fixture(autouse=True)
    def platform(self):
        cpu.enable()

    def test_is_idempotent(self):
        before = torch.empty, torch.Tensor.to, torch.cuda.Stream
        cpu.enable()
        assert cpu.enabled() and before == (torch.empty, torch.Tensor.to, torch.cuda.Stream)

    @pytest.mark.parametrize("device", [0, "cuda", "cuda:1", torch.device("cuda", 0)])
    def test_every_spelling_of_cuda_lands_on_the_cpu(self, device):
        tensors = [
            torch.zeros(2, device=device, pin_memory=True),
            torch.tensor([1.0, 2.0], device=device),
            torch.zeros_like(torch.ones(2), device=device),
            torch.ones(2).new_empty(3, device=device),
            torch.ones(2).to(device),
            torch.ones(2).to(device=device, dtype=torch.float64),
            torch.ones(2).cuda(),
            torch.nn.Linear(2, 2).cuda().weight,
        ]
        assert [t.device.type for t in tensors] == ["cpu"] * len(tensors)

    def test_other_devices_and_arguments_are_left_alone(self):
        assert torch.zeros(2, device="meta").device.type == "meta"
        x = torch.ones(2)
        assert x.to(torch.float64).dtype == torch.float64 and x.to("cpu") is x
        with torch.device("meta"):
            assert torch.nn.Linear(2, 2).weight.device.type == "meta"
            assert x.type() == "torch.cuda.FloatTensor"

    def test_redirect_to_meta_allocates_nothing_and_ends(self):
        with cpu.redirect_to("meta"):
            assert torch.empty(10**15, device="cuda").device.type == "meta"
        assert torch.empty(1, device="cuda").device.type == "cpu"

    def test_holds_in_other_threads(self):
        devices = []
        thread = threading.Thread(target=lambda: devices.append(torch.empty(1, device="cuda").device.type))
        thread.start()
        thread.join()
        assert devices == ["cpu"]

    def test_type_names_round_trip(self):
        x = torch.ones(2, dtype=torch.bfloat16)
        assert x.type() == "torch.cuda.BFloat16Tensor"
        assert torch.zeros(2).type(x.type()).dtype == torch.bfloat16
        assert torch.zeros(2).type(torch.int64).dtype == torch.int64

    def test_torchscript_still_knows_the_factories(self):
        assert torch.jit.script(add_zeros)(torch.ones(2)).tolist() == [1.0, 1.0]

    def test_events_measure_milliseconds(self):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        with pytest.raises(RuntimeError, match="recorded"):
            start.elapsed_time(end)
        start.record()
        threading.Event().wait(0.02)
        end.record()
        assert 19.0 < start.elapsed_time(end) < 2000.0

    def test_rng_state_is_the_cpus(self):
        torch.cuda.manual_seed(7)
        state = torch.cuda.get_rng_state()
        first = torch.rand(3)
        torch.cuda.set_rng_state(state)
        assert torch.equal(torch.rand(3), first)
        torch.manual_seed(7)
        assert torch.equal(torch.rand(3), first)


def add_zeros(x: torch.Tensor) -> torch.Tensor:
    return x + torch.zeros(2, dtype=torch.float32)


@pytest.mark.parametrize("decoupled", [True, False])
def test_group_step_adam_is_adam(decoupled):
    torch.manual_seed(0)
    ours = torch.nn.Parameter(torch.randn(300))
    theirs = torch.nn.Parameter(ours.detach().clone())
    reference = torch.optim.AdamW if decoupled else torch.optim.Adam
    pair = (
        GroupStepAdam([ours], lr=1e-2, weight_decay=0.1, adam_w_mode=decoupled),
        reference([theirs], lr=1e-2, weight_decay=0.1),
    )
    for _ in range(5):
        gradient = torch.randn(300)
        for parameter, optimizer in zip((ours, theirs), pair, strict=True):
            parameter.grad = gradient.clone()
            optimizer.step()
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
    assert pair[0].param_groups[0]["step"] == 5
    assert set(pair[0].state[ours]) == {"exp_avg", "exp_avg_sq"}


def test_group_step_adam_by_hand():
    """One step: m = 0.1 g, v = 0.001 g^2, corrected to g and g^2, so the step is lr * g / (|g| + eps)."""
    parameter = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
    parameter.grad = torch.tensor([3.0, -0.5])
    GroupStepAdam([parameter], lr=0.1, weight_decay=0.5).step()
    torch.testing.assert_close(parameter.data, torch.tensor([1.0 * 0.95 - 0.1, -2.0 * 0.95 + 0.1]))


def test_group_step_adam_skips_parameters_without_gradient():
    parameter = torch.nn.Parameter(torch.ones(2))
    optimizer = GroupStepAdam([parameter])
    optimizer.step()
    assert parameter.tolist() == [1.0, 1.0] and optimizer.param_groups[0]["step"] == 1


def test_group_step_adam_refuses_what_only_the_fused_one_has():
    with pytest.raises(ValueError, match="use_precision_aware_optimizer=False"):
        GroupStepAdam([torch.nn.Parameter(torch.ones(1))], master_weights=True)
