import dataclasses
import logging

import pytest
import torch
import torch.nn.functional as F

from consist.attention import backends as backend
from consist.attention import bank as sharing
from consist.attention.backends import BACKENDS, attend, choose
from consist.attention.bank import pack

CPU = torch.device("cpu")


def draw_batch(g=2, n=4, h=3, tokens=6, d=8, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    shape = (3, g * n, h, tokens, d)
    return tuple(torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype))


def make_bank(name, k, v):
    ragged = torch.tensor([[1, 0, 0, 1, 0, 0], [1, 1, 1, 0, 1, 1]]).bool()
    soft = torch.linspace(-2, 2, 12).reshape(2, 6)
    whole = pack(k, v, [0, 1, 2, 3], images=4)
    routed = torch.tensor([[0, 1, 1, 0], [1, 0, 1, 1], [0, 0, 0, 0], [1, 1, 0, 0]]).bool()
    return {
        "all": lambda: whole,
        "one anchor": lambda: pack(k, v, [2], images=4),
        "two anchors": lambda: pack(k, v, [0, 1], images=4),
        "no anchor": lambda: pack(k, v, [], images=4),
        "no token": lambda: pack(k, v, [0, 1], images=4, tokens=torch.zeros(2, 6).bool()),
        "ragged": lambda: pack(k, v, [3, 0], images=4, tokens=ragged),
        "soft": lambda: pack(k, v, [0, 1], images=4, bias=soft),
        "soft and ragged": lambda: pack(k, v, [3, 0], images=4, tokens=ragged, bias=soft),
        "routed": lambda: dataclasses.replace(whole, visible=routed),
        "scattered": lambda: dataclasses.replace(whole, owner=torch.arange(24) % 4),
        "from elsewhere": lambda: dataclasses.replace(whole, owner=whole.owner + 4),
    }[name]()


NAMES = [
    *("all", "one anchor", "two anchors", "no anchor", "no token"),
    *("ragged", "soft", "soft and ragged", "routed", "scattered", "from elsewhere"),
]


# identity


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["auto", "torch"])
def test_without_a_bank_torch_is_the_call_of_diffusers(name, dtype):
    q, k, v = draw_batch(dtype=dtype)
    expected = F.scaled_dot_product_attention(q, k, v, dropout_p=0.0, is_causal=False)
    assert torch.equal(attend(q, k, v, backend=name), expected)


def test_an_empty_bank_changes_nothing_beyond_rounding():
    q, k, v = draw_batch()
    bank = make_bank("no anchor", k, v)
    torch.testing.assert_close(attend(q, k, v, bank), attend(q, k, v))


# oracle


# rounding of the inputs, of the weights and of the output, in units of each dtype's eps
TOLERANCES = {
    **{torch.float64: 1e-12, torch.float32: 2e-6},
    **{torch.float16: 3e-3, torch.bfloat16: 2e-2},
}


@pytest.mark.parametrize("few", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_torch_is_the_reference(name, few, monkeypatch):
    if not few:
        monkeypatch.setattr(backend, "FEW_BYTES", -1)
    for dtype, tolerance in TOLERANCES.items():
        q, k, v = draw_batch(dtype=dtype)
        bank = make_bank(name, k, v)
        exact = [x.double() for x in (q, k, v)]
        bank64 = dataclasses.replace(bank, k=bank.k.double(), v=bank.v.double())
        expected = sharing.attend(*exact, bank64)
        found = BACKENDS["torch"](q, k, v, bank)
        assert found.dtype == dtype
        assert (found.double() - expected).norm() <= tolerance * expected.norm(), dtype


@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_those_of_the_reference(name):
    gradients = []
    for version in ("reference", "torch"):
        q, k, v = (x.clone().requires_grad_() for x in draw_batch())
        attend(q, k, v, make_bank(name, k, v), version).square().sum().backward()
        gradients.append((q.grad, k.grad, v.grad))
    for expected, found in zip(*gradients, strict=True):
        torch.testing.assert_close(found, expected)


def test_triton_leaves_gradients_and_plain_attention_to_torch():
    q, k, v = draw_batch()
    bank = make_bank("soft", k, v)
    triton = BACKENDS["triton"]
    assert torch.equal(triton(q, k, v), attend(q, k, v))
    assert torch.equal(triton(q.requires_grad_(), k, v, bank), attend(q, k, v, bank))


# property


def test_input_is_never_changed():
    q, k, v = draw_batch()
    bank = make_bank("soft and ragged", k, v)
    tensors = (q, k, v, bank.k, bank.v, bank.bias, bank.owner)
    before = [x.clone() for x in tensors]
    attend(q, k, v, bank)
    assert all(torch.equal(x, y) for x, y in zip(tensors, before, strict=True))


def test_strided_input_is_taken():
    q, k, v = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in draw_batch())
    bank = make_bank("routed", k, v)
    torch.testing.assert_close(attend(q, k, v, bank), sharing.attend(q, k, v, bank))


