"""The reader: it finds who is there, is calibrated on purpose, and learns what it is shown."""

from multiprocessing import dummy as threads
from pathlib import Path
from random import Random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from safetensors.torch import save_file

from consist.errors import ConsistError
from consist.mini.architecture import build_scheduler, build_vae
from consist.mini.reader import (
    ATTRIBUTES,
    CLASSES,
    HEADS,
    VIEWS,
    Reader,
    ReaderNet,
    find_subjects,
    load_reader,
)
from consist.mini.world import Picture, caption, draw, sample_picture
from consist.models.loading import MINI_FOLDER
from consist.training.mini.autoencoder import draw_pictures, encode, picture
from consist.training.mini.reader import (
    Blur,
    best_temperature,
    labels_of,
    losses,
    save_reader,
    views_of,
)
from consist.training.mini.redrawing import Redrawer, roots
from consist.training.mini.session import Recipe, Session
from consist.training.mini.train import load_parts

CPU = torch.device("cpu")


def certain(*areas, side=8):
    """Probabilities of a picture in which class ``i`` fills the cells ``areas[i]``."""
    probabilities = torch.zeros(1 + len(areas), side, side)
    probabilities[0] = 1
    for i, cells in enumerate(areas):
        probabilities[:, cells] = 0
        probabilities[1 + i, cells] = 1
    return probabilities


def cells(rows, columns, side=8):
    chosen = torch.zeros(side, side, dtype=torch.bool)
    chosen[rows, columns] = True
    return chosen


def test_nothing_is_found_in_an_empty_picture():
    assert find_subjects(certain(cells(slice(0), slice(0)))).shape == (0, 8, 8)


def test_one_subject_is_one_mask_even_with_a_speck_of_another():
    body = cells(slice(0, 6), slice(0, 4))
    speck = cells(slice(6, 7), slice(0, 2))
    found = find_subjects(certain(body, speck))
    assert len(found) == 1
    assert torch.equal(found[0] > 0.5, body | speck)


def test_two_subjects_are_two_masks_the_larger_first():
    left, right = cells(slice(0, 3), slice(0, 3)), cells(slice(0, 4), slice(4, 8))
    found = find_subjects(certain(left, right))
    assert torch.equal(found > 0.5, torch.stack([right, left]))


def test_the_labels_are_the_truth_in_words():
    one = sample_picture(Random(3))
    figure = one.figures[0]
    words = {head: HEADS[head][place] for head, place in zip(HEADS, labels_of(figure), strict=True)}
    assert words["subject"] == figure.identity.subject
    assert words["action"] == figure.pose.action
    for name in ATTRIBUTES:
        if name != "action":
            assert words[name] == (getattr(figure.identity, name) or "none")
    scene, style = views_of(one)
    assert (VIEWS["scene"][scene], VIEWS["style"][style]) == (one.scene, one.style)


def test_subjects_are_read_under_their_own_mask():
    torch.manual_seed(0)
    net = ReaderNet().eval()
    fine, whole = torch.randn(1, 64, 8, 8), torch.randn(1, 224)
    mask = cells(slice(0, 4), slice(0, 4)).float()[None]
    changed = fine.clone()
    changed[:, :, 6:] += 5
    for head, logits in net.subject_logits(fine, whole, mask).items():
        torch.testing.assert_close(net.subject_logits(changed, whole, mask)[head], logits)
    changed[:, :, :2] += 5
    assert not torch.allclose(
        net.subject_logits(changed, whole, mask)["color"],
        net.subject_logits(fine, whole, mask)["color"],
    )


def test_a_picture_and_its_mirror_image_are_read_alike():
    reader, images = (
        load_reader(),
        [draw(sample_picture(Random(f"mirror-{i}"))).image for i in (0, 1)],
    )
    for one, other in zip(
        reader.read(images), reader.read([ImageOps.mirror(image) for image in images]), strict=True
    ):
        assert one.scene.name == other.scene.name
        assert one.scene.confidence == pytest.approx(other.scene.confidence, abs=1e-4)
        assert len(one.subjects) == len(other.subjects) > 0
        for subject, mirrored in zip(one.subjects, other.subjects, strict=True):
            assert np.mean(subject.mask != mirrored.mask[:, ::-1]) < 1e-3
            for name, value in subject.attributes.items():
                assert value.name == mirrored.attributes[name].name
                assert value.confidence == pytest.approx(
                    mirrored.attributes[name].confidence, abs=1e-4
                )


