"""Keeps what the `datasets` library caches out of the home folder."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True, scope="session")
def _arrow_cache(tmp_path_factory):
    import datasets

    before = datasets.config.HF_DATASETS_CACHE
    datasets.config.HF_DATASETS_CACHE = tmp_path_factory.mktemp("arrow")
    yield
    datasets.config.HF_DATASETS_CACHE = before


@pytest.fixture(autouse=True)
def _no_fallback(monkeypatch):
    """A test finds only the data that it made."""
    monkeypatch.delenv("FLOWMATCH_DATA", raising=False)
