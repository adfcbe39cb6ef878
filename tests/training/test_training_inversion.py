"""New words: only their vectors learn, diffusers reads them alike, and nothing is left behind."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from trainings import assert_same, config_of, fresh, last_tensors, model_of, seeded

from consist.errors import ConsistError
from consist.models.embedding_files import read_embedding, write_embedding
from consist.models.loading import Defaults, Model
from consist.models.lora import add_loras
from consist.models.new_words import new_word, new_words
from consist.prompts.phrases import find_subject, shared_phrase
from consist.training.denoising import Denoising
from consist.training.finetune import choose_albums, choose_photos, finetune
from consist.training.inversion import TEMPLATES, initial_vectors, word_to_learn
from consist.training.parts import Parts

CPU = torch.device("cpu")
WORD = "<my-cat>"
PROMPT = "a <my-cat> in paris, a <my-cat>"


def word_config(photos, out="word.safetensors", **changes):
    given = {"prompt": "", "token": WORD, "init": "cat", "vectors": 2, "steps": 2, **changes}
    return config_of(photos, kind="textual-inversion", out=out, **given)


def encoders(pipe):
    names = ("text_encoder", "text_encoder_2")
    return [getattr(pipe, name) for name in names if getattr(pipe, name, None) is not None]


def encode(pipe, prompt=PROMPT):
    given = pipe.encode_prompt(
        prompt=prompt, device=CPU, num_images_per_prompt=1, do_classifier_free_guidance=False
    )
    return [one for one in given if one is not None]


def put_in_by_diffusers(pipe, word, vectors):
    """A copy of a pipeline with a word, by diffusers' own loader."""
    pipe = fresh(pipe)
    names = ("tokenizer", "tokenizer_2")
    for name, encoder, rows in zip(names, encoders(pipe), vectors, strict=False):
        options = {"tokenizer": getattr(pipe, name), "text_encoder": encoder}
        pipe.load_textual_inversion({word: rows.detach().clone()}, **options)
    return pipe


def written(pipe, path, word=WORD, count=2):
    """A file of random vectors that fit a pipeline."""
    vectors = [torch.randn(count, 32, generator=seeded(i)) for i, _ in enumerate(encoders(pipe))]
    layout = "clip" if len(vectors) > 1 else "diffusers"
    write_embedding(path, word, vectors, layout=layout)
    return vectors


def denoising_of(config, pipe):
    albums = choose_albums(config, Model(pipe, Defaults(1, 1.0)), choose_photos(config), None)
    denoising = Denoising(Parts(pipe, config), albums, config.work_folder / "latents", CPU)
    denoising.prepare()
    return denoising


def gradients(config, pipe):
    """Of the vectors, in the first step."""
    pipe, resolved = fresh(pipe), config.suited_to("sd")
    with word_to_learn(pipe, resolved) as placed:
        denoising = denoising_of(resolved, pipe)
        sum(denoising.losses(0)).backward()
        return [word.vectors.grad for word in placed.values()]


@pytest.mark.parametrize("family", ["sd_pipe", "sd2_pipe", "sdxl_pipe"])
def test_only_the_vectors_learn_and_the_model_is_as_it_was(request, photos, family):
    before = request.getfixturevalue(family)
    pipe = fresh(before)
    tables = [encoder.get_input_embeddings() for encoder in encoders(pipe)]
    tokenizer, known = pipe.tokenizer, len(pipe.tokenizer)
    config = word_config(photos, vectors=3)
    out = finetune(config, model_for=lambda *a: Model(pipe, Defaults(1, 1.0)))
    found = read_embedding(out)
    assert found.word == WORD
    assert [tuple(rows.shape) for rows in found.vectors] == [(3, 32)] * len(tables)
    for encoder, table, rows in zip(encoders(pipe), tables, found.vectors, strict=True):
        assert encoder.get_input_embeddings() is table
        start = table.weight[before.tokenizer("cat", add_special_tokens=False).input_ids]
        # AdamW moves each number by the rate in a step
        assert 0.003 < (rows - start.mean(0)).abs().mean() < 0.03
    assert pipe.tokenizer is tokenizer
    assert len(tokenizer) == known
    for name in ("unet", "vae", "text_encoder"):
        assert_same(getattr(pipe, name).state_dict(), getattr(before, name).state_dict())


