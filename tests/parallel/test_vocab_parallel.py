"""One rank; tests/training/test_policy_layouts.py runs it on tensor-parallel ranks."""

import pytest
import torch

from nemo_moslim.parallel import vocab_parallel
from nemo_moslim.parallel.vocab_parallel import vocab_parallel_logprobs


def dense(hidden, weight, targets, vocab_size, temperature):
    logprobs = (hidden @ weight.T)[:, :vocab_size].div(temperature).log_softmax(-1)
    return logprobs.gather(1, targets[:, None])[:, 0], -(logprobs.exp() * logprobs).sum(-1)


@pytest.mark.parametrize(("positions", "chunk"), [(13, 4), (13, 64), (1, 1), (0, 4)])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_values_and_gradients_equal_the_dense_reference(positions, chunk, temperature):
    torch.manual_seed(0)
    hidden = torch.randn(positions, 8, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(20, 8, dtype=torch.float64, requires_grad=True)  # 17 entries and padding
    targets, grads = torch.randint(0, 17, (positions,)), torch.randn(2, positions, dtype=torch.float64)
    found, expected = [], []
    for function, results in ((run_chunked(chunk), found), (dense, expected)):
        hidden.grad = weight.grad = None
        logprobs, entropy = function(hidden, weight, targets, 17, temperature)
        ((logprobs * grads[0]).sum() + (entropy * grads[1]).sum()).backward()
        results += [logprobs, entropy, hidden.grad, weight.grad]
    for ours, reference in zip(found, expected, strict=True):
        torch.testing.assert_close(ours.double(), reference, rtol=2e-5, atol=2e-5)  # softmax in fp32
    assert bool((weight.grad[17:] == 0).all())


def run_chunked(chunk):
    def run(hidden, weight, targets, vocab_size, temperature):
        return vocab_parallel_logprobs(
            hidden, weight, targets, vocab_size=vocab_size, temperature=temperature, chunk=chunk, group=None
        )

    return run


def test_bf16_inputs_give_fp32_values():
    hidden, weight = torch.randn(5, 8).bfloat16(), torch.randn(20, 8).bfloat16()
    logprobs, entropy = run_chunked(4)(hidden, weight, torch.arange(5), 20, 1.0)
    assert logprobs.dtype == entropy.dtype == torch.float32


def test_gradients_of_bf16_inputs_are_those_of_fp32_up_to_rounding():
    torch.manual_seed(3)
    inputs = torch.randn(50, 16).bfloat16(), torch.randn(20, 16).bfloat16()
    found = []
    for dtype in (torch.bfloat16, torch.float32):
        hidden, weight = (x.detach().to(dtype).requires_grad_() for x in inputs)
        logprobs, entropy = run_chunked(8)(hidden, weight, torch.arange(50) % 20, 20, 1.0)
        (logprobs.sum() + entropy.sum()).backward()
        assert hidden.grad.dtype == weight.grad.dtype == dtype
        found.append((hidden.grad.float(), weight.grad.float()))
    for mine, theirs in zip(*found, strict=True):
        assert (mine - theirs).norm() < 0.01 * theirs.norm()


def test_no_logits_beyond_a_chunk_are_ever_held(monkeypatch):
    """The largest tensor of vocabulary width, forward and backward, has `chunk` rows."""
    rows, original = [], vocab_parallel._logits

    def watched(hidden, *rest):
        rows.append(len(hidden))
        return original(hidden, *rest)

    monkeypatch.setattr(vocab_parallel, "_logits", watched)
    hidden, weight = torch.randn(1000, 8, requires_grad=True), torch.randn(64, 8, requires_grad=True)
    sum(run_chunked(32)(hidden, weight, torch.zeros(1000, dtype=torch.int64), 64, 1.0)).sum().backward()
    assert max(rows) == 32 and sum(rows) == 2 * 1000


def test_peak_memory_does_not_grow_with_the_number_of_positions():
    def peak(positions):
        from torch.profiler import ProfilerActivity, profile

        hidden = torch.randn(positions, 4, requires_grad=True)
        weight, targets = torch.randn(4096, 4, requires_grad=True), torch.zeros(positions, dtype=torch.int64)
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True, record_shapes=False) as profiled:
            sum(run_chunked(16)(hidden, weight, targets, 4096, 1.0)).sum().backward()
        held = highest = 0
        for event in sorted(profiled.profiler.kineto_results.events(), key=lambda e: e.start_ns()):
            if event.name() == "[memory]":
                held += event.nbytes()
                highest = max(highest, held)
        return highest

    logits = 4096 * 4  # bytes of one position's logits
    assert peak(1024) - peak(128) < 8 * logits  # the dense way: 896 of them at least
    assert peak(128) > 16 * logits  # the measurement sees a chunk
