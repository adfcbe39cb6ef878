"""``consist train textual-inversion`` and ``pivotal``, and drawing with a word, on `mini`."""

import json
from pathlib import Path

import pytest
from PIL import Image
from safetensors.torch import load_file
from trainings import draw_photos, run

from consist.runs.config import RunConfig
from consist.runs.drawing import generate, load_model
from consist.runs.folder import default_folder

WORD = ("--token", "<my-cat>", "--init", "cat")
SHORT = ("--steps", 2, "--resolution", 64, "--batch-size", 2, "--device", "cpu")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return draw_photos(tmp_path_factory.mktemp("words") / "photos")


@pytest.fixture(autouse=True)
def inside(photos, monkeypatch):
    monkeypatch.chdir(photos.parent)


@pytest.fixture(scope="module")
def learned(photos):
    """The file of a word of two vectors."""
    out = photos.parent / "my-cat.safetensors"
    command = ("train", "textual-inversion", photos, *WORD, *SHORT, "--vectors", 2, "--lr", 0.1)
    result = run(*command, "--out", out)
    assert result.exit_code == 0, result.output
    return out


def test_a_word_is_drawn_with(learned, caplog):
    drawn = {}
    for name, options in (("with", ("--embedding", learned)), ("without", ())):
        scenes = ("a <my-cat> in paris", "a dog in paris")
        result = run(
            "batch", *scenes, "--steps", 2, "--method", "isolated", "--out", name, *options
        )
        assert result.exit_code == 0, result.output
        drawn[name] = [Path(name, f"00{i}.png") for i in range(2)]
        # of words that mini does not know it warns
        assert ("never seen '<my-cat>'" in caplog.text) == (name == "without")
    pixels = {name: [Image.open(p).tobytes() for p in paths] for name, paths in drawn.items()}
    assert pixels["with"][0] != pixels["without"][0]
    assert pixels["with"][1] == pixels["without"][1]
    record = json.loads(Path("with", "run.json").read_text())
    assert record["config"]["embeddings"] == [str(learned)]


@pytest.mark.slow
def test_a_run_goes_on_and_its_subject_is_kept_with_the_word(learned, monkeypatch):
    monkeypatch.setenv("CONSIST_HOME", str(learned.parent / "home"))
    options = ("--steps", 2, "--embedding", learned.name, "--out", "kept")
    made = run(
        "batch", "a <my-cat> in paris", "a <my-cat> on the moon", *options, "--method", "sdsa"
    )
    assert made.exit_code == 0, made.output
    assert run("extend", "kept", "a <my-cat> in a forest").exit_code == 0
    assert run("redo", "kept", "--image", 1, "--seed", 9).exit_code == 0
    assert run("subject", "save", "kept", "tom").exit_code == 0
    shown = run("subject", "show", "tom")
    assert str(learned) in shown.output.replace("\n", "")
    like = run("batch", "a <my-cat> on a beach", "--like", "tom", "--out", "like")
    assert like.exit_code == 0, like.output
    refused = run("batch", "a <my-cat>", "--like", "tom", "--embedding", learned)
    assert refused.exit_code == 2


def test_all_methods_take_words_and_leave_the_model_as_it_was(learned, tmp_path):
    model = load_model(RunConfig(prompts=("a cat",), seeds=(0,)))
    tokenizer, table = model.pipe.tokenizer, model.pipe.text_encoder.get_input_embeddings()
    for name in ("spectral", "one-prompt"):
        config = RunConfig(
            prompts=("a <my-cat> in paris", "a <my-cat> on the moon"),
            seeds=(0, 1),
            method={"name": name},
            steps=1,
            embeddings=(str(learned),),
        )
        generate(config, tmp_path / name, model_for=lambda config: model)
        assert model.pipe.tokenizer is tokenizer
        assert model.pipe.text_encoder.get_input_embeddings() is table


