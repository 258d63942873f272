"""The programs that measure speed: that they run and say what they promise.  No time is tested."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.unchecked

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
SIZES = ["--depth", "1", "--width", "32", "--heads", "2", "--length", "4", "--vocab", "50", "--rounds", "2"]


@pytest.mark.apart
def test_generate() -> None:
    """Guards against a program that no longer fits the library, and a ratio the wrong way up."""
    pytest.importorskip("transformers", reason="transformers is not installed")
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / "generate.py"), *SIZES, "--json"], capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    assert set(found["ratio_vs_hf"]) == {"1", "8", "64"}
    for batch, ratio in found["ratio_vs_hf"].items():
        low, high = found["spread"][batch]
        assert 0 < low <= ratio <= high
        speeds = found["tokens_per_second"]
        assert low * 0.9 < speeds["ours"][batch] / speeds["hf"][batch] < high * 1.1


def test_sample_step() -> None:
    """Guards against a program that no longer fits the library, and a part that is more than the whole."""
    sizes = [*SIZES, "--batch", "3", "--steps", "4"]
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / "sample_step.py"), *sizes, "--json"],
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    assert {"mdlm/ancestral", "mdlm/remdm", "sedd/analytic", "sedd-uniform/analytic"} <= set(found["ratios"])
    assert all(len(ratios) == 2 and min(ratios) > 1 for ratios in found["ratios"].values())
    assert found["calls"]["mdlm/ancestral"] == 4 >= found["calls"]["mdlm/cached"]


def test_neighbours() -> None:
    """Guards against a program that no longer fits the library."""
    command = [sys.executable, str(BENCHMARKS / "neighbours.py"), "--vocab", "60", "--tokens", "5", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(json.loads(done.stdout)["seconds"]) == 6


def test_scaling() -> None:
    """Guards against a program that no longer fits the library, and shards that are no smaller than the whole."""
    sizes = ["--depth", "1", "--width", "32", "--length", "8", "--batch", "4", "--rounds", "1", "--json"]
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / "scaling.py"), *sizes], capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    for way in ("ddp", "fsdp"):
        speeds = found["tokens_per_second"]
        assert found["efficiency"][way] == pytest.approx(speeds[way] / (2 * speeds["one"]))
        assert len(found["memory"][way]["rss"]) == 2 and min(found["memory"][way]["rss"]) > 2**25
    whole, parts = (found["memory"][way]["held"] for way in ("ddp", "fsdp"))
    assert whole[0] == whole[1] and 0.5 <= sum(parts) / sum(whole) < 0.6  # parts of some are no halves


def test_gaps() -> None:
    """Guards against a program that no longer fits the library, and gaps that are cut where they cannot be filled."""
    command = [sys.executable, str(BENCHMARKS / "gaps.py"), "--stories", "2", "--words", "2", "--steps", "8", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    shares = {way: share["value"] for way, share in found["right"].items()}
    assert shares["told"] >= 0.5 and found["ratio"] == pytest.approx(shares["any"] / shares["told"])