@pytest.mark.parametrize("name", NAMES)
def test_few_keys_are_attended_together(name, monkeypatch):
    q, k, v = draw_batch()
    bank = make_bank(name, k, v)
    together = attend(q, k, v, bank)
    monkeypatch.setattr(backend, "FEW_BYTES", -1)
    monkeypatch.setattr(backend, "_attend_together", None)
    torch.testing.assert_close(attend(q, k, v, bank), together)


def test_many_keys_are_attended_image_by_image(monkeypatch):
    q, k, v = draw_batch(tokens=64, d=32)
    bank = pack(k, v, [3, 2, 1, 0], images=4)
    # 8 rows of 3 heads, own tokens and those of three others, 32 numbers of 8 bytes each
    size = 8 * 3 * (64 + 3 * 64) * 32 * 8
    calls = []
    monkeypatch.setattr(backend, "_attend_together", lambda *args: calls.append(args))
    monkeypatch.setattr(backend, "FEW_BYTES", size - 1)
    attend(q, k, v, bank)
    assert not calls
    monkeypatch.setattr(backend, "FEW_BYTES", size)
    attend(q, k, v, bank)
    assert len(calls) == 1


def test_where_all_see_all_nothing_is_laid_out_anew(monkeypatch):
    q, k, v = draw_batch()
    bank = make_bank("all", k, v)
    expected = sharing.attend(q, k, v, bank)
    for part in ("_attend_together", "_attend_image"):
        monkeypatch.setattr(backend, part, None)
    torch.testing.assert_close(attend(q, k, v, bank), expected)


@pytest.mark.parametrize("change", ["keys", "values", "bias"])
def test_a_bank_that_was_changed_is_not_whole(change):
    q, k, v = draw_batch()
    whole = make_bank("all", k, v)
    changes = {"keys": {"k": 2 * whole.k}, "values": {"v": 2 * whole.v}}
    changes["bias"] = {"bias": torch.ones(24)}
    bank = dataclasses.replace(whole, **changes[change])
    torch.testing.assert_close(attend(q, k, v, bank), sharing.attend(q, k, v, bank))


def test_a_bank_of_another_batch_is_not_whole():
    q, k, v = draw_batch()
    for bank in (make_bank("all", 2 * k, v), make_bank("all", k, 2 * v)):
        torch.testing.assert_close(attend(q, k, v, bank), sharing.attend(q, k, v, bank))


def test_many_stretches_are_read_by_an_index(monkeypatch):
    q, k, v = draw_batch()
    bank = make_bank("scattered", k, v)
    monkeypatch.setattr(backend, "FEW_BYTES", -1)
    whole = attend(q, k, v, bank)
    monkeypatch.setattr(backend, "MOST_STRETCHES", 3)
    assert len(backend._stretches(bank.seen_by(4)[0], CPU)) == 1
    assert torch.equal(attend(q, k, v, bank), whole)


def test_the_bias_reaches_torch_in_the_dtype_of_the_queries(monkeypatch):
    masks, original = [], F.scaled_dot_product_attention

    def record(*args, attn_mask=None, **kwargs):
        masks.append(attn_mask)
        return original(*args, attn_mask=attn_mask, **kwargs)

    monkeypatch.setattr(F, "scaled_dot_product_attention", record)
    q, k, v = draw_batch(dtype=torch.bfloat16)
    attend(q, k, v, make_bank("soft", k, v))
    assert {mask.dtype for mask in masks} == {torch.bfloat16}


def test_auto_is_logged_once_with_its_reason(caplog):
    backend._log_once.cache_clear()
    q, k, v = draw_batch()
    with caplog.at_level(logging.INFO, logger="consist"):
        attend(q, k, v)
        attend(q, k, v)
        attend(q, k, v, backend="torch")
    (record,) = caplog.records
    assert record.getMessage() == (
        "attention backend: torch, runs on cpu; triton needs a CUDA device; this is cpu"
    )


