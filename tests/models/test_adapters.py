import copy

import pytest
import torch
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict

from consist.models.adapters import add_adapter, load_adapter, switch_adapters

TARGETS = {"unet": ["to_q", "to_v"], "text_encoder": ["q_proj", "fc1"]}


@pytest.fixture(autouse=True)
def _transformers_refuses_this_peft(monkeypatch):
    def refuse(min_version):
        raise ImportError(f"peft {min_version} is needed")

    monkeypatch.setattr("transformers.integrations.peft.check_peft_version", refuse)


def answer(pipe):
    return pipe.encode_prompt("a cat", "cpu", 1, False)[0]


@pytest.mark.parametrize("part", TARGETS)
@pytest.mark.parametrize("dora", [False, True])
def test_what_is_added_and_what_is_loaded_are_the_same(sd_pipe, part, dora):
    before = torch.get_rng_state()
    first, second = (copy.deepcopy(getattr(sd_pipe, part)) for _ in range(2))
    config = LoraConfig(r=2, target_modules=TARGETS[part], init_lora_weights=False, use_dora=dora)
    add_adapter(first, config, "one")
    state = get_peft_model_state_dict(first, adapter_name="one")
    after = torch.get_rng_state()
    load_adapter(second, config, state, "two")
    found = get_peft_model_state_dict(second, adapter_name="two")
    assert found.keys() == state.keys()
    assert all(torch.equal(found[key], tensor) for key, tensor in state.items())
    assert second.dtype == getattr(sd_pipe, part).dtype
    # what is loaded is not drawn at random first
    assert torch.equal(torch.get_rng_state(), after)
    assert not torch.equal(before, after)


def test_an_adapter_is_switched_off_and_on_again(sd_pipe):
    pipe = type(sd_pipe)(
        **{**sd_pipe.components, "text_encoder": copy.deepcopy(sd_pipe.text_encoder)}
    )
    plain = answer(pipe)
    config = LoraConfig(r=2, target_modules=TARGETS["text_encoder"], init_lora_weights=False)
    add_adapter(pipe.text_encoder, config)
    assert not torch.equal(answer(pipe), plain)
    switch_adapters(pipe.text_encoder, on=False)
    assert torch.equal(answer(pipe), plain)
    switch_adapters(pipe.text_encoder, on=True)
    assert not torch.equal(answer(pipe), plain)
    # the pipeline's own functions know it too
    pipe.set_adapters("default", 0.0)
    torch.testing.assert_close(answer(pipe), plain)
    pipe.unload_lora_weights()
    assert torch.equal(answer(pipe), plain)
