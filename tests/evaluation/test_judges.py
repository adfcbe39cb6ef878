"""Judges on scripted readings, with scores worked out by hand, and on the truth of the world."""

import math
from random import Random

import numpy as np
import pytest
import torch
from PIL import Image
from readings import REST

import consist.evaluation.judges
from consist.errors import ConsistError
from consist.evaluation.encoders import ClipEncoder, Encoder, Segmenter
from consist.evaluation.judges import load_judges
from consist.evaluation.judges.by_encoder import EmbeddingJudge
from consist.evaluation.judges.by_reader import ReadingJudge, chance, identity_of, remove
from consist.evaluation.judges.judge import Row
from consist.mini.prompts import asked, imagine
from consist.mini.reader import Reading, SubjectReading, Value
from consist.mini.world import draw

PLAIN = {"color": "red", **REST}
BLACK = Image.new("RGB", (16, 16))
BOX = np.zeros((16, 16), dtype=bool)
BOX[4:8, 4:8] = True


def subject(name="cat", mask=BOX, confidence=1.0, unsure=(), **changes):
    values = {
        key: Value(value, 0.3 if key in unsure else confidence)
        for key, value in {**PLAIN, **changes}.items()
    }
    return SubjectReading(Value(name, confidence), values, mask)


def reading(scene, *subjects, style="flat"):
    return Reading(Value(scene, 1.0), Value(style, 1.0), subjects, np.zeros(3, np.float32))


class ScriptedReader:
    """Reads what it was told to, in the order of the pictures."""

    digest = "none"

    def __init__(self, *readings):
        self.readings = readings

    def read(self, images):
        assert len(images) == len(self.readings)
        return list(self.readings)

    def features(self, images):
        return np.stack([np.asarray(image, np.float32).mean((0, 1)) for image in images])


def judge(prompts, *readings, images=None):
    images = images or [BLACK] * len(prompts)
    return ReadingJudge(ScriptedReader(*readings)).score(Row(images, prompts))


@pytest.fixture(autouse=True)
def few_references(monkeypatch):
    """Less to draw; what it changes is not tested here."""
    monkeypatch.setattr("consist.evaluation.judges.by_reader.REFERENCES", 4)


TWO = ("a cat in paris", "a cat on the moon")


def test_identity_is_the_share_of_attributes_that_agree():
    scores = judge(TWO, reading("paris", subject()), reading("moon", subject(color="blue"))).scores
    # of color, pattern, feature, build and accessory, all but the color
    assert scores["identity"] == pytest.approx(4 / 5)
    assert scores["subject"] == scores["scene"] == scores["style"] == 1
    assert scores["other_scene"] == 0


def test_what_does_not_apply_does_not_count():
    spotted = {"pattern": "spots", "accessory": "hat", "accessory_color": "blue"}
    one = subject(**spotted, pattern_color="green", hair="dark", action="sitting")
    two = subject(**spotted, pattern_color="white", hair="gray", action="jumping")
    # color, pattern, its color (differs), feature, build, accessory, its color; no cat has hair
    scores = judge(TWO, reading("paris", one), reading("moon", two)).scores
    assert scores["identity"] == pytest.approx(6 / 7)
    assert identity_of(subject(accessory_color="blue"))["accessory_color"] is None
    assert identity_of(subject(pattern_color="blue"))["pattern_color"] is None
    assert identity_of(subject("girl", hair="dark"))["hair"] == "dark"


def test_only_pictures_of_the_right_class_count():
    prompts = (*TWO, "a cat on a beach")
    readings = [
        reading("paris", subject()),
        reading("moon", subject("dog", color="blue")),
        reading("beach", subject(build="round")),
    ]
    scores = judge(prompts, *readings).scores
    assert scores["identity"] == pytest.approx(4 / 5)
    assert scores["subject"] == pytest.approx(2 / 3)


def test_what_the_prompts_want_to_differ_does_not_count():
    prompts = ("a red cat in paris", "a blue cat on the moon")
    readings = reading("paris", subject()), reading("moon", subject(color="blue", build="round"))
    scores = judge(prompts, *readings).scores
    assert scores["identity"] == pytest.approx(3 / 4)
    assert scores["attributes"] == 1


def test_unsure_readings_are_left_out_of_the_sure_score():
    readings = reading("paris", subject(unsure=["color"])), reading("moon", subject(color="blue"))
    scores = judge(TWO, *readings).scores
    assert scores["identity"] == pytest.approx(4 / 5)
    assert scores["identity_sure"] == 1


