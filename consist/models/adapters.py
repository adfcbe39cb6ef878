"""Adapters of peft in the parts of a pipeline, put there by peft itself.

transformers' own ``add_adapter`` and ``load_adapter`` refuse some versions of peft with which
adapters work well. It must not know files.
"""

from __future__ import annotations

from collections.abc import Mapping

from peft import LoraConfig, inject_adapter_in_model, set_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn


def add_adapter(module: nn.Module, config: LoraConfig, name: str = "default") -> None:
    """Gives a module an adapter that is new, and makes it the active one.

    Args:
        module: A UNet or a text encoder; it is changed.
        config: Which of its layers are adapted, and how.
        name: No other adapter of the module may have it.
    """
    inject_adapter_in_model(config, module, name)
    _activate(module, name)


def load_adapter(
    module: nn.Module, config: LoraConfig, tensors: Mapping[str, Tensor], name: str
) -> None:
    """Gives a module an adapter whose weights are known, and makes it the active one.

    Args:
        module: A UNet or a text encoder; it is changed.
        config: Of the adapter.
        tensors: By peft's keys, such as ``encoder.layers.0.mlp.fc1.lora_A.weight``.
        name: No other adapter of the module may have it.

    Raises:
        RuntimeError: A tensor has another shape than the layer takes.
    """
    inject_adapter_in_model(config, module, name, low_cpu_mem_usage=True)
    set_peft_model_state_dict(module, dict(tensors), name, low_cpu_mem_usage=True)
    _activate(module, name)
    held = next(module.parameters())
    module.to(held.device, held.dtype)


def switch_adapters(module: nn.Module, on: bool) -> None:
    """Lets a module run with its adapters, or as if it had none."""
    for layer in module.modules():
        if isinstance(layer, BaseTunerLayer):
            layer.enable_adapters(on)


def _activate(module: nn.Module, name: str) -> None:
    # where diffusers and transformers look whether a module has any
    module._hf_peft_config_loaded = True  # type: ignore[assignment]
    for layer in module.modules():
        if isinstance(layer, BaseTunerLayer):
            layer.set_adapter(name)
