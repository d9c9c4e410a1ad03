"""Geometric augmentation: what happens, how often, and that the network is told all of it."""

import math

import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from flowmatch.augmentation import AugmentationConfig, Geometric

ENTRIES = {"flip_x": [0], "flip_y": [1], "scale": [2], "rotation": [3, 4]}
ENTRIES |= {"anisotropy": [5, 6], "translation": [7, 8]}
OFF = dict.fromkeys(ENTRIES, 0.0)
NEVER = 1 - 2**-24  # as a gate: above every chance but 1
ONE = 0.8413447460685429  # a standard normal number is below 1


def uniform(n, seed=0):
    return torch.rand(n, Geometric.uniforms, generator=torch.Generator().manual_seed(seed))


def noise(*shape, dtype=torch.float64):
    return 2 * torch.rand(*shape, generator=torch.Generator().manual_seed(1)).to(dtype) - 1


def draws(**columns):
    """The uniform numbers of one image that only the named columns move."""
    u = torch.full((1, Geometric.uniforms), NEVER, dtype=torch.float64)
    for column, value in columns.items():
        u[:, int(column.removeprefix("u"))] = value
    return u


def test_probability_zero_touches_nothing():
    x = noise(64, 3, 8, 8)
    y, condition = Geometric(probability=0.0)(x, uniform(64))
    assert torch.equal(y, x)
    assert torch.equal(condition, torch.zeros(64, 9, dtype=torch.float64))


@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 14, 14), (1, 28, 28), (3, 32, 32), (2, 12, 20)])
def test_the_condition_is_zero_if_and_only_if_the_image_is_untouched(shape):
    x = noise(400, *shape, dtype=torch.float32)
    y, condition = Geometric()(x, uniform(400))
    same = (y == x).flatten(1).all(1)
    assert torch.equal(same, (condition == 0).all(1))
    # none of the parts happens to 0.5 * 0.94 * 0.88^4 = 28% of the images
    assert abs(same.double().mean() - 0.282) < 0.09


def test_every_part_happens_as_often_as_it_should():
    n = 40_000
    condition = Geometric()(torch.zeros(n, 1, 1, 1), uniform(n)).condition.double()
    happened = (condition != 0).double().mean(0)
    # half of the stretches are along the image's own axes, whose sine is 0
    expected = torch.tensor([0.5, 0.06] + [0.12] * 4 + [0.06] + [0.12] * 2).double()
    torch.testing.assert_close(happened, expected, atol=0.01, rtol=0)  # over 4 standard errors
    both = (condition[:, [2, 3, 5, 7]] != 0).double()
    together = both.T @ both / n - torch.diag(both.mean(0))
    torch.testing.assert_close(together, 0.0144 * (1 - torch.eye(4)).double(), atol=0.003, rtol=0)


def test_the_condition_has_the_law_that_it_should():
    n = 40_000
    entries = Geometric(probability=1.0)(torch.zeros(n, 1, 1, 1), uniform(n)).condition.double()
    mean = torch.tensor([0.5, 0.5, 0, -1, 0, 0, 0, 0, 0]).double()
    # coins 1/4, normals 1, cosines and sines 1/2, but of a stretch, half of which have c = 0
    variance = torch.tensor([0.25, 0.25, 1, 0.5, 0.5, 0.75, 0.25, 1, 1]).double()
    torch.testing.assert_close(entries.mean(0), mean, atol=0.025, rtol=0)
    torch.testing.assert_close(entries.T.cov(), torch.diag(variance), atol=0.03, rtol=0)
    torch.testing.assert_close(
        (entries[:, 3] + 1).square() + entries[:, 4].square(),
        torch.ones(n).double(),
        atol=1e-6,
        rtol=0,
    )


def test_strengths_multiply_the_probability():
    augment = Geometric(probability=0.25, flip_x=2.0, flip_y=0.0, scale=8.0, translation=0.4)
    assert augment.dim == 8
    n = 20_000
    condition = augment(torch.zeros(n, 1, 1, 1), uniform(n)).condition
    happened = (condition != 0).double().mean(0)
    expected = torch.tensor([0.25, 1.0, 0.25, 0.25, 0.25, 0.125, 0.1, 0.1]).double()
    torch.testing.assert_close(happened, expected, atol=0.015, rtol=0)


@pytest.mark.parametrize("part", ENTRIES)
def test_switching_a_part_off_leaves_the_draws_of_the_others(part):
    x, u = torch.zeros(100, 1, 4, 4), uniform(100)
    every = Geometric(probability=0.5)(x, u).condition
    without = Geometric(probability=0.5, **{part: 0.0})
    kept = [i for i in range(9) if i not in ENTRIES[part]]
    assert without.dim == len(kept)
    assert torch.equal(without(x, u).condition, every[:, kept])


