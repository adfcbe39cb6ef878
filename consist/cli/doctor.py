"""What will run on this machine, and what would make it do more."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec

from huggingface_hub import constants

from consist.attention.backends import choose
from consist.models.devices import describe, pick_device, pick_dtype
from consist.models.packages import conflicts
from consist.runs.versions import versions

EXTRAS = {
    "tensorboard": "curves while training: pip install 'consist[train]'",
    "matplotlib": "plots of ablations and reports: pip install 'consist[study]'",
    "efficientnet_lite_pytorch": "the independent identity score: pip install 'consist[eval]'",
}


def findings() -> Iterator[tuple[str, str]]:
    """Gives topics and what was found, one pair per line."""
    yield from versions().items()
    device = pick_device("auto")
    dtype = pick_dtype("auto", device)
    yield "device", describe(device)
    yield "precision", str(dtype).removeprefix("torch.")
    backend, reason = choose("auto", device, dtype)
    yield "attention", f"{backend}: {reason}"
    for sentence in conflicts():
        yield "does not fit", sentence
    yield "model cache", constants.HF_HUB_CACHE
    for package, use in EXTRAS.items():
        if find_spec(package) is None:
            yield "not installed", f"{package}, for {use}"
