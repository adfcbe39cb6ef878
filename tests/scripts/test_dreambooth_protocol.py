"""DreamBooth's protocol: its folder and prompts, numbers by hand, and a whole run at toy size."""

import csv
import json
import math
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from learning import evaluation
from learning.dreambooth import INDEX, LIVE_PROMPTS, OBJECT_PROMPTS, Subject, load_subjects
from learning.evaluation import Protocol, SubjectScores, draw_all, measure_subject, summarize
from learning.fidelity import FIDELITY, Gallery, Gauges, score_gallery
from learning.learners import Learner
from learning.lpips import Lpips, load_lpips
from PIL import Image
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    ViTConfig,
    ViTImageProcessorPil,
    ViTModel,
)

from consist.errors import ConsistError
from consist.evaluation.encoders import ClipEncoder, Encoder
from consist.training.config import LORA

SCRIPT = Path(__file__).parents[2] / "scripts" / "measure" / "dreambooth.py"
CLASSES = "Classes\n\nsubject_name,class\ndog2,dog\nmug,bowl\nvase,vase\n\nPrompts\n\nx,y\n"


def picture(color, size=(16, 16)):
    return Image.new("RGB", size, color)


def noisy(seed, size=16):
    pixels = np.random.default_rng(seed).integers(256, size=(size, size, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.fixture
def folder(tmp_path):
    """Two of the three subjects that are named, and one that is not."""
    place = tmp_path / "dreambooth" / "dataset"
    for name in ("dog2", "mug", "stray"):
        (place / name).mkdir(parents=True)
        for number in range(2):
            noisy(number).save(place / name / f"{number:02d}.jpg")
    (place / INDEX).write_text(CLASSES)
    return tmp_path / "dreambooth"


# folder and prompts


def test_there_are_25_prompts_for_either_kind_as_the_paper_counts_them():
    assert len(set(OBJECT_PROMPTS)) == len(set(LIVE_PROMPTS)) == 25
    assert len(set(OBJECT_PROMPTS) & set(LIVE_PROMPTS)) == 10 + 5
    assert sum("wearing" in p or "outfit" in p for p in LIVE_PROMPTS) == 10
    assert all(p.startswith("a ") and p.count("{}") == 1 for p in OBJECT_PROMPTS + LIVE_PROMPTS)


def test_a_folder_says_what_its_subjects_are(folder, caplog):
    dog, mug = load_subjects(folder)
    assert (dog.name, dog.noun, mug.noun) == ("dog2", "dog", "bowl")
    assert dog.prompts == LIVE_PROMPTS
    assert mug.prompts == OBJECT_PROMPTS
    assert [photo.path.name for photo in dog.photos()] == ["00.jpg", "01.jpg"]
    assert {photo.caption for photo in mug.photos("xyz bowl")} == {"a xyz bowl"}
    assert "no photos of vase" in caplog.text
    assert "no class of stray" in caplog.text
    assert load_subjects(folder / "dataset") == [dog, mug]


def test_what_is_no_such_folder_is_one_sentence(folder, tmp_path):
    with pytest.raises(ConsistError, match=f"has no {INDEX}"):
        load_subjects(tmp_path)
    (folder / "dataset" / INDEX).write_text("Classes\ndog2 dog\n")
    with pytest.raises(ConsistError, match="line 2: expected 'name,class', not dog2 dog"):
        load_subjects(folder)
    (folder / "dataset" / INDEX).write_text("Classes\nvase,vase\n")
    with pytest.raises(ConsistError, match="no folder of photos that"):
        load_subjects(folder)


# numbers by hand


def mean_color(images):
    return torch.stack([torch.tensor(np.asarray(i, np.float32).mean((0, 1))) for i in images])


VECTORS = {"a red dog": [1.0, 0, 0], "a dog": [0, 1.0, 0]}
DINO = Encoder("dino", "cpu", mean_color, lambda x: x, {"checkpoint": "dino"})
CLIP = ClipEncoder(
    "clip",
    "cpu",
    mean_color,
    lambda x: x,
    {"checkpoint": "clip"},
    lambda texts: torch.tensor([VECTORS.get(text, [1.0, 1.0, 1.0]) for text in texts]),
)
LPIPS = Lpips(lambda a, b: (a - b).abs().mean((1, 2, 3)), "cpu", {"backbone": "none"})
RED, GREEN, YELLOW = (255, 0, 0), (0, 255, 0), (255, 255, 0)
HALF = math.sqrt(0.5)  # cosine of yellow with red, or green


def gallery(**changes):
    given = {
        "photos": [picture(RED), picture(YELLOW)],
        "pictures": [picture(RED), picture(YELLOW), picture(GREEN), picture(GREEN)],
        "texts": ["a red dog"] * 2 + ["a dog"] * 2,
        "each": 2,
        "classes": [picture(GREEN)],
        "base_classes": [picture(RED), picture(GREEN)],
    }
    return Gallery(**{**given, **changes})


def test_the_numbers_are_those_of_the_paper():
    scores, rows = score_gallery(gallery(), Gauges(dino=DINO, clip=CLIP, lpips=LPIPS))
    assert [row["dino"] for row in rows] == pytest.approx(
        [(1 + HALF) / 2, (1 + HALF) / 2, HALF / 2, HALF / 2]
    )
    assert [row["dino_nearest"] for row in rows] == pytest.approx([1, 1, HALF, HALF])
    assert [row["clip_t"] for row in rows] == pytest.approx([1, HALF, 1, 1])
    assert scores["dino"] == scores["clip_i"] == pytest.approx((1 + 2 * HALF) / 4)
    assert scores["clip_t"] == pytest.approx((3 + HALF) / 4)
    assert scores["pres"] == pytest.approx(HALF / 2)
    assert scores["pres_base"] == pytest.approx((1 + HALF + HALF) / 4)
    # red and yellow differ by 2 in one of three channels; green twice is the same
    assert scores["div"] == pytest.approx((2 / 3 + 0) / 2)
    assert scores["div_dino"] == pytest.approx((1 - HALF) / 2)
    assert scores["photos_dino"] == pytest.approx(HALF)
    assert scores.keys() == FIDELITY.keys()


def test_a_copied_photo_is_told():
    photos = [noisy(1), noisy(2)]
    pictures = [noisy(2), noisy(3)]
    gauges = Gauges(dino=DINO, clip=CLIP)
    scores, rows = score_gallery(gallery(photos=photos, pictures=pictures, texts=["x"] * 2), gauges)
    assert [row["copied"] for row in rows] == [True, False]
    assert rows[0]["nearest"] == 1
    assert scores["copies"] == 0.5
    assert math.isnan(scores["div"])


def test_what_was_not_drawn_is_not_measured():
    gauges = Gauges(dino=DINO, clip=CLIP, lpips=LPIPS)
    alone = gallery(classes=[], base_classes=[], each=1, photos=[picture(RED)])
    scores, _ = score_gallery(alone, gauges)
    unknown = ("pres", "pres_base", "div", "div_dino", "photos_dino", "photos_clip_i")
    assert all(math.isnan(scores[name]) for name in unknown)


def test_distances_are_over_all_pairs():
    seen = []

    def network(a, b):
        seen.append(len(a))
        return torch.arange(len(a), dtype=torch.float32)[:, None, None, None]

    measured = Lpips(network, "cpu", {})
    assert measured.mean_over_pairs([picture(RED)] * 4) == 2.5
    assert seen == [6]
    with pytest.raises(ValueError, match="1 images; allowed: at least 2"):
        measured.mean_over_pairs([picture(RED)])


def test_lpips_is_loaded_through_its_package(monkeypatch):
    class Network(torch.nn.Module):
        def __init__(self, net, verbose):
            super().__init__()
            self.net = net

        def forward(self, a, b):
            return (a - b).abs().amax((1, 2, 3), keepdim=True)

    monkeypatch.setitem(sys.modules, "lpips", SimpleNamespace(LPIPS=Network))
    monkeypatch.setattr("learning.lpips.version", lambda name: "0.1.4")
    loaded = load_lpips("alex")
    assert loaded.mean_over_pairs([picture(RED), picture(YELLOW)]) == 2
    assert loaded.recorded == {"backbone": "alex", "package": "lpips 0.1.4", "resize": "none"}
    with pytest.raises(ConsistError, match="unknown LPIPS 'alexa', did you mean 'alex'"):
        load_lpips("alexa")
    monkeypatch.setitem(sys.modules, "lpips", None)
    with pytest.raises(ConsistError, match="pip install lpips"):
        load_lpips("vgg")


def test_means_are_over_subjects_and_over_pictures():
    def one(name, *dinos):
        rows = [{"dino": dino} for dino in dinos]
        scores = dict.fromkeys(FIDELITY, math.nan) | {"dino": sum(dinos) / len(dinos)}
        return SubjectScores(subject=name, noun="dog", scores=scores, images=rows)

    summary = summarize([one("a", 0.2, 0.4, 0.6), one("b", 0.8)])
    assert summary["dino"]["macro"][0] == pytest.approx(0.6)
    assert summary["dino"]["macro"][3] == 2
    assert summary["dino"]["micro"] == pytest.approx(0.5)
    assert "micro" not in summary["pres"]
    assert math.isnan(summary["pres"]["macro"][0])


# a whole run


@pytest.fixture(scope="module")
def models(tmp_path_factory, sd_pipe, tokenizer):
    """Folders of a diffusion model, a CLIP and a ViT, all tiny and random."""
    root = tmp_path_factory.mktemp("models")
    sd_pipe.save_pretrained(root / "sd")
    vision = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 32,
        "patch_size": 8,
    }
    text = {
        **{k: v for k, v in vision.items() if "size" not in k},
        "hidden_size": 16,
        "intermediate_size": 16,
        "vocab_size": len(tokenizer),
        "eos_token_id": tokenizer.eos_token_id,
    }
    clip = CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)
    torch.manual_seed(0)
    for name, model in {
        "clip": CLIPModel(clip),
        "vit": ViTModel(ViTConfig(**vision), add_pooling_layer=False),
    }.items():
        model.save_pretrained(root / name)
        tokenizer.save_pretrained(root / name)
    square = {"height": 32, "width": 32}
    CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=square).save_pretrained(
        root / "clip"
    )
    ViTImageProcessorPil(size=square).save_pretrained(root / "vit")
    return root


