"""What measures pictures: the reader of the mini world, and encoders that the user names."""

from importlib.util import find_spec

from consist.errors import ConsistError
from consist.evaluation.encoder_loading import (
    load_clip,
    load_dino,
    load_dreamsim,
    load_efficientnet,
    load_segmenter,
)
from consist.evaluation.judges.by_encoder import EmbeddingJudge
from consist.evaluation.judges.by_reader import ReadingJudge
from consist.evaluation.judges.judge import Judge
from consist.mini.reader import load_reader
from consist.models.devices import pick_device


def load_judges(
    *,
    reader: bool,
    clip: str | None = None,
    clip_i: str | None = None,
    dino: str | None = None,
    dreamsim: str | None = None,
    segmenter: str | None = None,
    device: str = "auto",
) -> list[Judge]:
    """Loads what shall measure: the reader, and encoders by their checkpoints.

    EfficientNet checks the reader's word on identity where the extra `eval` is installed.

    Raises:
        ConsistError: Nothing was named, or something cannot be loaded.
    """
    if segmenter and not any((clip_i, dino, dreamsim)):
        raise ConsistError("a segmenter needs an encoder: give --clip-i, --dino or --dreamsim too")
    place = str(pick_device(device))
    judges: list[Judge] = []
    if reader:
        extra = find_spec("efficientnet_lite_pytorch")
        judges.append(ReadingJudge(load_reader(place), load_efficientnet(place) if extra else None))
    if any((clip, clip_i, dino, dreamsim)):
        judges.append(
            EmbeddingJudge(
                clip=load_clip(clip, place) if clip else None,
                clip_i=load_clip(clip_i, place) if clip_i else None,
                dino=load_dino(dino, place) if dino else None,
                dreamsim=load_dreamsim(dreamsim, place) if dreamsim else None,
                segmenter=load_segmenter(segmenter, place) if segmenter else None,
            )
        )
    if not judges:
        raise ConsistError(
            "there is nothing to measure with; name an encoder, such as "
            "--clip openai/clip-vit-base-patch32, or give --reader for pictures of the mini world"
        )
    return judges