def test_a_row_depends_on_its_own_numbers_alone():
    augment = Geometric(probability=0.7)
    x, u = noise(24, 3, 16, 16), uniform(24)
    whole, again = augment(x, u), augment(x, u)
    assert torch.equal(whole.x, again.x)
    assert torch.equal(whole.condition, again.condition)
    for rows in (slice(0, 1), slice(1, 9), slice(9, 24)):
        part = augment(x[rows], u[rows])
        torch.testing.assert_close(part.x, whole.x[rows], rtol=0, atol=1e-12)
        assert torch.equal(part.condition, whole.condition[rows])


def test_flips_are_exact():
    x = noise(1, 3, 9, 8)
    augment = Geometric(probability=0.5)
    assert torch.equal(augment(x, draws(u0=0.49)).x, x.flip(-1))
    assert torch.equal(augment(x, draws(u0=0.51)).x, x)
    assert torch.equal(augment(x, draws(u0=0.51, u1=0.24)).x, x.flip(-2))
    assert torch.equal(augment(x, draws(u0=0.51, u1=0.26)).x, x)


def test_a_quarter_turn_is_clockwise():
    x = noise(1, 2, 16, 16)
    y, condition = Geometric(probability=0.5, flip_x=0.0)(x, draws(u4=0.0, u5=0.75))
    torch.testing.assert_close(y, torch.rot90(x, -1, (-2, -1)), atol=0.01, rtol=0)
    expected = torch.tensor([[0, 0, -1, 1, 0, 0, 0, 0.0]]).double()
    torch.testing.assert_close(condition, expected)


def test_a_translation_goes_right_and_down_by_parts_of_the_size():
    x = noise(1, 2, 8, 16)
    y, condition = Geometric(probability=0.5, **{**OFF, "translation": 1.0})(
        x, draws(u9=0.0, u10=ONE, u11=ONE)
    )
    torch.testing.assert_close(condition, torch.ones(1, 2).double())
    torch.testing.assert_close(y[..., 1:, 2:], x[..., :-1, :-2], atol=0.01, rtol=0)
    torch.testing.assert_close(y[..., 1:, :2], x[..., :-1, :2].flip(-1), atol=0.01, rtol=0)


def smooth(right, down, height, width):
    """A smooth function without symmetry, that its mirror images at the image's edges continue."""
    a, b = math.pi * (right / width + 0.5), math.pi * (down / height + 0.5)
    return 0.5 * torch.cos(a) + 0.3 * torch.cos(b) + 0.2 * torch.cos(a) * torch.cos(b)


def told(vector, height, width, settings):
    """The map from places in the image to places in the result that a condition tells of."""
    flip_x, flip_y, a, cos, sin, c, s, e, f = vector.tolist()
    cos += 1
    flip = torch.diag(torch.tensor([1 - 2 * flip_x, 1 - 2 * flip_y])).double()
    turn = torch.tensor([[cos, -sin], [sin, cos]]).double()
    log_stretch = settings.anisotropy_octaves * torch.tensor([[c, s], [s, -c]]).double()
    stretch = torch.linalg.matrix_exp(math.log(2) * log_stretch)
    shift = settings.translation_fraction * torch.tensor([e * width, f * height]).double()
    return stretch @ turn @ (2 ** (settings.scale_octaves * a) * flip), shift


@pytest.mark.parametrize(("height", "width"), [(32, 32), (24, 40)])
@pytest.mark.parametrize("part", [*ENTRIES, "all"])
def test_the_condition_tells_the_map(part, height, width):
    augment = Geometric(probability=1.0, **({} if part == "all" else {**OFF, part: 1.0}))
    right = (torch.arange(width).double() + 0.5 - width / 2).expand(height, width)
    down = (torch.arange(height).double() + 0.5 - height / 2)[:, None].expand(height, width)
    x = smooth(right, down, height, width).expand(20, 1, height, width)
    images, condition = augment(x, uniform(20))
    vectors = torch.zeros(20, 9).double()
    vectors[:, range(9) if part == "all" else ENTRIES[part]] = condition
    for image, vector in zip(images[:, 0], vectors, strict=True):
        matrix, shift = told(vector, height, width, augment)
        places = torch.stack([right - shift[0], down - shift[1]])
        from_right, from_down = torch.einsum("ij,jhw->ihw", torch.linalg.inv(matrix), places)
        expected = smooth(from_right, from_down, height, width)
        torch.testing.assert_close(image, expected, atol=1e-3, rtol=0)


