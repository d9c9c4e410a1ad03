"""Guidance as a config: what it builds, what it refuses, and that all of it samples."""

from typing import get_args

import pytest
import torch
from guided_fields import Classes, ClassesNet, points
from pydantic import TypeAdapter, ValidationError

import flowmatch as fm
from flowmatch.flow import Flow
from flowmatch.guidance import APG, AutoGuided, CFGZero, CosineScale, CountNFE, Guided, LinearScale
from flowmatch.guidance.settings import Guidance, Method
from flowmatch.networks import MLP
from flowmatch.paths import Linear
from flowmatch.solvers import Adaptive, AnySolver, Euler, Heun

LINEAR = Linear()


def test_it_builds_what_it_says():
    field = Classes()
    assert Guidance(scale=2.0).around(field, path=LINEAR) == Guided(field, 2.0)
    assert Guidance(scale=2.0, interval=(0.1, 0.6), schedule="linear").around(
        field, path=LINEAR
    ) == Guided(field, LinearScale(1.0, 3.0), interval=(0.1, 0.6))
    assert Guidance(scale=2.0, schedule="cosine").around(field, path=LINEAR) == Guided(
        field, CosineScale(1.0, 3.0)
    )
    zero = Guidance(scale=2.0, method="cfg_zero", zero_until=0.1, interval=(0.0, 0.5))
    assert zero.around(field, path=LINEAR) == CFGZero(field, 2.0, 0.1, interval=(0.0, 0.5))
    apg = Guidance(scale=2.0, method="apg", eta=0.0, norm_threshold=3.0, momentum=-0.5)
    assert apg.around(field, path=LINEAR) == APG(
        field, 2.0, LINEAR, norm_threshold=3.0, momentum=-0.5
    )
    weak = Classes(std=0.9)
    assert Guidance(scale=2.0, interval=(0.0, 0.5)).around(
        field, path=LINEAR, weak=weak
    ) == AutoGuided(field, weak, 2.0, interval=(0.0, 0.5))


@pytest.mark.parametrize("method", get_args(Method))
def test_the_defaults_are_the_methods_own(method):
    built = Guidance(scale=2.0, method=method).around(Classes(), path=LINEAR)
    own = {"cfg": Guided, "cfg_zero": CFGZero, "apg": APG}[method]
    assert built == (own(Classes(), 2.0, LINEAR) if method == "apg" else own(Classes(), 2.0))


def test_off_is_the_field_itself():
    field = Classes()
    for guidance in (Guidance(), Guidance(method="apg"), Guidance(schedule="cosine")):
        assert guidance.off
        assert guidance.around(field, path=LINEAR) is field
    assert Guidance().around(field, path=LINEAR, weak=field) is field
    assert not Guidance(scale=0.0).off


def test_memory_is_not_shared_between_jobs():
    guidance = Guidance(scale=2.0, method="apg", momentum=-0.5)
    one, other = (guidance.around(Classes(), path=LINEAR) for _ in range(2))
    assert one._sum is not other._sum


def test_a_counter_counts_the_weak_field_too():
    x = torch.randn(4, 3)
    counted = CountNFE(lambda x, t, cond=None: -x)
    field = Guidance(scale=2.0).around(counted, path=LINEAR, weak=lambda x, t, cond=None: x)
    fm.sample(field, x, Heun(steps=5))
    assert counted.nfe == 20


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale": float("nan")}, "finite number"),
        ({"interval": (0.6, 0.2)}, "0 <= lo < hi <= 1"),
        ({"method": "cgf"}, "method 'cgf' is none of cfg, cfg_zero, apg"),
        ({"schedule": "ramp"}, "schedule 'ramp' is none of constant, linear, cosine"),
        ({"zero_until": 0.1}, "zero_until is an option of guidance method cfg_zero, not of cfg"),
        ({"method": "apg", "zero_until": 0.1}, "not of apg"),
        ({"method": "cfg_zero", "eta": 0.0}, "eta is an option of guidance method apg"),
        ({"momentum": 0.0}, "momentum is an option of guidance method apg"),
        ({"norm_threshold": 1.0}, "norm_threshold is an option of guidance method apg"),
        ({"method": "apg", "norm_threshold": -1.0}, "must be positive"),
        ({"method": "apg", "momentum": 2.0}, r"\(-1, 1\)"),
        ({"method": "cfg_zero", "zero_until": 1.0}, r"\[0, 1\)"),
    ],
)
def test_bad_settings_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Guidance(**options)
    with pytest.raises(ValidationError):
        TypeAdapter(Guidance).validate_python(options)


