"""The U-Net against weights and outputs of the code whose parameter names it keeps."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from flowmatch.networks import UNetConfig

FIXTURES = Path(__file__).parents[3] / "shared/fixtures/seed-checkpoint"
pytestmark = pytest.mark.skipif(not FIXTURES.exists(), reason=f"no fixtures at {FIXTURES}")

COMMON = {
    "channels": 32,
    "multipliers": (1, 2, 2),
    "blocks": 1,
    "qkv_order": "legacy",
    "time_scale": 999.0,
}
GREY28 = UNetConfig(**COMMON, heads=4, attention_resolutions=())
RGB32 = UNetConfig(**COMMON, heads=2, attention_resolutions=(16, 8), scale_shift=True, dropout=0.1)


@pytest.mark.parametrize(
    ("name", "config", "shape", "parameters"),
    [
        ("grey28", GREY28, (1, 28, 28), 1_062_497),
        ("rgb32-attention", RGB32, (3, 32, 32), 1_242_691),
    ],
)
@torch.no_grad()
def test_checkpoint_gives_its_own_output(name, config, shape, parameters):
    weights = torch.load(FIXTURES / name / "model_ema.pt", weights_only=True)["model"]
    for key in weights:
        if key.endswith(("qkv.weight", "proj_out.weight")):
            weights[key] = weights[key].squeeze(-1)  # a 1x1 convolution there, Linear here
    net = config.build(shape).eval()
    net.load_state_dict(weights)
    assert sum(parameter.numel() for parameter in net.parameters()) == parameters

    io = load_file(FIXTURES / name / "io.safetensors")
    out = net(io["x"], io["t_noise_is_one"])
    torch.testing.assert_close(out, io["net_output"], rtol=1e-5, atol=1e-5)
