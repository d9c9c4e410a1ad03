"""Networks: raw modules `(x [B, *D], t [B], cond=None) -> [B, *D]` that know nothing of flows.

A network has `num_classes`, None if it is unconditional. To add one, write its config and module in
a file of its own and name the config in `NetworkConfig`.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from flowmatch.networks.ddpmpp import DDPMPP, DDPMPPConfig
from flowmatch.networks.dit import DiT, DiTConfig
from flowmatch.networks.edm2 import EDM2Config, EDM2UNet
from flowmatch.networks.layers import Dropout, dropouts_of
from flowmatch.networks.mlp import MLP, MLPConfig
from flowmatch.networks.unet import UNet, UNetConfig

NetworkConfig = Annotated[
    DDPMPPConfig | DiTConfig | EDM2Config | MLPConfig | UNetConfig, Field(discriminator="kind")
]

__all__ = [
    "DDPMPP",
    "MLP",
    "DDPMPPConfig",
    "DiT",
    "DiTConfig",
    "Dropout",
    "EDM2Config",
    "EDM2UNet",
    "MLPConfig",
    "NetworkConfig",
    "UNet",
    "UNetConfig",
    "dropouts_of",
]
