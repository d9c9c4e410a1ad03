"""Layers that keep the magnitude of what passes through them.

The magnitude of a vector is the root mean square of its entries. Where the entries of the inputs
have magnitude 1 and are uncorrelated, so do those of the outputs: no layer here needs a norm after
it, and training cannot make activations or weights grow.

Source: Karras et al. 2024, "Analyzing and Improving the Training Dynamics of Diffusion Models"
    (EDM2), appendix B.
"""

from __future__ import annotations

import contextlib
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SILU_MAGNITUDE = 0.596
"""Root mean square of `silu(z)` for a standard normal z."""


def normalize(x: Tensor, dim: int | tuple[int, ...]) -> Tensor:
    """Divide by the root mean square over dimensions.

        x / max(rms(x), 1e-4),   rms(x)^2 = mean_dim x^2

    The source adds 1e-4 instead. The maximum makes the result exactly independent of the scale of
    x, and so the gradient exactly orthogonal to x.

    Args:
        x: any tensor. The mean is taken in float32 or wider, under autocast too.
        dim: what is averaged over.
    Returns:
        The same shape and dtype; zeros stay zeros.
    Source: EDM2, appendix B.
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    norm = torch.linalg.vector_norm(x, dim=dim, keepdim=True, dtype=wide)
    rms = norm * math.sqrt(norm.numel() / x.numel())
    out: Tensor = x / rms.clamp_min(1e-4).to(x.dtype)
    return out


def pixel_norm(x: Tensor) -> Tensor:
    """`normalize` each pixel over its channels: [B, C, H, W] -> [B, C, H, W]."""
    return normalize(x, 1)


def mp_silu(x: Tensor) -> Tensor:
    """SiLU over its magnitude on standard normal inputs.  Source: EDM2, equation 81."""
    return F.silu(x) / SILU_MAGNITUDE


def mp_sum(a: Tensor, b: Tensor, *, t: float) -> Tensor:
    """A weighted sum of two tensors of one shape.

        ((1 - t) a + t b) / sqrt((1 - t)^2 + t^2)

    Args:
        t: weight of b, in [0, 1].
    Source: EDM2, equation 88.
    """
    return ((1 - t) * a + t * b) / math.hypot(1 - t, t)


def mp_cat(a: Tensor, b: Tensor, *, t: float) -> Tensor:
    """Concatenate the channels of [B, Na, ...] and [B, Nb, ...].

        sqrt((Na + Nb) / ((1 - t)^2 + t^2)) [(1 - t) / sqrt(Na) a, t / sqrt(Nb) b]

    What each contributes to the layer after it depends on t alone, not on its number of channels.

    Args:
        t: weight of b, in [0, 1].
    Source: EDM2, equation 103.
    """
    channels_a, channels_b = a.shape[1], b.shape[1]
    scale = math.sqrt(channels_a + channels_b) / math.hypot(1 - t, t)
    scaled_a = a * (scale * (1 - t) / math.sqrt(channels_a))
    return torch.cat([scaled_a, b * (scale * t / math.sqrt(channels_b))], dim=1)


class MPFourier(nn.Module):
    """Cosines of a number at random frequencies and phases.

        sqrt(2) cos(2 pi (scale t f_i + phi_i)),   f_i ~ N(0, 1),   phi_i ~ U(0, 1)

    Frequencies and phases are drawn once and saved with the weights, as buffers.

    Args:
        features: number of cosines.
        scale: what the number is multiplied by.
    Source: EDM2, equation 75.
    """

    frequencies: Tensor
    phases: Tensor

    def __init__(self, features: int, *, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = scale
        self.register_buffer("frequencies", torch.randn(features))
        self.register_buffer("phases", torch.rand(features))

    def forward(self, t: Tensor) -> Tensor:
        """[B], float32 or wider -> [B, features] in at least this precision."""
        turns = self.scale * t[:, None] * self.frequencies + self.phases
        return math.sqrt(2) * torch.cos(2 * math.pi * turns)


class MPWeight(nn.Module):
    """A weight whose every output has magnitude 1, in storage and in use.

    In training mode each use first writes the normalised weight back ("forced weight
    normalisation"): else the weight would grow with every step, as its gradient is orthogonal to
    it, and the effective learning rate would fall. In evaluation mode it is normalised on the fly,
    so that averages of weights can be used as they are.

    Args:
        outputs: number of outputs.
        fan_in: shape of what one output sees.
    Source: EDM2, section 2.3, equations 47 and 66.
    """

    def __init__(self, outputs: int, *fan_in: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, *fan_in))

    def effective(self, gain: Tensor | float = 1.0) -> Tensor:
        """The weight to apply: each output has norm `gain`, as its fan-in has magnitude 1."""
        # a weight that `torch.func.functional_call` puts in its place is not ours to write to
        if self.training and isinstance(self.weight, nn.Parameter):
            self._force()
        return self._normalized() * (gain / math.sqrt(self.weight[0].numel()))

    def _normalized(self) -> Tensor:
        return normalize(self.weight, tuple(range(1, self.weight.ndim)))

    @torch.no_grad()
    def _force(self) -> None:
        # `.data`: a graph that holds the weight stays valid, for what is normalised already is
        # rewritten as it is. So several forward passes may come before one backward pass.
        # Transforms such as `torch.func.jvp` refuse to write to anything but their arguments;
        # `torch.compile` does not know the context that lets us.
        free = contextlib.nullcontext if torch.compiler.is_compiling() else _free_of_transforms
        with free():
            self.weight.data.copy_(self._normalized())


def _free_of_transforms() -> contextlib.AbstractContextManager[None]:
    context: contextlib.AbstractContextManager[None] = torch._C._DisableFuncTorch()
    return context


class MPLinear(MPWeight):
    """A linear map without bias: [..., inputs] -> [..., outputs]."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(outputs, inputs)

    def forward(self, x: Tensor, gain: Tensor | float = 1.0) -> Tensor:
        """Apply the map, times a scalar `gain`."""
        return F.linear(x, self.effective(gain))


class MPConv(MPWeight):
    """A convolution without bias that keeps the size: [B, inputs, H, W] -> [B, outputs, H, W].

    Args:
        inputs: channels of the input.
        outputs: channels of the output.
        kernel: its height and width, odd.
    """

    def __init__(self, inputs: int, outputs: int, *, kernel: int) -> None:
        super().__init__(outputs, inputs, kernel, kernel)

    def forward(self, x: Tensor, gain: Tensor | float = 1.0) -> Tensor:
        """Apply the convolution, times a scalar `gain`."""
        return F.conv2d(x, self.effective(gain), padding=self.weight.shape[-1] // 2)


class MPClassEmbedding(MPWeight):
    """A vector of magnitude near 1 for each class, and for the null class, which is `num_classes`.

        W onehot(label) sqrt(N),   N = num_classes + 1

    The null class has a column of its own, so that it is as loud as any other; to be told nothing
    by zeros would leave less magnitude behind. The product is computed by picking columns.

    Source: EDM2, appendix B; Ho & Salimans 2022, section 3 (null class).
    """

    def __init__(self, num_classes: int, dim: int) -> None:
        super().__init__(dim, num_classes + 1)

    def forward(self, labels: Tensor) -> Tensor:
        """int64 [B] in [0, num_classes] -> [B, dim]."""
        columns = self.effective(math.sqrt(self.weight.shape[1])).t()
        return F.embedding(labels, columns)
