"""Files of LoRAs and embeddings: diffusers' own loaders are the oracle, and give every bit back."""

import copy
import json
import logging

import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from diffusers.utils.state_dict_utils import (
    convert_state_dict_to_diffusers,
    convert_state_dict_to_kohya,
)
from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from peft.utils import get_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from consist.cli import app
from consist.errors import ConsistError
from consist.models.embedding_files import read_embedding, write_embedding
from consist.models.lora_files import Lora, read_lora, write_lora
from consist.models.lora_layouts import Update
from consist.models.lora_merging import merge
from consist.models.lora_names import from_kohya, rename_sgm_blocks, to_kohya

ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]
UNET_TARGETS = [*ATTENTION, "proj_in", "ff.net.2", "conv1"]
TEXT_TARGETS = ["q_proj", "v_proj", "out_proj", "fc1", "fc2"]
WORDS = {"base_model": "tiny", "steps": 12, "prompt": "a xyz cat"}


def encoders(pipe):
    names = ("text_encoder", "text_encoder_2")
    return [getattr(pipe, name) for name in names if getattr(pipe, name, None) is not None]


def adapt(pipe, unet_targets=UNET_TARGETS, text_targets=TEXT_TARGETS, **changes):
    """A copy of a pipeline with random adapters whose alpha is not their rank."""
    pipe = copy.deepcopy(pipe)
    torch.manual_seed(7)
    settings = {"r": 4, "lora_alpha": 6, "init_lora_weights": False, **changes}
    for model in (pipe.unet, *encoders(pipe)):
        targets = unet_targets if model is pipe.unet else text_targets
        # peft warns of patterns that no target has
        own = {
            name: {k: v for k, v in given.items() if k in targets} if "pattern" in name else given
            for name, given in settings.items()
        }
        model.add_adapter(LoraConfig(target_modules=targets, **own))
    for name, weight in pipe.unet.named_parameters():
        if "magnitude" in name:
            weight.data.mul_(1.5)
    return pipe


def write(pipe, path, **options):
    write_lora(path, unet=pipe.unet, text_encoders=encoders(pipe), metadata=WORDS, **options)


def load(pipe, path):
    """A copy of a pipeline that loaded a file by itself."""
    pipe = copy.deepcopy(pipe)
    pipe.load_lora_weights(str(path.parent), weight_name=path.name)
    return pipe


def layers(pipe):
    """All numbers of the one adapter of a pipeline, by module."""
    found = {}
    for number, model in enumerate([pipe.unet, *encoders(pipe)]):
        for name, layer in model.named_modules():
            if isinstance(layer, LoraLayer):
                (adapter,) = layer.lora_A
                norms = layer.lora_magnitude_vector
                found[number, name] = (
                    layer.lora_A[adapter].weight,
                    layer.lora_B[adapter].weight,
                    torch.tensor(layer.scaling[adapter]),
                    norms[adapter].weight if adapter in norms else torch.tensor(0),
                )
    return found


def differing(one, other):
    """The modules whose adapters are not the same to the last bit."""
    assert one.keys() == other.keys()
    return {
        name
        for name in one
        if not all(torch.equal(a, b) for a, b in zip(one[name], other[name], strict=True))
    }


def same(one, other):
    assert one.modules.keys() == other.modules.keys()
    for module, update in one.modules.items():
        twin = other.modules[module]
        assert update.alpha == twin.alpha, module
        assert torch.equal(update.down, twin.down), module
        assert torch.equal(update.up, twin.up), module
        assert (update.magnitude is None) == (twin.magnitude is None), module
        assert update.magnitude is None or torch.equal(update.magnitude, twin.magnitude), module
    return True


def dense(update):
    return update.alpha / update.rank * (update.up.flatten(1) @ update.down.flatten(1))


