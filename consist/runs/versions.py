"""Where pictures come from: versions of the software, weights of the model, and memory used."""

from __future__ import annotations

import functools
import hashlib
import json
import platform
import resource
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from threading import active_count

import torch

from consist.errors import ConsistError
from consist.methods import spell_out
from consist.models.loading import MINI, MINI_FOLDER
from consist.runs.config import RunConfig
from consist.runs.folder import RunFolder


def versions(model: str = "") -> dict[str, str]:
    """The versions that a picture may depend on; for the model `mini` also its digest."""
    names = ("consist", "torch", "diffusers", "transformers", "peft")
    found = {"python": platform.python_version(), **{name: version(name) for name in names}}
    return {**found, MINI: digest_of(MINI_FOLDER)} if model == MINI else found


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


def check_weights(folder: RunFolder, config: RunConfig) -> None:
    """Makes sure that a run of `mini` goes on with the weights that it was begun with.

    Raises:
        ConsistError: It was begun with others, or with some that it does not tell.
    """
    if not has_weights_of(folder, config):
        raise ConsistError(
            f"{folder.path} was drawn with other weights of {config.model} and cannot go on; "
            "draw it anew in another folder, or remove this one"
        )


def check_defaults(folder: RunFolder, config: RunConfig) -> None:
    """Makes sure that what a run leaves open of its method is what it was when the run was begun.

    It has the default of the day, which another version may have changed.

    Raises:
        ConsistError: A field was another when the run was begun.
    """
    begun = folder.read_record().get("resolved", {}).get("method", {})
    now = json.loads(json.dumps(spell_out(config.method)))
    for name in now.keys() - config.method.keys():
        if name in begun and begun[name] != now[name]:
            raise ConsistError(
                f"{folder.path} was begun with {name} {begun[name]}, and this version would go on "
                f"with {now[name]}; draw it anew in another folder, or remove this one"
            )


def has_weights_of(folder: RunFolder, config: RunConfig) -> bool:
    """Whether a run was drawn with the weights that ``config`` would be drawn with.

    Those of other models than `mini` are known by their names alone.
    """
    drawn: dict[str, str] = folder.read_record().get("versions", {})
    return config.model != MINI or drawn.get(MINI) == digest_of(MINI_FOLDER)


def peak_memory_gib() -> float:
    """The most memory that was used: on the GPU if there is one, else by the process."""
    if torch.cuda.is_available():
        used = float(torch.cuda.max_memory_allocated())
    else:
        unit = 1 if sys.platform == "darwin" else 1024
        used = float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)
    return round(used / 2**30, 3)


def grown_mib(run: Callable[[], object]) -> float:
    """The memory that a call adds at its peak: on the GPU if there is one, else of the process.

    Without a GPU on Linux alone.
    """
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    # forgets the peak so far
    Path("/proc/self/clear_refs").write_text("5")
    resident = resident_mib()
    run()
    return _status_mib("VmHWM") - resident


def resident_mib() -> float:
    """The memory of this process; on Linux alone."""
    return _status_mib("VmRSS")


def count_held(unet: torch.nn.Module) -> dict[str, int]:
    """What drawing must give back: threads and files of this process, and what it hung on a UNet.

    On Linux alone.
    """
    modules = list(unet.modules())
    return {
        "threads": active_count(),
        "open files": len(list(Path("/proc/self/fd").iterdir())),
        "hooks": sum(len(one._forward_hooks) + len(one._forward_pre_hooks) for one in modules),
        "processors of ours": sum(
            type(getattr(one, "processor", None)).__module__.startswith("consist")
            for one in modules
        ),
    }


def _status_mib(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith(f"{field}:"))
    return int(line.split()[1]) / 1024
