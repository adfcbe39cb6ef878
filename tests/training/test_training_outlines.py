"""The subject of a photo, and that nothing is learned of what is around it."""

import numpy as np
import pytest
import torch
from learning.known_subjects import make_known, write_photos
from PIL import Image, ImageDraw
from trainings import config_of, denoising_of

from consist.errors import ConsistError
from consist.mini.world import draw, with_article
from consist.models.loading import load
from consist.models.noising import diffuse
from consist.training.finetune import finetune
from consist.training.outlines import outline_of
from consist.training.photos import View
from consist.training.samples import Sample

BOX = (16, 0, 47, 31)  # of 64 x 64 pixels: left, top, right, bottom


@pytest.fixture
def cut_out(photos):
    """Two photos of which a square is opaque."""
    for path in photos.glob("*.png"):
        image = Image.open(path).convert("RGB").resize((64, 64))
        alpha = Image.new("L", image.size)
        ImageDraw.Draw(alpha).rectangle(BOX, fill=255)
        image.putalpha(alpha)
        image.save(path)
    return photos


def sample_of(photo, **view):
    view = {"width": 16, "height": 16, **view}
    return Sample(photo=photo, view=View(**view), timestep=500, seed=0, weight=1.0, outlined=True)


def test_what_is_opaque_is_the_subject(cut_out, tiny):
    denoising, parts = denoising_of(config_of(cut_out, background="base"), tiny)
    photo = denoising.albums[0].photos[0]
    factor = parts.pipe.vae_scale_factor
    size = 16 // factor
    expected = torch.zeros(1, size, size, dtype=torch.bool)
    expected[:, : size // 2, size // 4 : 3 * size // 4] = True
    # the filter that scales a photo down reaches a little over an edge
    found = denoising.outlines(sample_of(photo))
    assert (found & ~expected).sum() <= 2 * size
    assert (found | ~expected).all()
    flipped = denoising.outlines(sample_of(photo, flipped=True))
    assert torch.equal(flipped, found.flip(-1))


@pytest.mark.parametrize(
    ("kind", "out", "text_encoder"),
    [
        ("lora", "cat.safetensors", False),
        ("lora", "cat.safetensors", True),
        ("dreambooth", "cat", False),
    ],
)
def test_only_the_subject_has_an_error_at_first(cut_out, tiny, kind, out, text_encoder):
    """Nothing is learned yet, so that around it the base model agrees with itself."""
    config = config_of(cut_out, kind, out, background="base", text_encoder=text_encoder)
    denoising, _ = denoising_of(config, tiny)
    sample = sample_of(denoising.albums[0].photos[0])
    found = denoising.loss([sample]).item()
    source = torch.Generator().manual_seed(sample.seed)
    clean = denoising.latents(sample.photo, sample.view, source)[None]
    noise = torch.randn(clean.shape[1:], generator=source)[None]
    timesteps = torch.tensor([sample.timestep])
    noisy, target = diffuse(clean, noise, denoising.alphas[timesteps], denoising.prediction)
    with torch.no_grad():
        error = (denoising.predict(noisy, timesteps, [sample]) - target).square()
    inside = denoising.outlines(sample)
    assert found == pytest.approx((error * inside).mean().item(), rel=1e-5)
    assert found < 0.9 * error.mean().item()


@pytest.mark.slow
def test_a_model_sees_most_of_its_class(tmp_path):
    known = make_known(4)[1]
    photos = write_photos(known, tmp_path / "photos", "xyz cat")
    config = config_of(
        photos, model="mini", background="base", class_prompt=with_article(known.noun)
    )
    pipe = load("mini", "cpu").pipe
    denoising, _ = denoising_of(config, pipe)
    missed, more = [], []
    for picture, photo in zip(known.photos, denoising.albums[0].photos, strict=True):
        (mask,) = draw(picture).masks
        cells = np.asarray(mask).reshape(16, 8, 16, 8).mean((1, 3)) > 127
        found = denoising.outlines(sample_of(photo, width=128, height=128))[0].numpy()
        missed.append((cells & ~found).sum() / cells.sum())
        more.append((found & ~cells).sum() / (~cells).sum())
    assert np.mean(missed) < 0.05
    assert np.mean(more) < 0.4


def test_what_a_caption_changes_is_widened():
    differences = torch.zeros(3, 4, 32, 32)
    differences[:, :, 10:14, 20:22] = 1.0
    expected = torch.zeros(32, 32, dtype=torch.bool)
    expected[8:16, 18:24] = True
    assert torch.equal(outline_of(differences), expected)
    # each noise counts alike, however much it changes
    loud = torch.zeros(1, 4, 32, 32)
    loud[:, :, :2] = 100.0
    assert torch.equal(outline_of(torch.cat([differences, loud]))[6:], expected[6:])
    assert not outline_of(torch.zeros(2, 4, 8, 8)).any()


def test_a_subject_that_cannot_be_found_is_said(photos, cut_out, tiny, monkeypatch):
    for path in photos.glob("*.png"):
        Image.open(path).convert("RGB").save(path)
    config = config_of(photos, background="base")
    with pytest.raises(ConsistError, match=r"0\.png is not cut out, and without a class prompt"):
        finetune(config, model_for=lambda config, device: pytest.fail("loaded before it is said"))
    nothing = torch.zeros(8, 8, dtype=torch.bool)
    monkeypatch.setattr("consist.training.outlines.outline_of", lambda differences: nothing)
    config = config_of(photos, background="base", class_prompt="a cat")
    with pytest.raises(ConsistError, match=r"'a cat' was not found in 0\.png; cut it out"):
        denoising_of(config, tiny)
