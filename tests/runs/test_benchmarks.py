"""Benchmarks: the one that the package carries, and files of ConsiStory+'s format."""

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from consist.errors import ConsistError
from consist.mini.architecture import MAX_TOKENS, build_tokenizer
from consist.mini.prompts import asked
from consist.mini.scenes import SCENES
from consist.mini.subjects import SUBJECTS
from consist.mini.world import HELD_OUT, vocabulary
from consist.runs.many.benchmarks import BENCHMARKS, PromptSet, load_benchmark, select, shorten

ROOT = Path(__file__).parents[2]
SETS = load_benchmark("mini-sets")
WISHES = {one.name: [asked(prompt) for prompt in one.prompts] for one in SETS}

# the keys of ConsiStory+, with prompts of our own
CONSISTORY_PLUS = """
animals:
- concept_token: otter
  settings:
  - asleep on a river
  - juggling a stone
  style: 'A charcoal sketch of '
  subject: An otter with wet fur
- concept_token: old dog
  settings: [at a bus stop]
  style: ''
  subject: An old dog
fairy tales:
- concept_token: knight
  settings: [on a bridge, at a feast]
  style: A stained glass of
  subject: A knight
"""


def tagged(tag):
    return [one for one in SETS if tag in one.tags]


# mini-sets


def test_the_file_is_what_the_script_makes(tmp_path):
    script = ROOT / "scripts" / "make_mini_sets.py"
    subprocess.run([sys.executable, script, tmp_path / "made.yaml"], check=True, cwd=ROOT)
    assert (tmp_path / "made.yaml").read_text() == BENCHMARKS["mini-sets"].read_text()


def test_there_are_enough_sets_of_each_kind():
    assert len(SETS) >= 200
    assert {len(one.prompts) for one in SETS} == {4, 5, 6}
    for tag, least in {
        "free": 60,
        "named": 20,
        "colliding": 20,
        "held-out": 20,
        "inanimate": 20,
        "people": 20,
        "style": 15,
        "action": 15,
        "pair": 15,
    }.items():
        assert len(tagged(tag)) >= least, tag
    assert len({one.name for one in SETS}) == len(SETS)
    noise = [one.seed + i for one in SETS for i in range(len(one.prompts))]
    assert len(set(noise)) == len(noise)


def test_every_word_is_understood_and_every_class_and_scene_occurs():
    wishes = [wish for wishes in WISHES.values() for wish in wishes]
    assert all(wish.subjects and wish.scene for wish in wishes)
    assert {s.subject for wish in wishes for s in wish.subjects} == set(SUBJECTS)
    assert {wish.scene for wish in wishes} == set(SCENES)


def test_a_set_shows_the_same_subjects_in_different_scenes():
    for one in SETS:
        scenes = [wish.scene for wish in WISHES[one.name]]
        assert len(set(scenes)) == len(scenes), one
        assert all(wish.subjects == WISHES[one.name][0].subjects for wish in WISHES[one.name])


def test_held_out_pairs_are_where_they_belong():
    for one in SETS:
        pairs = {(s.subject, wish.scene) for wish in WISHES[one.name] for s in wish.subjects}
        assert bool(pairs & HELD_OUT) == ("held-out" in one.tags), one


def test_tags_are_true():
    for one in SETS:
        (names, *_) = [[s.subject for s in wish.subjects] for wish in WISHES[one.name]]
        attributes = WISHES[one.name][0].subjects[0].attributes
        assert ("people" in one.tags) == any(SUBJECTS[name].person for name in names)
        assert ("pair" in one.tags) == (len(names) == 2)
        assert ("style" in one.tags) == (WISHES[one.name][0].style != "flat")
        assert ("action" in one.tags) == (len({w.action for w in WISHES[one.name]}) > 1)
        assert ("colliding" in one.tags) == (set(attributes) == {"color"})
        assert ("named" in one.tags) == ({"color", "feature", "build"} <= set(attributes))
    lookalikes = Counter(str(WISHES[one.name][0].subjects) for one in tagged("colliding"))
    assert min(lookalikes.values()) >= 5