@pytest.mark.parametrize("layout", ["diffusers", "kohya"])
@pytest.mark.parametrize("family", ["sd_pipe", "sdxl_pipe"])
def test_diffusers_loads_every_bit_back(request, tmp_path, family, layout):
    pipe = request.getfixturevalue(family)
    trained = adapt(pipe)
    write(trained, tmp_path / "lora.safetensors", layout=layout)
    loaded = load(pipe, tmp_path / "lora.safetensors")
    assert not differing(layers(trained), layers(loaded))
    assert {float(scale) for _, _, scale, _ in layers(loaded).values()} == {1.5}
    tokens = pipe.tokenizer(["a cat"], padding="max_length", return_tensors="pt").input_ids
    for ours, theirs in zip(encoders(trained), encoders(loaded), strict=True):
        assert torch.equal(ours(tokens)[0], theirs(tokens)[0])


def test_ranks_and_alphas_that_differ_by_module_are_kept(sd_pipe, tmp_path):
    patterns = {"rank_pattern": {"to_q": 2, "fc1": 3}, "alpha_pattern": {"to_k": 1, "q_proj": 5}}
    trained = adapt(sd_pipe, **patterns)
    path = tmp_path / "lora.safetensors"
    write(trained, path)
    assert not differing(layers(trained), layers(load(sd_pipe, path)))


@pytest.mark.slow
def test_diffusers_misreads_alphas_of_kohya_files_that_differ(sd_pipe, tmp_path, caplog):
    trained = adapt(sd_pipe, alpha_pattern={"to_k": 1, "q_proj": 5})
    path, again = tmp_path / "kohya.safetensors", tmp_path / "diffusers.safetensors"
    with caplog.at_level(logging.WARNING, "consist"):
        write(trained, path, layout="kohya")
    assert "diffusers takes one alpha" in caplog.text
    with pytest.warns(RuntimeWarning, match="alpha_pattern"):
        loaded = load(sd_pipe, path)
    wrong = differing(layers(trained), layers(loaded))
    assert {name.split(".")[-1] for _, name in wrong} == {"to_k", "q_proj"}
    read_lora(path).save(again)
    assert not differing(layers(trained), layers(load(sd_pipe, again)))


def test_a_text_encoder_alone_and_a_unet_alone(sd_pipe, tmp_path):
    trained = adapt(sd_pipe, text_targets=["fc1"])
    path = tmp_path / "lora.safetensors"
    write_lora(path, text_encoders=encoders(trained))
    loaded = layers(load(sd_pipe, path))
    assert {number for number, _ in loaded} == {1}
    write_lora(path, unet=trained.unet)
    assert {number for number, _ in layers(load(sd_pipe, path))} == {0}


@pytest.mark.slow
def test_dora_keeps_its_norms(sd_pipe, tmp_path, caplog):
    trained = adapt(sd_pipe, use_dora=True)
    path, kohya = tmp_path / "lora.safetensors", tmp_path / "kohya.safetensors"
    write(trained, path)
    assert not differing(layers(trained), layers(load(sd_pipe, path)))
    with caplog.at_level(logging.WARNING, "consist"):
        write(trained, kohya, layout="kohya")
    assert "diffusers drops the magnitudes" in caplog.text
    assert same(read_lora(path), read_lora(kohya))
    shapes = {t.shape[1:] for key, t in load_file(kohya).items() if key.endswith(".dora_scale")}
    assert shapes == {(1,), (1, 1, 1)}


def test_rank_stabilized_scales_are_kept(sd_pipe, tmp_path):
    trained = adapt(sd_pipe, use_rslora=True)
    write(trained, tmp_path / "lora.safetensors", layout="kohya")
    update = next(iter(read_lora(tmp_path / "lora.safetensors").modules.values()))
    assert update.alpha / update.rank == pytest.approx(6 / 4**0.5)


