"""The file of what a run's anchors share, from which further pictures are drawn without them.

Tensors of ``consist.attention.anchor_cache`` in safetensors, whose header says what they depend on.
It must not know how they are made or shown.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from consist.errors import ConsistError
from consist.files import write_atomically
from consist.models.loading import MINI
from consist.models.tensor_files import plain_errors
from consist.runs.config import OPEN, RunConfig
from consist.runs.versions import versions
from consist.settings.fields import marked

FORMAT = 1
HEADER = "consist"  # the entry of the header
DAMAGED = "{name} is damaged, or no cache; remove it to have it made anew"


def describe(config: RunConfig, resolved: Mapping[str, Any]) -> dict[str, Any]:
    """All that what the anchors share depends on, as JSON has it.

    Models other than `mini` are known by their names alone.

    Args:
        config: A run that names its anchors.
        resolved: What its settings came to mean, as in ``run.json``.
    """
    about = {
        "model": config.model,
        "weights": versions(config.model).get(MINI),
        "words of the LoRAs": config.lora_subject,
        "LoRAs in the negative": config.lora_negative,
        "loras": config.loras,
        "embeddings": config.embeddings,
        "method": dict(config.method),
        **{name: resolved[name] for name in marked(RunConfig, OPEN)},
        "anchor prompts": config.anchor_prompts,
        "anchor seeds": config.anchor_seeds,
        "negative": config.negative,
        "guidance rescale": config.guidance_rescale,
    }
    return dict(json.loads(json.dumps(about)))


@dataclass(frozen=True)
class CacheFile:
    """A file that may be there or not, for one run."""

    path: Path
    about: Mapping[str, Any]  # of ``describe``

    def read(self) -> dict[str, Tensor] | None:
        """What is kept, on the CPU; None where there is no file.

        Raises:
            ConsistError: The file is damaged, of another format, or of something else.
        """
        if not self.path.exists():
            return None
        with plain_errors(self.path, DAMAGED), safe_open(self.path, "pt") as file:
            self._check(json.loads(file.metadata()[HEADER]))
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118

    def write(self, kept: Mapping[str, Tensor]) -> None:
        """Writes the file in full or not at all.

        Raises:
            ConsistError: The disk or the permissions do not allow it.
        """
        about = json.dumps({"format": FORMAT, **self.about}, ensure_ascii=False)
        data = save(dict(kept), {HEADER: about})
        write_atomically(self.path, lambda file: file.write(data))

    def _check(self, found: Mapping[str, Any]) -> None:
        for name, wanted in {"format": FORMAT, **self.about}.items():
            if (given := found.get(name)) != wanted:
                raise ConsistError(
                    f"{self.path} was made with {name} {json.dumps(given, ensure_ascii=False)}, "
                    f"not {json.dumps(wanted, ensure_ascii=False)}; "
                    "remove it to have it made anew"
                )