def test_prompts_fit_the_text_encoder():
    words = [name for names in vocabulary().values() for name in names]
    tokenizer = build_tokenizer(words)
    for one in SETS:
        for prompt in one.prompts:
            assert len(tokenizer(prompt).input_ids) <= MAX_TOKENS, prompt


# files


def test_a_file_in_the_format_of_consistory_plus(tmp_path):
    path = tmp_path / "plus.yaml"
    path.write_text(CONSISTORY_PLUS)
    otter, dog, knight = load_benchmark(path)
    assert otter == PromptSet(
        name="animals_0",
        prompts=(
            "A charcoal sketch of An otter with wet fur asleep on a river",
            "A charcoal sketch of An otter with wet fur juggling a stone",
        ),
        seed=42,
        tags=("animals",),
        subject="otter",
    )
    assert dog.prompts == ("An old dog at a bus stop",)
    assert (knight.name, knight.tags) == ("fairy-tales_0", ("fairy tales",))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "cannot be read: while parsing"),
        ("- a", "must map categories to lists of sets"),
        ("a: 3", "must map categories to lists of sets"),
        ("{}", "holds no set"),
        ("a: [x]", "set a_0 must have the keys subject and settings"),
        ("a: [{settings: [x]}]", "set a_0 has no subject"),
        ("a: [{subject: [x], settings: [x]}]", "set a_0: subject must be a text"),
        ("a: [{subject: x}]", "set a_0: settings must be a list of texts, not None"),
        ("a: [{subject: x, settings: []}]", "set a_0: settings must be a list of texts"),
        ("a: [{subject: x, settings: [3]}]", r"must be a list of texts, not \[3\]"),
        ("a: [{subject: x, settings: [y], seed: -1}]", "seed must be a whole number from 0"),
        ("a: [{subject: x, settings: [y], tags: z}]", "tags must be a list of texts"),
        ("{'a!': [{subject: x, settings: [y]}], 'a?': [{subject: x, settings: [y]}]}", "punctu"),
    ],
)
def test_a_malformed_file_is_one_sentence(tmp_path, text, message):
    path = tmp_path / "sets.yaml"
    path.write_text(text)
    with pytest.raises(ConsistError, match=message) as caught:
        load_benchmark(path)
    assert "\n" not in str(caught.value)


def test_an_unknown_benchmark_names_those_there_are():
    with pytest.raises(ConsistError, match="unknown benchmark 'mini-set', did you mean 'mini-s"):
        load_benchmark("mini-set")


# choosing


def test_shards_hold_every_set_once():
    parts = [select(SETS, shard=f"{i}/7") for i in range(1, 8)]
    assert sorted(one.name for part in parts for one in part) == sorted(one.name for one in SETS)


def test_a_limit_is_spread_and_a_tag_chosen():
    few = select(SETS, limit=10)
    assert len(few) == 10
    assert len({one.tags[0] for one in few}) >= 5
    assert len(select(SETS, tag="pair", limit=1000)) == len(tagged("pair"))


def test_a_set_is_shortened_under_another_name():
    one = shorten(SETS[0], 2)
    assert (one.prompts, one.name) == (SETS[0].prompts[:2], f"{SETS[0].name}-2")
    with pytest.raises(ConsistError, match="pictures must be at least 2"):
        shorten(SETS[0], 1)


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"tag": "fre"}, "unknown tag 'fre', did you mean 'free'"),
        ({"limit": 0}, "limit must be at least 1, not 0"),
        ({"shard": "0/4"}, "shard '0/4' is not I/N"),
        ({"shard": "5/4"}, "shard '5/4' is not I/N"),
        ({"shard": "one"}, "shard 'one' is not I/N"),
    ],
)
def test_refuses_a_choice_that_cannot_be(choice, message):
    with pytest.raises(ConsistError, match=message):
        select(SETS, **choice)