@pytest.mark.slow
@pytest.mark.parametrize("config", [True, False])
def test_reads_what_diffusers_writes(sd_pipe, tmp_path, config):
    trained = adapt(sd_pipe, unet_targets=ATTENTION)
    models = {"unet": trained.unet, "text_encoder": trained.text_encoder}
    given = {}
    for name, model in models.items():
        state = get_peft_model_state_dict(model, save_embedding_layers=False)
        given[f"{name}_lora_layers"] = convert_state_dict_to_diffusers(state)
        if config:
            given[f"{name}_lora_adapter_metadata"] = model.peft_config["default"].to_dict()
    StableDiffusionPipeline.save_lora_weights(tmp_path, **given)
    lora = read_lora(tmp_path / "pytorch_lora_weights.safetensors")
    assert lora.alphas == ([6.0] if config else [4.0])
    lora.save(tmp_path / "again.safetensors")
    loaded = load(sd_pipe, tmp_path / "pytorch_lora_weights.safetensors")
    assert not differing(layers(loaded), layers(load(sd_pipe, tmp_path / "again.safetensors")))


def test_names_are_those_of_diffusers_converter_but_it_loses_alpha(sdxl_pipe, tmp_path):
    trained = adapt(sdxl_pipe)
    path = tmp_path / "lora.safetensors"
    write(trained, path, layout="kohya")
    state = {}
    for prefix, model in [
        ("unet.", trained.unet),
        ("text_encoder.text_model.", trained.text_encoder),
        ("text_encoder_2.", trained.text_encoder_2),
    ]:
        own = get_peft_model_state_dict(model, save_embedding_layers=False)
        state |= {prefix + key: weight for key, weight in own.items()}
    theirs, ours = convert_state_dict_to_kohya(state), load_file(path)
    assert theirs.keys() == ours.keys()
    alphas = [key for key in ours if key.endswith(".alpha")]
    assert {(float(ours[key]), float(theirs[key])) for key in alphas} == {(6.0, 4.0)}


@pytest.fixture(scope="module")
def sdxl_unet():
    """SDXL's architecture without weights."""
    with torch.device("meta"):
        return UNet2DConditionModel(
            block_out_channels=(320, 640, 1280),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            attention_head_dim=(5, 10, 20),
            transformer_layers_per_block=(1, 2, 10),
            cross_attention_dim=2048,
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=256,
            projection_class_embeddings_input_dim=2816,
        )


def weighted(unet):
    kinds = (torch.nn.Linear, torch.nn.Conv2d)
    return {f"unet.{name}" for name, module in unet.named_modules() if isinstance(module, kinds)}


def test_every_module_has_its_name_back(sdxl_unet):
    with torch.device("meta"):
        sd_unet = UNet2DConditionModel(cross_attention_dim=768)
    modules = weighted(sd_unet) | weighted(sdxl_unet)
    assert len(modules) > 900
    assert not {name for name in modules if from_kohya(to_kohya(name, sdxl=True)) != name}


SGM = {
    "input_blocks_0_0": "conv_in",
    "input_blocks_1_0_in_layers_2": "down_blocks.0.resnets.0.conv1",
    "input_blocks_3_0_op": "down_blocks.0.downsamplers.0.conv",
    "input_blocks_4_0_skip_connection": "down_blocks.1.resnets.0.conv_shortcut",
    "input_blocks_4_1_transformer_blocks_1_attn2_to_out_0": (
        "down_blocks.1.attentions.0.transformer_blocks.1.attn2.to_out.0"
    ),
    "middle_block_1_proj_in": "mid_block.attentions.0.proj_in",
    "middle_block_2_out_layers_3": "mid_block.resnets.1.conv2",
    "output_blocks_2_1_transformer_blocks_9_ff_net_0_proj": (
        "up_blocks.0.attentions.2.transformer_blocks.9.ff.net.0.proj"
    ),
    "output_blocks_2_2_conv": "up_blocks.0.upsamplers.0.conv",
    "output_blocks_8_0_emb_layers_1": "up_blocks.2.resnets.2.time_emb_proj",
    "out_2": "conv_out",
    "time_embed_0": "time_embedding.linear_1",
    "label_emb_0_2": "add_embedding.linear_2",
}


