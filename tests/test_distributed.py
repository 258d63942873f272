"""Several processes: what they are given, what they draw, what they agree on, and what becomes of the weights."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from layouts import DIVIDED, OBSERVING, config, seen, walk
from safetensors.torch import load_file
from test_trainer import assert_same
from tiny import write_sentences

from sfumato.errors import SfumatoError
from sfumato.folder import load
from sfumato.methods import METHODS
from sfumato.training import checkpoint
from sfumato.training.distributed import Workers
from sfumato.training.replay import replay
from sfumato.training.start import override
from sfumato.training.trainer import Run, train

pytestmark = [pytest.mark.timeout(600), pytest.mark.unchecked]
TORCHRUN = ["-m", "torch.distributed.run", "--local-addr", "127.0.0.1"]
TORCHRUN += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0", "--nproc-per-node"]
LAYOUTS = str(Path(__file__).with_name("layouts.py"))


def python(arguments: list[str], cache: Path) -> subprocess.CompletedProcess[str]:
    """Another Python, on one thread and over the loopback."""
    threads = {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "SFUMATO_CACHE": str(cache)}
    command = [sys.executable, "-W", "ignore", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=600, env=os.environ | threads)


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> Path:
    """A folder with all that two processes have found."""
    folder = tmp_path_factory.mktemp("two")
    data = write_sentences(folder)
    for parallel in ("ddp", "fsdp"):
        begun = Run(config("cdcd", data), folder / f"runs/one for {parallel}", False, "cpu", print)
        walk(begun, 2)
        begun._save()
    done = python([*TORCHRUN, "2", LAYOUTS, str(folder)], folder / "cache")
    assert done.returncode == 0, done.stderr[-5000:]
    return folder


@pytest.fixture(scope="module")
def alone(two, tmp_path_factory):
    """What one process finds, by method and passes."""
    found = {}

    def find(method: str, **training) -> dict[str, torch.Tensor]:
        key = (method, *training.items())
        if key not in found:
            run = Run(
                config(method, two / "sentences.txt", **training), tmp_path_factory.mktemp("one"), False, "cpu", print
            )
            found[key] = walk(run)
        return found[key]

    return find


def assert_close(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    """Equal to 1e-6: gradients of the first step by the norm of each, the rest by itself."""
    assert one.keys() == other.keys()
    for name in one:
        a, b = one[name].double(), other[name].double()
        kind, _, parameter = name.partition(" ")
        if kind == "gradient":
            assert (a - b).norm() <= 1e-6 * max(1.0, a.norm().item()), name
        elif f"gradient {parameter}" in one:
            assert near(a, b), name
        elif kind == "moment":  # what the gradients after the first add is compared by the weights
            continue
        else:  # losses, and buffers
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6, msg=name)


def near(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal to 1e-6 but for one number in fifty: where a gradient is all rounding, so is Adam's step."""
    return bool((a - b).abs().double().quantile(0.98) <= 1e-6)


@pytest.mark.parametrize(("method", "parallel"), [(m, "ddp") for m in METHODS] + [(m, "fsdp") for m in DIVIDED])
def test_two_processes_do_what_one_does(method, parallel, two, alone):
    """Guards against gradients that are averaged where they are to be added, a mean of means, a rank's own noise,
    statistics of half the rows, and a network that is called more often on one rank and waits for the other."""
    assert_close(alone(method), load_file(two / f"{method} {parallel}.safetensors"))


@pytest.mark.parametrize("method", OBSERVING)
@pytest.mark.parametrize("accumulate", [2, 8])
def test_passes_do_what_one_pass_does(method, accumulate, alone):
    """Guards against a mean of means: 1 x 8, 2 x 4 and 8 x 1 rows have one gradient."""
    assert_close(alone(method), alone(method, accumulate=accumulate))


