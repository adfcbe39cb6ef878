from functools import partial

import pytest
import torch
from einops import rearrange

from consist.attention.method import Site
from consist.methods.notch import RIDGE, Notch, drop_private, filter_directions
from consist.methods.shared import Shared
from consist.methods.spectral import Spectral
from consist.spectra.decomposition import filter_matrix
from consist.spectra.rules import parse_spectrum

G, N, H, L, D = 2, 3, 2, 40, 6
RULE = partial(drop_private, share=0.8)


def draw(*shape, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def draw_batch(n=N, dtype=torch.float64):
    x = draw(3, G * n, H, L, D) + 0.3
    # anchors that differ in every direction
    scale = 1 + draw(G * n, H, 1, D, seed=1).abs()
    return tuple((x * scale).to(dtype))


def site(**changes):
    fields = {"layer": "up_blocks.0", "height": 5, "width": 8, "progress": 0.5, "g": G, "n": N}
    return Site(**fields | changes)


def plant(anchors, *, d=32, tokens=256, background=3.0, dtype=torch.float64):
    """Anchors with one subject (rank 3, a quarter of the tokens) and a background each (rank 3).

    Returns:
        Tokens ``(a l d)``; which of them show the subject, ``(a l)``.
    """
    generator = torch.Generator().manual_seed(7)
    rand = partial(torch.randn, generator=generator, dtype=torch.float64)
    subject = torch.linalg.qr(rand(d, 3))[0].mT
    own = torch.linalg.qr(rand(anchors, d, 3))[0].mT
    shown = torch.rand(anchors, tokens, generator=generator) < 0.25
    front, back = rand(anchors, tokens, 3) @ subject, background * rand(anchors, tokens, 3) @ own
    x = torch.where(shown.unsqueeze(-1), front, back) + 0.05 * rand(anchors, tokens, d)
    return x.to(dtype), shown


def kept(x, found, shown):
    """How much of the subject and how much of the background is left: shares of the energy."""
    subject = (found * x)[shown].sum() / x[shown].square().sum()
    background = found[~shown].square().sum() / x[~shown].square().sum()
    return float(subject), float(background)


def truncate(x, n):
    pooled = filter_matrix(x.flatten(0, 1), parse_spectrum(f"count:{n}"), centered=True)
    return pooled.reshape(x.shape)


# identity


def test_the_neutral_setting_is_shared():
    batch = draw_batch()
    bank = Notch(keys_share=1.0, values_share=1.0)(*batch, site())
    plain = Shared()(*batch, site())
    assert torch.equal(bank.k, plain.k)
    assert torch.equal(bank.v, plain.v)


def test_one_anchor_has_no_other():
    batch = draw_batch()
    for anchors in (1, "random"):
        plain = Shared(anchors=anchors)(*batch, site())
        assert torch.equal(Notch(anchors=anchors)(*batch, site()).k, plain.k)
    spectral = Spectral(anchors=1, keys="log", values="count:2")(*batch, site())
    both = Notch(anchors=1, keys="log", values="count:2")(*batch, site())
    assert torch.equal(both.k, spectral.k)
    assert torch.equal(both.v, spectral.v)


def test_equal_anchors_keep_everything():
    x = draw(L, D).expand(3, L, D)
    torch.testing.assert_close(filter_directions(x, RULE, centered=True), x)


# oracle


@pytest.mark.parametrize("share", [0.55, 0.7])
def test_the_notch_of_two_is_by_generalised_eigenvectors(share):
    """Solves ``G_1 v = u (G_1 + G_2) v`` by a general eigensolver and drops what one has alone."""
    x = draw(2, L, D) * (1 + 3 * draw(2, 1, D, seed=1).abs())
    y = x - x.mean(-2, keepdim=True)
    ridge = RIDGE * y.square().sum() / 2 / D * torch.eye(D, dtype=y.dtype)
    first, second = (a.mT @ a + ridge for a in y)
    u, v = torch.linalg.eig(torch.linalg.solve(first + second, first))
    u, v = u.real, v.real
    weights = ((u <= share) & (1 - u <= share)).double()
    assert 0 < weights.sum() < D
    expected = y @ (v * weights) @ torch.linalg.inv(v) + x.mean(-2, keepdim=True)
    found = filter_directions(x, partial(drop_private, share=share), centered=True)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("width", ["head", "full"])
def test_notch_filters_the_matrices_it_names(width):
    batch = draw_batch()
    bank = Notch(keys_share=0.6, width=width, anchors=2)(*batch, site())
    plain = Shared(anchors=2)(*batch, site())
    rules = {"k": partial(drop_private, share=0.6), "v": RULE}
    heads = [slice(h, h + 1) for h in range(H)] if width == "head" else [slice(None)]
    for name, half, h in ((name, half, h) for name in "kv" for half in range(G) for h in heads):
        x, found = getattr(plain, name)[half, h], getattr(bank, name)[half, h]
        matrix = rearrange(x, "h (a l) d -> a l (h d)", a=2)
        expected = filter_directions(matrix, rules[name], centered=True)
        found = rearrange(found, "h (a l) d -> a l (h d)", a=2)
        torch.testing.assert_close(found, expected)


# planted signals


@pytest.mark.parametrize("anchors", [2, 4])
def test_it_finds_the_subject_where_energy_finds_the_background(anchors):
    """The background has 9 times the energy per token, and 3 times as many tokens."""
    x, shown = plant(anchors, dtype=torch.float32)
    subject, background = kept(x, filter_directions(x, RULE, centered=True), shown)
    assert subject > 0.75
    assert background < 0.01
    # truncation to the rank of the subject, and to that of a background more
    for rank in (3, 6):
        subject, background = kept(x, truncate(x, rank), shown)
        assert subject < 0.4
        assert background > 0.4


def test_it_spares_a_subject_that_is_stronger_too():
    x, shown = plant(3, background=0.7)
    subject, background = kept(x, filter_directions(x, RULE, centered=True), shown)
    assert subject > 0.75
    assert background < 0.1


def test_it_keeps_what_one_anchor_lacks():
    x = 1e-3 * draw(3, L, D)
    x[:2, :, 0] += draw(2, L, seed=1)
    x[:, :, 1] += draw(3, L, seed=2)
    left = filter_directions(x, RULE, centered=True)[0, :, 0] / x[0, :, 0]
    assert left.median().item() == pytest.approx(1, abs=0.02)


def test_spectra_come_before_the_notch():
    batch = draw_batch()
    found = Notch(keys="log", values="count:2", values_share=1.0)(*batch, site())
    spectral = Spectral(keys="log", values="count:2")(*batch, site())
    assert torch.equal(found.v, spectral.v)
    matrix = rearrange(spectral.k, "g h (a l) d -> g h a l d", a=N)
    expected = filter_directions(matrix, RULE, centered=True)
    torch.testing.assert_close(found.k, rearrange(expected, "g h a l d -> g h (a l) d"))


# property


@pytest.mark.parametrize("centered", [False, True])
def test_order_scale_and_rotation_change_nothing_else(centered):
    x = draw(4, L, D) * (1.5 * draw(4, 1, D, seed=1)).exp()
    act = partial(filter_directions, rule=RULE, centered=centered)
    found, order = act(x), torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(act(x[order]), found[order])
    for scale in (1e-20, 1e20):
        torch.testing.assert_close(act(x * scale) / scale, found)
    rotation = torch.linalg.qr(draw(D, D, seed=2))[0]
    torch.testing.assert_close(act(x @ rotation), found @ rotation)
    assert not torch.allclose(found, x, rtol=0.01)


def test_guidance_halves_are_never_mixed():
    q, k, v = draw_batch()
    before = Notch()(q, k, v, site())
    q, k, v = q.clone(), k.clone(), v.clone()
    for x in (q, k, v):
        x[:N] = draw(*x[:N].shape, seed=9) * 100
    after = Notch()(q, k, v, site())
    torch.testing.assert_close(after.k[1], before.k[1])
    torch.testing.assert_close(after.v[1], before.v[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_lower_precision_stays_near_float64(dtype):
    batch = draw_batch(dtype=dtype)
    found = Notch()(*batch, site())
    exact = Notch()(*(x.double() for x in batch), site())
    for x, y in ((found.k, exact.k), (found.v, exact.v)):
        assert x.dtype == dtype
        tolerance = 1e-3 if dtype == torch.float32 else 4 * torch.finfo(dtype).eps
        assert (x.double() - y).norm() <= tolerance * y.norm()


@pytest.mark.parametrize("width", ["head", "full"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("centered", [False, True])
def test_every_finite_batch_gives_finite_numbers(width, dtype, centered):
    method = Notch(width=width, centered=centered)
    blank = torch.zeros(G * N, H, L, D)
    one_blank = blank.clone()
    one_blank[1] = draw(H, L, D)
    disjoint = blank.clone()
    for image in range(N):
        disjoint[image::N, ..., image] = draw(G, H, L, seed=image)
    batches = [
        blank,
        blank + 1,
        one_blank,
        disjoint,
        draw(G * N, H, L, D) * 1.5e4,
        draw(G * N, H, L, D) * 1e-7,
        draw(G * N, H, 1, D),
        draw(G * N, H, 2, D),
        draw(G * N, H, L, 1),
    ]
    for x in batches:
        x = x.clamp(-6.5e4, 6.5e4).to(dtype)
        bank = method(x, x, x, site())
        assert bank.k.isfinite().all()
        assert bank.v.isfinite().all()
        assert bank.k.shape == (G, H, N * x.shape[2], x.shape[3])
    same = method(*(blank.to(dtype) + 1,) * 3, site())
    if centered:
        torch.testing.assert_close(same.k, torch.ones_like(same.k))


def test_input_is_never_changed():
    batch = draw_batch()
    before = [x.clone() for x in batch]
    Notch()(*batch, site())
    assert all(torch.equal(x, y) for x, y in zip(batch, before, strict=True))


def test_gradients_are_finite():
    q, k, v = (x.requires_grad_() for x in draw_batch())
    bank = Notch()(q, k, v, site())
    (bank.k.square().sum() + bank.v.square().sum()).backward()
    for x in (k, v):
        assert x.grad.isfinite().all()
        assert x.grad.abs().sum() > 0


# geometry


@pytest.mark.parametrize(
    ("sides", "height", "width", "open_there"),
    [
        ((1, 65536), 64, 64, True),
        ((32, 32), 32, 32, True),
        ((32, 32), 24, 32, True),
        ((32, 32), 64, 64, False),
        ((33, 64), 32, 32, False),
        ((33, 64), 64, 36, True),
    ],
)
def test_sides_choose_the_resolutions(sides, height, width, open_there):
    bank = Shared(sides=sides)(*draw_batch(), site(height=height, width=width))
    assert (bank is not None) is open_there


# refusal


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (partial(Shared, sides=(0, 8)), r"sides is \(0, 8\); allowed: 1 <= smallest <= largest"),
        (partial(Shared, sides=(9, 8)), r"sides is \(9, 8\)"),
        (partial(Shared, sides=(8,)), r"sides is \(8,\)"),
        (partial(Notch, keys="lg"), "keys: unknown spectrum 'lg'"),
        (partial(Notch, keys_share=0.4), "keys_share is 0.4; allowed: 0.5 <= keys_share <= 1"),
        (partial(Notch, values_share=1.1), "values_share is 1.1"),
    ],
)
def test_a_field_out_of_range_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
