"""The reader: a small network that reads a picture of the mini world back into words.

It finds the subjects and their outlines, and says the scene, the style and every attribute of
identity with calibrated confidence. It is the yardstick of `consist evaluate`; its own error is
measured by ``scripts/check/reader.py``. It must not know prompts, runs or methods.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from einops import einsum, rearrange
from PIL import Image
from safetensors.torch import load
from torch import Tensor, nn

from consist.mini.actions import ACTIONS
from consist.mini.architecture import SIZE
from consist.mini.scenes import SCENES
from consist.mini.styles import STYLES
from consist.mini.subjects import ACCESSORIES, BUILDS, COLORS, HAIRS, PATTERNS, SIZES, SUBJECTS
from consist.models.tensor_files import plain_errors

# what is read off each subject; "none" where the attribute does not apply
ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "color": tuple(COLORS),
    "pattern": PATTERNS,
    "pattern_color": ("none", *COLORS),
    "feature": SIZES,
    "build": tuple(BUILDS),
    "accessory": ACCESSORIES,
    "accessory_color": ("none", *COLORS),
    "hair": ("none", *HAIRS),
    "action": tuple(ACTIONS),
}
# what is read off the whole picture
VIEWS: dict[str, tuple[str, ...]] = {"scene": tuple(SCENES), "style": tuple(STYLES)}
CLASSES = tuple(SUBJECTS)


@dataclass(frozen=True)
class Value:
    """What was read, and how sure the reader is (calibrated probability, 0..1)."""

    name: str
    confidence: float


@dataclass(frozen=True)
class SubjectReading:
    """One subject of a picture."""

    subject: Value  # one of CLASSES
    attributes: dict[str, Value]  # by the keys of ATTRIBUTES
    mask: np.ndarray  # bool (h, w): the pixels it covers


@dataclass(frozen=True)
class Reading:
    """All that was read off one picture."""

    scene: Value
    style: Value
    subjects: tuple[SubjectReading, ...]  # the largest first; none where nothing was found
    features: np.ndarray  # float32 (d,): what pictures are compared by as a whole


HEADS = {"subject": CLASSES, **ATTRIBUTES}
WIDTH = 64  # channels of the map that outlines and attributes are read from
GEOMETRY = 4  # numbers that say where a subject lies
SECOND = 0.2  # of the area that subjects cover, to count as a second subject
SMALLEST = 0.01  # of the picture, to count as a subject at all
WEIGHTS = Path(__file__).parent / "weights" / "reader.safetensors"


class Residual(nn.Module):
    """Two convolutions beside a shortcut."""

    def __init__(self, width: int):
        super().__init__()
        self.layers = nn.Sequential(
            nn.GroupNorm(8, width),
            nn.SiLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.GroupNorm(8, width),
            nn.SiLU(),
            nn.Conv2d(width, width, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Keeps the shape ``(n, width, h, w)``."""
        return x + self.layers(x)


def _stage(before: int, width: int) -> nn.Sequential:
    """Halves the sides."""
    halve = nn.Conv2d(before, width, 3, stride=2, padding=1)
    return nn.Sequential(halve, Residual(width), Residual(width))


# the fine map (n, WIDTH, h/4, w/4), a vector per picture (n, 160 + WIDTH), and the logits of
# background and classes (n, 1 + classes, h/4, w/4)
Look = tuple[Tensor, Tensor, Tensor]


