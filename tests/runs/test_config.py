"""Settings are checked when made, with the value and what is allowed."""

import json

import pytest

from consist.errors import ConsistError, unknown
from consist.runs.chunks import plan
from consist.runs.config import (
    LATE,
    OF_SET,
    OF_SUBJECT,
    SELDOM,
    RunConfig,
    parse_size,
    spread_seeds,
)
from consist.runs.folder import identity
from consist.settings.fields import marked


def config(**changes):
    return RunConfig(**{"prompts": ("a cat", "a dog"), "seeds": (0, 1), **changes})


def test_is_plain_json():
    given = config(steps=7, loras=("a.safetensors:0.5",), method={"name": "shared", "anchors": "2"})
    assert json.loads(json.dumps(given.to_json())) == given.to_json()
    assert given.to_json()["prompts"] == ["a cat", "a dog"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompts": (), "seeds": ()}, "no prompt was given"),
        ({"prompts": ("a cat", "  ")}, "prompt 2 is empty"),
        ({"seeds": (1, 2, 3)}, "3 seeds were given for 2 prompts"),
        ({"seeds": (0, -1)}, "seed must be between 0 and"),
        ({"steps": 0}, "steps must be between 1 and 1000, not 0"),
        ({"guidance_rescale": 1.5}, "guidance rescale must be between 0 and 1, not 1.5"),
        ({"lora_negative": 0.5}, "lora negative 0.5 is a share of LoRAs, and none was given"),
        ({"lora_subject": ("xyz cat",)}, "lora subject 'xyz cat' says where less of a LoRA is"),
        ({"lora_negative": -1}, "lora negative must be between 0 and 1, not -1"),
        ({"guidance": float("nan")}, "guidance must be between 0 and 100, not nan"),
        ({"guidance": float("inf")}, "guidance must be between 0 and 100, not inf"),
        ({"batch_size": 0}, "batch size must be between 1"),
        ({"width": 4}, "width must be between 8 and 8192, not 4"),
    ],
)
def test_refuses(changes, message):
    with pytest.raises(ConsistError, match=message):
        config(**changes)


def test_a_run_does_not_tell_of_what_came_late_unless_it_was_asked_for():
    assert not identity(config()).keys() & marked(RunConfig, LATE).keys()
    assert SELDOM == {"guidance_rescale": 0.0, "lora_negative": 1.0}
    asked = identity(config(guidance_rescale=0.7, embeddings=("cat.safetensors",)))
    assert asked["guidance_rescale"] == 0.7
    assert asked["embeddings"] == ["cat.safetensors"]


def test_a_subject_has_nothing_that_its_scenes_have_of_their_own():
    assert not marked(RunConfig, OF_SUBJECT).keys() & marked(RunConfig, OF_SET).keys()


def test_one_seed_counts_up_and_same_noise_does_not():
    assert spread_seeds((5,), 3) == (5, 6, 7)
    assert spread_seeds((5,), 3, same_noise=True) == (5, 5, 5)
    assert spread_seeds((9, 1), 2) == (9, 1)


def test_refuses_seeds_that_do_not_fit():
    with pytest.raises(ConsistError, match="2 seeds were given for 3 prompts; give 1 or 3"):
        spread_seeds((1, 2), 3)
    with pytest.raises(ConsistError, match="same noise needs a single seed"):
        spread_seeds((1, 2), 2, same_noise=True)


def test_without_a_batch_size_all_images_are_one_chunk():
    assert [chunk.images for chunk in plan(3, 3)] == [(0, 1, 2)]
    assert [chunk.images for chunk in plan(1, 1)] == [(0,)]


def test_every_chunk_holds_the_anchors_and_every_image_is_new_once():
    chunks = plan(7, 2, 4)
    assert [chunk.images for chunk in chunks] == [(0, 1, 2, 3), (0, 1, 4, 5), (0, 1, 6)]
    assert [i for chunk in chunks for i in chunk.new] == list(range(7))


def test_without_anchors_chunks_stand_alone():
    assert [chunk.images for chunk in plan(3, 0, 2)] == [(0, 1), (2,)]


@pytest.mark.parametrize(
    ("anchors", "size", "message"),
    [
        (4, 3, "a batch of 3 has no room beside 4 anchors"),
        (2, 2, "a batch of 2 has no room beside 2 anchors"),
        (5, None, "5 anchors were asked for, but there are 4 images"),
    ],
)
def test_refuses_anchors_that_do_not_fit(anchors, size, message):
    with pytest.raises(ConsistError, match=message):
        plan(4, anchors, size)


def test_reads_sizes():
    assert parse_size("512") == (512, 512)
    assert parse_size("768x512") == (768, 512)


@pytest.mark.parametrize("text", ["", "x", "big", "1x2x3", "-8", "128.5"])
def test_refuses_other_sizes(text):
    with pytest.raises(ConsistError, match="is neither a number such as 512 nor 768x512"):
        parse_size(text)


def test_an_unknown_name_gets_the_nearest():
    assert unknown("dtype", "flaot16", ["float16"]).startswith(
        "unknown dtype 'flaot16', did you mean 'float16'?"
    )