def test_gradients_are_those_of_a_table_that_was_made_longer(photos, tiny):
    config = word_config(photos, batch_size=2)
    ours = gradients(config, tiny)[0]
    resolved = config.suited_to("sd")
    start = initial_vectors(tiny.tokenizer, tiny.text_encoder, resolved)
    pipe = put_in_by_diffusers(tiny, WORD, [start])
    table = pipe.text_encoder.get_input_embeddings().weight
    plain = replace(resolved, kind="lora")  # trains nothing of the text encoder by itself
    denoising = denoising_of(plain, pipe)
    table.requires_grad_(True)
    denoising.embed = denoising.texts.encode
    sum(denoising.losses(0)).backward()
    torch.testing.assert_close(ours, table.grad[-2:])
    assert ours.abs().amax(1).min() > 0


class Stop(Exception):
    pass


def test_twelve_steps_are_seven_and_five(photos, tiny):
    def stop(step, steps, loss):
        if step == 7:
            raise Stop

    recipe = {"steps": 12, "ema": 0.9, "min_snr": 5.0, "random_flip": True, "schedule": "cosine"}
    straight = word_config(photos, out="straight.safetensors", **recipe)
    parts = word_config(photos, out="parts.safetensors", checkpoint_every=7, **recipe)
    finetune(straight, model_for=model_of(tiny))
    with pytest.raises(Stop):
        finetune(parts, stop, model_for=model_of(tiny))
    finetune(parts, model_for=model_of(tiny))
    assert_same(last_tensors(parts), last_tensors(straight))
    assert_same(load_file(parts.out), load_file(straight.out))


def test_parts_of_a_step_and_checkpointed_gradients_change_nothing(photos, tiny):
    config = word_config(photos, batch_size=4)
    whole = gradients(config, tiny)
    for changes in ({"accumulate": 4}, {"gradient_checkpointing": True}):
        given = gradients(replace(config, **changes), tiny)
        torch.testing.assert_close(given, whole, atol=1e-7, rtol=1e-4)
    pipe, config = fresh(tiny), replace(config, gradient_checkpointing=True).suited_to("sd")
    with word_to_learn(pipe, config):
        Parts(pipe, config)
    # gradients of a word pass through both
    for model in (pipe.unet, pipe.text_encoder):
        assert any(getattr(part, "gradient_checkpointing", False) for part in model.modules())


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_vectors_are_float32_whatever_the_precision(photos, tiny, precision):
    pipe, config = fresh(tiny), word_config(photos, precision=precision).suited_to("sd")
    with word_to_learn(pipe, config) as placed:
        denoising = denoising_of(config, pipe)
        (word,) = placed.values()
        assert word.vectors.dtype == torch.float32
        assert word.table.weight.dtype == pipe.unet.dtype == getattr(torch, precision)
        sum(denoising.losses(0)).backward()
        assert word.vectors.grad.isfinite().all()


def test_photos_come_in_the_templates_of_the_paper(photos, tiny):
    (photos / "1.txt").write_text("a <my-cat> on the moon")
    config = word_config(photos).suited_to("sd")
    model = model_of(tiny)(config, CPU)
    (album,) = choose_albums(config, model, choose_photos(config), None)
    captions = {photo.path.name: [] for photo in album.photos}
    for photo in album.photos:
        captions[photo.path.name].append(photo.caption)
    assert len(set(captions["0.png"])) == len(TEMPLATES) == 27
    assert "a rendition of a <my-cat>" in captions["0.png"]
    assert captions["1.png"] == ["a <my-cat> on the moon"] * 27
    (album,) = choose_albums(
        config, model, choose_photos(replace(config, prompt="a <my-cat>")), None
    )
    assert [photo.caption for photo in album.photos][::2] == ["a <my-cat>"] * 2


def test_a_word_begins_as_the_mean_of_the_known_ones(photos, sd_pipe):
    config = word_config(photos, init="red bus")
    table = sd_pipe.text_encoder.get_input_embeddings().weight
    ids = sd_pipe.tokenizer("red bus", add_special_tokens=False).input_ids
    found = initial_vectors(sd_pipe.tokenizer, sd_pipe.text_encoder, config)
    torch.testing.assert_close(found, table[ids].mean(0).expand(2, 32))
    one = sd_pipe.tokenizer("cat", add_special_tokens=False).input_ids
    assert len(one) == 1
    found = initial_vectors(sd_pipe.tokenizer, sd_pipe.text_encoder, replace(config, init="cat"))
    assert torch.equal(found, table[one].expand(2, 32))


