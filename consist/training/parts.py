"""What is trained of a pipeline: a LoRA beside its weights, the weights themselves, or a word.

It must not know photos nor losses.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from diffusers.training_utils import cast_training_params
from peft import LoraConfig
from torch import nn

from consist.models.adapters import add_adapter, switch_adapters
from consist.models.devices import DTYPES
from consist.models.loading import Pipeline
from consist.models.new_words import WordEmbedding, pairs
from consist.models.packages import check_adapters
from consist.training.config import DREAMBOOTH, LORA, TEXTUAL_INVERSION, TrainConfig

# all matrices of the transformers: with those of attention alone `mini` hardly learns a subject
UNET_TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]
UNET_TARGETS += ["proj_in", "proj_out", "ff.net.0.proj", "ff.net.2"]
CONV_TARGETS = ["conv1", "conv2", "conv_shortcut"]  # of the residual blocks
TEXT_TARGETS = ["q_proj", "k_proj", "v_proj", "out_proj"]


class Parts:
    """A pipeline prepared for training: all is frozen but the parameters that are named here.

    Those are float32 whatever the precision of the rest, for in half precision most steps are
    smaller than the weights can tell. The autoencoder is float32 too: SDXL's overflows in float16.

    Args:
        pipe: It is changed. For Textual Inversion it has the word already.
        config: With nothing left open.
    """

    def __init__(self, pipe: Pipeline, config: TrainConfig):
        self.pipe = pipe
        self.config = config
        self.dtype = DTYPES[config.precision]
        unet = ["unet"] if config.kind != TEXTUAL_INVERSION else []
        names = unet + (text_encoders(pipe) if config.text_encoder or not unet else [])
        self.trained: dict[str, Any] = {name: getattr(pipe, name) for name in names}
        self.copies: dict[str, Any] = {}
        whole = {"vae", *(names if config.kind == DREAMBOOTH else [])}
        for name, module in pipe.components.items():
            if isinstance(module, nn.Module):
                module.requires_grad_(False)
                module.to(torch.float32 if name in whole else self.dtype)
        if config.kind == LORA:
            check_adapters()
            self._add_adapters()
        elif config.kind == TEXTUAL_INVERSION:
            self._free_words()
        else:
            self._free_weights()
        if config.gradient_checkpointing:
            self._save_memory()

    def _add_adapters(self) -> None:
        config = self.config
        of_unet = UNET_TARGETS + (CONV_TARGETS if config.conv else [])
        # the CPU's generator alone: what a seed gives does not depend on the device
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            for name, module in self.trained.items():
                adapter = LoraConfig(
                    r=config.rank,
                    lora_alpha=config.alpha,
                    use_dora=config.dora,
                    init_lora_weights="gaussian",
                    target_modules=of_unet if name == "unet" else TEXT_TARGETS,
                )
                add_adapter(module, adapter)
        cast_training_params(list(self.trained.values()), torch.float32)

    def _free_words(self) -> None:
        for word in self.words:
            word.vectors.requires_grad_(True)
        cast_training_params(list(self.trained.values()), torch.float32)

    def _free_weights(self) -> None:
        if self.config.asks_base:
            for name, module in self.trained.items():
                self.copies[name] = copy.deepcopy(module).to(self.dtype)
        for module in self.trained.values():
            module.requires_grad_(True)

    def _save_memory(self) -> None:
        # gradients of a word pass through the UNet as well
        for name, module in {**self.trained, "unet": self.pipe.unet}.items():
            # transformers heeds it only in training mode; no model here has any dropout
            module.train()
            if name == "unet":
                module.enable_gradient_checkpointing()
            else:
                # newer versions of transformers warn of the second name, older have no other
                names = ("activation_checkpointing_enable", "gradient_checkpointing_enable")
                next(getattr(module, name) for name in names if hasattr(module, name))()

    @property
    def text_frozen(self) -> bool:
        """Whether a caption always has the same embeddings."""
        return set(self.trained) == {"unet"}

    @property
    def words(self) -> list[WordEmbedding]:
        """What holds the vectors of the word that is learned, one for each text encoder."""
        return [module.get_input_embeddings() for module in self.trained.values()]

    @property
    def unet_parameters(self) -> dict[str, nn.Parameter]:
        """What is trained of the UNet, by dotted names."""
        return trainable("unet", self.pipe.unet)

    @property
    def text_parameters(self) -> dict[str, nn.Parameter]:
        """What is trained of the text encoders, by dotted names."""
        found: dict[str, nn.Parameter] = {}
        for name, module in self.trained.items():
            found |= {} if name == "unet" else trainable(name, module)
        return found

    @contextmanager
    def as_before(self) -> Iterator[None]:
        """Inside, the pipeline is what it was before training; without gradients.

        Raises:
            ValueError: The weights themselves are trained, and no copy of them was kept.
        """
        if self.config.kind != LORA and not self.copies:
            raise ValueError("no copy of the base model was kept")
        self._leave()
        try:
            with torch.no_grad():
                yield
        finally:
            self._return()

    def _leave(self) -> None:
        for name, module in self.trained.items():
            if self.copies:
                setattr(self.pipe, name, self.copies[name])
            else:
                switch_adapters(module, on=False)

    def _return(self) -> None:
        for name, module in self.trained.items():
            if self.copies:
                setattr(self.pipe, name, module)
            else:
                switch_adapters(module, on=True)


def text_encoders(pipe: Pipeline) -> list[str]:
    """The names of a pipeline's text encoders."""
    return [encoder for _, encoder in pairs(pipe)]


def trainable(prefix: str, module: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters of a module that are trained, by dotted names."""
    named = module.named_parameters()
    return {f"{prefix}.{name}": weight for name, weight in named if weight.requires_grad}
