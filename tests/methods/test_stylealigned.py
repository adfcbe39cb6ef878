"""Alignment with a reference: its statistics, the attention to it, and the seam that rewrites."""

import math

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor2_0

import consist
from consist.attention import bank as sharing
from consist.attention.method import Method, Site
from consist.methods import build
from consist.methods.stylealigned import adain

LAYER = "up_blocks.0.attentions.1.transformer_blocks.0.attn1"
G, N, H, ROWS, COLUMNS, D = 2, 3, 2, 3, 4, 4
L = ROWS * COLUMNS
EPS = 1e-5


def draw_batch(n=N):
    """Images that differ in the means and deviations of their channels."""
    generator = torch.Generator().manual_seed(0)
    noise, spread, mean = (
        torch.randn(3, G * n, H, length, D, generator=generator, dtype=torch.float64)
        for length in (L, 1, 1)
    )
    return noise * spread.exp() + mean


def site(**changes):
    fields = {"layer": LAYER, "height": ROWS, "width": COLUMNS, "progress": 0.5, "g": G, "n": N}
    return Site(**{**fields, "seed": 7, **changes})


def attend(method, q, k, v, **changes):
    place = site(**changes)
    q, k, v = method.rewrite(q, k, v, place)
    return sharing.attend(q, k, v, method(q, k, v, place))


def adain_by_hand(x, reference):
    """The equation, channel by channel, of two lists of tokens ``(l, d)``."""
    columns = []
    for channel in range(x.shape[1]):
        own, wanted = x[:, channel].tolist(), reference[:, channel].tolist()
        moments = []
        for values in (own, wanted):
            mean = math.fsum(values) / len(values)
            variance = math.fsum((value - mean) ** 2 for value in values) / len(values)
            moments.append((mean, math.sqrt(variance + EPS)))
        (mean, deviation), (center, spread) = moments
        columns.append([spread * (value - mean) / deviation + center for value in own])
    return torch.tensor(columns, dtype=torch.float64).T


def attend_by_hand(q, k, v, n, scale, shift):
    """StyleAligned for q, k, v ``(g n) h l d``, image by image and head by head."""
    out = torch.empty_like(q)
    for row in range(len(q)):
        first = row - row % n
        for h in range(q.shape[1]):
            query, keys = (adain_by_hand(x[row, h], x[first, h]) for x in (q, k))
            logits, values = query @ keys.T / math.sqrt(q.shape[-1]), v[row, h]
            if row != first:
                shown = query @ (scale * k[first, h]).T / math.sqrt(q.shape[-1]) + shift
                logits, values = torch.cat((logits, shown), 1), torch.cat((values, v[first, h]))
            out[row, h] = logits.softmax(-1) @ values
    return out


# identity


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_what_is_its_own_reference_stays_as_it_is(dtype):
    x = (draw_batch()[0] * 30).to(dtype)
    x[0, 0, :, 0] = 5
    assert torch.equal(adain(x, x), x)


def test_one_image_stays_as_it_is():
    batch, method = draw_batch(n=1), consist.StyleAligned()
    assert all(
        torch.equal(x, y) for x, y in zip(method.rewrite(*batch, site(n=1)), batch, strict=True)
    )
    assert method(*batch, site(n=1)) is None


def test_the_reference_is_drawn_as_if_alone():
    batch = draw_batch()
    found, plain = attend(consist.StyleAligned(scale=0.5, strength=2.0), *batch), sharing.attend
    for row in (0, N):
        assert torch.equal(found[row], plain(*(x[row : row + 1] for x in batch))[0])


# oracle


def test_adain_is_that_of_a_loop():
    x, reference = draw_batch()[0], draw_batch()[1][:1, :, :7]
    found = adain(x, reference)
    for row in range(len(x)):
        for h in range(H):
            expected = adain_by_hand(x[row, h], reference[0, h])
            torch.testing.assert_close(found[row, h], expected)


@pytest.mark.parametrize(("scale", "shift"), [(1.0, 0.0), (0.5, 0.0), (1.0, 0.7), (1.5, -1.0)])
def test_style_aligned_is_the_attention_of_the_paper(scale, shift):
    batch = draw_batch()
    method = consist.StyleAligned(scale=scale, strength=math.exp(shift))
    expected = attend_by_hand(*batch, N, scale, shift)
    # the bias of a bank is float32
    torch.testing.assert_close(attend(method, *batch), expected, rtol=1e-6, atol=1e-6)


class ByHand(AttnProcessor2_0):
    """The loop above in place of a whole layer."""

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, *args, **kwargs):
        heads = (
            project(hidden_states).unflatten(-1, (attn.heads, -1)).transpose(1, 2).double()
            for project in (attn.to_q, attn.to_k, attn.to_v)
        )
        found = attend_by_hand(*heads, 2, 0.7, math.log(2)).float()
        return attn.to_out[0](found.transpose(1, 2).flatten(2))


def forward(unet, n=2):
    generator = torch.Generator().manual_seed(5)
    sample = torch.randn(2 * n, 4, 8, 8, generator=generator)
    text = torch.randn(2 * n, 7, 32, generator=generator)
    with torch.no_grad():
        return unet(sample, 500, text).sample


def test_a_unet_is_that_of_the_loop(unet):
    processors = dict(unet.attn_processors)
    own = {name: ByHand() if "attn1" in name else p for name, p in processors.items()}
    unet.set_attn_processor(own)
    try:
        expected = forward(unet)
    finally:
        unet.set_attn_processor(dict(processors))
    method = consist.StyleAligned(scale=0.7, strength=2.0)
    with consist.shared_attention(unet, method, guidance_halves=2):
        torch.testing.assert_close(forward(unet), expected, rtol=1e-4, atol=1e-4)


