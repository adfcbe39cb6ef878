"""What ``scripts/learn_spectrum.py`` learns: its attention, its distances, that it can learn."""

import math
import runpy
from pathlib import Path

import pytest
import torch
from einops import rearrange

from consist import sharing
from consist.methods.method import Site
from consist.methods.spectral import Shared, Spectral

SCRIPT = Path(__file__).parent.parent / "scripts" / "learn_spectrum.py"
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


def pack(x):
    return rearrange(x, "n h l d -> h (n l) d")


def test_attention_is_that_of_the_package(script, call):
    q, k, v = call
    expected = sharing.attend(q, k, v, bank_of(Shared(strength=3.0), q, k, v))
    found = script["attend"](q, k, v, pack(k), pack(v), torch.tensor(math.log(3.0)))
    torch.testing.assert_close(found, expected)


def test_tokens_outside_the_masks_are_not_seen(script, call):
    q, k, v = call
    subject = torch.rand(N, L, generator=torch.Generator().manual_seed(1)) < 0.3
    target = script["take"](q, k, v, subject).target
    changed = [torch.where(subject[:, None, :, None], x, x + 9) for x in (k, v)]
    weight = torch.where(subject.flatten(), math.log(script["TARGET_STRENGTH"]), -math.inf)
    again = script["attend"](q, k, v, *map(pack, changed), weight)
    torch.testing.assert_close(again, target)


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
    rule = script["Rule"]("identity", "identity")
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
