"""One net fitted to the digits, for all tests that need a real one."""

from __future__ import annotations

import pytest

from flowmatch.data import Dataset, Digits
from flowmatch.features import FittedNet, fit


@pytest.fixture(scope="session")
def digits() -> tuple[Dataset, Dataset]:
    """The digits to train on and those held out."""
    return Digits().build("train"), Digits().build("test")


@pytest.fixture(scope="session")
def digits_net(digits) -> FittedNet:
    """A net fitted to the digits by the recipe as it is."""
    return fit(*digits)