# property


def test_statistics_are_those_of_the_reference_and_values_are_left_alone():
    batch = draw_batch()
    q, k, v = consist.StyleAligned().rewrite(*batch, site())
    assert torch.equal(v, batch[2])
    for x, before in ((q, batch[0]), (k, batch[1])):
        for row in range(G * N):
            reference = before[row - row % N]
            torch.testing.assert_close(x[row].mean(-2), reference.mean(-2))
            torch.testing.assert_close(x[row].std(-2), reference.std(-2), rtol=1e-3, atol=1e-3)


def test_guidance_halves_are_never_mixed():
    batch, method = draw_batch(), consist.StyleAligned()
    before = attend(method, *batch)
    changed = batch.clone()
    changed[:, :N] *= 3
    after = attend(method, *changed)
    assert torch.equal(after[N:], before[N:])
    assert not torch.isclose(after[:N], before[:N]).all((1, 2, 3)).any()


def test_an_image_knows_the_reference_and_none_of_the_others():
    batch, method = draw_batch(), consist.StyleAligned()
    before = attend(method, *batch)
    for changed_image, untouched in ((2, [0, 1]), (0, [])):
        changed = batch.clone()
        changed[:, changed_image] += 1 + changed[:, changed_image] ** 2
        same = (attend(method, *changed) == before)[:N].all((1, 2, 3))
        assert same.nonzero()[:, 0].tolist() == untouched


def test_input_is_never_changed():
    batch = draw_batch()
    before = batch.clone()
    attend(consist.StyleAligned(scale=0.5, strength=2.0), *batch)
    assert torch.equal(batch, before)


def test_nothing_is_rewritten_or_shared_outside_the_window():
    batch, method = draw_batch(), consist.StyleAligned(window=(0.2, 0.5))
    for progress in (0.1, 0.2, 0.4, 0.5, 0.9):
        place = site(progress=progress)
        kept = all(map(torch.equal, method.rewrite(*batch, place), batch))
        assert kept == (method(*batch, place) is None) == (progress not in (0.2, 0.4))


def test_a_channel_without_variance_stays_finite():
    x = torch.zeros(3, 1, L, D, dtype=torch.float16)
    assert adain(x, x[:1] + torch.randn(1, 1, L, D).half()).isfinite().all()


def test_half_precision_is_computed_in_float32():
    x, reference = (x.half() for x in draw_batch()[:2])
    expected = adain(x.float(), reference.float())
    found = adain(x, reference)
    assert found.dtype == torch.float16
    torch.testing.assert_close(found, expected.half(), rtol=0, atol=0)


def test_all_layers_are_covered(unet):
    layers = [name for name in unet.attn_processors if "attn1" in name]
    assert len(layers) == 7
    assert all(consist.StyleAligned().covers(layer) for layer in layers)


def test_is_made_from_texts():
    expected = consist.StyleAligned(scale=0.5, strength=2.0)
    assert build({"name": "stylealigned", "scale": "0.5", "strength": "2.0"}) == expected
    assert expected.anchor_count(5) == 1


# the seam


class Silent(Method):
    """Rewrites values to 0, shares nothing, and remembers the values that it was asked about."""

    def __init__(self):
        self.values = []

    def rewrite(self, q, k, v, site):
        return q, k, torch.zeros_like(v)

    def __call__(self, q, k, v, site):
        self.values.append(v)


def test_what_is_rewritten_is_attended_to(unet):
    """Against the untouched model, with values set to 0 where they are projected."""
    selfs = [m for name, m in unet.named_modules() if name.endswith("attn1.to_v")]
    handles = [m.register_forward_hook(lambda m, args, out: 0 * out) for m in selfs]
    try:
        expected = forward(unet)
    finally:
        for handle in handles:
            handle.remove()
    method = Silent()
    with consist.shared_attention(unet, method, guidance_halves=2):
        torch.testing.assert_close(forward(unet), expected)
    assert len(method.values) == len(selfs)
    assert not any(v.any() for v in method.values)


def test_a_method_rewrites_nothing_by_itself():
    q, k, v = torch.rand(3, 2, 1, 4, 2)
    site = Site(layer="up_blocks.0", height=2, width=2, progress=0.5, g=1, n=2)
    assert consist.Shared().rewrite(q, k, v, site) == (q, k, v)


@pytest.mark.parametrize("pipe", ["sd_pipe", "sdxl_pipe"])
def test_sharing_changes_pictures_except_the_first(pipe, request):
    pipe = request.getfixturevalue(pipe)

    def draw(method):
        generators = [torch.Generator().manual_seed(i) for i in range(2)]
        with consist.shared_attention(pipe, method):
            return pipe(
                ["a cat in paris", "a cat on the moon"],
                generator=generators,
                num_inference_steps=2,
                output_type="latent",
            ).images

    alone, aligned = draw(consist.Isolated()), draw(consist.StyleAligned())
    assert aligned.isfinite().all()
    torch.testing.assert_close(aligned[0], alone[0], rtol=1e-4, atol=1e-4)
    assert (aligned[1] - alone[1]).abs().max() > 1e-3


# refusal


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"anchors": "all"}, "anchors is 'all'; allowed: 1, the reference"),
        ({"anchors": 2}, "anchors is 2"),
        ({"scale": 0.0}, "scale is 0.0; allowed: finite and above 0"),
        ({"scale": math.inf}, "scale is inf"),
        ({"scale": math.nan}, "scale is nan"),
        ({"strength": 0.0}, "strength is 0.0"),
    ],
)
def test_a_field_out_of_range_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        consist.StyleAligned(**fields)
