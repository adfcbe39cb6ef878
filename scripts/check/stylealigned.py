"""How far StyleAligned is from the pipeline of diffusers' community, which follows its authors.

    python scripts/check/stylealigned.py pipeline_sdxl_style_aligned.py

The file is examples/community/pipeline_sdxl_style_aligned.py of huggingface/diffusers, as of
commit 6034cde; download it first. It runs as it is. Both draw the same prompts from the same noise
with a tiny SDXL of random weights, in float64. The shared norms, which are no part of
``StyleAligned``, are off.

One difference is known: the pipeline divides variances by one less than the tokens, which cancels
but for the eps that is added to them. So the latents are compared twice: as ``StyleAligned`` is,
where they may differ by little, and with the eps that makes up for it, where nothing but rounding
may be left. Beside both stands how far sharing moves the latents.

Exits with 0 if the two agree, with 1 if they do not, and with 2 if the file cannot be run.
"""

from __future__ import annotations

import argparse
import importlib.util
import math
from pathlib import Path
from types import ModuleType

import diffusers
import torch
from diffusers import DDIMScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from einops import rearrange
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

import consist
from consist.attention.method import Site
from consist.methods.stylealigned import adain
from consist.mini.architecture import build_tokenizer

CLASS = "StyleAlignedSDXLPipeline"
PROMPTS = ["a cat in paris", "a red bus on the moon", "a house on a beach"]
# scale and shift: for pictures, two that StyleAligned's authors give for other uses, and one more
SETTINGS = ((1.0, 0.0), (0.5, 0.0), (1.0, math.log(2)), (1.5, -1.0))
EPS = 1e-5  # of the pipeline
# shares of how far sharing moves the latents; a bank's log-weights are float32
CLOSE, SAME = 1e-5, 1e-6
WIDTH = 32


class Unbiased(consist.StyleAligned):
    """With the eps that gives what variances divided by one less than the tokens would."""

    def rewrite(self, q: Tensor, k: Tensor, v: Tensor, site: Site) -> tuple[Tensor, Tensor, Tensor]:
        """As ``StyleAligned`` does."""
        eps = EPS * (q.shape[2] - 1) / q.shape[2]
        split = (rearrange(x, "(g n) h l d -> n g h l d", n=site.n) for x in (q, k))
        q, k = (rearrange(adain(x, x[0], eps), "n g h l d -> (g n) h l d") for x in split)
        return q, k, v


def build_pipe() -> StableDiffusionXLPipeline:
    """SDXL in small, with attention in all blocks and without a VAE."""
    torch.manual_seed(0)
    tokenizer = build_tokenizer([])  # knows letters only
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=tokenizer.model_max_length,
        projection_dim=WIDTH,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(32, 64),
        down_block_types=("CrossAttnDownBlock2D",) * 2,
        up_block_types=("CrossAttnUpBlock2D",) * 2,
        layers_per_block=1,
        attention_head_dim=(2, 4),
        cross_attention_dim=2 * WIDTH,
        norm_num_groups=8,
        use_linear_projection=True,
        transformer_layers_per_block=(1, 2),
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + WIDTH,
    )
    pipe = StableDiffusionXLPipeline(
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        text_encoder=CLIPTextModel(text).eval(),
        text_encoder_2=CLIPTextModelWithProjection(text).eval(),
        vae=None,
        unet=unet.eval(),
        scheduler=DDIMScheduler(clip_sample=False, steps_offset=1),
        add_watermarker=False,
    )
    return pipe.to(torch.float64)


def load_module(path: Path) -> ModuleType:
    """Runs a file of Python and gives what it defines."""
    spec = importlib.util.spec_from_file_location("community", path)
    if spec is None or spec.loader is None:
        raise ImportError("it is no file of Python")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def draw(pipe, steps: int) -> Tensor:
    """Latents ``n c height width`` with classifier-free guidance."""
    shape = (len(PROMPTS), pipe.unet.config.in_channels, 8, 8)
    generator = torch.Generator().manual_seed(1)
    pipe.set_progress_bar_config(disable=True)
    return pipe(
        PROMPTS,
        negative_prompt=["a beach", "", "a moon"],
        latents=torch.randn(shape, generator=generator, dtype=torch.float64),
        num_inference_steps=steps,
        guidance_scale=5.0,
        output_type="latent",
    ).images


def draw_ours(pipe: StableDiffusionXLPipeline, method, steps: int) -> Tensor:
    """Latents of a method of ours."""
    with consist.shared_attention(pipe, method):
        return draw(pipe, steps)


def draw_theirs(kind: type, pipe: StableDiffusionXLPipeline, scale, shift, steps: int) -> Tensor:
    """Latents of the community pipeline ``kind``, whose models are those of ``pipe``."""
    community = kind(**pipe.components, add_watermarker=False)
    community.enable_style_aligned(
        share_group_norm=False,
        share_layer_norm=False,
        shared_score_scale=scale,
        shared_score_shift=shift,
    )
    try:
        return draw(community, steps)
    finally:
        community.disable_style_aligned()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", type=Path, help="pipeline_sdxl_style_aligned.py")
    parser.add_argument("--steps", type=int, default=4)
    args = parser.parse_args()
    if not args.file.is_file():
        parser.error(f"{args.file} is no file; download the one that --help names")
    pipe = build_pipe()
    try:
        kind = getattr(load_module(args.file), CLASS)
        # nothing is compared yet: an error that comes later is no fault of the file
        draw_theirs(kind, pipe, 1.0, 0.0, steps=1)
    except (ImportError, AttributeError, SyntaxError, TypeError) as error:
        parser.error(
            f"{args.file} does not run with diffusers {diffusers.__version__} ({error}); "
            "take it as of commit 6034cde, which is known to run with 0.42.1"
        )

    alone = draw_ours(pipe, consist.Isolated(), args.steps)
    agreed = True
    print("largest difference of latents")
    print("scale  shift  by sharing    as it is  with their eps")
    for scale, shift in SETTINGS:
        theirs = draw_theirs(kind, pipe, scale, shift, args.steps)
        fields = {"scale": scale, "strength": math.exp(shift)}
        moved, close, same = (
            float((theirs - x).abs().max())
            for x in (
                alone,
                draw_ours(pipe, consist.StyleAligned(**fields), args.steps),
                draw_ours(pipe, Unbiased(**fields), args.steps),
            )
        )
        print(f"{scale:5.1f}  {shift:5.2f}  {moved:10.1e}  {close:10.1e}  {same:14.1e}")
        agreed &= close < CLOSE * moved and same < SAME * moved
    print("they agree" if agreed else "they do not agree")
    raise SystemExit(not agreed)


if __name__ == "__main__":
    main()