def test_a_config_reads_it():
    node = {"scale": 2, "method": "apg", "interval": [0.1, 0.7], "momentum": -0.5}
    expected = Guidance(scale=2.0, method="apg", interval=(0.1, 0.7), momentum=-0.5)
    assert TypeAdapter(Guidance).validate_python(node) == expected
    with pytest.raises(ValidationError, match="sclae"):
        TypeAdapter(Guidance).validate_python({"sclae": 2})


def test_check():
    conditional, plain = Flow(MLP(2, num_classes=3), shape=(2,)), Flow(MLP(2), shape=(2,))
    Guidance().check(plain)
    Guidance(scale=2.0).check(conditional)
    Guidance(scale=2.0).check(plain, weak=Flow(MLP(2, width=8), shape=(2,)))
    with pytest.raises(ValueError, match=r"scale 2\.0 needs a conditional model"):
        Guidance(scale=2.0).check(plain)
    with pytest.raises(ValueError, match="number of classes is None"):
        Guidance(scale=2.0).check(conditional, weak=plain)
    apg = Guidance(scale=2.0, method="apg")
    with pytest.raises(ValueError, match="apg does not use a weak model"):
        apg.check(conditional, weak=conditional)
    with pytest.raises(ValueError, match="apg does not use a weak model"):
        apg.around(conditional, path=LINEAR, weak=conditional)


METHODS = {
    "cfg": {},
    "cfg in an interval": {"interval": (0.2, 0.7)},
    "cfg on a schedule": {"schedule": "cosine", "interval": (0.2, 0.7)},
    "cfg_zero": {"method": "cfg_zero"},
    "apg": {"method": "apg", "norm_threshold": 2.0},
    "apg with momentum": {"method": "apg", "momentum": -0.5, "eta": 0.5},
    "autoguidance": {},
}


def pairs():
    """Every method with every solver; to an adaptive one, momentum is no function of x and t."""
    for name in METHODS:
        for solver in get_args(AnySolver):
            if not (name == "apg with momentum" and issubclass(solver, Adaptive)):
                yield pytest.param(name, solver, id=f"{name}-{solver.__name__}")


@pytest.mark.parametrize(("name", "solver"), [*pairs()])
def test_every_method_with_every_solver(name, solver):
    """A flow, in one network call, and a foreign field come to the same finite samples."""
    x, _, cond = points(4)
    options = {"rtol": 1e-3, "atol": 1e-3} if issubclass(solver, Adaptive) else {"steps": 6}
    guidance = Guidance(scale=2.0, **METHODS[name])
    weak = Classes(std=0.8) if name == "autoguidance" else None

    def drawn(field):
        return fm.sample(field, x, solver(**options), cond, path=LINEAR, seeds=range(4))

    together, apart = (
        drawn(guidance.around(CountNFE(field), path=LINEAR, weak=weak))
        for field in (Flow(ClassesNet()), lambda x, t, cond=None: Classes()(x, t, cond))
    )
    assert together.isfinite().all()
    # an adaptive solver turns rounding at a jump of the field into other steps
    tolerance = 1e-2 if issubclass(solver, Adaptive) else 1e-9
    torch.testing.assert_close(together, apart, rtol=tolerance, atol=tolerance)
    assert not torch.allclose(together, drawn(Flow(ClassesNet())), rtol=0.05, atol=0.05)


@pytest.mark.parametrize("name", METHODS)
def test_backward_is_finite_too(name):
    x, _, cond = points(4)
    guidance = Guidance(scale=2.0, **METHODS[name])
    weak = Classes(std=0.8) if name == "autoguidance" else None
    guided = guidance.around(Flow(ClassesNet()), path=LINEAR, weak=weak)
    assert fm.sample(guided, x, Euler(steps=6), cond, t0=1.0, t1=0.0).isfinite().all()
