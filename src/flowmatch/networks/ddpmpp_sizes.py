"""The published DDPM++ and NCSN++."""

from __future__ import annotations

from typing import Any, Literal

Size = Literal["cifar10", "ffhq64", "afhq64", "ncsnpp-cifar10", "ncsnpp-ffhq64", "ncsnpp-afhq64"]
Embedding = Literal["positional", "fourier"]
Encoder = Literal["standard", "residual"]

_DDPMPP = {"embedding": "positional", "encoder": "standard", "resample": "box"}
_NCSNPP = {"embedding": "fourier", "encoder": "residual", "resample": "fir"}
_CIFAR10 = {"multipliers": (2, 2, 2), "dropout": 0.13}
_FFHQ64 = {"multipliers": (1, 2, 2, 2), "dropout": 0.05}
_AFHQ64 = {"multipliers": (1, 2, 2, 2), "dropout": 0.25}

SIZES: dict[Size, dict[str, Any]] = {
    "cifar10": _DDPMPP | _CIFAR10,
    "ffhq64": _DDPMPP | _FFHQ64,
    "afhq64": _DDPMPP | _AFHQ64,
    "ncsnpp-cifar10": _NCSNPP | _CIFAR10,
    "ncsnpp-ffhq64": _NCSNPP | _FFHQ64,
    "ncsnpp-afhq64": _NCSNPP | _AFHQ64,
}
"""What the networks of Karras et al. 2022, table 7, differ in."""

TIME_SCALES: dict[Embedding, float] = {"positional": 1000.0, "fourier": 16.0}
"""What time is multiplied by inside its embedding, unless said otherwise.

16 is the deviation of the frequencies in Song et al. 2021, who embed the logarithm of the noise
level instead of a time in [0, 1].
"""
