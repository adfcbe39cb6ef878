"""Judges pictures by the encoders that the user names, as the published tables do."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from consist.errors import ConsistError
from consist.evaluation.crops import split_images
from consist.evaluation.encoders import ClipEncoder, Encoder, Segmenter
from consist.evaluation.judges.judge import Row, RowScores
from consist.evaluation.metrics import mean_pairwise_cosine, mean_pairwise_distance


@dataclass(frozen=True, kw_only=True)
class EmbeddingJudge:
    """CLIP-T, and the similarity of pictures to each other, whole or split into two parts.

    The parts are the subject with the background replaced by noise, and the reverse.
    """

    clip: ClipEncoder | None = None  # for CLIP-T
    clip_i: ClipEncoder | None = None
    dino: Encoder | None = None
    dreamsim: Encoder | None = None
    segmenter: Segmenter | None = None

    def score(self, row: Row) -> RowScores:
        """Measures one row.

        Raises:
            ConsistError: There is a segmenter, and no noun for it.
        """
        parts = dict(self._parts(row))
        scores = {
            f"{name}{part}": measure(encoder.embed_images(images))
            for name, encoder, measure in (
                ("clip_i", self.clip_i, mean_pairwise_cosine),
                ("dino", self.dino, mean_pairwise_cosine),
                ("dreamsim", self.dreamsim, mean_pairwise_distance),
            )
            if encoder
            for part, images in parts.items()
        }
        if not self.clip:
            return RowScores(scores, [{} for _ in row.images])
        fits = self.clip.score_prompts(row.images, row.prompts)
        scores["clip_t"] = float(fits.mean())
        return RowScores(scores, [{"clip_t": round(float(fit), 4)} for fit in fits])

    def choices(self, prompts: Sequence[str]) -> dict[str, Any]:
        """The checkpoints, and how each prepares pictures."""
        named = {
            "clip_t": self.clip,
            "clip_i": self.clip_i,
            "dino": self.dino,
            "dreamsim": self.dreamsim,
            "segmenter": self.segmenter,
        }
        return {name: encoder.choices() for name, encoder in named.items() if encoder}

    def _parts(self, row: Row) -> Iterator[tuple[str, Sequence[Image.Image]]]:
        """The pictures by the ending of the scores that they give."""
        yield "", row.images
        if self.segmenter:
            if not row.noun:
                raise ConsistError("a segmenter needs to know what to find; give --subject")
            masks = self.segmenter.find(row.images, row.noun)
            foregrounds, backgrounds = split_images(row.images, masks)
            yield "_foreground", foregrounds
            yield "_background", backgrounds