@pytest.mark.parametrize("family", ["sd_pipe", "sdxl_pipe"])
def test_words_are_read_as_diffusers_reads_them(request, tmp_path, family):
    pipe = fresh(request.getfixturevalue(family))
    plain = encode(pipe)
    vectors = written(pipe, tmp_path / "word.safetensors")
    with new_words(pipe, [tmp_path / "word.safetensors"]):
        ours = encode(pipe)
        known = encode(pipe, "a cat in paris")
    for one, other in zip(ours, encode(put_in_by_diffusers(pipe, WORD, vectors)), strict=True):
        assert torch.equal(one, other)
    assert not torch.equal(ours[0], plain[0])
    for one, other in zip(known, encode(pipe, "a cat in paris"), strict=True):
        assert torch.equal(one, other)


def test_words_nest_and_leave_no_trace_even_after_an_error(sd_pipe, tmp_path):
    pipe = fresh(sd_pipe)
    one, two = tmp_path / "one.safetensors", tmp_path / "two.safetensors"
    first = written(pipe, one, "<one>", 3)
    second = written(pipe, two, "<two>", 1)
    tokenizer, table = pipe.tokenizer, pipe.text_encoder.get_input_embeddings()
    before = set(pipe.text_encoder.state_dict())
    with pytest.raises(Stop), new_words(pipe, [one, two]):  # noqa: PT012
        ours = encode(pipe, "a <two> and a <one>")
        both = put_in_by_diffusers(put_in_by_diffusers(sd_pipe, "<one>", first), "<two>", second)
        assert torch.equal(ours[0], encode(both, "a <two> and a <one>")[0])
        raise Stop
    assert pipe.tokenizer is tokenizer
    assert pipe.text_encoder.get_input_embeddings() is table
    assert set(pipe.text_encoder.state_dict()) == before


def test_the_end_of_a_text_is_found_although_a_word_has_the_largest_id(sdxl_pipe):
    """SDXL's second encoder pools there, and its config tells the end in an old way."""
    old, new = fresh(sdxl_pipe), fresh(sdxl_pipe)
    old.text_encoder_2.text_model.eos_token_id = 2
    vectors = [torch.randn(1, 32, generator=seeded(i)) for i in range(2)]
    pooled = []
    for pipe in (old, new):
        with new_word(pipe, WORD, vectors):
            pooled.append(encode(pipe)[1])
    assert torch.equal(*pooled)
    assert old.text_encoder_2.text_model.eos_token_id == 2
    # what happens without care
    broken = put_in_by_diffusers(sdxl_pipe, WORD, vectors)
    broken.text_encoder_2.text_model.eos_token_id = 2
    assert not torch.allclose(encode(broken)[1], pooled[0], atol=1e-3)


def test_a_lora_beside_a_word_goes_with_it(photos, tiny, tmp_path):
    path = tmp_path / "word.safetensors"
    written(tiny, path)
    before = path.read_bytes()
    trained, loaded = fresh(tiny), fresh(tiny)
    config = config_of(photos, prompt="a <my-cat>", embedding=str(path), steps=2, text_encoder=True)
    out = finetune(config, model_for=lambda *a: Model(trained, Defaults(1, 1.0)))
    assert path.read_bytes() == before
    write_embedding(tmp_path / "other.safetensors", WORD, [torch.ones(2, 32)])
    other = replace(
        config, out=str(tmp_path / "x.safetensors"), embedding=f"{tmp_path}/other.safetensors"
    )
    finetune(other, model_for=model_of(tiny))
    assert any(not torch.equal(w, load_file(other.out)[n]) for n, w in load_file(out).items())
    add_loras(loaded, (str(out),))
    latents, answers = torch.randn(1, 4, 8, 8, generator=seeded(0)), []
    for pipe in (trained, loaded):
        with new_words(pipe, [path]), torch.no_grad():
            answers.append(pipe.unet(latents, 5, encode(pipe)[0]).sample)
    assert torch.equal(*answers)
    with torch.no_grad():
        assert not torch.equal(answers[0], loaded.unet(latents, 5, encode(loaded)[0]).sample)


