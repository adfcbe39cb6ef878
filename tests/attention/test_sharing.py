import dataclasses
import math

import pytest
import torch

from consist.attention.bank import Bank, attend, pack


def draw(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def draw_batch(g=2, n=3, h=2, tokens=5, d=4):
    return tuple(draw(g * n, h, tokens, d, seed=seed) for seed in range(3))


def attend_by_loop(q, k, v, bank):
    """One query at a time: a list of the keys it may see, and their weights."""
    g, h, s, d = bank.k.shape
    n = len(q) // g
    out = torch.empty_like(q)
    for row in range(g * n):
        half, image = divmod(row, n)
        seen = [
            j
            for j in range(s)
            if bank.owner[j] != image
            and (bank.visible is None or bank.visible[image, bank.owner[j]])
        ]
        for head in range(h):
            keys = list(k[row, head]) + [bank.k[half, head, j] for j in seen]
            values = list(v[row, head]) + [bank.v[half, head, j] for j in seen]
            bias = [0.0] * k.shape[2] + [0.0 if bank.bias is None else bank.bias[j] for j in seen]
            for token, query in enumerate(q[row, head]):
                logits = [float(query @ key) / math.sqrt(d) for key in keys]
                weights = [math.exp(x + float(b)) for x, b in zip(logits, bias, strict=True)]
                total = sum(w * value for w, value in zip(weights, values, strict=True))
                out[row, head, token] = total / sum(weights)
    return out


def banks():
    _, k, v = draw_batch()
    ragged = torch.tensor([[1, 0, 0, 1, 0], [1, 1, 1, 1, 1]]).bool()
    soft = draw(2, 5, seed=7).float()
    routed = torch.tensor([[0, 1, 0], [1, 0, 1], [0, 0, 0]]).bool()
    whole = pack(k, v, [0, 1, 2], images=3)
    return {
        "all": whole,
        "one anchor": pack(k, v, [1], images=3),
        "no anchor": pack(k, v, [], images=3),
        "no token": pack(k, v, [0, 2], images=3, tokens=torch.zeros(2, 5).bool()),
        "ragged": pack(k, v, [0, 2], images=3, tokens=ragged),
        "soft": pack(k, v, [2, 0], images=3, bias=soft),
        "soft and ragged": pack(k, v, [2, 0], images=3, tokens=ragged, bias=soft),
        "routed": dataclasses.replace(whole, visible=routed),
        "from elsewhere": dataclasses.replace(whole, owner=whole.owner + 3),
        "mixed": dataclasses.replace(whole, owner=torch.arange(15) % 3),
    }


BANKS = banks()


@pytest.fixture(params=BANKS)
def bank(request):
    return BANKS[request.param]


# identity


def test_without_a_bank_it_is_plain_attention():
    q, k, v = draw_batch()
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    torch.testing.assert_close(attend(q, k, v), expected)


@pytest.mark.parametrize("name", ["no anchor", "no token"])
def test_an_empty_bank_is_plain_attention(name):
    q, k, v = draw_batch()
    assert BANKS[name].k.shape[2] == 0
    torch.testing.assert_close(attend(q, k, v, BANKS[name]), attend(q, k, v))


def test_images_that_see_no_anchor_are_as_they_were():
    q, k, v = draw_batch()
    shared, plain = attend(q, k, v, BANKS["routed"]), attend(q, k, v)
    torch.testing.assert_close(shared[[2, 5]], plain[[2, 5]])
    assert not torch.isclose(shared[[0, 1, 3, 4]], plain[[0, 1, 3, 4]]).all(-1).any()


def test_a_lone_anchor_does_not_see_itself_twice():
    q, k, v = draw_batch()
    shared, plain = attend(q, k, v, BANKS["one anchor"]), attend(q, k, v)
    torch.testing.assert_close(shared[[1, 4]], plain[[1, 4]])


# oracle


def test_attend_is_the_loop(bank):
    q, k, v = draw_batch()
    torch.testing.assert_close(attend(q, k, v, bank), attend_by_loop(q, k, v, bank))


def test_pack_takes_the_tokens_of_the_anchors_in_order():
    _, k, v = draw_batch()
    bank = BANKS["soft and ragged"]
    taken = [(2, 0), (2, 3), (0, 0), (0, 1), (0, 2), (0, 3), (0, 4)]
    for s, (image, token) in enumerate(taken):
        assert bank.owner[s] == image
        for half in range(2):
            assert torch.equal(bank.k[half, :, s], k[half * 3 + image, :, token])
            assert torch.equal(bank.v[half, :, s], v[half * 3 + image, :, token])
    soft = draw(2, 5, seed=7).float()
    assert torch.equal(bank.bias, torch.cat((soft[0, [0, 3]], soft[1])))


# property


def test_sharing_with_everyone_is_attention_over_all_tokens():
    q, k, v = draw_batch(g=1)
    everything = [x.transpose(0, 1).flatten(1, 2).expand(3, -1, -1, -1) for x in (k, v)]
    expected = torch.nn.functional.scaled_dot_product_attention(q, *everything)
    torch.testing.assert_close(attend(q, k, v, pack(k, v, [0, 1, 2], images=3)), expected)


def test_permuting_images_permutes_outputs():
    q, k, v = draw_batch()
    order = torch.tensor([2, 0, 1])
    rows = torch.cat((order, order + 3))
    found = attend(*(x[rows] for x in (q, k, v)), pack(k[rows], v[rows], [0, 1, 2], images=3))
    torch.testing.assert_close(found, attend(q, k, v, BANKS["all"])[rows])


def test_guidance_halves_are_independent():
    q, k, v = draw_batch()
    before = attend(q, k, v, pack(k, v, [0, 1], images=3))
    k, v = k.clone(), v.clone()
    k[:3] += 1
    v[:3] *= 2
    after = attend(q, k, v, pack(k, v, [0, 1], images=3))
    assert torch.equal(after[3:], before[3:])
    assert not torch.isclose(after[:3], before[:3]).any()


def test_bias_is_the_logarithm_of_a_weight():
    q, k, v = draw_batch()
    twice = pack(k, v, [0], images=3, bias=torch.full((1, 5), math.log(2)))
    repeated = pack(k, v, [0], images=3)
    repeated = Bank(
        k=repeated.k.repeat(1, 1, 2, 1),
        v=repeated.v.repeat(1, 1, 2, 1),
        owner=torch.zeros(10).long(),
    )
    # the bias is kept in float32
    torch.testing.assert_close(
        attend(q, k, v, twice), attend(q, k, v, repeated), rtol=1e-6, atol=1e-6
    )


def test_input_is_never_changed(bank):
    batch = draw_batch()
    before = [x.clone() for x in (*batch, bank.k, bank.v)]
    attend(*batch, bank)
    pack(*batch[1:], [0, 1], images=3)
    assert all(torch.equal(x, y) for x, y in zip((*batch, bank.k, bank.v), before, strict=True))


def test_a_bank_does_not_follow_later_changes_of_its_source():
    _, k, v = draw_batch()
    bank = pack(k, v, [0, 1, 2], images=3)
    before = bank.k.clone()
    k += 1
    assert torch.equal(bank.k, before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_any_dtype_is_kept(dtype):
    q, k, v = (x.to(dtype) for x in draw_batch())
    bank = pack(k, v, [0, 2], images=3, bias=torch.ones(2, 5))
    assert attend(q, k, v, bank).dtype == dtype


# refusal


def fields(**changes):
    bank = BANKS["ragged"]
    return {"k": bank.k, "v": bank.v, "owner": bank.owner} | changes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"k": draw(2, 7, 4)}, r"k is \(2, 7, 4\) and v is \(2, 2, 7, 4\); allowed: four equal"),
        ({"v": draw(2, 2, 6, 4)}, r"k is \(2, 2, 7, 4\) and v is \(2, 2, 6, 4\); allowed: four"),
        ({"v": draw(2, 2, 7, 4).float()}, "k is torch.float64 on cpu and v is torch.float32"),
        (
            {"owner": torch.zeros(6).long()},
            r"owner is torch.int64 \(6,\).*allowed: torch.int64 \(7",
        ),
        ({"owner": torch.zeros(7)}, "owner is torch.float32"),
        (
            {"owner": torch.zeros(7, device="meta").long()},
            "owner is .* on meta; allowed: .* on cpu",
        ),
        ({"owner": torch.full((7,), -1)}, "owner holds -1; allowed: 0 and above"),
        ({"bias": torch.zeros(8)}, r"bias is torch.float32 \(8,\).*allowed: torch.float32 \(7"),
        ({"bias": torch.zeros(7).half()}, "bias is torch.float16"),
        ({"visible": torch.ones(3)}, r"visible is torch.float32 \(3,\).*torch.bool \(any, any\)"),
        ({"visible": torch.ones(3, 2).bool()}, "owner holds 2; allowed: below 2"),
    ],
)
def test_a_bank_of_wrong_shape_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        Bank(**fields(**changes))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"anchors": [3]}, r"anchors are \[3\]; allowed: different images from 0 to 2"),
        ({"anchors": [-1]}, r"anchors are \[-1\]"),
        ({"anchors": [1, 1]}, r"anchors are \[1, 1\]"),
        ({"images": 4}, "a batch of 6 does not hold guidance halves of 4 images"),
        ({"tokens": torch.ones(2, 5).bool()}, r"tokens is .*\(2, 5\).*allowed: .*\(1, 5\)"),
        ({"tokens": torch.ones(1, 5)}, "tokens is torch.float32"),
        ({"bias": torch.ones(1, 4)}, r"bias is .*\(1, 4\).*allowed: torch.float32 \(1, 5\)"),
        ({"v": draw(6, 2, 5, 3)}, "v is .*; allowed: four equal axes"),
    ],
)
def test_packing_what_does_not_fit_is_refused(arguments, message):
    _, k, v = draw_batch()
    with pytest.raises(ValueError, match=message):
        pack(**{"k": k, "v": v, "anchors": [0], "images": 3} | arguments)


@pytest.mark.parametrize(
    ("q", "message"),
    [
        (draw(5, 2, 5, 4), r"queries \(5, 2, 5, 4\) do not fit a bank of 2 guidance halves"),
        (draw(6, 3, 5, 4), "do not fit a bank of 2 guidance halves, 2 heads"),
        (draw(6, 2, 5, 8), "head size 4"),
        (draw(6, 5, 4), r"queries \(6, 5, 4\)"),
        (draw(6, 2, 5, 4).float(), "queries are torch.float32 on cpu, the bank is torch.float64"),
    ],
)
def test_queries_that_do_not_fit_the_bank_are_refused(q, message):
    with pytest.raises(ValueError, match=message):
        attend(q, q, q, BANKS["all"])


def test_visibility_for_another_number_of_images_is_refused():
    q, k, v = draw_batch(n=4)
    with pytest.raises(ValueError, match="visible is for 3 images, the batch has 4"):
        attend(q, k, v, BANKS["routed"])
