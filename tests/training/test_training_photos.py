"""Photos: read with care, described, and cut to sizes."""

import json
import logging

import numpy as np
import pytest
import torch
from PIL import Image

from consist.errors import ConsistError
from consist.training.photos import (
    View,
    as_pixels,
    bucket_sizes,
    cut,
    middle_view,
    nearest_size,
    photos_of_run,
    placement,
    read_photos,
)

ORIENTATION = 0x0112  # EXIF tag


def halves(width=40, height=20):
    """Red on the left, blue on the right."""
    image = Image.new("RGB", (width, height), "red")
    image.paste("blue", (width // 2, 0, width, height))
    return image


@pytest.fixture
def folder(tmp_path):
    for name in ("b.png", "a.JPG", "c.webp"):
        halves().save(tmp_path / name)
    return tmp_path


def test_photos_come_by_name_with_the_prompt(folder):
    photos = read_photos(folder, "a xyz cat")
    assert [photo.path.name for photo in photos] == ["a.JPG", "b.png", "c.webp"]
    assert {photo.caption for photo in photos} == {"a xyz cat"}
    assert (photos[0].width, photos[0].height) == (40, 20)


def test_captions_of_files_come_first(folder):
    (folder / "a.txt").write_text("a cat asleep\n")
    (folder / "b.txt").write_text("not this")
    row = {"file_name": "b.png", "text": "a cat awake"}
    (folder / "metadata.jsonl").write_text(json.dumps(row) + "\n\n")
    captions = {photo.path.name: photo.caption for photo in read_photos(folder, "a xyz cat")}
    assert captions == {"a.JPG": "a cat asleep", "b.png": "a cat awake", "c.webp": "a xyz cat"}


def test_stray_files_are_skipped_with_a_word(folder, caplog):
    for name in (".DS_Store", "Thumbs.db", "notes.txt", "d.heic"):
        (folder / name).write_text("x")
    (folder / ".ipynb_checkpoints").mkdir()
    (folder / "album.png").mkdir()
    (folder / "a.txt").write_text("a cat")
    with caplog.at_level(logging.WARNING, "consist"):
        assert len(read_photos(folder, "a xyz cat")) == 3
    said = caplog.records[0].getMessage()
    assert "d.heic" in said
    assert "and 1 more" in said
    assert " a.txt" not in said


def test_photos_are_turned_as_exif_says(tmp_path):
    exif = Image.Exif()
    exif[ORIENTATION] = 6  # to be turned by 90 degrees clockwise
    halves().save(tmp_path / "a.png", exif=exif)
    (photo,) = read_photos(tmp_path, "a cat")
    assert (photo.width, photo.height) == photo.read().size == (20, 40)
    assert photo.read().getpixel((10, 5)) == (255, 0, 0)
    assert photo.read().getpixel((10, 35)) == (0, 0, 255)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_what_is_transparent_is_white(tmp_path, mode):
    image = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    options = {}
    if mode == "P":
        image, options = Image.new("P", (8, 8), 1), {"transparency": 1}
        image.putpalette([0, 0, 255, 255, 0, 0])
    image.convert(mode).save(tmp_path / "a.png", **options)
    (photo,) = read_photos(tmp_path, "a cat")
    assert photo.read().getcolors() == [(64, (255, 255, 255))]


def test_a_damaged_photo_is_named_at_once(folder):
    whole = (folder / "b.png").read_bytes()
    (folder / "b.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ConsistError, match=r"b\.png cannot be read"):
        read_photos(folder, "a cat")


def test_what_is_no_folder_of_photos_is_refused(folder, tmp_path):
    with pytest.raises(ConsistError, match="is not a folder of photos"):
        read_photos(folder / "a.JPG", "a cat")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConsistError, match=r"has no photos; known are \.bmp"):
        read_photos(tmp_path / "empty", "a cat")
    with pytest.raises(ConsistError, match=r"what a\.JPG shows; give a prompt or a\.txt"):
        read_photos(folder)
    (folder / "metadata.jsonl").write_text('{"file_name": "b.png"}')
    with pytest.raises(ConsistError, match=r"metadata\.jsonl, line 1: expected"):
        read_photos(folder, "a cat")
    (folder / "run.json").write_text("{}")
    with pytest.raises(ConsistError, match="is a run, not a folder of photos"):
        read_photos(folder, "a cat")


def test_one_and_many_photos_are_said(tmp_path, caplog):
    halves().save(tmp_path / "000.bmp")
    with caplog.at_level(logging.WARNING, "consist"):
        read_photos(tmp_path, "a cat")
        assert "has one photo" in caplog.text
        for i in range(1, 101):
            (tmp_path / f"{i:03d}.bmp").write_bytes((tmp_path / "000.bmp").read_bytes())
        read_photos(tmp_path, "a cat")
    assert "has 101 photos" in caplog.text


def test_pictures_of_a_run_keep_their_prompts(tmp_path):
    record = {"format": 1, "finished": True, "images": [{"prompt": "a cat in Paris"}]}
    halves().save(tmp_path / "000.png")
    (tmp_path / "run.json").write_text(json.dumps(record))
    assert photos_of_run(tmp_path)[0].caption == "a cat in Paris"
    assert photos_of_run(tmp_path, "a xyz cat")[0].caption == "a xyz cat"
    assert photos_of_run(tmp_path, "a xyz cat", "a cat")[0].caption == "a xyz cat in Paris"
    (tmp_path / "run.json").write_text(json.dumps({**record, "finished": False}))
    with pytest.raises(ConsistError, match="is not finished"):
        photos_of_run(tmp_path)


def test_sizes_have_about_as_many_pixels_and_fit_the_shape(folder):
    assert bucket_sizes(512, 64, many=False) == [(512, 512)]
    sizes = bucket_sizes(512, 64, many=True)
    assert all(w % 64 == h % 64 == 0 and 0.75 < w * h / 512**2 < 1.25 for w, h in sizes)
    photo = read_photos(folder, "a cat")[0]
    width, height = nearest_size(photo, sizes)
    assert width / height == pytest.approx(2, rel=0.2)
    assert nearest_size(photo, [(512, 512)]) == (512, 512)


def test_a_view_covers_its_size_and_nothing_is_stretched():
    image = Image.fromarray(np.arange(20 * 40, dtype=np.uint8).reshape(20, 40) % 251).convert("RGB")
    view = View(width=20, height=20, x=0.25, y=0.5)
    assert placement(40, 20, view) == (40, 20, 0, 5)
    assert cut(image, view).tobytes() == image.crop((5, 0, 25, 20)).tobytes()
    flipped = cut(image, View(width=40, height=20, flipped=True))
    assert flipped.getpixel((0, 0)) == image.getpixel((39, 0))
    for size in ((7, 5), (333, 1), (64, 65)):
        assert cut(halves(*size), View(width=16, height=32)).size == (16, 32)


def test_the_middle_and_pixels(folder):
    photo = read_photos(folder, "a cat")[1]
    shown = cut(photo.read(), middle_view(photo, [(16, 16)]))
    pixels = as_pixels(shown)
    assert pixels.shape == (3, 16, 16)
    assert pixels.dtype == torch.float32
    # red left, blue right, none of green
    assert pixels[:, 8, 2].tolist() == [1, -1, -1]
    assert pixels[:, 8, 13].tolist() == [-1, -1, 1]