def test_the_subject_may_be_a_word_of_several_tokens(sd_pipe):
    prompts = ("a <my-cat> cat in paris", "a <my-cat> cat on the moon")
    assert shared_phrase(prompts) == "<my-cat> cat"
    pipe = fresh(sd_pipe)
    with new_word(pipe, WORD, [torch.zeros(3, 32)]):
        texts = pipe.maybe_convert_prompt(list(prompts), pipe.tokenizer)
        assert find_subject(pipe.tokenizer, texts) == (((2, 3, 4, 5),),) * 2
        assert find_subject(pipe.tokenizer, texts, ("cat",)) == (((5,),),) * 2


def test_what_is_no_new_word_is_refused(photos, tiny, tmp_path):
    for changes, sentence in (
        ({"token": "cat"}, "in angle brackets, such as '<my-cat>', not 'cat'"),
        ({"token": "<My cat>"}, "in angle brackets"),
        ({"token": ""}, "not ''"),
        ({"init": " "}, "<my-cat> needs known words to begin from"),
        ({"prompt": "a cat"}, "the prompt 'a cat' does not say <my-cat>"),
        ({"vectors": 0}, "vectors must be between 1 and 64, not 0"),
        ({"prior": "base", "class_prompt": "a cat"}, "changes nothing but its word"),
        ({"text_encoder": True}, "changes nothing but its word"),
        ({"background": "base"}, "what it learns of a background"),
        ({"caption_dropout": 0.1}, "learns from captions that say its word"),
        ({"out": "word.pt"}, "textual-inversion writes a .safetensors file"),
        ({"kind": "dreambooth", "out": "x", "embedding": "y"}, "only a lora is trained beside"),
    ):
        with pytest.raises(ConsistError, match=sentence):
            replace(word_config(photos), **changes)
    for changes, sentence in (
        ({"layout": "klip"}, "unknown layout 'klip', did you mean 'clip'"),
        ({"token": "<known>"}, "the word '<known>' is one that the model knows already"),
        ({"vectors": 64, "prompt": f"a {WORD} and {WORD}"}, "the text encoder takes"),
    ):
        pipe = fresh(tiny)
        pipe.tokenizer.add_tokens("<known>")
        config = word_config(photos, **changes)
        with pytest.raises(ConsistError, match=sentence):
            finetune(config, model_for=lambda *a, pipe=pipe: Model(pipe, Defaults(1, 1.0)))
        assert not config.work_folder.exists() or "takes" in sentence
    (photos / "0.txt").write_text("a cat")
    with pytest.raises(ConsistError, match=r"caption of 0.png, 'a cat', does not say <my-cat>"):
        finetune(word_config(photos), model_for=pytest.fail)


def test_files_that_do_not_fit_are_refused(sd_pipe, sdxl_pipe, tmp_path):
    good, wide, known = (tmp_path / f"{name}.safetensors" for name in ("good", "wide", "cat"))
    vectors = written(sd_pipe, good)
    write_embedding(wide, WORD, [torch.ones(1, 768)])
    write_embedding(known, "cat", vectors)
    for pipe, files, sentence in (
        (sd_pipe, [tmp_path / "no.safetensors"], "there is no file .*no.safetensors"),
        (sd_pipe, [tmp_path / "no.pt"], "may hold a pickle"),
        (sd_pipe, [wide], "its vectors have 768 numbers, and this model's have 32"),
        (sdxl_pipe, [good], "is for 1 text encoders, and this model has 2"),
        (sd_pipe, [known], "the word 'cat' of .*cat.safetensors is one that the model knows"),
        (sd_pipe, [good, good], "the word '<my-cat>' of .*good.safetensors is one that"),
    ):
        tokenizer, table = pipe.tokenizer, pipe.text_encoder.get_input_embeddings()
        with pytest.raises(ConsistError, match=sentence), new_words(pipe, files):
            pass
        assert pipe.tokenizer is tokenizer
        assert pipe.text_encoder.get_input_embeddings() is table