def test_stretching_and_shrinking_along_an_axis_are_told_apart():
    # half a turn of the axis is the same axis: only the sign of the octaves differs
    augment = Geometric(probability=0.5, anisotropy_turned=1.0, **{**OFF, "anisotropy": 1.0})
    x = noise(1, 1, 16, 16)
    longer, shorter = (augment(x, draws(u6=0.0, u7=0.0, u8=q)) for q in (ONE, 1 - ONE))
    torch.testing.assert_close(longer.condition, -shorter.condition)
    across = augment(x, draws(u6=0.0, u7=0.5, u8=1 - ONE))  # shorter along the other axis
    torch.testing.assert_close(across.condition, longer.condition)
    torch.testing.assert_close(across.x, longer.x)


def test_a_share_of_the_stretches_is_turned():
    only = {**OFF, "anisotropy": 1.0}
    x, u = torch.zeros(4000, 1, 1, 1), uniform(4000)
    for share in (0.0, 0.3, 1.0):
        augment = Geometric(probability=1.0, anisotropy_turned=share, **only)
        along, oblique = augment(x, u).condition.unbind(1)
        assert (along != 0).all()
        assert (oblique != 0).double().mean() == pytest.approx(share, abs=0.03)
    angle = torch.atan2(oblique, along)  # of the axis twice, or half a turn from it
    assert angle.mean().abs() < 0.1
    assert angle.std().item() == pytest.approx(math.pi / 3**0.5, abs=0.05)


def test_extreme_numbers_stay_finite():
    for value in (0.0, NEVER):
        u = torch.full((1, Geometric.uniforms), value)
        y, condition = Geometric(probability=1.0)(noise(1, 1, 8, 8, dtype=torch.float32), u)
        assert y.isfinite().all()
        assert condition.isfinite().all()
        assert condition.abs().max() < 5.3


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_type_and_shape_are_kept(dtype):
    x = noise(8, 3, 8, 10, dtype=dtype)
    y, condition = Geometric(probability=0.8)(x, uniform(8))
    assert y.dtype == dtype
    assert y.shape == x.shape
    assert condition.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


def test_autocast_does_not_blur_the_images():
    x, u = noise(8, 1, 8, 8, dtype=torch.float32), uniform(8)
    plain = Geometric(probability=0.8)(x, u)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(Geometric(probability=0.8)(x, u).x, plain.x)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_device_is_never_waited_for_and_agrees_with_the_cpu():
    augment, x, u = (
        Geometric(probability=0.5),
        noise(64, 3, 16, 16, dtype=torch.float32),
        uniform(64),
    )
    on_gpu = x.cuda(), u.cuda()
    augment(*on_gpu)  # the filters are sent to the device once
    torch.cuda.set_sync_debug_mode("error")
    try:
        y, condition = augment(*on_gpu)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    expected = augment(x, u)
    torch.testing.assert_close(condition.cpu(), expected.condition, atol=1e-5, rtol=0)
    torch.testing.assert_close(y.cpu(), expected.x, atol=5e-3, rtol=0)  # room for TF32


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"probability": 1.5}, "probability must be in"),
        ({"scale": -1.0}, "scale must be at least 0, got -1.0"),
        (OFF, "needs a part with a strength above 0"),
        ({"scale_octaves": 0.0}, "to switch scale off, set that to 0"),
        ({"anisotropy_turned": 1.5}, "anisotropy_turned must be in"),
        ({"rotation_degrees": 270.0}, "rotation_degrees must be in"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Geometric(**settings)


def test_images_and_numbers_that_do_not_fit_are_refused():
    augment = Geometric()
    with pytest.raises(ValueError, match="takes float images"):
        augment(torch.zeros(4, 3, 8, 8, dtype=torch.uint8), uniform(4))
    with pytest.raises(ValueError, match="takes float images"):
        augment(torch.zeros(4, 2), uniform(4))
    with pytest.raises(ValueError, match=r"4 images need uniforms \[4, 12\], got \[4, 4\]"):
        augment(torch.zeros(4, 3, 8, 8), uniform(4)[:, :4])


def test_a_config_names_it():
    adapter = TypeAdapter(AugmentationConfig)
    assert adapter.validate_python({"kind": "geometric", "probability": 0.15}).dim == 9
    with pytest.raises(ValidationError):
        adapter.validate_python({"kind": "geometric", "rotate": 1.0})
