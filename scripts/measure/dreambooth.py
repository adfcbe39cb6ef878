"""DreamBooth's protocol: a training for each of its subjects, 25 prompts, DINO, CLIP-I, CLIP-T.

    python scripts/measure/dreambooth.py FOLDER \\
        --model stable-diffusion-v1-5/stable-diffusion-v1-5 --kind dreambooth --prior images

FOLDER is a clone of google/dreambooth, or one of your own with prompts_and_classes.txt and a folder
of photos for each subject. The paper (arXiv:2208.12242, section 4.1) has 4 pictures of each prompt
and leaves much open: what was chosen stands in summary.json, and every picture in images.csv. Run
again to go on; with --shard several machines share the subjects.

Means are over subjects. PRES is to be compared with that of the base model, and DINO and CLIP-I
with those between the photos; both reward copies, which are counted apart.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from learning.dreambooth import Subject, load_subjects
from learning.evaluation import (
    CLASS_IMAGES,
    IMAGES,
    Protocol,
    finished,
    measure_subject,
    summarize,
    write_summary,
)
from learning.fidelity import FIDELITY, Gauges
from learning.learners import Learner
from learning.lpips import BACKBONES, load_lpips
from rich.table import Table

from consist.cli.console import err, hide_loading_bars, out, say
from consist.errors import ConsistError, unknown
from consist.evaluation.encoder_loading import DINO_MODEL, load_clip, load_dino
from consist.models.devices import describe, pick_device
from consist.runs.many.worklist import take_shard
from consist.training.config import KINDS, LORA, NO_PRIOR, PRIORS, TrainConfig
from consist.training.rare_words import Tokenizers

CLIP = "openai/clip-vit-base-patch32"  # the paper does not say which; most take this one


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("folder", type=Path, help="with prompts_and_classes.txt and the photos of subjects")
    add("--model", required=True, help="hub id, folder or .safetensors file")
    add("--kind", choices=KINDS, default=LORA, help="of training")
    add("--prior", choices=PRIORS, default=NO_PRIOR, help="what keeps the class as it was")
    add("--set", nargs="+", default=[], metavar="NAME=VALUE", help="of training, such as rank=8")
    add("--identifier", help="by default the rarest word that the tokenizer has whole")
    add("--images", type=int, default=IMAGES, help="of each prompt")
    add("--class-images", type=int, default=CLASS_IMAGES, help="for PRES")
    add("--keep-identifier", action="store_true", help="in the prompts of CLIP-T")
    for name, kind in (
        ("steps", int),
        ("guidance", float),
        ("scheduler", str),
        ("batch-size", int),
    ):
        add(f"--{name}", type=kind, help="of drawing, as in consist batch")
    add("--dino", default=DINO_MODEL, help="hub id or folder")
    add("--clip", default=CLIP, help="hub id or folder")
    add("--lpips", choices=BACKBONES, help="for DIV; needs the packages lpips and torchvision")
    add("--only", nargs="+", default=[], metavar="NAME", help="subjects")
    add("--shard", default="1/1", help="measure part I of N of the subjects only, as I/N")
    add("--seed", type=int, default=0)
    add("--device", default="auto", help="auto, cuda, mps or cpu")
    add("--dtype", help="of drawing, as in consist batch")
    add("--discard", action="store_true", help="remove what was trained once it is measured")
    add("--out", type=Path, default=Path("runs/dreambooth"), help="folder of all work, to resume")
    options = parser.parse_args()
    for library in ("TRANSFORMERS", "DIFFUSERS"):
        os.environ.setdefault(f"{library}_VERBOSITY", "error")
    hide_loading_bars()
    try:
        answer(options)
    except ConsistError as error:
        parser.exit(2, f"error: {error}\n")
    except KeyboardInterrupt:
        parser.exit(130, "stopped. What is finished is kept; the same command continues.\n")


def answer(options: argparse.Namespace) -> None:
    subjects = choose(load_subjects(options.folder), options.only)
    protocol = plan(options)
    for subject in take_shard(subjects, options.shard):
        measure_subject(subject, protocol, lambda text: say(text, err))
    found = finished(subjects, protocol)
    facts = {"hardware": describe(pick_device(options.device)), "subjects_of": options.folder.name}
    show(summarize(found))
    for path in write_summary(found, protocol, facts):
        say(str(path))


def choose(subjects: Sequence[Subject], names: Sequence[str]) -> list[Subject]:
    for name in names:
        if name not in (known := [one.name for one in subjects]):
            raise ConsistError(unknown("subject", name, known))
    return [one for one in subjects if not names or one.name in names]


def plan(options: argparse.Namespace) -> Protocol:
    place = str(pick_device(options.device))
    settings = {"prior": options.prior} if options.prior != NO_PRIOR else {}
    drawing = {name: getattr(options, name) for name in ("steps", "guidance", "scheduler", "dtype")}
    name = options.kind if options.prior == NO_PRIOR else f"{options.kind} {options.prior}"
    return Protocol(
        out=options.out,
        learner=Learner(name=name, kind=options.kind, settings=settings),
        gauges=Gauges(
            dino=load_dino(options.dino, place, cropped=True),
            clip=load_clip(options.clip, place),
            lpips=load_lpips(options.lpips, place) if options.lpips else None,
        ),
        identifier=options.identifier or Tokenizers.load(options.model).find(1)[0].word,
        model=options.model,
        images=options.images,
        class_images=options.class_images,
        keep_identifier=options.keep_identifier,
        training=dict(map(read_field, options.set)),
        drawing={name: value for name, value in drawing.items() if value is not None},
        seed=options.seed,
        device=options.device,
        batch_size=options.batch_size,
        discard=options.discard,
    )


def read_field(text: str) -> tuple[str, Any]:
    """A field of TrainConfig, such as ``rank=8``.

    Raises:
        ConsistError: It is something else.
    """
    name, equals, value = text.partition("=")
    known = [field.name for field in dataclasses.fields(TrainConfig)]
    if not equals or name not in known:
        raise ConsistError(f"{unknown('field of training', name, known)}; give NAME=VALUE")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def show(summary: dict[str, dict[str, Any]]) -> None:
    """Means over subjects, with their intervals."""
    table = Table("score", "", "mean", "95 %", "subjects", box=None)
    for name, found in summary.items():
        value, low, high, count = found["macro"]
        if count:
            score = FIDELITY[name]
            spread = f"{low:.3f} {high:.3f}" if count > 1 else ""
            table.add_row(score.title, score.meaning, f"{value:.3f}", spread, str(count))
    out.print(table)


if __name__ == "__main__":
    main()
