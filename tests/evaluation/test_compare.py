"""Comparing: equal protocols are ranked, others are named."""

import copy
import json

import pytest
import torch
from scipy.stats import ttest_ind_from_stats
from test_sweep import PROTOCOL

from flowmatch.evaluation.compare import compare


def table(path, protocol=PROTOCOL, **metrics):
    """A table of one row with three sets: mean and half-range of each metric, or one set."""
    row = {"solver": "heun", "steps": 5, "time_grid": "uniform", "safe_end": True, "nfe": 10}
    row["metrics"] = {name: v for name, (v, _) in metrics.items()}
    if all(s is not None for _, s in metrics.values()):
        row["sets"] = [{name: v + k * s for name, (v, s) in metrics.items()} for k in (-1, 0, 1)]
    path.write_text(json.dumps({"protocol": protocol, "rows": [row]}))
    return path


def changed(key, value):
    protocol = copy.deepcopy(PROTOCOL)
    node = protocol
    *parents, last = key.split(".")
    for parent in parents:
        node = node[parent]
    node[last] = value
    return protocol


def test_lower_distances_and_higher_precision_win_beyond_the_spread(tmp_path):
    a = table(tmp_path / "a.json", fd_data=(1.0, 0.1), precision=(0.9, 0.01), kd_data=(1, 0.2))
    b = table(tmp_path / "b.json", fd_data=(2.0, 0.2), precision=(0.8, 0.01), kd_data=(1.3, 0.1))
    found = {v.metric: v for v in compare(a, b)}
    assert found["fd_data"].better == "A"
    assert found["precision"].better == "A"
    assert found["kd_data"].better == "neither: sets of one model differ as much"
    assert found["fd_data"].p == pytest.approx(ttest_ind_from_stats(1, 0.1, 3, 2, 0.2, 3, False)[1])
    assert {v.metric: v.better for v in compare(b, a)}["fd_data"] == "B"
    assert "heun:5" in str(found["fd_data"])


def test_without_repeats_the_verdict_says_so(tmp_path):
    a = table(tmp_path / "a.json", fd_data=(1.0, None))
    b = table(tmp_path / "b.json", fd_data=(2.0, None))
    assert compare(a, b)[0].better == "A (without repeats, so nobody knows)"


@pytest.mark.parametrize(
    "difference",
    [
        ("features.hash", "xyz"),
        ("features.kind", "inception"),
        ("reference.hash", "xyz"),
        ("samples.count", 49),
        ("samples.seed", 1),
        ("guidance", 1.5),
        ("precision", "bf16"),
        ("versions.flowmatch", "0.2.0"),
    ],
    ids=lambda d: d[0],
)
def test_another_protocol_is_refused_and_named_unless_allowed(tmp_path, difference):
    key, value = difference
    a = table(tmp_path / "a.json", fd_data=(1.0, 0.1))
    b = table(tmp_path / "b.json", changed(key, value), fd_data=(2.0, 0.1))
    with pytest.raises(ValueError, match=rf"cannot be ranked.*{key} is .*--allow {key}"):
        compare(a, b)
    assert compare(a, b, allow=[key])[0].better == "A"
    assert compare(a, b, allow=[key.split(".")[0]])[0].better == "A"


def test_the_model_is_what_is_compared(tmp_path):
    a = table(tmp_path / "a.json", fd_data=(1.0, 0.1))
    b = table(tmp_path / "b.json", changed("model.hash", "456"), fd_data=(1.0, 0.1))
    assert compare(a, b)[0].better == "equal"
    b = table(tmp_path / "b.json", changed("model.field", "789"), fd_data=(1.0, 0.1))
    assert compare(a, b)[0].better == compare(b, a)[0].better == "equal"


def test_tables_without_a_common_row(tmp_path):
    a = table(tmp_path / "a.json", fd_data=(1.0, 0.1))
    content = json.loads(a.read_text())
    content["rows"][0]["steps"] = 50
    (tmp_path / "b.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="A has heun:5, B has heun:50"):
        compare(a, tmp_path / "b.json")
    with pytest.raises(ValueError, match="there is no evaluation"):
        compare(a, tmp_path / "c.json")


def test_chance_names_few_winners(tmp_path):
    generator = torch.Generator().manual_seed(0)
    names = [f"fd_{k}" for k in range(400)]
    for path in (tmp_path / "a.json", tmp_path / "b.json"):
        values = torch.randn(3, len(names), generator=generator).tolist()
        sets = [dict(zip(names, row, strict=True)) for row in values]
        row = {"solver": "heun", "metrics": sets[0], "sets": sets}
        path.write_text(json.dumps({"protocol": PROTOCOL, "rows": [row]}))
    verdicts = compare(tmp_path / "a.json", tmp_path / "b.json")
    assert sum(v.better in ("A", "B") for v in verdicts) <= 0.06 * len(names)


@pytest.mark.parametrize("content", ["[]", "{}", '{"protocol": {}, "rows": [{}]}', "nonsense"])
def test_a_file_of_something_else(tmp_path, content):
    a = table(tmp_path / "a.json", fd_data=(1.0, 0.1))
    (tmp_path / "b.json").write_text(content)
    with pytest.raises(ValueError, match=r"b\.json (is no evaluation|cannot be read)"):
        compare(a, tmp_path / "b.json")
    with pytest.raises(ValueError, match="is a folder"):
        compare(a, tmp_path)
