"""What a denoiser is asked for: the formulas of the papers, finite wherever they are asked."""

import pytest
import torch
from diffusers import DDPMScheduler

from consist.mini.architecture import build_scheduler
from consist.models.noising import PREDICTIONS, diffuse
from consist.training.denoising import min_snr_weights, sample_losses


def random(*shape):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_the_target_gives_the_latents_back(prediction):
    clean, noise = random(2, 3, 4, 4, 4)
    alphas = torch.tensor([0.9, 0.2, 0.5], dtype=torch.float64)
    noisy, target = diffuse(clean, noise, alphas, prediction)
    a = alphas.view(3, 1, 1, 1)
    if prediction == "epsilon":
        found = (noisy - (1 - a).sqrt() * target) / a.sqrt()
    else:
        found = a.sqrt() * noisy - (1 - a).sqrt() * target
    torch.testing.assert_close(found, clean)


def test_noise_and_velocity_are_those_of_diffusers():
    scheduler = DDPMScheduler.from_config(build_scheduler().config)
    clean, noise = random(2, 5, 4, 3, 3).float()
    timesteps = torch.tensor([0, 10, 500, 998, 999])
    alphas = scheduler.alphas_cumprod[timesteps]
    noisy, velocity = diffuse(clean, noise, alphas, "v_prediction")
    torch.testing.assert_close(noisy, scheduler.add_noise(clean, noise, timesteps))
    torch.testing.assert_close(velocity, scheduler.get_velocity(clean, noise, timesteps))


def test_each_sample_has_its_own_error():
    guess, target = random(2, 3, 4, 5, 5).float()
    loop = [float((g - t).square().mean()) for g, t in zip(guess, target, strict=True)]
    torch.testing.assert_close(sample_losses(guess, target), torch.tensor(loop))
    assert sample_losses(guess.half(), target.half()).dtype == torch.float32


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_min_snr_is_the_formula_of_the_paper(prediction):
    alphas = torch.linspace(0.01, 0.999, 50, dtype=torch.float64)
    snr = alphas / (1 - alphas)
    below = snr if prediction == "epsilon" else snr + 1
    expected = torch.minimum(snr, torch.tensor(5.0)) / below
    torch.testing.assert_close(min_snr_weights(alphas, 5.0, prediction), expected)


def test_the_weight_of_v_is_not_that_of_some_scripts():
    """Which add 1 to the whole: 2.0 instead of 0.241 at an SNR of 0.3176."""
    alphas = torch.tensor([0.3176 / 1.3176])
    assert float(min_snr_weights(alphas, 5.0, "v_prediction")) == pytest.approx(0.241, abs=1e-3)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_weights_are_finite_without_any_signal_and_without_any_noise(prediction):
    weights = min_snr_weights(torch.tensor([0.0, 1.0]), 5.0, prediction)
    assert weights.isfinite().all()
    assert weights.tolist() == ([1.0, 0.0] if prediction == "epsilon" else [0.0, 0.0])


def test_unknown_predictions_and_gammas_are_refused():
    one = torch.ones(1, 1, 1, 1)
    with pytest.raises(ValueError, match="one of epsilon, v_prediction, not 'sample'"):
        diffuse(one, one, torch.ones(1), "sample")
    with pytest.raises(ValueError, match="one of epsilon, v_prediction, not 'sample'"):
        min_snr_weights(torch.ones(1), 5.0, "sample")
    with pytest.raises(ValueError, match="more than 0, not 0"):
        min_snr_weights(torch.ones(1), 0.0, "epsilon")