def test_runs_without_words_keep_their_folders():
    config = RunConfig(prompts=("a cat",), seeds=(0,), method={"name": "spectral"})
    assert "embeddings" in config.to_json()
    assert default_folder(config).name == "a-cat-ed9299ea"


@pytest.mark.slow
def test_pivotal_gives_both_files_and_goes_on(photos):
    command = ("train", "pivotal", photos, *WORD, *SHORT, "--word-steps", 1, "--rank", 2)
    # of the LoRA: a word is learned from captions, and changes nothing else
    command += ("--caption-dropout", 0.2, "--prior", "none")
    command += ("--background", "base", "--class-prompt", "a cat")
    command += ("--sample-prompt", "a <my-cat> in paris", "--sample-every", 1)
    for _ in range(2):
        result = run(*command, "--out", "cat.safetensors")
        assert result.exit_code == 0, result.output
        assert result.stdout.split() == ["cat-word.safetensors", "cat.safetensors"]
    assert list(load_file("cat-word.safetensors")) == ["<my-cat>"]
    assert len(list(Path("cat-word.training").glob("step-0000001.*"))) == 1
    for name in ("cat-word.training", "cat.training"):
        assert Path(name, "samples", "sheet.png").is_file()
    record = json.loads(Path("cat.training", "training.json").read_text())
    assert record["config"]["embedding"] == "cat-word.safetensors"
    assert record["config"]["caption_dropout"] == 0.2
    assert record["config"]["background"] == "base"
    assert {photo["caption"] for photo in record["photos"]} == {"a <my-cat>"}
    files = ("--lora", "cat.safetensors", "--embedding", "cat-word.safetensors")
    files += ("--lora-negative", 0.25)
    drawn = run("batch", "a <my-cat> in paris", "--steps", 1, *files, "--out", "both")
    assert drawn.exit_code == 0, drawn.output


def test_a_run_becomes_a_word():
    drawn = run("batch", "a cat in paris", "a cat on the moon", "--steps", 1, "--out", "run")
    assert drawn.exit_code == 0, drawn.output
    command = ("train", "textual-inversion", "--from-run", "run", *WORD, *SHORT, "--out")
    result = run(*command, "run.safetensors")
    assert result.exit_code == 2
    assert "of 000.png, 'a cat in paris', does not say <my-cat>" in result.stderr
    names = ("run.safetensors", "--prompt", "a <my-cat>", "--class-prompt", "a cat")
    result = run(*command, *names)
    assert result.exit_code == 0, result.output
    record = json.loads(Path("run.training", "training.json").read_text())
    captions = [photo["caption"] for photo in record["photos"]]
    assert captions == ["a <my-cat> in paris", "a <my-cat> on the moon"]


def test_what_cannot_be_is_one_sentence_and_exit_code_2(photos, learned):
    train = ("train", "textual-inversion", photos)
    for arguments, sentence in (
        ((*train, "--init", "cat"), "not ''"),
        ((*train, "--token", "<my-cat>"), "needs known words to begin from"),
        ((*train, "--token", "cat", "--init", "cat"), "in angle brackets"),
        ((*train, *WORD, "--layout", "kohya", "--out", "x.safetensors"), "unknown layout 'kohya'"),
        (("train", "pivotal", *WORD), "give either a folder of photos or --from-run"),
        (("train", "lora", photos, "--prompt", "a", "--embedding", "no.safetensors"), "no file"),
        (("batch", "a cat", "--embedding", "no.safetensors"), "there is no file no.safetensors"),
        (("batch", "a cat", *("--embedding", learned) * 2), "one that the model knows already"),
        (("batch", "a cat", "--embedding", photos / "0.png"), "is not a .safetensors file"),
    ):
        result = run(*arguments, *(("--out", "none") if arguments[0] == "batch" else ()))
        assert result.exit_code == 2, (arguments, result.output)
        assert sentence in result.stderr
        assert "\n" not in result.stderr.strip()
    assert not Path("none").exists()