class ReaderNet(nn.Module):
    """The network: outlines by class at a quarter of the size, then attributes under an outline."""

    temperatures: Tensor  # one per head, fitted after training

    def __init__(self) -> None:
        super().__init__()
        self.fine = nn.Sequential(nn.Conv2d(3, 32, 3, stride=2, padding=1), _stage(32, WIDTH))
        self.middle = _stage(WIDTH, 96)
        self.coarse = _stage(96, 160)
        self.to_middle = nn.Conv2d(160, 96, 1)
        self.join_middle = Residual(96)
        self.to_fine = nn.Conv2d(96, WIDTH, 1)
        self.join_fine = Residual(WIDTH)
        self.outlines = nn.Conv2d(WIDTH, 1 + len(CLASSES), 1)
        self.views = nn.Linear(160 + WIDTH, sum(map(len, VIEWS.values())))
        self.attributes = nn.Sequential(
            nn.Linear(2 * WIDTH + 160 + GEOMETRY, 192),
            nn.SiLU(),
            nn.Linear(192, sum(map(len, HEADS.values()))),
        )
        self.register_buffer("temperatures", torch.ones(len(VIEWS) + len(HEADS)))

    def forward(self, pixels: Tensor) -> Look:
        """Looks at pictures ``(n, 3, h, w)`` in -1..1."""
        fine = self.fine(pixels)
        middle = self.middle(fine)
        coarse = self.coarse(middle)
        middle = self.join_middle(middle + _double(self.to_middle(coarse)))
        fine = self.join_fine(fine + _double(self.to_fine(middle)))
        whole = torch.cat([coarse.mean((2, 3)), fine.mean((2, 3))], 1)
        return fine, whole, self.outlines(fine)

    def looks(self, pixels: Tensor) -> list[Look]:
        """What is seen in pictures, and in their mirror images: the world has both."""
        fine, whole, outlines = self(pixels.flip(3))
        return [self(pixels), (fine.flip(3), whole, outlines.flip(3))]

    def view_logits(self, whole: Tensor) -> dict[str, Tensor]:
        """Scene and style, from the vectors of pictures."""
        return _split(self.views(whole), VIEWS)

    def subject_logits(self, fine: Tensor, whole: Tensor, masks: Tensor) -> dict[str, Tensor]:
        """Class and attributes of subjects ``(m, values)`` under their soft masks ``(m, h, w)``."""
        share = masks / masks.sum((1, 2), keepdim=True).clamp_min(1e-6)
        mean = einsum(fine, share, "m c h w, m h w -> m c")
        most = (fine + 20 * (masks[:, None] - 1)).amax((2, 3))
        found = torch.cat([mean, most, whole[:, :160], _geometry(masks)], 1)
        return _split(self.attributes(found), HEADS)


