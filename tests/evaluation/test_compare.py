"""Comparing: equal protocols are ranked, others are named."""

import copy
import json

import pytest
from test_sweep import PROTOCOL

from flowmatch.evaluation.compare import compare


def table(path, protocol=PROTOCOL, **metrics):
    spread = {name: s for name, (_, s) in metrics.items() if s is not None}
    row = {"solver": "heun", "steps": 5, "time_grid": "uniform", "safe_end": True, "nfe": 10}
    row["metrics"] = {name: v for name, (v, _) in metrics.items()}
    path.write_text(json.dumps({"protocol": protocol, "rows": [row | {"spread": spread}]}))
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
    assert found["kd_data"].better == "within the spread"
    assert {v.metric: v.better for v in compare(b, a)}["fd_data"] == "B"
    assert "heun:5" in str(found["fd_data"])


def test_without_repeats_the_verdict_says_so(tmp_path):
    a = table(tmp_path / "a.json", fd_data=(1.0, None))
    b = table(tmp_path / "b.json", fd_data=(2.0, None))
    assert compare(a, b)[0].better.startswith("A (one set each")


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


def test_tables_without_a_common_row(tmp_path):
    a = table(tmp_path / "a.json", fd_data=(1.0, 0.1))
    content = json.loads(a.read_text())
    content["rows"][0]["steps"] = 50
    (tmp_path / "b.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="A has heun:5, B has heun:50"):
        compare(a, tmp_path / "b.json")
    with pytest.raises(ValueError, match="there is no evaluation"):
        compare(a, tmp_path / "c.json")