def test_two_subjects_are_averaged():
    prompts = ("a cat and a dog in paris", "a cat and a dog on the moon")
    readings = [
        reading("paris", subject("dog"), subject()),
        reading("moon", subject(color="blue"), subject("dog")),
    ]
    scores = judge(prompts, *readings).scores
    assert scores["identity"] == pytest.approx((4 / 5 + 1) / 2)
    assert scores["subject"] == 1
    alone = judge(prompts, readings[0], reading("moon", subject("dog"))).scores
    assert alone["subject"] == 1 / 2
    assert alone["identity"] == 1


def test_scenes_that_leak_are_told_from_scenes_that_are_wrong():
    prompts = (*TWO, "a cat")
    readings = [reading(scene, subject()) for scene in ("moon", "beach", "paris")]
    scores = judge(prompts, *readings).scores
    assert scores["scene"] == 0
    assert scores["other_scene"] == 1 / 2


def test_fidelity_counts_what_was_asked_for():
    prompts = (
        "a pencil drawing of a red cat wearing a blue hat sleeping in paris",
        "a cat with green stripes jumping on the moon",
        "a cat on a beach",
    )
    readings = [
        reading(
            "paris",
            subject(accessory="hat", accessory_color="white", action="sleeping"),
            style="pencil",
        ),
        reading("moon"),
        reading("beach", subject(action="dancing"), style="pixel"),
    ]
    scores = judge(prompts, *readings).scores
    # red and hat; not blue; no cat with stripes in green
    assert scores["attributes"] == pytest.approx(2 / 5)
    assert scores["action"] == 1 / 2
    assert scores["style"] == pytest.approx(2 / 3)
    assert scores["subject"] == pytest.approx(2 / 3)


def test_layout_compares_masks():
    moved = np.roll(BOX, (3, 4), (0, 1))
    readings = reading("paris", subject()), reading("moon", subject(mask=moved))
    scores = judge(TWO, *readings).scores
    assert scores["overlap"] == 0
    assert scores["aligned_overlap"] == 1
    assert scores["displacement"] == pytest.approx(5 / math.hypot(16, 16))


def test_the_histogram_sees_color_under_the_mask_alone():
    pictures = [Image.new("RGB", (16, 16), color) for color in ("red", "blue")]
    for picture in pictures:
        picture.paste((0, 255, 0), (4, 4, 8, 8))
    readings = reading("paris", subject()), reading("moon", subject())
    assert judge(TWO, *readings, images=pictures).scores["histogram"] == pytest.approx(1)


def test_the_background_is_what_is_left_without_subjects():
    cat = imagine(asked("a white cat in the snow"), Random(0))
    drawing = draw(cat)
    empty = remove([np.asarray(drawing.masks[0]) > 127], np.asarray(drawing.image))
    gray = (np.asarray(empty) == 128).all(-1)
    covered = np.asarray(drawing.masks[0]) > 127
    assert gray[covered].all()
    assert covered.sum() < gray.sum() < 2 * covered.sum()


def test_nothing_found_is_nothing_measured():
    scores = judge(TWO, reading("paris"), reading("moon")).scores
    assert scores["subject"] == 0
    for name in ("identity", "identity_sure", "overlap", "displacement", "histogram", "action"):
        assert math.isnan(scores[name]), name


def test_what_was_read_is_told():
    one = subject(unsure=["color"], pattern="stripes", pattern_color="blue")
    told = judge(("a cat in paris",), reading("paris", one)).pictures[0]
    assert told["scene"] == "paris"
    (found,) = told["subjects"]
    assert found["subject"] == "cat"
    assert found["area"] == pytest.approx(1 / 16)
    assert found["attributes"] == {
        "color": "red",
        "pattern": "stripes",
        "pattern_color": "blue",
        "feature": "big",
        "build": "slim",
        "accessory": "none",
        "action": "standing",
    }
    assert found["confidence"]["color"] == 0.3


# chance


def test_chance_falls_with_what_is_left_open():
    free = chance([asked("a cat in paris")])
    named = chance([asked("a slim red cat with blue stripes and big ears wearing a white hat")])
    tables = {
        "color": dict.fromkeys(range(8), 1 / 8),
        "pattern": {"plain": 0.4, "stripes": 0.3, "spots": 0.3},
        "feature": {"small": 0.5, "big": 0.5},
        "build": {"slim": 0.5, "round": 0.5},
        "accessory": {"none": 0.34, "hat": 0.22, "scarf": 0.22, "glasses": 0.22},
    }
    # second colors, which few pairs both have, lower it a little
    expected = [sum(p * p for p in table.values()) for table in tables.values()]
    assert free == pytest.approx(sum(expected) / len(expected), abs=0.06)
    assert named == 1
    assert free < chance([asked("a red cat in paris")]) < named
    assert math.isnan(chance([asked("a photo")]))