def test_names_of_stability_become_those_of_diffusers(sdxl_unet):
    renamed = rename_sgm_blocks({f"lora_unet_{name}.alpha": name for name in SGM})
    found = {name: from_kohya(key.removesuffix(".alpha")) for key, name in renamed.items()}
    assert found == {name: f"unet.{module}" for name, module in SGM.items()}
    assert set(found.values()) <= weighted(sdxl_unet)


def test_half_precision_rounds_weights_but_not_alpha(sd_pipe, tmp_path):
    trained = adapt(sd_pipe, lora_alpha=0.1)
    path = tmp_path / "lora.safetensors"
    write(trained, path, layout="kohya", dtype=torch.float16)
    tensors = load_file(path)
    assert {t.dtype for t in tensors.values() if t.ndim} == {torch.float16}
    assert {t.dtype for t in tensors.values() if not t.ndim} == {torch.float32}
    with safe_open(path, "pt") as file:
        words = file.metadata()
    assert words["base_model"] == words["ss_sd_model_name"] == "tiny"
    assert (words["rank"], words["ss_network_dim"], words["alpha"]) == ("4", "4", "0.1")
    assert (words["steps"], words["prompt"]) == ("12", "a xyz cat")
    assert words["tool"].startswith("consist ")
    assert read_lora(path).metadata == {k: v for k, v in words.items() if k != "format"}


@pytest.mark.parametrize(("value", "dtype"), [(1e6, torch.float16), (float("nan"), None)])
def test_numbers_that_are_not_finite_leave_the_old_file(tmp_path, value, dtype):
    path = tmp_path / "lora.safetensors"
    lora().save(path)
    before = path.read_bytes()
    with pytest.raises(ConsistError, match=r"unet\.x\.attn2\.to_k.* is not finite in float"):
        lora(down=torch.full((2, 8), value)).save(path, dtype=dtype)
    assert path.read_bytes() == before


def lora(module="unet.x.attn2.to_k", rank=2, alpha=3.0, name="a", width=8, down=None, **update):
    torch.manual_seed(rank)
    down = torch.randn(rank, width, dtype=torch.float64) if down is None else down
    up = torch.randn(6, rank, dtype=down.dtype)
    return Lora(modules={module: Update(down=down, up=up, alpha=alpha, **update)}, name=name)


def convolution(rank, alpha):
    torch.manual_seed(rank)
    down = torch.randn(rank, 5, 3, 3, dtype=torch.float64)
    up = torch.randn(4, rank, 1, 1, dtype=torch.float64)
    return Update(down=down, up=up, alpha=alpha)


def test_a_merge_is_the_weighted_sum():
    one, two = lora(rank=2, alpha=3.0), lora(rank=5, alpha=0.5, name="b")
    one.modules["unet.conv1"], two.modules["unet.conv1"] = convolution(3, 1.0), convolution(1, 7.0)
    two.modules["unet.only"] = Update(down=torch.ones(1, 2), up=torch.ones(3, 1), alpha=2.0)
    both = merge([(one, 0.8), (two, -0.3)])
    assert both.modules.keys() == one.modules.keys() | two.modules.keys()
    for module, update in both.modules.items():
        given = [(lo.modules.get(module), w) for lo, w in ((one, 0.8), (two, -0.3))]
        wanted = sum(w * dense(update) for update, w in given if update)
        torch.testing.assert_close(dense(update), wanted, rtol=1e-12, atol=1e-12)
    # all readers agree on one alpha
    assert both.alphas == [7.0]
    assert both.ranks == [1, 4, 7]


def test_a_merge_loads_in_both_layouts(sd_pipe, tmp_path):
    paths = [tmp_path / f"{name}.safetensors" for name in ("one", "two", "merged")]
    write(adapt(sd_pipe, unet_targets=["to_q"]), paths[0])
    write(adapt(sd_pipe, unet_targets=["to_q", "to_k"], r=3), paths[1], layout="kohya")
    both = merge([(read_lora(path), 0.5) for path in paths[:2]])
    assert both.metadata["base_model"] == "tiny"
    for layout in ("diffusers", "kohya"):
        both.save(paths[2], layout)
        assert same(read_lora(paths[2]), both)
        for a, b, scale, _ in layers(load(sd_pipe, paths[2])).values():
            assert float(scale) == pytest.approx(7 / a.shape[0])
            assert a.shape[0] == b.shape[1]


