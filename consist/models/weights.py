"""What tells the weights of one model from those of another."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path

from torch import nn


@functools.cache
def digest_of(folder: Path) -> str:
    """Tells the model in a folder from others, by its weights and configs: 12 hex digits.

    Read once per process. What lies beside the parts of the model, as the reader does, is left out.
    """
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*/*")):
        if path.suffix in (".safetensors", ".json"):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def digest_of_weights(module: nn.Module) -> str:
    """Tells a module's weights from others: 16 hex digits."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
