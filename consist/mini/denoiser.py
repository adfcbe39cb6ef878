"""The second half of training `mini`: the words and the denoiser."""

from __future__ import annotations

import itertools
from random import Random

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0
from einops import rearrange
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from consist.diffusion import diffuse
from consist.mini.architecture import build_scheduler
from consist.mini.autoencoder import Album, picture
from consist.mini.fitting import Session
from consist.mini.world import GENEROUS, caption

SUBJECT_WEIGHT = 4.0  # added to 1 on a subject without noise
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

    Errors on subjects count more: they cover a sixth of a picture and are what prompts are about.
    """
    if session.device.type == "cpu":
        use_fast_cpu_attention(unet)
    recipe = session.recipe
    # all at hand, and where they are used: on a GPU a step is over before a batch is looked up
    pictures = [picture(index) for index in range(len(latents))]
    alphas, latents, covered = (
        x.to(session.device)
        for x in (build_scheduler().alphas_cumprod, latents, coverage(album.masks))
    )

    def loss(step: int) -> Tensor:
        rng = session.random("unet", step)
        source = session.noise_source(rng)
        indices = [rng.randrange(len(latents)) for _ in range(recipe.unet_batch)]
        captions = [caption(pictures[index], rng, GENEROUS) for index in indices]
        texts = [text if rng.random() > UNCONDITIONAL else "" for text in captions]
        clean = latents[indices].float()
        noise = torch.randn(clean.shape, generator=source, device=session.device)
        timesteps = stratified_timesteps(len(indices), len(alphas), source)
        noisy, target = diffuse(clean, noise, alphas[timesteps], "v_prediction")
        weights = subject_weights(covered[indices], alphas[timesteps])
        with session.half_precision():
            context = encoder(tokenize(tokenizer, texts, session.device)).last_hidden_state
            guess = unet(noisy, timesteps, context).sample
        return (weights * (guess.float() - target).square()).mean()

    modules = {"unet": unet, "text_encoder": encoder}
    muon = [f"unet.{name}" for name in hidden_weights(unet)]
    session.fit("unet", modules, recipe.unet_lr, recipe.unet_steps, loss, muon)


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


def coverage(masks: np.ndarray) -> Tensor:
    """How much of each latent the figures cover.

    Args:
        masks: Coverage by each figure, ``(n, figures, 2h, 2w)`` in 0..255.

    Returns:
        ``(n, 1, h, w)`` in 0..1, float16.
    """
    parts = [
        F.avg_pool2d(torch.from_numpy(part.max(1, keepdims=True)).float() / 255, 2).half()
        for part in np.array_split(masks, 1 + len(masks) // 1000)
    ]
    return torch.cat(parts)


def subject_weights(covered: Tensor, alphas_cumprod: Tensor) -> Tensor:
    """How much the error at each latent counts: 1, and more where a figure is.

    In noise that hides where the figures are, a weight that knows would make them too large, so
    it fades with the signal.

    Args:
        covered: As ``coverage`` gives it, ``(n, 1, h, w)``.
        alphas_cumprod: Share of the signal's variance, ``(n,)``.

    Returns:
        ``(n, 1, h, w)``.
    """
    signal = rearrange(alphas_cumprod.sqrt(), "n -> n 1 1 1")
    return 1 + SUBJECT_WEIGHT * signal * covered


def stratified_timesteps(count: int, steps: int, generator: torch.Generator) -> Tensor:
    """One timestep from each of ``count`` equal parts of the schedule, in random order."""
    device = generator.device
    jitter = torch.rand(count, generator=generator, device=device)
    order = torch.randperm(count, generator=generator, device=device)
    return ((order + jitter) * steps / count).long().clamp(max=steps - 1)
