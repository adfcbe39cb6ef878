import math
from functools import partial

import pytest
import torch
from einops import rearrange

from consist.decomposition import filter_matrix
from consist.methods.agreement import (
    RIDGE,
    Agreement,
    Notch,
    drop_private,
    evenness,
    filter_directions,
)
from consist.methods.method import Site
from consist.methods.query_aware import QueryAware, filter_logits
from consist.methods.spectral import Shared, Spectral
from consist.spectrum import parse_spectrum

G, N, H, L, D = 2, 3, 2, 40, 6
RULES = {
    "agreement": partial(evenness, power=1.0),
    "agreement squared": partial(evenness, power=2.0),
    "notch": partial(drop_private, share=0.8),
}
METHODS = [Agreement(), Notch(), QueryAware()]
NEUTRAL = [
    Agreement(keys_power=0.0, values_power=0.0),
    Notch(keys_share=1.0, values_share=1.0),
    QueryAware(keys="identity", values="identity"),
]


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


@pytest.mark.parametrize("method", NEUTRAL)
def test_neutral_settings_are_shared(method):
    batch = draw_batch()
    bank, plain = method(*batch, site()), Shared()(*batch, site())
    assert torch.equal(bank.k, plain.k)
    assert torch.equal(bank.v, plain.v)


@pytest.mark.parametrize("method", [Agreement, Notch])
def test_one_anchor_agrees_with_itself(method):
    batch = draw_batch()
    for anchors in (1, "random"):
        plain = Shared(anchors=anchors)(*batch, site())
        assert torch.equal(method(anchors=anchors)(*batch, site()).k, plain.k)
    spectral = Spectral(anchors=1, keys="log", values="count:2")(*batch, site())
    both = method(anchors=1, keys="log", values="count:2")(*batch, site())
    assert torch.equal(both.k, spectral.k)
    assert torch.equal(both.v, spectral.v)


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
@pytest.mark.parametrize("basis", ["joint", "pooled"])
def test_equal_anchors_agree_in_everything(rule, basis):
    x = draw(L, D).expand(3, L, D)
    found = filter_directions(x, rule, basis=basis, centered=True)
    torch.testing.assert_close(found, x)


def test_queries_in_all_directions_change_nothing():
    """With ``Q^T Q`` a multiple of 1, the logits have the singular values of the keys."""
    k, q = draw(2, L, D), torch.linalg.qr(draw(2, 9, D))[0] * 5
    for text, centered in (("count:2", True), ("log", False), ("svht", False)):
        spectrum = parse_spectrum(text)
        found = filter_logits(k, q, spectrum, centered=centered)
        torch.testing.assert_close(found, filter_matrix(k, spectrum, centered=centered))


# oracle


@pytest.mark.parametrize("power", [0.5, 1.0, 3.0])
def test_agreement_of_two_is_by_generalised_eigenvectors(power):
    """Solves ``G_1 v = u (G_1 + G_2) v`` by a general eigensolver and weighs by 4 u (1 - u)."""
    x = draw(2, L, D) * (1 + draw(2, 1, D, seed=1).abs())
    y = x - x.mean(-2, keepdim=True)
    ridge = RIDGE * y.square().sum() / 2 / D * torch.eye(D, dtype=y.dtype)
    first, second = (a.mT @ a + ridge for a in y)
    u, v = torch.linalg.eig(torch.linalg.solve(first + second, first))
    u, v = u.real, v.real
    weights = (4 * u * (1 - u)) ** power
    expected = y @ (v * weights) @ torch.linalg.inv(v) + x.mean(-2, keepdim=True)
    found = filter_directions(x, partial(evenness, power=power), basis="joint", centered=True)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("anchors", [2, 4])
