"""The benchmark's models of full size have the architecture of their names."""

import runpy
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel

SCRIPT = Path(__file__).parents[2] / "scripts" / "bench" / "batch.py"


# as their checkpoints have it: stable-diffusion-v1-5, stable-diffusion-xl-base-1.0
@pytest.mark.slow
@pytest.mark.parametrize(("name", "count"), [("SD15", 859_520_964), ("SDXL", 2_567_463_684)])
def test_unets_have_as_many_parameters_as_those_that_are_published(name, count):
    bench = runpy.run_path(str(SCRIPT), run_name="bench_batch")
    with torch.device("meta"):
        unet = UNet2DConditionModel(**bench[name])
    assert sum(weight.numel() for weight in unet.parameters()) == count
