"""Tables: rows that survive a kill, protocols that are kept, sets that are disjoint."""

import json
import math

import pytest
import torch

from flowmatch.evaluation.document import Document
from flowmatch.evaluation.protocol import grid_in_words, sentence
from flowmatch.evaluation.stored import Stored
from flowmatch.evaluation.sweep import (
    StoredSamples,
    Sweep,
    measure_row,
    solver_facts,
    transport,
)
from flowmatch.evaluation.table import as_table, notes, one_line
from flowmatch.flow import Flow
from flowmatch.solvers import Dopri5, Euler, ExplicitGrid, Heun, ShiftedGrid, parse

PROTOCOL = {
    "features": {
        "kind": "data",
        "hash": "abc",
        "dims": 6,
        "accuracy": 0.98,
        "task": "labels",
    },
    "reference": {"name": "made", "hash": "def", "count": 70},
    "samples": {"count": 50, "sets": 2, "seed": 0, "labels": "10 classes in turn"},
    "guidance": 1.0,
    "model": {"name": "run", "weights": "EMA", "hash": "123", "images_seen": 640},
    "precision": "fp32",
    "versions": {"flowmatch": "0.1.0"},
}


class Mean:
    """Scores that are the mean of the vectors: a set's number tells which samples it had."""

    primary = "fd_data"
    net = None

    def measure(self, samples):
        return {"fd_data": float(samples.vectors.mean())}

    def classes(self, samples):
        return None


def test_sets_are_disjoint_and_their_spread_is_half_their_range(accelerator):
    x = torch.arange(30.0)[:, None]
    subject = StoredSamples(Stored(x, None, "made"), accelerator.device)
    seen = x[subject._order].flatten().tolist()
    assert sorted(seen) == x.flatten().tolist() != seen
    means = [sum(seen[k : k + 10]) / 10 for k in (0, 10, 20)]
    row, first = measure_row(subject, Sweep(10, 3, batch=4), Mean(), accelerator)
    assert [f["fd_data"] for f in row["sets"]] == pytest.approx(means)
    assert row["metrics"]["fd_data"] == pytest.approx(sum(means) / 3)
    assert row["spread"]["fd_data"] == pytest.approx((max(means) - min(means)) / 2)
    assert first.samples.flatten().tolist() == seen[:10]
    one, _ = measure_row(subject, Sweep(10), Mean(), accelerator)
    assert "spread" not in one


def row_of(solver, value=1.0):
    return solver_facts(solver) | {
        "nfe": getattr(solver, "nfe", 44.5),
        "metrics": {"fd_data": value, "precision": 0.5},
        "spread": {"fd_data": 0.25, "precision": 0.0},
        "seconds": 2.0,
        "nonfinite": 0,
    }


def test_a_table_grows_and_keeps_the_rows_of_a_killed_sweep(tmp_path):
    path = tmp_path / "a.json"
    table = Document(path, PROTOCOL)
    table.add(row_of(Euler(steps=10)))
    again = Document(path, PROTOCOL)  # as after a kill: the first row is on the disk
    assert again.has(solver_facts(Euler(steps=10)))
    assert not again.has(solver_facts(Euler(steps=20)))
    assert not again.has(solver_facts(Heun(steps=10)))
    assert not again.has(solver_facts(Euler(steps=10, safe_end=False)))
    again.add(row_of(Heun(steps=5)))
    assert len(json.loads(path.read_text())["rows"]) == 2
    assert not list(tmp_path.glob(".*"))


def test_a_file_of_another_protocol_is_not_overwritten(tmp_path):
    Document(tmp_path / "a.json", PROTOCOL).add(row_of(Euler(steps=10)))
    other = {**PROTOCOL, "guidance": 2.0}
    with pytest.raises(ValueError, match=r"guidance was 1\.0, is 2\.0.*--json"):
        Document(tmp_path / "a.json", other)
    (tmp_path / "b.json").write_text("{")
    with pytest.raises(ValueError, match=r"b\.json cannot be read"):
        Document(tmp_path / "b.json", PROTOCOL)
    (tmp_path / "b.json").write_text("[]")
    with pytest.raises(ValueError, match="is no evaluation"):
        Document(tmp_path / "b.json", PROTOCOL)


def test_a_file_that_names_no_field_means_the_own_one_of_the_run(tmp_path):
    path = tmp_path / "a.json"
    Document(path, PROTOCOL).add(row_of(Euler(steps=10)))
    model = PROTOCOL["model"]
    own, other = ({**PROTOCOL, "model": {**model, "field": name}} for name in ("own", "other"))
    assert len(Document(path, own, unsaid={"model.field": "own"}).rows) == 1
    with pytest.raises(ValueError, match=r"model\.field was 'own', is 'other'"):
        Document(path, other, unsaid={"model.field": "own"})
    assert "weights 123, field other, 640 images seen" in sentence(other, None)


def test_json_has_null_where_there_is_no_number(tmp_path):
    Document(tmp_path / "a.json", PROTOCOL).add(row_of(Euler(steps=10), math.nan))
    text = (tmp_path / "a.json").read_text()
    assert "NaN" not in text
    assert json.loads(text)["rows"][0]["metrics"]["fd_data"] is None