def test_temperature_repairs_logits_that_are_too_sure():
    source = torch.Generator().manual_seed(0)
    logits = torch.randn(4000, 5, generator=source)
    target = torch.multinomial(logits.softmax(1), 1, generator=source)[:, 0]
    assert best_temperature(3 * logits, target) == pytest.approx(3, rel=0.1)
    assert best_temperature(logits, target) == pytest.approx(1, rel=0.1)


@pytest.fixture(scope="module")
def album(tmp_path_factory):
    """Drawn by threads: processes of their own would take longer to start than to draw."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("consist.training.mini.autoencoder.get_context", lambda how: threads)
        return draw_pictures(tmp_path_factory.mktemp("album"), 24)


def session(folder, **recipe):
    return Session(Path(folder), Recipe(warmup=5, **recipe), CPU, lambda *a: None, 0.0)


def blur(folder, album, redraw=lambda clean, *rest: clean, **recipe):
    vae, latents = build_vae().eval(), torch.zeros(24, 8, 16, 16)
    return Blur(session(folder, **recipe), album, latents, vae, redraw)


def test_every_loss_reaches_the_network(album, tmp_path):
    torch.manual_seed(0)
    shown, net, indices = blur(tmp_path, album, reader_batch=2), ReaderNet(), [0, 1]
    parts = losses(shown.session, net, *shown(indices, Random(0)), indices)
    assert set(parts) == {*VIEWS, *HEADS, "outlines"}
    sum(parts.values()).backward()
    gradients = {name: weight.grad for name, weight in net.named_parameters()}
    still = [name for name, grad in gradients.items() if grad is None or not grad.isfinite().all()]
    assert not still
    assert all(grad.any() for name, grad in gradients.items() if name.endswith("weight"))


@pytest.mark.slow
def test_learns_what_it_is_shown(album, tmp_path):
    torch.manual_seed(0)
    shown, net = blur(tmp_path, album, reader_batch=12), ReaderNet()
    indices = list(range(12))
    pixels, masks = shown(indices, Random(0))

    def loss():
        parts = losses(shown.session, net, pixels, masks, indices)
        assert set(parts) == {*VIEWS, *HEADS, "outlines"}
        return sum(parts.values())

    optimizer = torch.optim.AdamW(net.parameters(), 2e-3)
    before = loss().item()
    for _ in range(25):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    assert loss().item() < 0.6 * before


def test_round_trips_keep_shape_range_and_masks(album, tmp_path):
    pixels, masks = blur(tmp_path, album)([0, 1, 2, 3], Random(0))
    assert pixels.shape == (4, 3, 128, 128)
    assert masks.shape == (4, 2, 32, 32)
    assert pixels.abs().max() < 2
    for i in range(4):
        assert (masks[i, 1].max() > 0) == (len(picture(i).figures) == 2)


@pytest.mark.slow
def test_half_of_the_round_trips_are_drawn_again(album, tmp_path):
    asked = []

    def redraw(clean, captions, generator):
        assert len(clean) == len(captions)
        asked.extend(captions)
        return clean

    shown = blur(tmp_path, album, redraw)
    for seed in range(20):
        shown(list(range(24)), Random(seed))
    assert len(asked) / (20 * 24) == pytest.approx(0.5 * 0.4, abs=0.04)


class Knowing(torch.nn.Module):
    """A UNet that knows what is under the noise."""

    def __init__(self, clean):
        super().__init__()
        self.clean = clean
        self.alphas = build_scheduler().alphas_cumprod
        self.seen = []
        self.noises = []

    def forward(self, noisy, timesteps, context):
        assert len(context) == len(noisy) == len(timesteps)
        self.seen.append(timesteps)
        signal, sigma = roots(self.alphas[timesteps])
        noise = (noisy - signal * self.clean) / sigma
        self.noises.append(noise)
        return SimpleNamespace(sample=signal * noise - sigma * self.clean)


def test_a_model_that_knows_a_picture_draws_it_again():
    parts = load_parts(MINI_FOLDER)
    unet = Knowing(torch.randn(40, 8, 16, 16, generator=torch.Generator().manual_seed(0)))
    redraw = Redrawer(parts.tokenizer, parts.encoder, unet)
    drawn = redraw(unet.clean, ["a cat"] * 40, torch.Generator().manual_seed(0))
    torch.testing.assert_close(drawn, unet.clean, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(unet.noises[1], unet.noises[0], atol=1e-3, rtol=1e-3)
    first, second = unet.seen
    assert 100 <= first.min() < 150 < 450 < first.max() < 500
    torch.testing.assert_close(second, first // 2, atol=1, rtol=0)


@pytest.mark.slow
def test_what_is_drawn_again_is_the_picture_and_follows_its_seed(album, tmp_path):
    parts, indices = load_parts(MINI_FOLDER), list(range(8))
    clean = encode(parts.vae, album.pixels[indices], session(tmp_path))
    redraw = Redrawer(parts.tokenizer, parts.encoder, parts.unet)

    def again(seed):
        captions = [caption(picture(index), Random(seed)) for index in indices]
        return redraw(clean, captions, torch.Generator().manual_seed(seed))

    drawn = again(0)
    assert torch.equal(drawn, again(0))
    assert not torch.equal(drawn, again(1))
    near = (drawn - clean).square().mean()
    assert 0 < near < 0.3 * (drawn - clean.roll(1, 0)).square().mean()


def test_reads_pictures_of_any_size_after_a_round_trip_to_disk(tmp_path):
    torch.manual_seed(0)
    net = ReaderNet()
    save_reader(net, tmp_path / "reader.safetensors")
    images = [Image.new("RGB", (size, size), (size, 90, 40)) for size in (64, 128, 200)]
    reader = load_reader(path=tmp_path / "reader.safetensors")
    readings = [reading for image in images for reading in reader.read([image])]
    for image, reading in zip(images, readings, strict=True):
        assert reading.scene.name in VIEWS["scene"]
        assert 0 < reading.scene.confidence <= 1
        for one in reading.subjects:
            assert one.subject.name in CLASSES
            assert set(one.attributes) == set(ATTRIBUTES)
            assert one.mask.shape == image.size[::-1]
    np.testing.assert_allclose(reader.features(images)[1], readings[1].features, atol=1e-4)
    assert len(reader.digest) == 12
    assert Reader(net).features([]).shape == (0, 224)


def test_a_file_that_is_no_reader_is_one_sentence(tmp_path):
    path = tmp_path / "other.safetensors"
    with pytest.raises(ConsistError, match="holds no reader"):
        load_reader(path=path)
    save_file({"x": torch.zeros(1)}, path)
    with pytest.raises(ConsistError, match="holds no reader"):
        load_reader(path=path)
    path.write_bytes(b"nothing")
    with pytest.raises(ConsistError, match="holds no reader"):
        load_reader(path=path)


def test_pictures_know_their_number():
    assert isinstance(picture(7), Picture)
    assert picture(7) == picture(7) != picture(8)


def test_the_shipped_reader_reads_new_drawings():
    pictures = [sample_picture(Random(f"shipped-{i}")) for i in range(80)]
    readings = load_reader().read([draw(one).image for one in pictures])
    right = {"scene": 0, "style": 0, "subject": 0, "color": 0}
    figures = 0
    for one, reading in zip(pictures, readings, strict=True):
        right["scene"] += reading.scene.name == one.scene
        right["style"] += reading.style.name == one.style
        found = {subject.subject.name: subject for subject in reading.subjects}
        for figure in one.figures:
            figures += 1
            subject = found.get(figure.identity.subject)
            right["subject"] += subject is not None
            right["color"] += bool(subject) and (
                subject.attributes["color"].name == figure.identity.color
            )
    # floors well under what scripts/check/reader.py prints: they catch a wrong file
    assert right["scene"] / len(pictures) > 0.95
    assert right["style"] / len(pictures) > 0.95
    assert right["subject"] / figures > 0.9
    assert right["color"] / figures > 0.8
