"""What only a GPU can show: steps that never wait, half precision, agreement with the CPU."""

from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

import flowmatch as fm
from flowmatch.config import load_config
from flowmatch.runs import build_trainer
from made_data import make_autoencoder

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def build(config: Path, run_dir: Path, *overrides: str, resume: str | None = None):
    AcceleratorState._reset_state(reset_partial_state=True)
    return build_trainer(load_config(config, overrides), run_dir, resume=resume)


def kernels_of(trainer):
    return [p for p in trainer.flow.parameters() if p.ndim == 4]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_step_never_waits_for_the_device(tiny, tmp_path, precision):
    trainer = build(tiny, tmp_path / "run", f"train.precision={precision}")
    for _ in range(3):
        trainer.train_step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            trainer.train_step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_latents_are_encoded_kept_and_decoded_on_the_device(tiny, tmp_path):
    make_autoencoder(tmp_path / "autoencoder", channels=1)
    node = f"{{kind: latent, images: {{kind: digits}}, autoencoder: {tmp_path}/autoencoder"
    (tmp_path / "latents.yaml").write_text(
        tiny.read_text().replace("{kind: digits}", f"{node}, cache: {tmp_path}/cache}}")
    )
    trainer = build(tmp_path / "latents.yaml", tmp_path / "run")
    for _ in range(3):
        trainer.train_step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        trainer.train_step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    x = torch.randn(3, *trainer.flow.shape)
    on_gpu = trainer.flow.decode(x.cuda()).cpu()
    torch.testing.assert_close(on_gpu, trainer.flow.decode(x), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_every_precision_learns_and_resumes(tiny, tmp_path, precision):
    options = (f"train.precision={precision}", "train.steps=60", "train.lr=3e-3")
    options += ("train.save_every_steps=30", "train.keep_last=9", "train.log_every_steps=10")
    trainer = build(tiny, tmp_path / "run", *options)
    assert all(p.is_contiguous(memory_format=torch.channels_last) for p in kernels_of(trainer))
    result = trainer.run()
    final = load_file(result.checkpoint / "model.safetensors")
    halfway = str(tmp_path / "run/ckpt/step0000030")
    again = build(tiny, tmp_path / "run", *options, resume=halfway).run()
    for name, value in load_file(again.checkpoint / "model.safetensors").items():
        torch.testing.assert_close(value, final[name], rtol=1e-2, atol=1e-3)


def test_samples_agree_with_the_cpu(trained):
    x0 = fm.noise(range(8), (1, 8, 8))
    labels = torch.arange(8)
    solver = fm.solvers.Heun(steps=5)
    on_cpu = fm.sample(fm.load(trained), x0, solver, labels)
    on_gpu = fm.sample(fm.load(trained, device="cuda"), x0.cuda(), solver, labels.cuda())
    torch.testing.assert_close(on_gpu.cpu(), on_cpu, rtol=1e-2, atol=1e-2)


def test_the_data_lives_on_the_device(tiny, tmp_path):
    trainer = build(tiny, tmp_path / "run")
    assert trainer.dataset.x.device.type == "cuda"


def test_evaluation_on_the_gpu_gives_the_numbers_of_the_cpu(trained, fitted_cache, monkeypatch):
    monkeypatch.setenv("FLOWMATCH_CACHE", str(fitted_cache))
    from accelerate import Accelerator

    from flowmatch.evaluation import Request, Sweep, evaluate_flow, prepare

    found = []
    for cpu in (True, False):
        AcceleratorState._reset_state(reset_partial_state=True)
        accelerator = Accelerator(cpu=cpu)
        flow = fm.load(trained, device=accelerator.device)
        config = load_config(trained / "config.yaml")
        scores = prepare(Request(), flow.shape, config, accelerator, conditional=True)
        table = evaluate_flow(
            flow, [fm.solvers.Heun(steps=3)], Sweep(200), scores, accelerator, model={"name": "run"}
        )
        found.append(table["rows"][0]["metrics"])
    assert found[0]["fd_data"] == pytest.approx(found[1]["fd_data"], rel=0.02)
