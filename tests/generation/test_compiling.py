"""Compiled sampling: one graph, made once, whatever is left for the last batch."""

import pytest
import torch

import flowmatch as fm
from flowmatch.generation import compiling, generate
from flowmatch.guidance import Guidance


@pytest.fixture
def graphs(monkeypatch):
    """Sizes of the graphs that torch.compile makes; they run eagerly, as compiling takes long."""
    made = []

    def count(graph, inputs):
        made.append(len(graph.graph.nodes))
        return graph.forward

    real = torch.compile
    monkeypatch.setattr(
        compiling.torch,
        "compile",
        lambda f, *, mode="default", dynamic=None: real(f, backend=count, dynamic=dynamic),
    )
    torch.compiler.reset()
    yield made
    torch.compiler.reset()


@pytest.mark.parametrize(
    ("options", "count"),
    [
        ({"compile": "step"}, 1),
        ({"compile": "grid"}, 1),
        ({"compile": "step", "guidance": Guidance(scale=2.0)}, 1),
        ({"compile": "grid", "guidance": Guidance(scale=2.0)}, 1),
        ({"compile": "step", "solver": fm.solvers.Dopri5()}, 1),
    ],
    ids=["step", "grid", "guided step", "guided grid", "adaptive"],
)
def test_the_same_samples_from_one_graph(pull, job, one, contents, graphs, options, count):
    plain = {k: v for k, v in options.items() if k != "compile"}
    expected = generate(pull, job("a", batch=10, **plain), one)
    record = generate(pull, job("b", batch=10, **options), one)
    assert len(graphs) == count  # 25 samples: two batches of 10, and 5 filled up
    assert record["nfe"] == pytest.approx(expected["nfe"], rel=0.2)
    assert contents(job("a").save_dir, "0*.png") == contents(job("b").save_dir, "0*.png")


def test_a_grid_is_larger_than_a_step(pull, job, one, graphs):
    for what in ("step", "grid"):
        solver = fm.solvers.Heun(steps=4)
        record = generate(pull, job(what, compile=what, solver=solver), one)
        assert record["nfe"] == 8
    assert graphs[1] > 4 * graphs[0]


def test_the_compiled_flow_shares_its_weights():
    flow = fm.Flow(torch.nn.Linear(2, 2), path=fm.paths.Trig(), shape=(2,), predict="x1")
    compiled = compiling.compile_network(flow)
    assert (compiled.path, compiled.predict, compiled.shape) == (flow.path, "x1", (2,))
    assert compiled.num_classes is None
    assert {id(p) for p in compiled.parameters()} == {id(p) for p in flow.parameters()}


def test_neither_probes_nor_animations_are_compiled(pull, job, one, graphs):
    made = job(count=8, batch="auto", compile="step", trajectory="gif")
    generate(pull, made, one)
    assert len(graphs) == 1


def test_what_cannot_be_compiled(job, pull, one, monkeypatch):
    for solver, kind in ((fm.solvers.Dopri5(), "dopri5"), (fm.solvers.AB2(steps=3), "ab2")):
        with pytest.raises(ValueError, match=f"not {kind}; use --compile step"):
            generate(pull, job(compile="grid", solver=solver), one)
    monkeypatch.setattr("shutil.which", lambda name: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=r"needs a C\+\+ compiler"):
        generate(pull, job(compile="step"), one)
    assert not job().save_dir.exists()
