"""Names to pipelines: every layout that people have on disk, and one sentence for what fails."""

import shutil

import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from safetensors.torch import load_file, save_file

from consist.errors import ConsistError
from consist.methods import build
from consist.models.loading import (
    DEFAULTS,
    MINI_DEFAULTS,
    MINI_FOLDER,
    SCHEDULERS,
    load,
    local_models,
    set_scheduler,
)
from consist.models.lora import add_loras, split_weight
from consist.runs.chunks import plan
from consist.runs.config import RunConfig
from consist.runs.drawing import Batch, draw
from consist.runs.preparing import check_prompts, prepare


@pytest.fixture(scope="module")
def folders(tmp_path_factory, sd_pipe, sdxl_pipe):
    root = tmp_path_factory.mktemp("models")
    sd_pipe.save_pretrained(root / "sd")
    sdxl_pipe.save_pretrained(root / "sdxl")
    return root


def test_loads_mini():
    model = load("mini")
    assert type(model.pipe) is StableDiffusionPipeline
    assert model.pipe.unet.dtype == torch.float32


def test_a_mini_in_another_place_has_its_defaults(tmp_path):
    shutil.copytree(MINI_FOLDER, tmp_path / "mine")
    assert load(str(tmp_path / "mine")).defaults == load("mini").defaults == MINI_DEFAULTS


def test_any_text_tokenizes_in_mini():
    tokenizer = load("mini").pipe.tokenizer
    for text in ("A CAT in Paris", "ein Kätzchen", "猫 🐈", "q w e r t y", "x" * 20):
        tokens = tokenizer(text).input_ids
        assert tokenizer.unk_token_id not in tokens[1:-1], text
    assert tokenizer("A Cat").input_ids == tokenizer("a cat").input_ids


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "kind"), [("sd", StableDiffusionPipeline), ("sdxl", StableDiffusionXLPipeline)]
)
def test_a_folder_draws_like_mini(folders, name, kind):
    config = RunConfig(
        model=str(folders / name), prompts=("a cat", "a bus"), seeds=(0, 1), steps=2, width=24
    )
    model = load(config.model)
    assert type(model.pipe) is kind
    settings = prepare(model, config)
    assert settings.guidance == DEFAULTS[kind].guidance
    (chunk,), method = plan(2, 2), build({"name": "spectral"})
    images = draw(
        Batch(pipe=model.pipe, config=config, settings=settings, chunk=chunk, method=method)
    )
    assert [image.size for image in images] == [(24, 16)] * 2


@pytest.mark.slow
def test_a_lora_of_diffusers_changes_the_pictures(folders, tmp_path):
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    pipe = load(str(folders / "sd")).pipe
    lora = LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False)
    pipe.unet.add_adapter(lora)
    state = get_peft_model_state_dict(pipe.unet)
    StableDiffusionPipeline.save_lora_weights(
        tmp_path, unet_lora_layers=state, weight_name="a.safetensors"
    )

    def latents(text):
        other = load(str(folders / "sd")).pipe
        add_loras(other, (text,) if text else ())
        generator = torch.Generator().manual_seed(0)
        return other(
            "a cat", num_inference_steps=2, generator=generator, output_type="latent"
        ).images

    path = str(tmp_path / "a.safetensors")
    torch.testing.assert_close(latents(f"{path}:0"), latents(None))
    assert (latents(path) - latents(None)).abs().max() > 1e-4


@pytest.mark.parametrize("dora", [False, True])
def test_a_kohya_lora_has_the_alpha_of_each_layer_and_its_dora(folders, tmp_path, dora):
    """diffusers' own reading takes one alpha for all layers, and drops the magnitudes."""
    pipe, path = load(str(folders / "sd")).pipe, tmp_path / "kohya.safetensors"
    plain = {n: m.weight.clone() for n, m in pipe.unet.named_modules() if n.endswith("to_q")}
    generator = torch.Generator().manual_seed(0)
    tensors, deltas, magnitudes = {}, {}, {}
    for number, (name, weight) in enumerate(plain.items()):
        key = f"lora_unet_{name.replace('.', '_')}"
        down, up = torch.randn(4, 32, generator=generator), torch.randn(32, 4, generator=generator)
        down, up = down[:, :1].repeat(1, weight.shape[1]), up[:1].repeat(weight.shape[0], 1)
        tensors |= {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up}
        tensors[f"{key}.alpha"] = torch.tensor(float(number))
        deltas[name] = (number or 4) / 4 * up @ down
        if dora:
            magnitudes[name] = torch.rand(len(weight), 1, generator=generator)
            tensors[f"{key}.dora_scale"] = magnitudes[name]
    save_file(tensors, path)
    add_loras(pipe, (str(path),))
    pipe.fuse_lora()
    for name, weight in plain.items():
        expected = weight + deltas[name]
        if name in magnitudes:
            expected = magnitudes[name] * expected / expected.norm(dim=1, keepdim=True)
        found = pipe.unet.get_submodule(name).base_layer.weight
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert len(plain) > 2
    if dora:
        del tensors[f"{key}.dora_scale"]
        save_file(tensors, path)
        with pytest.raises(ConsistError, match="is a DoRA in a part of its modules"):
            add_loras(pipe, (str(path),))