def test_chance_leaves_out_what_the_prompts_want_to_differ():
    varied = chance([asked("a red cat in paris"), asked("a blue cat on the moon")])
    # color, with its odds of 1 in 8, is not counted
    assert varied > chance([asked("a cat in paris")])


def test_choices_say_what_the_numbers_depend_on():
    choices = ReadingJudge(ScriptedReader()).choices(TWO)
    assert choices["crop"] == "left out"
    assert 0 < choices["chance"]["identity"] < 1


# encoders


def mean_color(name):
    return Encoder(
        name,
        "cpu",
        lambda images: torch.stack([torch.tensor(np.asarray(i)).float() for i in images]),
        lambda pixels: pixels.mean((1, 2)),
        {"checkpoint": name},
    )


def toy_clip():
    encoder = mean_color("clip")
    return ClipEncoder(
        encoder.name,
        encoder.device,
        encoder.prepare,
        encoder.network,
        encoder.recorded,
        lambda texts: torch.tensor([[1.0, 0.0, 0.0]] * len(texts)),
    )


def left_half():
    def network(pixels, nouns):
        logits = torch.full((len(pixels), 16, 16), -9.0)
        logits[:, :, :8] = 9.0
        return logits

    prepare = mean_color("").prepare
    return Segmenter("half", "cpu", prepare, network, {"checkpoint": "half"})


RED, BLUE = (Image.new("RGB", (16, 16), color) for color in ("red", "blue"))


def test_encoders_compare_pictures_and_prompts():
    both = EmbeddingJudge(clip=toy_clip(), clip_i=toy_clip(), dreamsim=mean_color("dreamsim"))
    said = both.score(Row([RED, BLUE], TWO))
    assert said.scores["clip_t"] == pytest.approx(2.5 / 2)
    assert said.scores["clip_i"] == pytest.approx(0)
    assert said.scores["dreamsim"] == pytest.approx(1)
    assert said.pictures == [{"clip_t": 2.5}, {"clip_t": 0.0}]
    assert set(both.choices(TWO)) == {"clip_t", "clip_i", "dreamsim"}


def test_a_segmenter_splits_the_scores():
    halves = [RED.copy(), BLUE.copy()]
    for picture in halves:
        picture.paste((255, 255, 255), (0, 0, 8, 16))
    split = EmbeddingJudge(dino=mean_color("dino"), segmenter=left_half())
    scores = split.score(Row(halves, TWO, "cat")).scores
    assert set(scores) == {"dino", "dino_foreground", "dino_background"}
    assert scores["dino_foreground"] > scores["dino"]
    assert scores["dino_background"] < scores["dino_foreground"]
    with pytest.raises(ConsistError, match="needs to know what to find; give --subject"):
        split.score(Row(halves, TWO))


def test_the_crop_is_measured_where_there_is_an_encoder():
    pictures = [draw(imagine(asked(prompt), Random(3))).image for prompt in TWO]
    mask = np.zeros((128, 128), dtype=bool)
    mask[40:90, 40:90] = True
    reader = ScriptedReader(*(reading(s, subject(mask=mask)) for s in ("paris", "moon")))
    seen = ReadingJudge(reader, mean_color("crop"))
    # crops of one size, as the toy encoder does not resize
    seen.__dict__["_crop_center"] = np.zeros(3)
    assert 0.5 < seen.score(Row(pictures, TWO)).scores["crop"] <= 1
    assert seen.choices(TWO)["crop"]["checkpoint"] == "crop"


# loading


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"reader": False}, "nothing to measure with; name an encoder, such as --clip openai/"),
        ({"reader": True, "segmenter": "x"}, "a segmenter needs an encoder: give --clip-i"),
        ({"reader": False, "clip": "nowhere"}, "encoder nowhere is neither a folder nor a hub id"),
        ({"reader": False, "clip": "x", "device": "gpu"}, "device 'gpu' cannot be used here"),
    ],
)
def test_refuses_what_cannot_measure(given, message):
    with pytest.raises(ConsistError, match=message):
        load_judges(**given)


def test_the_crop_is_left_out_without_the_extra(monkeypatch):
    monkeypatch.setattr(consist.evaluation.judges, "load_reader", lambda device: ScriptedReader())
    monkeypatch.setattr(consist.evaluation.judges, "find_spec", lambda name: None)
    (found,) = load_judges(reader=True)
    assert found.crop is None