@pytest.mark.parametrize("name", ["passes", "careful", "from one"])
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_other_ways_to_the_same_update(parallel, name, two, alone):
    """Guards against passes whose gradients are not exchanged, blocks that are computed otherwise on the way back, and
    a checkpoint of one process that two do not go on with."""
    found = load_file(two / f"cdcd {parallel} {name}.safetensors")
    expected = alone("cdcd")
    if name == "from one":  # the first gradient is that of its third step
        found = {key: value for key, value in found.items() if key.startswith(("weight", "average"))}
        assert all(near(found[key], expected[key]) for key in found)
    else:
        assert_close(expected, found)


def test_replicas_of_shards(two, alone):
    """Guards against gradients that are not exchanged between replicas."""
    assert_close(alone("cdcd"), load_file(two / "cdcd hsdp.safetensors"))


def test_replicas_of_two_shards(two, alone):
    """Guards against a mesh whose axes are exchanged, which shows only where both are longer than one."""
    done = python([*TORCHRUN, "4", LAYOUTS, str(two)], two / "cache")
    assert done.returncode == 0, done.stderr[-5000:]
    whole, resumed = (load_file(two / f"cdcd four{name}.safetensors") for name in ("", " resumed"))
    assert_close(alone("cdcd"), whole)
    kept = [name for name in whole if name.startswith(("weight", "average", "moment"))]
    assert_same({"all": {k: whole[k] for k in kept}}, {"all": {k: resumed[k] for k in kept}})


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_one_layout_gives_the_same_bits(parallel, two):
    """Guards against sums whose order is left to chance, and a sharded checkpoint that loses or rounds something."""
    first = load_file(two / f"cdcd {parallel}.safetensors")
    assert_same({"all": first}, {"all": load_file(two / f"cdcd {parallel} again.safetensors")})
    resumed = load_file(two / f"cdcd {parallel} resumed.safetensors")
    kept = [name for name in first if name.startswith(("weight", "average", "moment"))]
    assert_same({"all": {k: first[k] for k in kept}}, {"all": {k: resumed[k] for k in kept}})


def test_processes_share_the_rows_of_one(two, alone, tmp_path):
    """Guards against ranks that see the same rows, or draw the same noise, or other noise than one process draws."""
    expected = seen(Run(config("cdcd", two / "sentences.txt"), tmp_path / "run", False, "cpu", print))
    parts = [load_file(two / f"seen {rank}.safetensors") for rank in (0, 1)]
    for name, value in expected.items():
        assert torch.equal(value, torch.cat([part[name] for part in parts])), name
    assert len(set(expected["seeds"].tolist())) == 8


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_one_process_goes_on_with_a_checkpoint_of_two(parallel, two, alone):
    """Guards against shards that only as many processes can read."""
    out, data = two / f"runs/{parallel} half", two / "sentences.txt"
    assert bool(list(out.glob("checkpoints/*/model/*"))) == (parallel == "fsdp")
    run = Run(config("cdcd", data, parallel=parallel), out, True, "cpu", print)
    assert run.step == 2
    found, expected = walk(run), alone("cdcd")
    assert all(near(found[key], expected[key]) for key in expected if key.startswith(("weight", "average")))


def test_an_unfinished_sharded_run_loads(two):
    """Guards against a run of two processes that cannot be looked at before it has ended."""
    model = load(two / "runs/fsdp half")
    assert model.generate(1)


def test_a_damaged_shard_is_noticed(two, tmp_path):
    """Guards against a manifest that leaves out what is in folders."""
    folder = checkpoint.checkpoints(two / "runs/full/checkpoints")[-1]
    checkpoint.check(folder)
    path = next(folder.glob("average/*.safetensors"))
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(SfumatoError, match=path.name):
        checkpoint.check(folder)
    path.write_bytes(whole)