def mean_logits(looks: Iterable[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The mean of each head over all looks."""
    parts = list(looks)
    return {head: torch.stack([part[head] for part in parts]).mean(0) for head in parts[0]}


def _geometry(masks: Tensor) -> Tensor:
    """Where a mask lies and how far it spreads: rows, columns, area ``(m, GEOMETRY)``."""
    h, w = masks.shape[1:]
    share = masks / masks.sum((1, 2), keepdim=True).clamp_min(1e-6)
    y = torch.linspace(-1, 1, h, device=masks.device)
    x = torch.linspace(-1, 1, w, device=masks.device)
    rows, columns = share.sum(2), share.sum(1)
    middle_y, middle_x = rows @ y, columns @ x
    spread_y = ((y - middle_y[:, None]).square() * rows).sum(1).clamp_min(0).sqrt()
    spread_x = ((x - middle_x[:, None]).square() * columns).sum(1).clamp_min(0).sqrt()
    return 2 * torch.stack([middle_y, spread_y, spread_x, masks.mean((1, 2))], 1)


def _double(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2.0, mode="nearest")


def _split(logits: Tensor, heads: Mapping[str, Sequence[str]]) -> dict[str, Tensor]:
    parts = logits.split([len(values) for values in heads.values()], dim=1)
    return dict(zip(heads, parts, strict=True))


class Reader:
    """Reads pictures; see ``load_reader``.

    Args:
        net: The network.
        digest: Tells its weights from others.
    """

    def __init__(self, net: ReaderNet, digest: str = ""):
        self.net = net.eval()
        self.digest = digest

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return self.net.temperatures.device

    @torch.no_grad()
    def read(self, images: Sequence[Image.Image], batch_size: int = 32) -> list[Reading]:
        """Reads square pictures of any size, one ``Reading`` each."""
        return [
            reading
            for start in range(0, len(images), batch_size)
            for reading in self._read(images[start : start + batch_size])
        ]

    @torch.no_grad()
    def features(self, images: Sequence[Image.Image], batch_size: int = 32) -> np.ndarray:
        """What pictures are compared by as a whole, float32 ``(n, d)``."""
        parts = [np.zeros((0, 160 + WIDTH), np.float32)]
        for start in range(0, len(images), batch_size):
            whole = self.net(self._pixels(images[start : start + batch_size]))[1]
            parts.append(whole.float().cpu().numpy())
        return np.concatenate(parts)

    def _pixels(self, images: Sequence[Image.Image]) -> Tensor:
        arrays = [np.asarray(image.convert("RGB").resize((SIZE, SIZE))) for image in images]
        pixels = torch.from_numpy(np.stack(arrays)).to(self.device).float()
        return rearrange(pixels, "n h w c -> n c h w") / 127.5 - 1

    def _read(self, images: Sequence[Image.Image]) -> list[Reading]:
        looks = self.net.looks(self._pixels(images))
        views = self._values(mean_logits(self.net.view_logits(whole) for _, whole, _ in looks), 0)
        outlines = torch.stack([outlines for _, _, outlines in looks]).mean(0)
        found = [find_subjects(one.softmax(0)) for one in outlines]
        owner = [i for i, masks in enumerate(found) for _ in masks]
        subjects: list[dict[str, Value]] = []
        if owner:
            masks = torch.cat([masks for masks in found if len(masks)])
            logits = mean_logits(
                self.net.subject_logits(fine[owner], whole[owner], masks)
                for fine, whole, _ in looks
            )
            subjects = self._values(logits, len(VIEWS))
            sharp = F.interpolate(masks[:, None], images[0].size[::-1], mode="bilinear")[:, 0] > 0.5
        readings = []
        for i, view in enumerate(views):
            own = [
                SubjectReading(values.pop("subject"), values, sharp[j].cpu().numpy())
                for j, values in enumerate(subjects)
                if owner[j] == i
            ]
            features = looks[0][1][i].float().cpu().numpy()
            readings.append(Reading(view["scene"], view["style"], tuple(own), features))
        return readings

    def _values(self, logits: dict[str, Tensor], offset: int) -> list[dict[str, Value]]:
        """The likeliest value of every head, per row."""
        heads = {**VIEWS, **HEADS}
        columns = {}
        for i, (head, values) in enumerate(logits.items()):
            best = (values / self.net.temperatures[offset + i]).softmax(1).max(1)
            pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
            columns[head] = [Value(heads[head][index], value) for index, value in pairs]
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def find_subjects(probabilities: Tensor) -> Tensor:
    """Splits a picture into at most two subjects.

    Args:
        probabilities: Of background and classes, ``(1 + classes, h, w)``.

    Returns:
        Soft masks ``(0..2, h, w)``, the largest first.
    """
    inside = 1 - probabilities[0]
    kind = probabilities[1:].argmax(0)[inside > 0.5]
    areas = torch.bincount(kind, minlength=len(probabilities) - 1).float()
    order = areas.argsort(descending=True)[:2]
    total, cells = float(areas.sum()), inside.numel()
    if total < SMALLEST * cells:
        return inside.new_zeros(0, *inside.shape)
    if float(areas[order[1]]) < max(SECOND * total, SMALLEST * cells):
        return inside[None]
    pair = probabilities[1 + order]
    return inside * pair / pair.sum(0).clamp_min(1e-6)


def load_reader(device: torch.device | str = "cpu", path: Path = WEIGHTS) -> Reader:
    """The reader that the package carries, or another of the same make.

    Raises:
        ConsistError: The file is missing or no reader.
    """
    net = ReaderNet()
    with plain_errors(path, "{name} holds no reader: {reason}"):
        data = path.read_bytes()
        net.load_state_dict(load(data))
    return Reader(net.float().to(device), hashlib.sha256(data).hexdigest()[:12])
