"""What ``scripts/ablate/learn_spectrum.py`` learns: its target and its distances."""

import runpy
from pathlib import Path

import pytest
import torch

from consist.attention import bank as sharing
from consist.attention.bank import keep_tokens
from consist.attention.method import Site
from consist.methods.shared import Shared
from consist.methods.spectral import Spectral

SCRIPT = Path(__file__).parents[2] / "scripts" / "ablate" / "learn_spectrum.py"
LAYER = "up_blocks.0.attentions.1.transformer_blocks.0.attn1"
N, H, L, D = 3, 2, 16, 8


@pytest.fixture(scope="module")
def script():
    return runpy.run_path(str(SCRIPT))


@pytest.fixture
def call():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(3, N, H, L, D, generator=generator).unbind()


def bank_of(method, q, k, v):
    return method(q, k, v, Site(layer=LAYER, height=4, width=4, progress=0.5, g=1, n=N))


def test_the_target_is_attention_to_subjects_alone(script, call):
    q, k, v = call
    subject = torch.rand(N, L, generator=torch.Generator().manual_seed(1)) < 0.3
    target = script["take"](q, k, v, subject).target
    strength = script["TARGET_STRENGTH"]
    bank = keep_tokens(bank_of(Shared(strength=strength), q, k, v), subject.flatten())
    torch.testing.assert_close(target, sharing.attend(q, k, v, bank))


@pytest.mark.parametrize(("keys", "values"), [("energy:0.8", "log"), ("count:2", "identity")])
def test_rules_are_those_of_the_package(script, call, keys, values):
    q, k, v = call
    sample = script["take"](q, k, v, torch.ones(N, L, dtype=torch.bool))
    rule = script["Rule"](keys, values)
    method = Spectral(keys=keys, values=values, solver="exact")
    found = sharing.attend(q, k, v, bank_of(method, q, k, v))
    expected = float((found - sample.target).square().sum())
    assert script["judge"](rule, [sample]) * sample.alone == pytest.approx(expected, rel=1e-4)


def test_learned_weights_draw_what_was_learned(script, call):
    q, k, v = call
    sample = script["take"](q, k, v, torch.ones(N, L, dtype=torch.bool))
    weights = script["Weights"](D, True, True)
    script["learn"](weights, [sample], 5)
    bank = bank_of(script["Learned"](weights={LAYER: weights}), q, k, v)
    apart = float((sharing.attend(q, k, v, bank) - sample.target).square().sum())
    assert script["judge"](weights, [sample]) * sample.alone == pytest.approx(apart, rel=1e-3)


def test_a_strength_is_found(script, call):
    """Where the subject is everywhere, the target is sharing at the target's strength."""
    sample = script["take"](*call, torch.ones(N, L, dtype=torch.bool))
    rule = script["Weights"](D, False, False)
    assert script["judge"](rule, [sample]) > 0.02
    script["learn"](rule, [sample], 300)
    assert script["judge"](rule, [sample]) < 1e-3
    assert float(rule.log_strength.detach().exp()) == pytest.approx(
        script["TARGET_STRENGTH"], rel=0.05
    )


def test_what_is_not_learned_stays(script, call):
    sample = script["take"](*call, torch.rand(N, L) < 0.5)
    weights = script["Weights"](D, True, False)
    script["learn"](weights, [sample], 3)
    keys, values = weights.gains()
    assert not torch.equal(keys, torch.ones(D))
    assert torch.equal(values, torch.ones(D))