@pytest.mark.parametrize(
    ("other", "weight", "sentence"),
    [
        (lora(name="b", width=2048), 1, "b is for another base model than a: SDXL, not prompts 8"),
        (lora(name="b", magnitude=torch.ones(6)), 1, "b is a DoRA"),
        (lora(name="b"), float("inf"), "b has weight inf; it must be finite"),
        (
            Lora(
                modules={
                    "unet.x.attn2.to_k": Update(
                        down=torch.ones(1, 8), up=torch.ones(9, 1), alpha=1.0
                    )
                },
                name="b",
            ),
            1,
            r"unet\.x\.attn2\.to_k is 9 x 8, not 6 x 8",
        ),
    ],
)
def test_what_does_not_fit_is_not_merged(other, weight, sentence):
    with pytest.raises(ConsistError, match=sentence):
        merge([(lora(), 1.0), (other, weight)])


def test_refuses_models_without_the_adapter(sd_pipe, tmp_path):
    with pytest.raises(ValueError, match="no layer has an adapter 'default'"):
        write_lora(tmp_path / "lora.safetensors", unet=sd_pipe.unet)
    biased = adapt(sd_pipe, unet_targets=["proj_in"], lora_bias=True)
    with pytest.raises(ValueError, match="with a bias"):
        write_lora(tmp_path / "lora.safetensors", unet=biased.unet)