def test_a_lora_for_another_model_is_refused(sd_pipe, sdxl_pipe, tmp_path):
    attention = "mid_block_attentions_0_transformer_blocks_0_attn2_to_k"
    for pipe, key, width, sentence in (
        (
            sd_pipe,
            f"lora_unet_{attention}",
            2048,
            "is for another base model: SDXL, not prompts 32",
        ),
        (sd_pipe, "lora_te2_text_model_encoder_layers_0_mlp_fc1", 32, "it has a text_encoder_2"),
        (sdxl_pipe, f"lora_unet_{attention}", 768, "SD 1.x, not prompts 64 wide"),
    ):
        path = tmp_path / "other.safetensors"
        down, up = torch.ones(2, width), torch.ones(32, 2)
        save_file({f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up}, path)
        with pytest.raises(ConsistError, match=sentence):
            add_loras(pipe, (str(path),))


def test_reads_lora_weights():
    assert split_weight("a.safetensors") == ("a.safetensors", 1.0)
    assert split_weight("a.safetensors:0.5") == ("a.safetensors", 0.5)
    assert split_weight("C:/a.safetensors") == ("C:/a.safetensors", 1.0)


def test_lists_mini():
    (mini,) = [model for model in local_models() if model.name == "mini"]
    assert mini.kind == "StableDiffusionPipeline"
    assert mini.bytes < 40 * 2**20


def test_a_prompt_of_exactly_the_limit_fits(sd_pipe):
    limit = sd_pipe.tokenizer.model_max_length - 2
    check_prompts(sd_pipe, (" ".join(["cat"] * limit),))
    with pytest.raises(
        ConsistError, match=f"has {limit + 1} tokens, the text encoder takes {limit}"
    ):
        check_prompts(sd_pipe, (" ".join(["cat"] * (limit + 1)),))


# refusal


def damage_nothing(folder):
    (folder / "model_index.json").unlink()


def damage_weights(folder):
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])


def damage_kind(folder):
    path = folder / "model_index.json"
    path.write_text(
        path.read_text().replace("StableDiffusionPipeline", "StableDiffusionInpaintPipeline")
    )


def keep_pickles_only(folder):
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    torch.save(load_file(path), path.with_suffix(".bin"))
    path.unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damage_nothing, "is not a diffusers model"),
        (damage_weights, "(is damaged|cannot be loaded)"),
        (damage_kind, "is a StableDiffusionInpaintPipeline; consist draws with SD 1.x"),
        (keep_pickles_only, "cannot be loaded"),
    ],
)
def test_refuses_damaged_folders(folders, tmp_path, damage, message):
    broken = tmp_path / "broken"
    shutil.copytree(folders / "sd", broken)
    damage(broken)
    with pytest.raises(ConsistError, match=message) as raised:
        load(str(broken))
    assert "\n" not in str(raised.value)


def test_refuses_files_that_are_not_safetensors(tmp_path):
    for name in ("model.ckpt", "model.bin"):
        (tmp_path / name).write_bytes(b"pickle")
        with pytest.raises(ConsistError, match="no other weights are loaded"):
            load(str(tmp_path / name))
    (tmp_path / "broken.safetensors").write_bytes(b"not a header")
    with pytest.raises(ConsistError, match="is damaged"):
        load(str(tmp_path / "broken.safetensors"))
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ConsistError, match="cannot be loaded"):
        load(str(tmp_path / "other.safetensors"))


def test_a_hub_model_without_network_is_one_sentence():
    with pytest.raises(ConsistError, match="cannot be loaded") as raised:
        load("nobody/no-such-model")
    assert "\n" not in str(raised.value)


def test_refuses_other_loras(tmp_path):
    pipe = load("mini").pipe
    with pytest.raises(ConsistError, match=r"there is no file .*missing\.safetensors"):
        add_loras(pipe, (str(tmp_path / "missing.safetensors"),))
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ConsistError, match=r"is not a LoRA: none of its tensors"):
        add_loras(pipe, (str(tmp_path / "other.safetensors"),))


def test_the_weights_fit_the_budget():
    size = sum(path.stat().st_size for path in MINI_FOLDER.rglob("*") if path.is_file())
    assert size < 40 * 2**20
    assert not [p for p in MINI_FOLDER.rglob("*") if p.suffix in (".bin", ".pt", ".ckpt")]


def test_a_scheduler_whose_package_is_missing_is_refused(sd_pipe, monkeypatch):
    class Missing:
        @staticmethod
        def from_config(config):
            raise ImportError("it needs scipy:\npip install scipy")

    before = sd_pipe.scheduler
    monkeypatch.setitem(SCHEDULERS, "lms", Missing)
    with pytest.raises(
        ConsistError, match="'lms' cannot be used: it needs scipy: pip install scipy"
    ):
        set_scheduler(sd_pipe, "lms")
    assert sd_pipe.scheduler is before