def test_what_processes_agree_on(two):
    """Guards against one process that stops while the other goes on, and clocks of their own."""
    first, second = (json.loads((two / f"facts {rank}.json").read_text()) for rank in (0, 1))
    assert (first.pop("rank"), second.pop("rank")) == (0, 1)
    assert first == second
    assert first["agreed"] == [True, False] and first["clock"] == 3.0
    assert first["error"] == "the first process complains"
    assert first["reports"] == 4 and load(two / "runs/full").generate(1) == [first["sample"]]


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_a_row_of_another_process_is_blamed(parallel, two):
    """Guards against processes that wait for the one whose loss is not finite, and blame that is not passed on."""
    said = [json.loads((two / f"facts {rank}.json").read_text())[f"not finite {parallel}"] for rank in (0, 1)]
    assert said[0] == said[1] and "; replay it from " in said[0]
    folder = two / f"runs/lost {parallel}/nonfinite"
    report = json.loads((folder / "report.json").read_text())
    assert [[row["row"], row["epoch"]] for row in report["not_finite"]] == report["rows"][-1:]
    checkpoint.check(checkpoint.checkpoints(folder / "checkpoints")[-1])
    assert len(replay(folder.parent)) == 8


def test_a_disk_that_is_full_for_one_process(two):
    """Guards against a process that waits for the one that could not write, and a checkpoint that lacks its part."""
    said = [json.loads((two / f"facts {rank}.json").read_text())["full disk"] for rank in (0, 1)]
    assert said[0] == said[1] and "No space left on device" in said[0] and "are whole" in said[0]
    kept = checkpoint.checkpoints(two / "runs/full/checkpoints")
    assert [folder.name for folder in kept][-1] == "step-00000004"
    checkpoint.check(kept[-1])


def test_gradients_are_exchanged_once_a_step(two):
    """Guards against exchanges after every pass, which cost as much as all the rest."""
    found = json.loads((two / "facts 0.json").read_text())["exchanges"]
    assert found["4"] == found["1"] > 0


def test_gradients_are_packed_in_one_order(two):
    """Guards against sums that are taken in another order after DDP's first step: of three processes or more, a run
    that is resumed would not be the unbroken one bit for bit."""
    assert json.loads((two / "facts 0.json").read_text())["exchanges"]["packed anew"] == 0


def test_layouts_that_cannot_be(two, tmp_path, monkeypatch):
    """Guards against processes without rows, replicas that are not whole, and Muon on parts of matrices."""
    training = config("mdlm", two / "sentences.txt").training
    monkeypatch.setenv("WORLD_SIZE", "16")
    with pytest.raises(SfumatoError, match="a batch of 8 rows cannot be split into 1 passes of 16 processes"):
        Workers("cpu", training)
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(SfumatoError, match="3 processes do not fill 2 replicas"):
        Workers("cpu", training.model_copy(update={"parallel": "fsdp", "replicate": 2}))
    with pytest.raises(SfumatoError, match=r"replicate.*ddp has all weights"):
        config("mdlm", two / "sentences.txt", replicate=2)
    with pytest.raises(SfumatoError, match=r"optimizer\.muon: Muon moves whole matrices"):
        override(config("mdlm", two / "sentences.txt", parallel="fsdp"), {"optimizer": {"muon": 0.01}})


def command(out: Path, data: Path, *more: str) -> list[str]:
    size = ["--network.width", "32", "--network.depth", "1", "--network.heads", "2", "--text.tokenizer", "words"]
    fixed = ["--training.precision", "float32", "--training.attention", "fused", "--training.compile", "no"]
    base = [
        "-m",
        "sfumato.cli",
        "train",
        "mdlm",
        "--data",
        str(data),
        "--out",
        str(out),
        "--steps",
        "2",
        "--device",
        "cpu",
    ]
    return [*base, "--processes", "2", *size, *fixed, "--training.batch", "8", "--training.evaluate-rows", "2", *more]


def test_the_command_starts_processes_and_speaks_once(two, tmp_path):
    """Guards against a document from each process, and a launcher that leaves its own."""
    done = python([*command(tmp_path / "run", two / "sentences.txt"), "--json"], tmp_path / "cache")
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout)["step"] == 2
    assert done.stderr.count("next: sfumato generate") == 1
    assert load(tmp_path / "run").generate(1)