def consist(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_the_command_tells_converts_and_merges(sd_pipe, tmp_path):
    one, two, three = (tmp_path / f"{name}.safetensors" for name in ("one", "two", "three"))
    write(adapt(sd_pipe), one)
    facts = json.loads(consist("lora", "info", one, "--json").output)
    assert (facts["layout"], facts["kind"], facts["fits"]) == (
        "diffusers",
        "LoRA",
        "prompts 32 wide",
    )
    assert (facts["base model"], facts["rank"], facts["alpha"]) == ("tiny", [4], [6.0])
    assert facts["modules"].keys() == {"unet", "text_encoder"}
    assert facts["bytes"] == one.stat().st_size
    assert "a xyz cat" in consist("lora", "info", one).output
    assert consist("lora", "convert", one, two, "--to", "kohya").exit_code == 0
    assert read_lora(two).layout == "kohya"
    assert same(read_lora(one), read_lora(two))
    merged = consist("lora", "merge", one, f"{two}:-1", three, "--dtype", "float16")
    assert merged.exit_code == 0, merged.output
    assert read_lora(three).ranks == [8]
    assert max(dense(u).abs().max() for u in read_lora(three).modules.values()) < 1e-3


def test_bad_input_is_one_sentence(tmp_path):
    names = ("good", "other", "damaged", "empty", "loha", "half", "flux")
    files = {name: tmp_path / f"{name}.safetensors" for name in names}
    lora().save(files["good"])
    lora().save(files["other"])
    files["damaged"].write_bytes(files["good"].read_bytes()[:-9])
    save_file({"weight": torch.ones(2)}, files["empty"])
    save_file({"lora_unet_x.hada_w1_a": torch.ones(2, 2)}, files["loha"])
    save_file({"lora_unet_x.lora_down.weight": torch.ones(2, 2)}, files["half"])
    save_file({"transformer.x.lora_A.weight": torch.ones(2, 2)}, files["flux"])
    (tmp_path / "lora.pt").write_bytes(b"")
    new = tmp_path / "new.safetensors"
    good, other, to = files["good"], files["other"], ("--to", "kohya")
    for arguments, sentence in [
        (("info", tmp_path / "none.safetensors"), "there is no file"),
        (("info", tmp_path / "lora.pt"), "may hold a pickle"),
        (("info", files["damaged"]), "is damaged"),
        (("info", files["empty"]), "is not a LoRA: none of its tensors (1) is of one"),
        (("info", files["loha"]), "is a LoHa; only LoRA and DoRA are read"),
        (("info", files["half"]), "unet.x has no up matrix"),
        (("info", files["flux"]), "is of none of unet, text_encoder, text_encoder_2"),
        (("convert", good, new, "--to", "koya"), "unknown layout 'koya', did you mean 'kohya'?"),
        (("convert", good, tmp_path / "x.bin", *to), "must end in .safetensors"),
        (("convert", good, good, *to, "--force"), "would be read and written"),
        (("convert", good, other, *to), "--force overwrites it"),
        (("convert", good, new, *to, "--dtype", "int8"), "unknown dtype 'int8'"),
        (("merge", good, other), "give two LoRA files or more"),
        (("merge", good, f"{other}:nan", new), "has weight nan; it must be finite"),
    ]:
        result = consist("lora", *arguments)
        assert result.exit_code == 2, arguments
        assert sentence in result.output, arguments
        assert len(result.output.strip().splitlines()) == 1, arguments
        assert not new.exists()


def test_an_embedding_of_sd_loads_every_bit_back(sd_pipe, tmp_path):
    vectors, path = torch.randn(2, 32), tmp_path / "cat.safetensors"
    write_embedding(path, "<my-cat>", [vectors], metadata={"steps": 9})
    pipe = copy.deepcopy(sd_pipe)
    pipe.load_textual_inversion(str(path.parent), weight_name=path.name)
    ids = pipe.tokenizer.convert_tokens_to_ids(["<my-cat>", "<my-cat>_1"])
    assert torch.equal(pipe.text_encoder.get_input_embeddings().weight[ids], vectors)
    found = read_embedding(path)
    assert (found.word, found.metadata["steps"]) == ("<my-cat>", "9")
    assert torch.equal(found.vectors[0], vectors)


def test_an_embedding_of_sdxl_loads_into_both_encoders(sdxl_pipe, tmp_path):
    path = tmp_path / "cat.safetensors"
    vectors = [torch.randn(2, 32), torch.randn(2, 32)]
    write_embedding(path, "<my-cat>", vectors, layout="clip", dtype=torch.float16)
    held = load_file(path)
    assert held.keys() == {"clip_l", "clip_g"}
    assert torch.equal(held["clip_l"], vectors[0].half())
    found = read_embedding(path)
    assert found.word == "<my-cat>"
    for encoder, rows, wanted in zip(encoders(sdxl_pipe), found.vectors, vectors, strict=True):
        pipe, own = copy.deepcopy(sdxl_pipe), copy.deepcopy(encoder)
        pipe.load_textual_inversion(
            rows, token=found.word, text_encoder=own, tokenizer=pipe.tokenizer
        )
        last = own.get_input_embeddings().weight[-2:]
        assert torch.equal(last, wanted.half().float())


def test_an_embedding_without_a_word_has_the_name_of_its_file(tmp_path):
    path = tmp_path / "tom.safetensors"
    save_file({"clip_l": torch.ones(3)}, path)
    assert read_embedding(path).word == "tom"
    assert read_embedding(path).vectors[0].shape == (1, 3)


def test_refuses_embeddings_that_do_not_fit(tmp_path):
    path, one = tmp_path / "cat.safetensors", torch.ones(1, 4)
    for word, vectors, sentence in [
        ("my cat", [one], "a word has no spaces and is not empty, 'my cat' was given"),
        ("cat", [torch.ones(4)], r"vectors are n d .*\(4,\)"),
        ("cat", [one, one], "layout diffusers holds 1 to 1 text encoders, not 2"),
        ("cat", [], "not 0"),
    ]:
        with pytest.raises(ValueError, match=sentence):
            write_embedding(path, word, vectors)
    with pytest.raises(ConsistError, match="unknown layout 'clap', did you mean 'clip'"):
        write_embedding(path, "cat", [one], layout="clap")
    lora().save(path)
    with pytest.raises(ConsistError, match="holds no embedding"):
        read_embedding(path)
