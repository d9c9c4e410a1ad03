"""The commands of docs/scaling.md for many nodes, each of which is this machine."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

from flowmatch.training.checkpoint import Checkpoints
from test_processes import ENVIRONMENT, ROOT, TORCHRUN, run, wait_for_line, weights

PAGE = (ROOT / "docs/scaling.md").read_text()

SRUN = f"""#!{sys.executable}
import os, pathlib, signal, subprocess, sys
pathlib.Path("srun.pid").write_text(str(os.getpid()))
log = next(word for word in sys.argv if word.startswith("--output=")).partition("=")[2]
command = sys.argv[sys.argv.index("bash"):]
tasks = [
    subprocess.Popen(
        command,
        stdout=open(log, "a"),
        stderr=subprocess.STDOUT,
        env={{**os.environ, "SLURM_PROCID": str(i), "SLURM_LOCALID": str(i)}},
    )
    for i in range(int(os.environ["SLURM_NTASKS"]))
]
signal.signal(signal.SIGTERM, lambda *_: [task.terminate() for task in tasks])
sys.exit(max(task.wait() for task in tasks))
"""
"""A stand-in for Slurm's, which hands signals on to its tasks."""

COMMANDS = {
    "srun": SRUN,
    "scontrol": """#!/bin/bash
if [ "$1" = show ]; then echo localhost; else echo "$@" >> scontrol.log; fi
""",
    "python": f'#!/bin/bash\nexec {sys.executable} "$@"\n',
    "flowmatch": f'#!/bin/bash\nexec {sys.executable} -m flowmatch "$@"\n',
    "torchrun": f"""#!/bin/bash
exec {sys.executable} -m torch.distributed.run --local-addr localhost "$@"
""",
}
"""What the page's commands find first in the path."""


def block(heading: str, config: Path) -> str:
    """The first commands under a heading of the page, for this machine."""
    text = re.search(rf"^## {heading}$.*?^```sh\n(.*?)```", PAGE, re.MULTILINE | re.DOTALL)[1]
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    for before, now in {
        "node0:29500": f"localhost:{port}",
        "--nproc-per-node 8": "--nproc-per-node 1",
        "train.py": f"{ROOT / 'train.py'}",
        "configs/imagenet256-latent.yaml": f"{config}",
    }.items():
        text = text.replace(before, now)
    return text


def start(script: str, folder: Path, **environment: str) -> subprocess.Popen:
    (folder / "bin").mkdir(exist_ok=True)
    for name, content in COMMANDS.items():
        (folder / "bin" / name).write_text(content)
        (folder / "bin" / name).chmod(0o755)
    path = f"{folder / 'bin'}:{os.environ['PATH']}"
    return subprocess.Popen(
        ["bash", "-c", script],
        cwd=folder,
        env={**ENVIRONMENT, **environment, "PATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def longer(tiny: Path, **train: object) -> Path:
    """The tiny config with other settings of its training."""
    config = yaml.safe_load(tiny.read_text())
    config["train"].update(log_every_steps=1, save_every_steps=5, **train)
    tiny.write_text(yaml.safe_dump(config))
    return tiny


def test_two_nodes_meet_and_give_the_run_of_one(tiny, tmp_path):
    line = block("Two nodes and more", tiny)
    nodes = [start(line, tmp_path) for _ in range(2)]
    one = run(sys.executable, "train.py", "-c", tiny, "-e", tmp_path / "one")
    assert one.returncode == 0, one.stderr
    said = [node.communicate(timeout=120)[0] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], said
    assert sum("2 processes on cpu" in text for text in said) == 1  # one voice
    ours, theirs = weights(tmp_path / "runs/xl"), weights(tmp_path / "one")
    for name in theirs:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_a_job_that_is_preempted_goes_back_into_the_queue_and_resumes(tiny, tmp_path):
    script = block("Slurm", longer(tiny, steps=4000))
    job = {
        "SLURM_JOB_ID": str(os.getpid()),
        "SLURM_JOB_NODELIST": "node[0-7]",
        "SLURM_NTASKS": "2",
    }
    first = start(script, tmp_path, **job)
    log = tmp_path / f"runs/xl.{os.getpid()}.0.log"
    wait_until(lambda: log.exists() and "step 3/" in log.read_text())
    first.send_signal(signal.SIGTERM)
    os.kill(int((tmp_path / "srun.pid").read_text()), signal.SIGTERM)
    said, _ = first.communicate(timeout=60)
    assert first.returncode == 0, said + log.read_text()
    assert (tmp_path / "scontrol.log").read_text() == f"requeue {os.getpid()}\n"
    stopped = int(Checkpoints(tmp_path / "runs/xl").newest().name[4:])

    own = tmp_path / "runs/xl/config.yaml"  # so that the rest is short
    own.write_text(own.read_text().replace("steps: 4000", f"steps: {stopped + 2}"))
    again = start(script, tmp_path, **job, SLURM_RESTART_COUNT="1")
    said, _ = again.communicate(timeout=60)
    assert again.returncode == 0, said
    log = tmp_path / f"runs/xl.{os.getpid()}.1.log"
    assert f"resuming at step {stopped:,}" in log.read_text()
    assert Checkpoints(tmp_path / "runs/xl").newest().name == f"step{stopped + 2:07d}"
    assert len((tmp_path / "scontrol.log").read_text().splitlines()) == 1  # it is done


@pytest.mark.slow
def test_a_node_that_fails_is_started_again(tiny, tmp_path):
    longer(tiny, steps=30)
    script = block("Nodes that fail", tiny).replace("--nnodes 2", "--nnodes 1")
    job = start(script.replace("--nproc-per-node 1", "--nproc-per-node 2"), tmp_path)
    wait_for_line(job, "step 7/")
    os.kill(workers(job.pid)[-1], signal.SIGKILL)
    rest, _ = job.communicate(timeout=120)
    assert job.returncode == 0, rest
    assert re.search(r"resuming at step \d+", rest)
    straight = run(*TORCHRUN, "train.py", "-c", tiny, "-e", tmp_path / "straight")
    assert straight.returncode == 0, straight.stderr
    ours, theirs = weights(tmp_path / "runs/xl"), weights(tmp_path / "straight")
    for name in theirs:
        assert torch.equal(ours[name], theirs[name]), name


def workers(pid: int) -> list[int]:
    """The processes below one that have none below themselves."""
    below = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [w for child in below for w in workers(int(child))] or [pid]


def wait_until(true) -> None:
    for _ in range(600):
        if true():
            return
        time.sleep(0.1)
    pytest.fail("it did not happen within a minute")