@pytest.fixture
def few_prompts(monkeypatch):
    prompts = ("a {} in paris", "a red {}")
    monkeypatch.setattr("learning.dreambooth.OBJECT_PROMPTS", prompts)
    monkeypatch.setattr("learning.dreambooth.LIVE_PROMPTS", prompts[::-1])


@pytest.mark.slow
def test_two_subjects_from_photos_to_numbers(
    folder, models, few_prompts, tmp_path, monkeypatch, capsys
):
    main = runpy.run_path(str(SCRIPT))["main"]
    out = tmp_path / "out"
    command = [
        *("evaluate_dreambooth.py", str(folder), "--out", str(out), "--device", "cpu"),
        *("--model", str(models / "sd"), "--identifier", "xyz", "--images", "2"),
        *("--dino", str(models / "vit"), "--clip", str(models / "clip")),
        *("--class-images", "2", "--steps", "1", "--guidance", "1"),
        *("--set", "steps=1", "rank=2", "resolution=16"),
    ]
    monkeypatch.setattr(sys, "argv", [*command, "--shard", "1/2"])
    main()
    assert len(list(out.glob("*/*/scores.json"))) == 1
    monkeypatch.setattr(sys, "argv", [*command, "--discard"])
    main()
    (summary,) = out.glob("*/summary.json")
    written = json.loads(summary.read_text())
    assert [one["name"] for one in written["subjects"]] == ["dog2", "mug"]
    assert written["summary"]["dino"]["macro"][3] == 2
    assert written["summary"]["div"]["macro"][0] is None
    choices = written["choices"]
    assert choices["dino"]["crop"] == "height=32 width=32"
    assert choices["dino"]["resize"] == "shortest_edge=36"
    assert choices["identifier_in_clip_t"] is False
    with (summary.parent / "images.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 2 * 2
    assert [row["prompt"] for row in rows[:4:2]] == ["a red xyz dog", "a xyz dog in paris"]
    assert len({row["seed"] for row in rows[:4]}) == 4
    assert all((summary.parent / row["subject"] / row["file"]).exists() for row in rows)
    left = [path.name for path in summary.parent.glob("*.safetensors")]
    assert [name.split("-")[0] for name in left] == ["dog2"]  # of the part without --discard
    monkeypatch.setattr(evaluation, "finetune", None)
    before = summary.read_text()
    main()
    assert summary.read_text() == before
    assert "DINO" in capsys.readouterr().out


def test_prompts_come_as_often_as_there_are_images_and_noise_is_the_base_models(few_prompts):
    protocol = Protocol(
        out=Path("out"),
        learner=Learner(name="lora", kind=LORA),
        gauges=Gauges(dino=DINO, clip=CLIP),
        identifier="xyz",
        model="mini",
        class_images=2,
    )
    mug = Subject(name="mug", folder=Path("mug"), noun="bowl")
    run = draw_all(mug, protocol, "xyz bowl", {"model": "mini", "loras": ("a.safetensors",)})
    assert run.prompts[:5] == ("a xyz bowl in paris",) * 4 + ("a red xyz bowl",)
    assert run.prompts[8:] == ("a bowl",) * 2
    base = evaluation.configure(mug, protocol, [], {"model": "mini"})
    assert base.prompts == run.prompts[8:]
    assert base.seeds == run.seeds[8:]
    assert len(set(run.seeds)) == len(run.seeds)


def test_other_choices_are_measured_anew(folder, few_prompts, tmp_path, monkeypatch):
    (dog, _) = load_subjects(folder)
    protocol = Protocol(
        out=tmp_path,
        learner=Learner(name="lora", kind=LORA),
        gauges=Gauges(dino=DINO, clip=CLIP),
        identifier="xyz",
        model="mini",
    )
    place = protocol.folder / dog.name / "scores.json"
    done = SubjectScores(subject="dog2", noun="dog", scores={"dino": math.nan}, images=[])
    told = evaluation.choices_of(dog, protocol)
    evaluation.write_json(place, {"format": 1, "choices": told, **vars(done)})
    found = measure_subject(dog, protocol)
    assert found.subject == "dog2"
    assert math.isnan(found.scores["dino"])
    noisy(7).save(folder / "dataset" / "dog2" / "02.jpg")
    monkeypatch.setattr(evaluation, "finetune", None)
    with pytest.raises(TypeError, match="not callable"):
        measure_subject(dog, protocol)
    place.write_text("{")
    with pytest.raises(ConsistError, match="is damaged"):
        measure_subject(dog, protocol)
