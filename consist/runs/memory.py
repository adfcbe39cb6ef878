"""The memory that drawing takes, and what it must give back."""

from __future__ import annotations

import resource
import sys
from collections.abc import Callable
from pathlib import Path
from threading import active_count

import torch


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