def test_choose_says_which_and_why():
    assert choose("reference", CPU, torch.float32) == ("reference", "asked for")
    name, reason = choose("auto", CPU, torch.float32)
    assert name == "torch"
    assert "cpu" in reason


@pytest.fixture
def hopper(monkeypatch):
    """A GPU as far as the choice of a backend can tell."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200")
    backend.triton_obstacle.cache_clear()
    yield torch.device("cuda")
    backend.triton_obstacle.cache_clear()


def test_triton_runs_where_it_is_asked_for(hopper):
    pytest.importorskip("triton")
    for dtype in (torch.float16, torch.bfloat16):
        assert choose("triton", hopper, dtype, 64) == ("triton", "asked for")


def test_auto_waits_for_a_measurement(hopper, monkeypatch):
    pytest.importorskip("triton")
    name, reason = choose("auto", hopper, torch.float16, 64)
    assert name == "torch"
    assert reason.endswith("triton could, but is not measured on a GPU yet")
    monkeypatch.setattr(backend, "TRITON_BY_DEFAULT", True)
    assert choose("auto", hopper, torch.float16, 64) == ("triton", "runs on cuda in float16")
    # what it cannot do goes to torch
    assert choose("auto", hopper, torch.float32, 64)[0] == "torch"
    assert choose("auto", hopper, torch.float16, 44)[0] == "torch"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("version", ["torch", "triton"])
def test_is_the_reference_on_a_gpu(version, name, dtype):
    q, k, v = (x.cuda() for x in draw_batch(d=64, dtype=dtype))
    bank = make_bank(name, k.cpu(), v.cpu())
    expected = sharing.attend(q.cpu(), k.cpu(), v.cpu(), bank)
    bias = None if bank.bias is None else bank.bias.cuda()
    on_gpu = dataclasses.replace(bank, k=bank.k.cuda(), v=bank.v.cuda(), bias=bias)
    found = attend(q, k, v, on_gpu, version).cpu()
    torch.testing.assert_close(found, expected, rtol=2e-2, atol=2e-2)


# refusal


@pytest.mark.parametrize("name", ["reference", "torch"])
def test_a_bank_that_does_not_fit_is_refused(name):
    q, k, v = draw_batch()
    bank = make_bank("all", k, v)
    with pytest.raises(ValueError, match="do not fit a bank of 2 guidance halves, 3 heads"):
        attend(q[:, :2], k[:, :2], v[:, :2], bank, name)


def test_triton_is_refused_without_cuda():
    with pytest.raises(ValueError, match="'triton' needs a CUDA device; this is cpu"):
        choose("triton", CPU, torch.float32)


@pytest.mark.parametrize(
    ("dtype", "head_size", "message"),
    [
        (torch.float32, 64, "'triton' attends in float16 or bfloat16; this is float32"),
        (torch.float16, 44, "multiple of 8 up to 160 features; these have 44"),
        (torch.float16, 168, "multiple of 8 up to 160 features; these have 168"),
    ],
)
def test_triton_is_refused_where_it_cannot_attend(hopper, dtype, head_size, message):
    pytest.importorskip("triton")
    with pytest.raises(ValueError, match=message):
        choose("triton", hopper, dtype, head_size)


def test_triton_is_refused_on_an_old_gpu(hopper, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    with pytest.raises(ValueError, match=r"needs compute capability 8\.0; NVIDIA H200 has 7\.5"):
        choose("triton", hopper, torch.float16)


def test_triton_is_refused_where_it_is_not_installed(hopper, monkeypatch):
    monkeypatch.setattr(backend, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="needs the package triton, which exists on Linux"):
        choose("triton", hopper, torch.float16)


def test_an_unknown_backend_is_refused():
    with pytest.raises(
        ValueError, match=r"unknown backend 'tocrh', did you mean 'torch'.*auto, ref"
    ):
        choose("tocrh", CPU, torch.float32)


@pytest.mark.parametrize("name", ["auto", *BACKENDS])
def test_whole_numbers_are_refused(name):
    with pytest.raises(ValueError, match=f"'{name}' cannot attend in torch.int64; allowed: float"):
        choose(name, CPU, torch.int64)
