"""What the tests of kernels share: where a kernel runs, and the memory that it is given.

Triton decides at import whether kernels are interpreted. So one test, in
``test_kernel_shared_attention.py``, runs all files of kernels once more in a process of its own
with TRITON_INTERPRET=1, where kernels run on the CPU; in this process, which other test files
share, nothing changes, and they run on a GPU if there is one.
"""

import pytest
import torch
from consist_kernels.shared_attention import INTERPRETED

DEVICE = "cpu" if INTERPRETED else "cuda"


def runs_kernel(test):
    """Marks a test that launches a kernel: it needs a GPU where nothing is interpreted."""
    missing = not INTERPRETED and not torch.cuda.is_available()
    skipped = pytest.mark.skipif(missing, reason="needs CUDA; interpreted in a process of its own")
    return test if INTERPRETED else pytest.mark.gpu(skipped(test))


def poison(monkeypatch):
    """What a launcher leaves uninitialized is NaN; random numbers start anew."""
    torch.manual_seed(0)
    for name in ("empty", "empty_like"):
        monkeypatch.setattr(torch, name, _filled(getattr(torch, name)))


def _filled(create):
    def filled(*args, **kwargs):
        x = create(*args, **kwargs)
        return x.fill_(torch.nan) if x.is_floating_point() else x

    return filled
