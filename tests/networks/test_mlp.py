import pytest
import torch

from flowmatch.networks import MLP, MLPConfig


def test_config_builds_what_the_constructor_does():
    config = MLPConfig(width=24, depth=1, time_features=9, time_scale=3.0, num_classes=2)
    torch.manual_seed(0)
    built = config.build((3, 2))
    torch.manual_seed(0)
    direct = MLP(6, width=24, depth=1, time_features=9, time_scale=3.0, num_classes=2)
    x, t = torch.randn(4, 6), torch.rand(4)
    assert torch.equal(built(x.view(4, 3, 2), t).flatten(1), direct(x, t))


def test_depth_is_the_number_of_residual_layers():
    assert len(MLP(dim=2, depth=5).hidden) == 5


@pytest.mark.parametrize("name", ["width", "depth", "time_features"])
def test_sizes_below_one_are_refused(name):
    with pytest.raises(ValueError, match=f"{name} is 0"):
        MLPConfig(**{name: 0})


def test_learns_the_field_of_a_gaussian():
    """x0 ~ N(0, 1), x1 ~ N(m, s^2) gives v = m + (t s^2 - (1 - t)) / var (x - t m)."""
    torch.manual_seed(0)
    mean, std = 2.0, 0.5
    net = MLP(dim=1, width=64, depth=2)
    optimizer = torch.optim.Adam(net.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=800)
    for _ in range(800):
        x0, x1, t = torch.randn(512, 1), mean + std * torch.randn(512, 1), torch.rand(512)
        xt = torch.lerp(x0, x1, t[:, None])
        optimizer.zero_grad()
        (net(xt, t) - (x1 - x0)).square().mean().backward()
        optimizer.step()
        schedule.step()
    t = torch.rand(2048)
    at = t[:, None]
    variance = (at * std) ** 2 + (1 - at) ** 2
    x = at * mean + variance.sqrt() * torch.randn(2048, 1)
    exact = mean + (at * std**2 - (1 - at)) / variance * (x - at * mean)
    with torch.no_grad():
        error = (net(x, t) - exact).square().mean()
    assert error < 0.01 * exact.var()