def test_the_sentence_says_everything_that_a_number_depends_on():
    row = row_of(Heun(steps=5))
    line = sentence(PROTOCOL, row)
    for part in (
        "features data abc (6 dims, 98.0% held-out accuracy at labels)",
        "50 samples x 2 sets, seed 0, 10 classes in turn",
        "reference made def (70)",
        "heun 5 steps, uniform grid, 10 NFE",
        "guidance 1",
        "EMA weights 123, 640 images seen",
        "fp32",
        "flowmatch 0.1.0",
    ):
        assert part in line
    assert "bare end" in sentence(PROTOCOL, row_of(Heun(steps=5, safe_end=False)))
    assert "dopri5, adaptive grid, 44.5 NFE" in sentence(PROTOCOL, row_of(Dopri5()))


def test_the_printed_table():
    rows = [row_of(Heun(steps=5)), row_of(Euler(steps=10), math.nan)]
    for row in rows:
        row["protocol"] = sentence(PROTOCOL, row)
    document = {
        "protocol": PROTOCOL,
        "rows": rows,
        "floor": {"count": 50, "fd_data": 0.5},
        "anchors": {"held-out data": {"count": 40, "metrics": {"fd_data": 0.6}}},
    }
    table = as_table(document).splitlines()
    assert [c.strip() for c in table[0].split("|")[1:-1]] == [
        *("solver", "steps", "NFE", "fd_data ↓", "precision ↑", "seconds")
    ]
    assert "1 ± 0.25" in table[2]
    assert "nan" in table[3]
    assert "held-out data (40)" in table[4]
    assert len({len(line) for line in table}) == 1
    text = " ".join(notes(document))
    assert "half the range over 2 disjoint sets" in text
    assert "about 0.5 is the bias of 50 samples" in text
    assert f"Protocol: {sentence(PROTOCOL, None)}" in text
    document["rows"] = rows[:1]
    assert f"Protocol: {rows[0]['protocol']}" in notes(document)


def test_solvers_as_words():
    assert parse("euler:10,100") == [Euler(steps=10), Euler(steps=100)]
    assert parse("heun:5,5") == [Heun(steps=5)]
    assert parse("dopri5") == [Dopri5()]
    for wrong, sentence_ in (
        ("heun", "cannot read the solver 'heun'.*e.g. heun:10,100"),
        ("heun:0", "cannot read"),
        ("heun:5,", "cannot read"),
        ("heun:x", "cannot read"),
        ("heum:5", "did you mean heun"),
        ("dopri5:10", "chooses its own steps"),
    ):
        with pytest.raises(ValueError, match=sentence_):
            parse(wrong)


@pytest.mark.parametrize(
    ("wrong", "sentence_"),
    [
        ({"count": 9}, "--num-samples must be at least 10, got 9"),
        ({"repeats": 0}, "--repeats must be at least 1, got 0"),
        ({"batch": 0}, "--bspp must be at least 1, got 0"),
    ],
)
def test_sweeps_that_cannot_be(wrong, sentence_):
    with pytest.raises(ValueError, match=sentence_):
        Sweep(**{"count": 10, **wrong})


def test_a_sweep_over_stored_samples():
    assert Sweep(5000, 2).over(101, all_of_it=True).count == 50
    assert Sweep(40, 2).over(101, all_of_it=False).count == 40
    with pytest.raises(ValueError, match=r"2 set\(s\) of 60 need 120 samples, but there are 101"):
        Sweep(60, 2).over(101, all_of_it=False)
    with pytest.raises(ValueError, match=r"20 set\(s\) of 10 need 200 samples"):
        Sweep(5000, 20).over(101, all_of_it=True)


class Turn(torch.nn.Module):
    """v = (x - center) rotated: circles, whose energy is known."""

    num_classes = None

    def __init__(self):
        super().__init__()
        self.rate = torch.nn.Parameter(torch.tensor(math.pi / 2))

    def forward(self, x, t, cond=None):
        return self.rate * torch.stack([-x[:, 1], x[:, 0]], dim=1)


def test_path_energy_and_straightness_of_quarter_circles():
    found = transport(Flow(Turn(), shape=(2,)), Sweep(400), steps=400)
    squared = torch.randn(400, 2).pow(2).sum(1).mean()  # about 2
    energy = (math.pi / 2) ** 2 * float(squared)
    assert found["path_energy"] == pytest.approx(energy, rel=0.2)
    chord = 2 / (math.pi / 2) ** 2  # |chord|^2 over energy of a quarter circle
    assert found["straightness"] / found["path_energy"] == pytest.approx(1 - chord, abs=0.01)


def test_a_grid_stands_in_the_table_and_tuned_rows_make_one_line():
    plain = solver_facts(Heun(steps=2))
    shifted = solver_facts(Heun(steps=2, grid=ShiftedGrid(shift=3.0)))
    own = solver_facts(Heun(steps=2, grid=ExplicitGrid(values=(0.0, 0.4, 1.0))))
    assert [grid_in_words(f["time_grid"]) for f in (plain, shifted, own)] == [
        None,
        "shifted:3",
        "own times",
    ]
    assert own["time_grid"] == "0,0.4,1"
    row = {"metrics": {"fd": 1.0}, "seconds": 2.0, "nfe": 4}
    assert one_line(own | row, "fd") == "heun:2, own times  fd 1  (2.0 s a set)"
    assert one_line(plain | row, "fd") == "heun:2  fd 1  (2.0 s a set)"
