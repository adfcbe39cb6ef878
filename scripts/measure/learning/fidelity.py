"""Pictures of one subject to the numbers of DreamBooth: Ruiz et al., arXiv:2208.12242, section 4.

It must not know models, trainings or folders.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from consist.evaluation.encoders import ClipEncoder, Encoder
from consist.evaluation.judges.by_reader import mean_known
from consist.evaluation.metrics import Features, cosines, mean_pairwise_cosine
from consist.evaluation.scores import Score
from learning import copies
from learning.copies import COPIED, Originals
from learning.lpips import Lpips

FIDELITY = {
    "dino": Score("DINO", "cosine to the photos, a mean over photos", 1),
    "clip_i": Score("CLIP-I", "cosine to the photos, a mean over photos, CLIP", 1),
    "clip_t": Score("CLIP-T", "cosine of picture and prompt, without a factor", 1),
    "pres": Score("PRES", "DINO of class pictures and photos: less is less drift", -1),
    "pres_base": Score("PRES, base model", "the same of the base model's class pictures", 0),
    "div": Score("DIV", "LPIPS between pictures of one prompt", 1),
    "div_dino": Score("DIV, DINO", "1 minus DINO cosine between pictures of one prompt", 1),
    "copies": Score("copies", "share of pictures that are copies of a photo", -1),
    "photos_dino": Score("DINO, photos", "between photos, none with itself", 0),
    "photos_clip_i": Score("CLIP-I, photos", "between photos, none with itself", 0),
}


@dataclass(frozen=True, kw_only=True)
class Gauges:
    """What measures."""

    dino: Encoder
    clip: ClipEncoder  # CLIP-I and CLIP-T
    lpips: Lpips | None = None

    def choices(self) -> dict[str, Any]:
        """What the paper leaves open, and what has to be known to repeat the numbers."""
        return {
            "dino": self.dino.choices(),
            "clip": {**self.clip.recorded, "factor": 1, "prefix": ""},
            "div": self.lpips.recorded if self.lpips else "left out: no LPIPS was given",
            "pairs": "each picture with all photos; DIV over all pairs of one prompt",
            "averages": "macro: mean over subjects of their means; micro: mean over pictures",
            "copies": copies.CHOICES,
        }


@dataclass(frozen=True, kw_only=True)
class Gallery:
    """All pictures that have to do with one subject."""

    photos: Sequence[Image.Image]
    pictures: Sequence[Image.Image]  # of the subject, those of one prompt one after another
    texts: Sequence[str]  # one per picture: what CLIP-T compares it with
    each: int  # pictures of one prompt
    classes: Sequence[Image.Image]  # of its class, drawn by the trained model
    base_classes: Sequence[Image.Image]  # and by the model before


def score_gallery(
    gallery: Gallery, gauges: Gauges
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Measures the pictures of a subject.

    Returns:
        The subject's means by the keys of ``FIDELITY``, NaN where there is nothing to measure, and
        for each picture what was found; "nearest" is the number of the photo it is most like.
    """
    photos, pictures = (gauges.dino.embed_images(x) for x in (gallery.photos, gallery.pictures))
    clip_photos, clip = (gauges.clip.embed_images(x) for x in (gallery.photos, gallery.pictures))
    fits = cosines(clip, gauges.clip.embed_texts(list(gallery.texts)))
    originals = Originals(gallery.photos)
    rows = []
    for i, image in enumerate(gallery.pictures):
        nearest, likeness = originals.nearest(image)
        to_photos = crossed(pictures[i : i + 1], photos)[0]
        rows.append(
            {
                "dino": float(to_photos.mean()),
                "dino_nearest": float(to_photos.max()),
                "clip_i": float(crossed(clip[i : i + 1], clip_photos).mean()),
                "clip_t": float(fits[i]),
                "nearest": nearest,
                "likeness": likeness,
                "copied": likeness >= COPIED,
            }
        )
    prompts = range(0, len(pictures), gallery.each)
    spreads = [mean_pairwise_cosine(pictures[i : i + gallery.each]) for i in prompts]
    scores = {
        "dino": mean_known(row["dino"] for row in rows),
        "clip_i": mean_known(row["clip_i"] for row in rows),
        "clip_t": mean_known(row["clip_t"] for row in rows),
        "pres": closeness(gauges.dino, gallery.classes, photos),
        "pres_base": closeness(gauges.dino, gallery.base_classes, photos),
        "div": mean_known(difference(gallery, i, gauges.lpips) for i in prompts),
        "div_dino": mean_known(1 - spread for spread in spreads),
        "copies": mean_known(float(row["copied"]) for row in rows),
        "photos_dino": mean_pairwise_cosine(photos),
        "photos_clip_i": mean_pairwise_cosine(clip_photos),
    }
    return scores, rows


def crossed(a: Features, b: Features) -> Features:
    """The cosine of each row of ``a`` ``(n d)`` with each of ``b`` ``(m d)``: ``(n m)``."""
    return np.stack([cosines(a, np.broadcast_to(row, a.shape)) for row in b], 1)


def closeness(dino: Encoder, classes: Sequence[Image.Image], photos: Features) -> float:
    """PRES: the mean cosine of pictures of the class and photos of the subject; NaN without one."""
    return float(crossed(dino.embed_images(classes), photos).mean()) if classes else math.nan


def difference(gallery: Gallery, start: int, lpips: Lpips | None) -> float:
    """DIV of one prompt; NaN without LPIPS or with one picture."""
    images = gallery.pictures[start : start + gallery.each]
    return lpips.mean_over_pairs(images) if lpips and len(images) > 1 else math.nan