def test_pooled_agreement_is_a_loop_over_eigenvectors(anchors):
    x = draw(anchors, L, D) * (1 + draw(anchors, 1, D, seed=1).abs())
    ridge = RIDGE * x.square().sum() / anchors / D
    _, _, vh = torch.linalg.svd(x.flatten(0, 1), full_matrices=False)
    soft, hard = torch.zeros_like(x), torch.zeros_like(x)
    for v in vh:
        energies = [float((a @ v).square().sum() + ridge) for a in x]
        harmonic = anchors / sum(1 / e for e in energies)
        soft += harmonic / (sum(energies) / anchors) * (x @ v)[..., None] * v
        hard += (max(energies) / sum(energies) <= 0.6) * (x @ v)[..., None] * v
    found = filter_directions(x, RULES["agreement"], basis="pooled", centered=False)
    torch.testing.assert_close(found, soft)
    found = filter_directions(x, partial(drop_private, share=0.6), basis="pooled", centered=False)
    torch.testing.assert_close(found, hard)


def test_agreement_of_many_is_the_harmonic_mean_of_their_gram_matrices():
    x = draw(4, L, D) * (1 + draw(4, 1, D, seed=1).abs())
    grams = x.mT @ x + RIDGE * x.square().sum() / 4 / D * torch.eye(D, dtype=x.dtype)
    harmonic = torch.linalg.inv(torch.linalg.inv(grams).mean(0))
    expected = x @ torch.linalg.solve(grams.mean(0), harmonic)
    found = filter_directions(x, RULES["agreement"], basis="joint", centered=False)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("rank", [1, 3, 5])
def test_query_aware_keys_give_the_best_logits_of_their_rank(rank):
    k, q = draw(L, D) * torch.logspace(0, -1, D), draw(25, D, seed=1) * torch.logspace(-1, 0, D)
    u, s, vh = torch.linalg.svd(q @ k.mT, full_matrices=False)
    best = (u[:, :rank] * s[:rank]) @ vh[:rank]
    spectrum = parse_spectrum(f"count:{rank}")
    found = filter_logits(k, q, spectrum)
    torch.testing.assert_close(q @ found.mT, best)
    assert torch.linalg.matrix_rank(found) == rank
    plain = filter_matrix(k, spectrum)
    error = (q @ (plain - k).mT).norm()
    assert (q @ (found - k).mT).norm() < 0.95 * error