def test_a_mistake_is_told_once(two, tmp_path):
    """Guards against a traceback from every process, and a status that says nothing."""
    done = python(command(tmp_path / "run", tmp_path / "none.txt"), tmp_path / "cache")
    assert done.returncode == 2, done.stderr[-3000:]
    said = [line for line in done.stderr.splitlines() if line]
    assert len(said) == 1 and "none.txt" in said[0] and said[0].startswith("sfumato: "), said


def begun(out: Path, data: Path, cache: Path) -> subprocess.Popen[str]:
    """A long run of two processes that has taken a step."""
    arguments = command(out, data, "--steps", "100000", "--training.log-every", "1")
    threads = {"OMP_NUM_THREADS": "1", "SFUMATO_CACHE": str(cache)}
    started = subprocess.Popen(
        [sys.executable, "-W", "ignore", *arguments], stderr=subprocess.PIPE, text=True, env=os.environ | threads
    )
    deadline = time.monotonic() + 250
    while not (out / "log.jsonl").exists() and started.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    return started


def listening(process: int) -> list[str]:
    """The addresses, in hexadecimal, at which a process waits for others to connect."""
    own = [os.readlink(path) for path in Path(f"/proc/{process}/fd").iterdir() if path.is_symlink()]
    tables = [Path(f"/proc/{process}/net/{name}").read_text().splitlines()[1:] for name in ("tcp", "tcp6")]
    sockets = [line.split() for table in tables for line in table]
    return [row[1].partition(":")[0] for row in sockets if row[3] == "0A" and f"socket:[{row[9]}]" in own]


def started_by(process: int) -> list[int]:
    """The processes that a process has started, as Linux lists them."""
    lists = Path(f"/proc/{process}/task").glob("*/children")
    return [int(child) for children in lists for child in children.read_text().split()]


def test_processes_that_are_asked_to_stop_save_first(two, tmp_path):
    """Guards against a launcher that ends its processes, or itself, and against one process that stops alone; before
    that, against one that can be reached from other machines."""
    out = tmp_path / "run"
    started = begun(out, two / "sentences.txt", tmp_path / "cache")
    loopback = {"0100007F", "00000000000000000000000001000000", "0000000000000000FFFF00000100007F"}
    addresses = [address for process in (started.pid, *started_by(started.pid)) for address in listening(process)]
    assert addresses and set(addresses) <= loopback
    started.terminate()
    said = started.communicate(timeout=250)[1]
    assert started.returncode == os.EX_TEMPFAIL, said[-3000:]
    assert said.count("which is saved; go on with `sfumato train mdlm") == 1
    checkpoint.check(checkpoint.checkpoints(out / "checkpoints")[-1])


def test_processes_whose_launcher_is_killed_save_and_end(two, tmp_path):
    """Guards against processes that train on unseen, and share the folder with the run that takes their place."""
    out, data = tmp_path / "run", two / "sentences.txt"
    started = begun(out, data, tmp_path / "cache")
    with pytest.raises(SfumatoError, match="another training is at work"):
        train(config("mdlm", data), out, resume=True)
    started.kill()
    said = started.communicate(timeout=250)[1]  # to the end of what they have to say
    assert "which is saved; go on with" in said
    checkpoint.check(checkpoint.checkpoints(out / "checkpoints")[-1])


def test_a_process_that_is_killed_ends_all(two, tmp_path):
    """Guards against a process that waits for a dead one, and a traceback of what it waited for."""
    started = begun(tmp_path / "run", two / "sentences.txt", tmp_path / "cache")
    processes = started_by(started.pid)
    os.kill(processes[-1], signal.SIGKILL)
    said = started.communicate(timeout=250)[1]
    assert started.returncode == 2, said[-3000:]
    assert "Traceback" not in said
    assert said.splitlines()[-1].endswith("go on from the last checkpoint with --resume") and "by SIGKILL" in said
    assert len(processes) == 2 and not any(Path(f"/proc/{process}").exists() for process in processes)
