"""How far the fast spectral maps are from the exact ones: in the map, and in the picture.

    python scripts/check/solver.py                # mini, 4 images
    python scripts/check/solver.py --keys log --values energy:0.9

The same noise is drawn with both solvers. Beside the difference of their pictures stands that of
sharing against not sharing, which tells how much of it the eye could see.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor

import consist
from consist.methods import spectral
from consist.models.devices import pick_device
from consist.models.loading import load
from consist.spectra.decomposition import Solver, solve_exactly
from consist.spectra.rules import Spectrum

PLACES = ("in paris", "on the moon", "in a forest", "on a beach")


def draw(pipe, method, steps: int) -> Tensor:
    """Pictures ``n c height width`` in [0, 1]."""
    size = pipe.unet.config.sample_size
    shape = (len(PLACES), pipe.unet.config.in_channels, size, size)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    prompts = [f"a cat {place}" for place in PLACES]
    with consist.shared_attention(pipe, method):
        out = pipe(
            prompts,
            latents=noise.to(pipe.unet.device, pipe.unet.dtype),
            num_inference_steps=steps,
            output_type="pt",
        )
    return out.images.float().cpu()


def record(errors: dict[str, list[float]]):
    """A ``find_solver`` whose solvers also solve exactly, and note how far they are from that."""
    find = spectral.find_solver

    def find_and_compare(name: str, text: str, *others) -> Solver:
        solve = find(name, text, *others)

        def compare(gram: Tensor, spectrum: Spectrum, beta: float) -> Tensor:
            found, exact = (x(gram, spectrum, beta) for x in (solve, solve_exactly))
            # |A (M - N)|^2 = tr (M - N) G (M - N)
            off, size = ((x @ gram * x).sum((-2, -1)) for x in (found - exact, exact))
            errors.setdefault(text, []).extend((off / size).clamp_min(0).sqrt().flatten().tolist())
            return found

        return compare

    return find_and_compare


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    defaults = consist.Spectral()
    parser.add_argument("--keys", default=defaults.keys)
    parser.add_argument("--values", default=defaults.values)
    parser.add_argument("--model", default="mini")
    parser.add_argument("--steps", type=int, default=10)
    args = parser.parse_args()
    pipe = load(args.model, str(pick_device("auto"))).pipe
    spectra = {"keys": args.keys, "values": args.values}

    isolated = draw(pipe, consist.Isolated(), args.steps)
    exact = draw(pipe, consist.Spectral(solver="exact", **spectra), args.steps)
    errors: dict[str, list[float]] = {}
    spectral.find_solver = record(errors)
    fast = draw(pipe, consist.Spectral(solver="fast", **spectra), args.steps)

    print("relative error of reweighted tokens, over all heads, layers and steps")
    for text, values in errors.items():
        x = torch.tensor(values)
        shares = ", ".join(f"{q:.0%}: {x.quantile(q):.1e}" for q in (0.5, 0.9, 1.0))
        print(f"  {text:>16}  {shares}")
    print("mean difference of pictures, in levels of 255")
    for label, other in (("fast and exact", fast), ("isolated and exact", isolated)):
        levels = 255 * (other - exact).abs().mean((1, 2, 3))
        print(f"  {label:>20}  " + "  ".join(f"{level:.2f}" for level in levels))


if __name__ == "__main__":
    main()
