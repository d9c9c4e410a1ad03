"""What the benchmarks share: fair timings of alternatives, and a record of the machine."""

from __future__ import annotations

import argparse
import json
import math
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

import flowmatch


def alternate(
    work: dict[str, Callable[[], None]], *, rounds: int, warm: bool = False
) -> dict[str, list[float]]:
    """Seconds of each piece of work, in turns: A B C A B C ..., after one round of warm-up.

    Taking turns makes ratios trustworthy on a machine whose speed drifts. `warm` runs each piece
    once more, untimed, before it is timed: pieces of a millisecond otherwise pay for the caches
    that the one before has filled.
    """
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for turn in range(rounds + 1):
        for name, do in work.items():
            if warm:
                do()
            began = time.perf_counter()
            do()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if turn:
                seconds[name].append(time.perf_counter() - began)
    return seconds


def ratio(a: list[float], b: list[float]) -> dict[str, float]:
    """a/b pair by pair: median, and the middle half as the spread."""
    ratios = sorted(x / y for x, y in zip(a, b, strict=True))
    low, median, high = statistics.quantiles(ratios, n=4)
    return {"median": median, "low": low, "high": high}


def show(name: str, r: dict[str, float]) -> None:
    print(f"{name:<52} {r['median']:.3f}  (middle half {r['low']:.3f} to {r['high']:.3f})")


def record(result: dict[str, object], out: Path | None) -> None:
    """Print the result as one JSON line with machine, versions and command; append it to `out`."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else _cpu()
    line = json.dumps(
        {
            "benchmark": Path(sys.argv[0]).stem,
            "command": " ".join(sys.argv),
            "device": device,
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "flowmatch": flowmatch.__version__,
            "commit": _commit(),
            **result,
        }
    )
    print(line)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        with out.open("a") as file:
            file.write(line + "\n")


def run(main: Callable[[], None]) -> None:
    """Run a script; a user's mistake ends it in one sentence."""
    try:
        main()
    except ValueError as error:
        raise SystemExit(str(error)) from None


def positive(text: str) -> float:
    """A number above 0, as an option."""
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"must be above 0, got {text}")
    return value


def at_least_one(text: str) -> int:
    """A whole number above 0, as an option."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {text}")
    return value


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    names = (
        [line for line in info.read_text().splitlines() if "model name" in line]
        if info.exists()
        else []
    )
    return names[0].partition(":")[2].strip() if names else platform.processor()


def _commit() -> str:
    found = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    )
    return found.stdout.strip()
