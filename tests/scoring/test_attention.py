"""Both ways of packed attention against one dense mask, and prepacked layers against the originals."""

import pytest
import torch

from persyn_hf.scoring.attention import Layout, Tree, _Blocks, _TwoParts
from persyn_hf.scoring.batches import Sharing, lay_out, upload
from persyn_hf.scoring.prepacked import PrepackedLinear, prepack, restore

#: Two prompts; completions longer than a block, of one token, and none at all.
TREES = (Tree((0, 9), ((9, 159), (159, 160))), Tree((160, 230), ()), Tree((230, 231), ((231, 300), (300, 333))))
TOKENS = 333
#: The same places as tensors.
PACK = lay_out(TREES, Sharing(1.0, ragged=False, groups=True))
PARTS = PACK.parts(upload(PACK.arrays, torch.device("cpu")))


def dense(query, key, value, window, softcap):
    """Every token sees its own tree's prompt and its own segment, causally, within the window by position."""
    allowed = torch.zeros(TOKENS, TOKENS, dtype=torch.bool)
    for tree in TREES:
        start, end = tree.prompt
        for first, stop in (tree.prompt, *tree.completions):
            for place in range(first, stop):
                seen = list(range(start, min(end, place + 1))) + (
                    list(range(first, place + 1)) if first != start else []
                )
                allowed[place, seen[-window:] if window else seen] = True
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scores = query @ key.transpose(2, 3) * 0.25
    scores = scores if softcap is None else torch.tanh(scores / softcap) * softcap
    return (torch.softmax(scores.masked_fill(~allowed, float("-inf")), -1) @ value).transpose(1, 2)


@pytest.mark.parametrize("way", [_Blocks, _TwoParts])
@pytest.mark.parametrize("window", [None, 7, 100])
@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 2e-2)]
)
def test_packed_attention(way, window, softcap, dtype, tolerance):
    torch.manual_seed(0)
    query, key, value = (torch.randn(1, heads, TOKENS, 16, dtype=torch.float64) for heads in (6, 2, 2))
    query, key, value = (part.to(dtype).double() for part in (query, key, value))
    expected = dense(query, key, value, window, softcap)
    output = torch.empty(1, TOKENS, 6, 16, dtype=dtype)
    parts = (part.to(dtype) for part in (query, key, value))
    way(Layout(TREES, PARTS), *parts, output, 0.25, window, softcap).fill()
    assert (output.double() - expected).norm() / expected.norm() < tolerance


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 5e-3)])
def test_prepacked_layers_give_the_same_and_come_back_as_they_were(bias, dtype, tolerance):
    torch.manual_seed(0)
    body = torch.nn.Sequential(torch.nn.Linear(40, 70, bias=bias), torch.nn.ReLU(), torch.nn.Linear(70, 10)).to(dtype)
    body.requires_grad_(False)
    hidden, weight = torch.randn(1, 5, 40).to(dtype), body[0].weight.clone()
    expected = body.double()(hidden.double())
    body.to(dtype)
    # A processor without AVX-512 multiplies bfloat16 in another way: its layers are left alone.
    packs = dtype == torch.float32 or torch.ops.mkldnn._is_mkldnn_bf16_supported()
    assert prepack(body) == (2 if packs else 0)
    assert isinstance(body[0], PrepackedLinear) == packs
    assert (body(hidden).double() - expected).norm() / expected.norm() < tolerance
    restore(body)
    assert type(body[0]) is torch.nn.Linear
    assert torch.equal(body[0].weight, weight)
    assert (body[0].bias is not None) == bias


def test_other_types_are_left_alone():
    body = torch.nn.Sequential(torch.nn.Linear(4, 4)).double()
    assert prepack(body) == 0
    assert type(body[0]) is torch.nn.Linear