@pytest.mark.parametrize("text", ["log", "energy:0.9", "power:0.5", "soft:0.2"])
@pytest.mark.parametrize("tokens", [4, L])
def test_query_aware_keys_have_logits_with_the_spectrum_asked_for(text, tokens):
    k, q = draw(2, tokens, D), draw(2, 25, D, seed=1)
    u, s, vh = torch.linalg.svd(q @ k.mT, full_matrices=False)
    # no rank that few tokens lack: sqrt(eps) of the largest stands for it
    u, s, vh = u[..., :D], s[..., :D], vh[:, :D]
    seen = torch.nn.functional.pad(s, (0, D - s.shape[-1]))
    seen = seen.maximum(s[..., :1] * torch.finfo(s.dtype).eps ** 0.5)
    wanted = parse_spectrum(text)(seen)[..., : s.shape[-1]]
    expected = (u * wanted.unsqueeze(-2)) @ vh
    found = filter_logits(k, q, parse_spectrum(text))
    torch.testing.assert_close(q @ found.mT, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("width", ["head", "full"])
@pytest.mark.parametrize(
    ("method", "rule"),
    [(partial(Agreement, keys_power=2.0), 1), (partial(Notch, keys_share=0.6), 0)],
)
def test_directions_filters_the_matrices_it_names(width, method, rule):
    batch = draw_batch()
    bank = method(width=width, anchors=2)(*batch, site())
    plain = Shared(anchors=2)(*batch, site())
    rules = (
        ({"k": partial(drop_private, share=0.6), "v": partial(drop_private, share=0.8)}),
        ({"k": partial(evenness, power=2.0), "v": partial(evenness, power=1.0)}),
    )[rule]
    heads = [slice(h, h + 1) for h in range(H)] if width == "head" else [slice(None)]
    for name, half, h in ((name, half, h) for name in "kv" for half in range(G) for h in heads):
        x, found = getattr(plain, name)[half, h], getattr(bank, name)[half, h]
        matrix = rearrange(x, "h (a l) d -> a l (h d)", a=2)
        expected = filter_directions(matrix, rules[name], basis="joint", centered=True)
        found = rearrange(found, "h (a l) d -> a l (h d)", a=2)
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("pool", ["anchor", "all"])
def test_query_aware_asks_the_queries_of_all_images_of_the_half(pool):
    q, k, v = draw_batch()
    bank = QueryAware(anchors=2, pool=pool, keys="count:2")(q, k, v, site())
    tokens = [slice(0, L), slice(L, 2 * L)] if pool == "anchor" else [slice(None)]
    plain = Shared(anchors=2)(q, k, v, site())
    for half, h, s in ((half, h, s) for half in range(G) for h in range(H) for s in tokens):
        asked = torch.cat([q[half * N + image, h] for image in range(N)])
        expected = filter_logits(
            plain.k[half, h, s], asked, parse_spectrum("count:2"), centered=True
        )
        torch.testing.assert_close(bank.k[half, h, s], expected)
    assert torch.equal(bank.v, Spectral(anchors=2, pool=pool)(q, k, v, site()).v)


# planted signals


@pytest.mark.parametrize("anchors", [2, 4])
def test_agreement_and_notch_find_the_subject_where_energy_finds_the_background(anchors):
    """The background has 9 times the energy per token, and 3 times as many tokens."""
    x, shown = plant(anchors, dtype=torch.float32)
    for name, rule in RULES.items():
        found = filter_directions(x, rule, basis="joint", centered=True)
        subject, background = kept(x, found, shown)
        assert subject > 0.75, name
        assert background < 0.01, name
    # truncation to the rank of the subject, and to that of a background more
    for rank in (3, 6):
        subject, background = kept(x, truncate(x, rank), shown)
        assert subject < 0.4
        assert background > 0.4


def test_the_pooled_basis_is_blind_where_backgrounds_are_equally_strong():
    x, shown = plant(2)
    for name in ("agreement", "notch"):
        found = filter_directions(x, RULES[name], basis="pooled", centered=True)
        assert kept(x, found, shown)[1] > 0.5


def test_agreement_spares_a_subject_that_is_stronger_too():
    x, shown = plant(3, background=0.7)
    for rule in RULES.values():
        subject, background = kept(
            x, filter_directions(x, rule, basis="joint", centered=True), shown
        )
        assert subject > 0.75
        assert background < 0.1


def test_notch_keeps_what_one_anchor_lacks_and_agreement_does_not():
    x = 1e-3 * draw(3, L, D)
    x[:2, :, 0] += draw(2, L, seed=1)
    x[:, :, 1] += draw(3, L, seed=2)
    left = [
        (filter_directions(x, RULES[name], basis="joint", centered=True)[0, :, 0] / x[0, :, 0])
        .median()
        .item()
        for name in ("notch", "agreement")
    ]
    assert left[0] == pytest.approx(1, abs=0.02)
    assert left[1] < 0.02


def test_spectra_come_before_the_rule():
    batch = draw_batch()
    found = Agreement(keys="log", values="count:2", values_power=0.0)(*batch, site())
    spectral = Spectral(keys="log", values="count:2")(*batch, site())
    assert torch.equal(found.v, spectral.v)
    matrix = rearrange(spectral.k, "g h (a l) d -> g h a l d", a=N)
    expected = filter_directions(matrix, RULES["agreement"], basis="joint", centered=True)
    torch.testing.assert_close(found.k, rearrange(expected, "g h a l d -> g h (a l) d"))


# property


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
@pytest.mark.parametrize("basis", ["joint", "pooled"])
@pytest.mark.parametrize("centered", [False, True])
def test_order_scale_and_rotation_change_nothing_else(rule, basis, centered):
    x = draw(4, L, D) * (1.5 * draw(4, 1, D, seed=1)).exp()
    act = partial(filter_directions, rule=rule, basis=basis, centered=centered)
    found, order = act(x), torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(act(x[order]), found[order])
    for scale in (1e-20, 1e20):
        torch.testing.assert_close(act(x * scale) / scale, found)
    rotation = torch.linalg.qr(draw(D, D, seed=2))[0]
    torch.testing.assert_close(act(x @ rotation), found @ rotation)
    assert not torch.allclose(found, x, rtol=0.01)


def test_joint_agreement_knows_no_right_angles():
    """Any invertible change of the features passes through, up to the ridge."""
    x, mixing = draw(2, L, D), torch.eye(D) + 0.3 * draw(D, D, seed=3)
    x = x * draw(2, 1, D, seed=1).exp()
    act = partial(filter_directions, rule=RULES["agreement"], basis="joint", centered=True)
    assert (act(x @ mixing) - act(x) @ mixing).norm() < 0.03 * x.norm()
    pooled = partial(filter_directions, rule=RULES["agreement"], basis="pooled", centered=True)
    assert (pooled(x @ mixing) - pooled(x) @ mixing).norm() > 0.3 * x.norm()


def test_query_aware_turns_with_the_head():
    k, q = draw(L, D), draw(25, D, seed=1)
    rotation = torch.linalg.qr(draw(D, D, seed=2))[0]
    spectrum = parse_spectrum("log|count:4")
    found = filter_logits(k, q, spectrum, centered=True)
    turned = filter_logits(k @ rotation, 1e9 * q @ rotation, spectrum, centered=True)
    torch.testing.assert_close(turned, found @ rotation)
    torch.testing.assert_close(filter_logits(1e9 * k, q, spectrum, centered=True), 1e9 * found)
    torch.testing.assert_close(found.mean(0), k.mean(0))


@pytest.mark.parametrize("method", [Agreement(), Notch(), QueryAware(pool="anchor")])
def test_guidance_halves_are_never_mixed(method):
    q, k, v = draw_batch()
    before = method(q, k, v, site())
    q, k, v = q.clone(), k.clone(), v.clone()
    for x in (q, k, v):
        x[:N] = draw(*x[:N].shape, seed=9) * 100
    after = method(q, k, v, site())
    torch.testing.assert_close(after.k[1], before.k[1])
    torch.testing.assert_close(after.v[1], before.v[1])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_lower_precision_stays_near_float64(method, dtype):
    batch = draw_batch(dtype=dtype)
    found = method(*batch, site())
    exact = method(*(x.double() for x in batch), site())
    for x, y in ((found.k, exact.k), (found.v, exact.v)):
        assert x.dtype == dtype
        tolerance = 1e-3 if dtype == torch.float32 else 4 * torch.finfo(dtype).eps
        assert (x.double() - y).norm() <= tolerance * y.norm()


@pytest.mark.parametrize("method", [*METHODS, Agreement(basis="pooled"), Notch(width="full")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("centered", [False, True])
def test_every_finite_batch_gives_finite_numbers(method, dtype, centered):
    method = type(method)(**{**vars(method), "centered": centered})
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


@pytest.mark.parametrize("method", METHODS)
def test_input_is_never_changed(method):
    batch = draw_batch()
    before = [x.clone() for x in batch]
    method(*batch, site())
    assert all(torch.equal(x, y) for x, y in zip(batch, before, strict=True))


@pytest.mark.parametrize("method", METHODS)
def test_gradients_are_finite(method):
    q, k, v = (x.requires_grad_() for x in draw_batch())
    bank = method(q, k, v, site())
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
        (partial(Agreement, keys_power=-1.0), "keys_power is -1.0; allowed: 0 <= keys_power <= 8"),
        (partial(Agreement, values_power=math.nan), "values_power is nan"),
        (partial(Agreement, basis="own"), "basis is 'own'; allowed: 'joint' or 'pooled'"),
        (partial(Agreement, keys="lg"), "keys: unknown spectrum 'lg'"),
        (partial(Notch, keys_share=0.4), "keys_share is 0.4; allowed: 0.5 <= keys_share <= 1"),
        (partial(Notch, values_share=1.1), "values_share is 1.1"),
        (partial(QueryAware, width="full"), "width is 'full'; allowed: 'head', since each head"),
    ],
)
def test_a_field_out_of_range_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
