"""Draw the same subject in many scenes with any Stable Diffusion, with or without training."""

from importlib import import_module
from typing import Any

_PUBLIC = {
    "shared_attention": "consist.attention.processor",
    "Isolated": "consist.methods.isolated",
    "Shared": "consist.methods.spectral",
    "Spectral": "consist.methods.spectral",
    "Matched": "consist.methods.matched",
    "Sdsa": "consist.methods.sdsa",
    "Consistory": "consist.methods.consistory",
    "OnePrompt": "consist.methods.one_prompt",
    "StoryDiffusion": "consist.methods.storydiffusion",
    "StyleAligned": "consist.methods.stylealigned",
    "weak_unconditional": "consist.attention.lora_guidance",
    "find_subject": "consist.prompts.phrases",
    "encode_prompts": "consist.prompts.one_prompt",
    "identity_tokens": "consist.prompts.one_prompt",
    "generate": "consist.runs.drawing",
    "RunConfig": "consist.runs.config",
    "extend": "consist.runs.extending",
    "redo": "consist.runs.extending",
    "take_subject": "consist.runs.extending",
    "with_references": "consist.runs.references",
    "new_words": "consist.models.new_words",
    "Subject": "consist.runs.subject",
    "finetune": "consist.training.finetune",
    "TrainConfig": "consist.training.config",
}
__all__ = list(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'consist' has no attribute {name!r}")
    return getattr(import_module(_PUBLIC[name]), name)
