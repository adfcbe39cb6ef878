"""Draw the same subject in many scenes with any Stable Diffusion, with or without training."""

from importlib import import_module
from typing import Any

_PUBLIC = {
    "shared_attention": "consist.attention",
    "Isolated": "consist.methods.isolated",
    "Shared": "consist.methods.spectral",
    "Spectral": "consist.methods.spectral",
    "Matched": "consist.methods.matched",
    "Sdsa": "consist.methods.sdsa",
    "Consistory": "consist.methods.consistory",
    "OnePrompt": "consist.methods.one_prompt",
    "StoryDiffusion": "consist.methods.storydiffusion",
    "StyleAligned": "consist.methods.stylealigned",
    "weak_unconditional": "consist.steering",
    "find_subject": "consist.phrases",
    "encode_prompts": "consist.prompting",
    "identity_tokens": "consist.prompting",
    "generate": "consist.drawing",
    "RunConfig": "consist.config",
    "extend": "consist.more",
    "redo": "consist.more",
    "take_subject": "consist.more",
    "with_references": "consist.references",
    "new_words": "consist.words",
    "Subject": "consist.subject",
    "finetune": "consist.training.finetune",
    "TrainConfig": "consist.training.recipe",
}
__all__ = list(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'consist' has no attribute {name!r}")
    return getattr(import_module(_PUBLIC[name]), name)
