"""What holds while a model samples, and what it is afterwards."""

from types import SimpleNamespace

import pytest
import torch

from nemo_moslim.rollout.generate import _inference_mode


def test_attention_without_cudnn_while_sampling_and_all_put_back_after_an_error():
    module = torch.nn.Linear(1, 1)
    module.config = SimpleNamespace(sequence_parallel=True)
    for before in (True, False):
        torch.backends.cuda.enable_cudnn_sdp(before)
        with pytest.raises(KeyError), _inference_mode(module):
            assert not module.training and not module.config.sequence_parallel
            assert not torch.backends.cuda.cudnn_sdp_enabled()
            raise KeyError
        assert module.training and module.config.sequence_parallel
        assert torch.backends.cuda.cudnn_sdp_enabled() is before
    torch.backends.cuda.enable_cudnn_sdp(True)
