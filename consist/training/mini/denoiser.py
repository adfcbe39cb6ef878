"""The second half of training `mini`: the words and the denoiser."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from functools import cache
from multiprocessing import get_context
from random import Random

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0
from einops import rearrange
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from consist.mini.architecture import LATENT_SIZE, build_scheduler
from consist.mini.world import GENEROUS, Picture, caption, draw_details
from consist.models.noising import diffuse
from consist.training.mini.autoencoder import Album, picture
from consist.training.mini.session import Session, is_fast_in_half

SUBJECT_WEIGHT = 4.0  # added to 1 on a subject without noise
DETAIL_WEIGHT = 10.0  # and to that on its patterns, accessories and features
DETAIL_SIDE = 4  # pixels per side of a latent, to find those
# a picture of this sort is learned from so many times as often as the plainest; it is hard to draw
PAIRED, PATTERNED, STYLED = 2.6, 1.8, 1.6
UNCONDITIONAL = 0.1  # share of captions emptied, for classifier-free guidance
PHRASE_SAMPLE = 20_000  # captions that tokenizer and phrases are learned from


def captions_of(indices: list[int], rng: Random) -> list[str]:
    """One caption for each of the training pictures of these numbers."""
    return [caption(picture(index), rng) for index in indices]


def tokenize(tokenizer: CLIPTokenizer, captions: list[str], device: torch.device) -> Tensor:
    """Captions to padded token numbers ``(n, l)``."""
    tokens = tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt")
    return tokens.input_ids.to(device)


def phrases_of(text: str) -> set[str]:
    """The words of a caption and the pairs of neighbors among them.

    >>> sorted(phrases_of("a red cat"))
    ['a', 'a red', 'cat', 'red', 'red cat']
    """
    words = text.split()
    return {*words, *(" ".join(pair) for pair in itertools.pairwise(words))}


def train_words(session: Session, tokenizer: CLIPTokenizer, encoder: CLIPTextModel) -> None:
    """Teaches the text encoder to hold a caption in its last token, before it meets pictures.

    From the last token a linear reader must tell which words and pairs of words the caption has
    ("red cat", "blue hat"); real models get the same head start from CLIP.
    """
    sample = captions_of(list(range(PHRASE_SAMPLE)), Random("phrases"))
    phrases = sorted(set().union(*map(phrases_of, sample)))
    column = {phrase: i for i, phrase in enumerate(phrases)}
    reader = nn.Linear(encoder.config.hidden_size, len(phrases)).to(session.device)
    recipe = session.recipe

    def loss(step: int) -> Tensor:
        rng = session.random("words", step)
        indices = [rng.randrange(recipe.pictures) for _ in range(recipe.word_batch)]
        texts = captions_of(indices, rng)
        present = torch.zeros(len(texts), len(phrases), device=session.device)
        for row, text in enumerate(texts):
            present[row, [column[phrase] for phrase in phrases_of(text) if phrase in column]] = 1
        pooled = encoder(tokenize(tokenizer, texts, session.device)).pooler_output
        # most phrases are absent: scaled so that clipping does not slow the start
        return 20 * F.binary_cross_entropy_with_logits(reader(pooled), present)

    modules = {"text_encoder": encoder, "reader": reader}
    session.fit("words", modules, recipe.word_lr, recipe.word_steps, loss)


def train_unet(
    session: Session,
    tokenizer: CLIPTokenizer,
    encoder: CLIPTextModel,
    unet: UNet2DConditionModel,
    latents: Tensor,
    album: Album,
) -> None:
    """Learns to denoise ``latents`` ``(n, c, h, w)``; the text encoder learns along.

    Errors on subjects count more, and most on their details: they cover a sixth of a picture and
    a few of its latents, and are what prompts are about.
    """
    if session.device.type == "cpu":
        use_fast_cpu_attention(unet)
    recipe = session.recipe
    alphas = build_scheduler().alphas_cumprod.to(session.device)

    @cache
    def at_hand() -> tuple[list[Picture], list[float], Tensor, Tensor]:
        # where they are used: on a GPU a step is over before a batch is looked up
        pictures = [picture(index) for index in range(len(latents))]
        shares = list(itertools.accumulate(map(frequency, pictures)))
        extra = extra_weights(album.masks).to(session.device)
        return pictures, shares, latents.to(session.device), extra

    def loss(step: int) -> Tensor:
        pictures, shares, packed, extra = at_hand()
        rng = session.random("unet", step)
        source = session.noise_source(rng)
        indices = rng.choices(range(len(pictures)), cum_weights=shares, k=recipe.unet_batch)
        captions = [caption(pictures[index], rng, GENEROUS) for index in indices]
        texts = [text if rng.random() > UNCONDITIONAL else "" for text in captions]
        clean = packed[indices].float()
        noise = torch.randn(clean.shape, generator=source, device=session.device)
        timesteps = stratified_timesteps(len(indices), len(alphas), source)
        noisy, target = diffuse(clean, noise, alphas[timesteps], "v_prediction")
        weights = faded(extra[indices], alphas[timesteps])
        with session.half_precision():
            context = encoder(tokenize(tokenizer, texts, session.device)).last_hidden_state
            guess = unet(noisy, timesteps, context).sample
        return (weights * (guess.float() - target).square()).mean()

    modules = {"unet": unet, "text_encoder": encoder}
    # PyTorch's Muon orthogonalizes in bfloat16: where that is slow, in four times a step's time
    inner = hidden_weights(unet) if is_fast_in_half(session.device) else []
    muon = [f"unet.{name}" for name in inner]
    session.fit("unet", modules, recipe.unet_lr, recipe.unet_steps, loss, muon)


def frequency(picture: Picture) -> float:
    """How many times as often as the plainest a picture is learned from.

    Pairs, patterns, pencil and pixel art are what `mini` errs on most.
    """
    times = 1.0 if picture.style == "flat" else STYLED
    if len(picture.figures) == 2:
        return PAIRED * times
    return PATTERNED * times if picture.figures[0].identity.pattern_color else times


def hidden_weights(unet: UNet2DConditionModel) -> list[str]:
    """Names of the matrices and kernels that lie between the first layer, the last and the time."""
    outer = ("conv_in", "conv_out", "time_emb")
    return [
        name
        for name, weight in unet.named_parameters()
        if weight.ndim > 1 and not any(part in name for part in outer)
    ]


def use_fast_cpu_attention(unet: UNet2DConditionModel) -> None:
    """Gives short attention the explicit product: in bfloat16 on a CPU it trains 3 times faster."""
    long = ("down_blocks.0", "up_blocks.1")
    unet.set_attn_processor(
        {
            name: AttnProcessor2_0()
            if name.startswith(long) and "attn1" in name
            else AttnProcessor()
            for name in unet.attn_processors
        }
    )


def extra_weights(masks: np.ndarray) -> Tensor:
    """How much more than 1 the error at each latent of the training pictures counts.

    Args:
        masks: Coverage by each figure, ``(n, figures, 2h, 2w)`` in 0..255.

    Returns:
        ``(n, 1, h, w)``, float16.
    """
    numbers = np.array_split(np.arange(len(masks)), 1 + len(masks) // 1000)
    with get_context("spawn").Pool() as pool:
        details = pool.imap(details_of, numbers)
        parts = [
            SUBJECT_WEIGHT * coverage(masks[some]) + DETAIL_WEIGHT * shown
            for some, shown in zip(numbers, map(torch.from_numpy, details), strict=True)
        ]
    return torch.cat(parts)


def coverage(masks: np.ndarray) -> Tensor:
    """How much of each latent ``(n, 1, h, w)`` the figures cover, in 0..1, float16."""
    return F.avg_pool2d(torch.from_numpy(masks.max(1, keepdims=True)).float() / 255, 2).half()


def details_of(numbers: Iterable[int]) -> np.ndarray:
    """How much of each latent of these training pictures is detail: ``(n, 1, h, w)`` in 0..1."""
    side = LATENT_SIZE * DETAIL_SIDE
    drawn = (draw_details(picture(number), side).reduce(DETAIL_SIDE) for number in numbers)
    return np.stack([np.asarray(one, np.float16)[None] / 255 for one in drawn])


def faded(extra: Tensor, alphas_cumprod: Tensor) -> Tensor:
    """How much the error at each latent counts: 1, and what is extra.

    In noise that hides where the figures are, a weight that knows would make them too large, so
    it fades with the signal.

    Args:
        extra: As ``extra_weights`` gives it, ``(n, 1, h, w)``.
        alphas_cumprod: Share of the signal's variance, ``(n,)``.

    Returns:
        ``(n, 1, h, w)``.
    """
    return 1 + extra * rearrange(alphas_cumprod.sqrt(), "n -> n 1 1 1")


def stratified_timesteps(count: int, steps: int, generator: torch.Generator) -> Tensor:
    """``count`` timesteps spread evenly over a density that rises in a line, in random order.

    Words decide where noise is strong: of what a wrong color in the caption adds to the error, 6 %
    is added in the quietest third of the schedule (``scripts/measure/words.py``).
    """
    device = generator.device
    jitter = torch.rand(count, generator=generator, device=device)
    order = torch.randperm(count, generator=generator, device=device)
    return (((order + jitter) / count).sqrt() * steps).long().clamp(max=steps - 1)
