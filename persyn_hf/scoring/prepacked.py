"""Linear layers whose weights are stored in the memory layout of the CPU's matrix kernels.

oneDNN, which PyTorch ships, is fastest with weights in its own blocked layout. Otherwise it reorders them at every
call or, in float32, PyTorch uses a slower library. The weights of a student that only scores never change, so they are
reordered once. Layers for which that fails, or gives different numbers, stay as they are.
"""

from __future__ import annotations

import torch
from torch import Tensor

from persyn_hf.models.device import has_prepacked_linear

#: Largest relative difference that a different order of summation explains.
_TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2}


class PrepackedLinear(torch.nn.Module):
    """A `torch.nn.Linear` for inference on a CPU; it does not keep the original weight."""

    def __init__(self, linear: torch.nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.bias = linear.bias
        self._weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), None)

    def forward(self, hidden: Tensor) -> Tensor:
        """Computes `torch.nn.functional.linear`."""
        found: Tensor = torch.ops.mkldnn._linear_pointwise(hidden, self._weight, self.bias, "none", [], "")
        return found

    def original(self) -> torch.nn.Linear:
        """The original layer."""
        linear = torch.nn.Linear(self.in_features, self.out_features, bias=self.bias is not None, device="meta")
        linear.weight = torch.nn.Parameter(self._weight.to_dense(), requires_grad=False)
        linear.bias = self.bias
        return linear


def prepack(body: torch.nn.Module) -> int:
    """Prepacks the linear layers of a model's body in place, and checks each against the original.

    Args:
        body (`torch.nn.Module`): A body on the CPU. Only layers in float32 or bfloat16 are prepacked.

    Returns:
        `int`: Number of prepacked layers.
    """
    if not has_prepacked_linear():
        return 0
    packed = 0
    for module in list(body.modules()):
        for name, child in list(module.named_children()):
            if type(child) is torch.nn.Linear and child.weight.dtype in _TOLERANCE:
                made = _prepacked(child)
                if made is not None:
                    setattr(module, name, made)
                    packed += 1
    return packed


def restore(body: torch.nn.Module) -> None:
    """Undoes `prepack`."""
    for module in list(body.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, PrepackedLinear):
                setattr(module, name, child.original())


def _prepacked(linear: torch.nn.Linear) -> PrepackedLinear | None:
    generator = torch.Generator().manual_seed(0)
    probe = torch.randn(8, linear.in_features, generator=generator).to(linear.weight.dtype)
    try:
        made = PrepackedLinear(linear)
        found, expected = made(probe).double(), linear(probe).double()
    except (AttributeError, RuntimeError):
        return None  # the operators are private: this PyTorch or this processor may lack them
    close = (found - expected).norm() <= _TOLERANCE[linear.weight.dtype] * expected.norm()
    return made if bool(close) else None
