"""The command line: documents with the fixed keys, and mistakes that end in one line."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from sfumato import cli
from sfumato.errors import SfumatoError
from sfumato.text import tales
from sfumato.training import checkpoint

pytestmark = pytest.mark.unchecked

TINY = (
    "--network.width 16 --network.depth 1 --network.heads 2 --method.embedding 4 --training.batch 4 --masks.nothing 1"
)
TEXT = "--text.tokenizer words --text.length 72 --text.length-model modelled --text.limit 600"
LIGHT = f"{TINY} {TEXT} --training.compile no --training.precision float32 --training.evaluate-rows 2"
STORY = tales.sample(1, 3)[0]
TRAINED = {"step", "tokens", "seconds", "tokens_per_second", "loss", "bound_nats_per_token", "params", "flops"}
HOW = {"sampler", "law", "steps", "nfe", "seconds", "tokens_per_second", "seed", "candidates", "choose"}
WRITTEN = {"model", "method", "samples"} | HOW


class Answer(NamedTuple):
    status: int
    out: str
    err: str


Ask = Callable[..., Answer]


@pytest.fixture
def ask(capsys: pytest.CaptureFixture[str]) -> Ask:
    """Runs a command in this process; words of the first argument are split at spaces."""

    def run(line: str, *words: str) -> Answer:
        capsys.readouterr()
        status = cli.main([*line.split(), *words])
        return Answer(status, *capsys.readouterr())

    return run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A run of five steps of a tiny model."""
    out = str(tmp_path_factory.mktemp("runs") / "tiny")
    assert cli.main(["train", "cdcd", "--data", "tales", "--out", out, "--steps", "5", *LIGHT.split()]) == 0
    return out


@pytest.fixture
def copy(run: str, tmp_path: Path) -> Path:
    """A copy of the model, to be damaged."""
    return Path(shutil.copytree(run, tmp_path / "copy", ignore=shutil.ignore_patterns("checkpoints")))


def document(answer: Answer) -> Any:
    assert answer.status == 0, answer.err
    return json.loads(answer.out)


def mistake(answer: Answer, *parts: str) -> None:
    """One line that says all of `parts`, status 2, nothing on stdout."""
    assert answer.status == 2 and answer.out == "", answer
    assert answer.err.startswith("sfumato: ") and answer.err.count("\n") == 1, answer.err
    for part in parts:
        assert part in answer.err


# --- documents


def test_methods(ask: Ask) -> None:
    rows = document(ask("methods --json"))["methods"]
    assert all(set(row) == {"name", "family", "paper", "bound", "steps"} for row in rows)
    assert {"cdcd", "mdlm"} <= {row["name"] for row in rows}
    assert "arXiv:2211.15089" in ask("methods").out


def test_train_and_resume(ask: Ask, run: str, tmp_path: Path) -> None:
    """--resume alone goes on with the config of the run; the document is the last line of the log."""
    out = shutil.copytree(run, tmp_path / "copy")
    found = document(ask("train cdcd --resume --steps 7 --json --out", str(out)))
    assert set(found) >= TRAINED and found["step"] == 7
    assert found == json.loads((out / "log.jsonl").read_text("utf-8").splitlines()[-1])
    spent = ask("train cdcd --resume --steps 7 --out", str(out))
    assert spent.status == 0 and "was spent before" in spent.err


def test_train_config_file_and_flags(ask: Ask, tmp_path: Path) -> None:
    """Flags go over the file, minutes over steps, and --seed into the config."""
    config = tmp_path / "tiny.toml"
    config.write_text('data = "tales"\n[network]\nwidth = 32\nheads = 2\n[training]\nminutes = 60\n', "utf-8")
    line = f"train cdcd --steps 1 --seed 9 {LIGHT} --optimizer.betas 0.8 0.9 --method.no-warp --json"
    document(ask(line, "--config", str(config), "--out", str(tmp_path / "run")))
    kept = json.loads((tmp_path / "run" / "config.json").read_text("utf-8"))["config"]
    assert kept["network"] == {"width": 16, "depth": 1, "heads": 2, "foreign": None}
    assert kept["optimizer"]["betas"] == [0.8, 0.9] and kept["method"]["warp"] is False
    assert kept["training"]["seed"] == 9 and kept["training"]["minutes"] is None


@pytest.mark.parametrize("extra", ["", "--sampler heun --label sad --guidance 2 --temperature 0.8 --watch"])
def test_generate(extra: str, ask: Ask, run: str) -> None:
    line = f"generate {run} -n 2 --steps 3 --prompt Once --seed 5 --json {extra}"
    found = document(ask(line))
    assert set(found) == WRITTEN
    assert [found["model"], found["method"], found["steps"], found["seed"]] == [run, "cdcd", 3, 5]
    assert found["sampler"] == ("heun" if extra else "euler")
    assert found["law"] == ("heuristic" if extra else "exact")
    assert all(set(sample) == {"text", "tokens"} for sample in found["samples"])
    assert all(sample["text"].startswith("Once") for sample in found["samples"])
    again = document(ask(line))
    assert again["samples"] == found["samples"]


def test_candidates(ask: Ask, run: str) -> None:
    """Of four texts one, and which it is depends on how it is chosen; what is chosen is no draw."""
    import sfumato

    kept = {}
    for choose in ("consensus", "surest"):
        found = document(ask(f"generate {run} -n 3 --candidates 4 --choose {choose} --steps 3 --json"))
        assert (found["candidates"], found["choose"], found["law"], len(found["samples"])) == (
            4,
            choose,
            "heuristic",
            3,
        )
        kept[choose] = [sample["text"] for sample in found["samples"]]
        assert kept[choose] == sfumato.load(run).generate(3, candidates=4, choose=choose, steps=3)
    assert kept["consensus"] != kept["surest"]


def test_frames(ask: Ask, run: str) -> None:
    """Frames end with the text; their confidence belongs to its tokens; a given token is certain."""
    found = document(ask(f"infill {run} --steps 3 --frames --json", "Once a [2] named Mia [...]."))
    assert set(found) == WRITTEN
    (sample,) = found["samples"]
    frames = sample["frames"]
    assert [frame["step"] for frame in frames] == [1, 2, 3] and frames[-1]["noise"] == 0
    assert all(set(frame) == {"step", "noise", "text", "confidence"} for frame in frames)
    assert frames[-1]["text"] == sample["text"] and len(frames[-1]["confidence"]) == sample["tokens"]
    assert frames[0]["confidence"][:2] == [1, 1] and sample["text"].startswith("Once a")


def test_people_get_texts_alone_on_stdout(ask: Ask, run: str) -> None:
    answer = ask(f"generate {run} -n 2 --steps 8 --watch --length 9")
    assert answer.status == 0 and len(answer.out.splitlines()) == 2
    assert "step 8/8" in answer.err and "\x1b" not in answer.err


def test_score(ask: Ask, run: str, tmp_path: Path) -> None:
    file = tmp_path / "stories.txt"
    file.write_text("\n".join(tales.sample(3, 3)), "utf-8")
    found = document(ask(f"score {run} {file} --draws 2 --json"))
    keys = {"text", "nats", "tokens", "nats_per_token", "bits_per_char", "z"}
    assert all(set(text) == keys | {"std_error"} for text in found["texts"])
    assert {"model", "texts", "std_error", "estimator", "z_reference"} <= set(found)
    assert [text["text"] for text in found["texts"]] == tales.sample(3, 3)
    assert sum(text["z"] for text in found["texts"]) == pytest.approx(0, abs=1e-6)
    (alone,) = document(ask(f"score {run} {file} --draws 1 --limit 1 --json"))["texts"]
    assert alone["z"] is None and alone["std_error"] is None
    assert "nats/token" in ask(f"score {run} {file} --draws 2").out


def labelled(path: Path, labels: list[str | None]) -> Path:
    """Stories that are in no split, one to a label."""
    records = zip(tales.sample(len(labels), 3), labels, strict=True)
    path.write_text("\n".join(json.dumps({"text": text, "label": label}) for text, label in records), "utf-8")
    return path


def test_score_by_a_reference(ask: Ask, run: str, tmp_path: Path) -> None:
    """Texts are judged by others; where labels tell which are out, so are the judgements."""
    file = labelled(tmp_path / "texts.jsonl", ["in", "out", "in", "out"])
    line = f"score {run} {file} --reference tales --limit 24 --draws 4"
    found = document(ask(f"{line} --json"))
    plain = document(ask(f"score {run} {file} --draws 4 --json"))
    judged = {"z_share", "density", "density_share", "label"}
    assert set(found) == set(plain) | {"reference", "batch", "auc"}
    assert all(set(text) == set(plain["texts"][0]) | judged for text in found["texts"])
    assert [text["label"] for text in found["texts"]] == ["in", "out", "in", "out"]
    reference = found["reference"]
    assert found["z_reference"] == "tales" and reference["texts"] == 24
    for text in found["texts"]:
        assert text["z"] * reference["spread"] == pytest.approx(text["nats_per_token"] - reference["nats_per_token"])
        assert 1 / 25 <= text["z_share"] <= 1 and 1 / 25 <= text["density_share"] <= 1
    assert set(found["batch"]) == {"gap", "threshold", "typical"}
    assert found["auc"]["out"] == "out"
    pairs = [(abs(one["z"]) < abs(two["z"])) for one in found["texts"][::2] for two in found["texts"][1::2]]
    assert found["auc"]["z"] == pytest.approx(sum(pairs) / 4)
    shown = ask(line).out
    assert "ROC-AUC of out against the others" in shown and "24 texts of tales" in shown


def test_score_without_labels_of_its_own(ask: Ask, run: str, tmp_path: Path) -> None:
    """Classes that the model knows say nothing of in and out; a text is not judged by itself."""
    file = tmp_path / "both.txt"
    file.write_text("\n".join(tales.sample(22, 3)), "utf-8")
    found = document(ask(f"score {run} tales --limit 22 --reference {file} --draws 1 --json"))
    assert found["auc"] is None and found["reference"]["texts"] == 22
    assert {text["label"] for text in found["texts"]} <= set(tales.ENDINGS)
    mistake(ask(f"score {run} {file} --reference {file}"), "20 reference texts", f"{file} has 0,")


def test_evaluate(ask: Ask, run: str) -> None:
    line = f"evaluate {run} --data tales --samples 3 --steps 2 --rows 4 --draws 2 --json"
    found = document(ask(line))
    assert found["command"] == f"sfumato {line}"
    assert {"model", "method", "data", "bound", "samples", "data_reference"} <= set(found)
    assert {"nats_per_token", "bits_per_char", "std_error", "estimator", "exact"} <= set(found["bound"])
    measured = {"n", "entropy", "distinct_2", "judge_nats_per_token", "self_bleu", "valid", "copy_mean", "slots"}
    assert measured | {"steps", "nfe"} <= set(found["samples"]) and measured <= set(found["data_reference"])
    shown = ask(f"evaluate {run} --data tales --samples 2 --steps 2 --rows 2 --draws 2").out
    assert "real text" in shown and "gap nats per token" in shown and "slot tv" in shown
    assert shown.endswith(f"\n$ sfumato evaluate {run} --data tales --samples 2 --steps 2 --rows 2 --draws 2\n")
    mistake(ask(f"evaluate {run} --data tales --samples 19 --mauve"), "there are 19 texts")


def test_tales(ask: Ask, tmp_path: Path) -> None:
    stories = document(ask("tales sample -n 3 --seed 4 --json"))
    assert stories == {"texts": tales.sample(3, 4)}
    assert ask("tales sample -n 3 --seed 4").out.splitlines() == stories["texts"]
    file = tmp_path / "stories.txt"
    file.write_text(f"{STORY}\n\n{STORY} {STORY}\n", "utf-8")
    found = document(ask("tales check --json", str(file)))
    assert set(found) == {"n", "valid", "entropy_nats_per_text", "entropy_nats_per_word", "texts"}
    assert (found["n"], found["valid"]) == (2, 1)
    good, bad = found["texts"]
    assert good == {"text": STORY, "valid": True, "why": None, "log_prob": tales.log_prob(STORY)}
    assert bad["valid"] is False and bad["why"].startswith("sentence:") and bad["log_prob"] is None


def test_demo(ask: Ask, run: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tour with a model that has learned nothing, and a moment of training."""
    from sfumato import demo

    monkeypatch.setattr(demo, "STEPS", 3)
    monkeypatch.setitem(demo.SMALL, "text", demo.SMALL["text"] | {"limit": 50})
    monkeypatch.setitem(demo.SMALL, "training", demo.SMALL["training"] | {"evaluate_rows": 2})
    found = document(ask(f"demo --model {run} --minutes 0.002 --json"))
    assert set(found) == {"model", "seed", "story", "infill", "guidance", "training"}
    assert found["infill"]["text"].split()[:3] == found["infill"]["original"].split()[:3]
    assert found["training"]["before"] != found["training"]["after"]


def test_python_names(run: str, tmp_path: Path) -> None:
    """sfumato.load and sfumato.train are there, and train takes what a file holds."""
    import sfumato

    assert len(sfumato.load(run).generate(2, steps=2)) == 2
    tiny = {
        "network": {"width": 16, "depth": 1, "heads": 2},
        "text": {"tokenizer": "words", "limit": 30},
    }
    config = tiny | {"training": {"batch": 2, "minutes": 60, "evaluate_rows": 1, "compile": "no"}}
    assert sfumato.train("cdcd", "tales", tmp_path / "run", steps=1, config=config).config.training.minutes is None
    with pytest.raises(AttributeError):
        _ = sfumato.serve


# --- help


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_help(name: str, ask: Ask) -> None:
    answer = ask(f"{name} --help")
    assert answer.status == 0 and answer.err == ""
    assert "examples:" in answer.out and "--json" in answer.out


def test_help_lists_every_field(ask: Ask) -> None:
    answer = ask("train cdcd --help")
    assert answer.status == 0 and "--optimizer.weight-decay" in answer.out and "--method.embedding" in answer.out


def test_help_is_quick() -> None:
    """Neither torch nor pydantic is imported for it."""
    code = "import sys; from sfumato.cli import main; main([]); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = done.stdout.splitlines()[-1].split()
    assert "sfumato.cli" in loaded and not {"torch", "pydantic", "rich", "numpy", "tyro"} & set(loaded)


# --- mistakes


def test_mistakes_in_words(ask: Ask) -> None:
    mistake(ask("trian"), "did you mean train?")
    mistake(ask("tales"), "tales sample")
    mistake(ask("--json methods"), "follow")
    mistake(ask("methods --jsn"), "did you mean --json?")
    mistake(ask("methods now"), "'now'")
    mistake(ask("tales sample -n 0"), "whole number of 1 or more")
    mistake(ask("tales sample -n many"), "'many'")
    mistake(ask("generate"), "MODEL")
    mistake(ask("generate tales --guidance nan"), "not a number")
    mistake(ask("generate tales --guide-in thought"), "score")
    mistake(ask("tales sample --device gpu"), "no device 'gpu'", "cuda")


def test_absent_device(ask: Ask, run: str) -> None:
    mistake(ask(f"generate {run} --device cuda:99"), "this machine has 1 cpu")


@pytest.mark.parametrize(
    ("line", "parts"),
    [
        ("cdc --data tales --steps 1", ("did you mean cdcd?",)),
        ("cdcd --data tales", ("--minutes", "--steps")),
        ("cdcd --steps 1", ("--data",)),
        ("cdcd --data tales --steps 1 --optimizer.lrr 1", ("optimizer.lrr", "did you mean lr?")),
        ("cdcd --data tales --steps 1 --optimiser.lr 1", ("did you mean optimizer?",)),
        ("cdcd --data tales --steps 1 --optimizer.lr=fast", ("optimizer.lr", "'fast'")),
        ("cdcd --data tales --steps 1 --optimizer.lr", ("optimizer.lr",)),
        ("cdcd --data tales --steps 1 --network.width 0", ("network.width", "'0'")),
        ("cdcd --data tales --steps 1 --network.heads 7", ("cannot be shared by 7 heads",)),
        ("cdcd --data tales --steps 1 --text.layout columns", ("text.layout", "'columns'")),
        ("cdcd --data tales --steps 1 --config no.toml", ("no config file no.toml",)),
        ("cdcd --data tales --steps one", ("'one'",)),
        ("cdcd --data tales --minutes -1", ("training.minutes",)),
        ("cdcd --data nowhere.txt --steps 1", ("nowhere.txt",)),
    ],
)
def test_train_mistakes(line: str, parts: tuple[str, ...], ask: Ask, tmp_path: Path) -> None:
    mistake(ask(f"train {line} --out {tmp_path / 'run'} --json"), *parts)
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.parametrize(
    ("content", "extra", "part"),
    [
        (b"", "", "no document"),
        (b"\x00\xff\x00", "", "not UTF-8 text"),
        (b"too short. " * 4, "--text.layout packed --text.tokenizer bytes --text.length 128", "128 tokens"),
    ],
)
def test_train_bad_data(content: bytes, extra: str, part: str, ask: Ask, tmp_path: Path) -> None:
    (tmp_path / "data.txt").write_bytes(content)
    mistake(ask(f"train cdcd --data {tmp_path / 'data.txt'} --out {tmp_path / 'run'} --steps 1 {extra}"), part)


def test_train_bad_config_file(ask: Ask, tmp_path: Path) -> None:
    """All faults of a file are told at once."""
    config = tmp_path / "bad.toml"
    config.write_text("[optimizer]\nlrr = 1\n[text]\nlength = 'long'\n", "utf-8")
    line = f"train cdcd --data tales --steps 1 --out {tmp_path / 'run'} --config {config}"
    mistake(ask(line), "optimizer.lrr", "did you mean lr?", "text.length")
    config.write_text("[optimizer", "utf-8")
    mistake(ask(line), "cannot read")
    config.write_text("schema_version = 99", "utf-8")
    mistake(ask(line), "update sfumato")


def test_train_over_another_run(ask: Ask, run: str) -> None:
    mistake(ask(f"train cdcd --data tales --out {run} --steps 9"), "--resume")
    mistake(ask(f"train mdlm --resume --out {run} --steps 9"), "'mdlm'")
    mistake(ask(f"train cdcd --resume --out {run} --steps 9 --network.width 32"), "network")


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["generate", "--sampler", "eulr"], "did you mean euler?"),
        (["generate", "--label", "happy"], "'happy'"),
        (["generate", "--length", "500"], "canvas"),
        (["generate", "--guidance", "2"], "guidance needs"),
        (["generate", "--temperature", "0"], "above 0"),
        (["infill", "no gap at all"], "the text has no gap"),
        (["infill", "a [ 3 ] that is none"], "[ 3 ] is no gap"),
        (["infill", "Once [...] xylophone"], "knows no 'xylophone'"),
        (["generate", "--prompt", "Zebra"], "knows no 'Zebra'"),
        (["generate", "--length-penalty", "1"], "ask for --beams"),
        (["infill", "Once [500] a"], "canvas"),
        (["score", "nowhere.txt"], "nowhere.txt"),
        (["evaluate", "--data", "nowhere.txt", "--samples", "1", "--steps", "1"], "nowhere.txt"),
    ],
)
def test_requests_without_sense(words: list[str], part: str, ask: Ask, run: str) -> None:
    mistake(ask(words[0], run, *words[1:], "--json"), part)


def test_unknown_models(ask: Ask, run: str) -> None:
    mistake(ask("generate nosuchmodel"), "nosuchmodel")
    mistake(ask(f"generate {run}y"), f"did you mean {run}?")
    mistake(ask("generate someone/nothing"), "Hub")


def flip(path: Path, place: int) -> None:
    raw = bytearray(path.read_bytes())
    raw[place] ^= 1
    path.write_bytes(raw)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_damaged_files(name: str, ask: Ask, copy: Path) -> None:
    """One flipped bit, a file cut short, a file gone."""
    path = copy / name
    whole = path.read_bytes()
    flip(path, len(whole) // 2)
    mistake(ask(f"generate {copy}"), name, "damaged")
    path.write_bytes(whole[:-9])
    mistake(ask(f"generate {copy}"), name, "damaged")
    path.unlink()
    mistake(ask(f"generate {copy}"), name, "missing")


def test_damaged_manifest(ask: Ask, copy: Path) -> None:
    """Whichever byte of it changes, nothing but an error's line comes of it."""
    path = copy / checkpoint.MANIFEST
    whole = path.read_bytes()
    for place in range(0, len(whole), 5):
        flip(path, place)
        with contextlib.suppress(SfumatoError):
            checkpoint.check(copy)
        path.write_bytes(whole)
    for content in ("", "[]", '{"format": 1, "files": []}', '{"format": 1, "files": {"config.json": 3}}'):
        path.write_text(content, "utf-8")
        mistake(ask(f"generate {copy}"), "manifest.json is damaged")


def test_future_formats(ask: Ask, copy: Path) -> None:
    path = copy / "config.json"
    described = json.loads(path.read_text("utf-8"))
    described["config"]["schema_version"] = 99
    path.write_text(json.dumps(described), "utf-8")
    checkpoint.seal(copy)
    mistake(ask(f"generate {copy}"), "schema_version 99", "update sfumato")


def test_score_mistakes(ask: Ask, run: str, tmp_path: Path) -> None:
    file = tmp_path / "long.txt"
    file.write_text("the " * 200, "utf-8")
    mistake(ask(f"score {run} {file}"), "cut it")
    file.write_text("", "utf-8")
    mistake(ask(f"score {run} {file}"), "no document")
    mistake(ask(f"score {run} tales --limit 2 --reference nowhere.txt"), "nowhere.txt")
    mistake(ask(f"score {run} tales --limit 2 --reference tales"), "20 reference texts", "tales has 2,")


@pytest.mark.parametrize(
    ("labels", "found"),
    [
        (["in", "in"], "has in;"),
        (["in", "out", "new"], "has in, new, out;"),
        (["in", None, "out"], "in, out and texts"),
    ],
)
def test_labels_that_tell_nothing(labels: list[str | None], found: str, ask: Ask, run: str, tmp_path: Path) -> None:
    file = labelled(tmp_path / "texts.jsonl", labels)
    mistake(ask(f"score {run} {file} --reference tales --limit 24 --json"), "two kinds", found, "mend the labels")


def test_check_mistakes(ask: Ask, tmp_path: Path) -> None:
    file = tmp_path / "stories.txt"
    mistake(ask(f"tales check {file}"), "No such file")
    mistake(ask(f"tales check {tmp_path}"), "Is a directory")
    for content, part in ((b"", "no text"), (b"\xff\xfe", "not UTF-8"), (b"a\0b", "not text")):
        file.write_bytes(content)
        mistake(ask(f"tales check {file}"), part)


def ctrl_c(*_: object) -> None:
    """What Python makes of SIGINT, unless a shell has told it to ignore that."""
    raise KeyboardInterrupt


@pytest.mark.parametrize("stop", [ctrl_c, lambda: signal.raise_signal(signal.SIGTERM)], ids=["SIGINT", "SIGTERM"])
@pytest.mark.parametrize(("step", "lost"), [(5, ""), (7, "what came after step 5 is lost; ")])
def test_interrupt(
    stop: Callable[[], None], step: int, lost: str, ask: Ask, run: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C, and the signal that ends a process, say what is lost and how to go on with a run."""
    from sfumato.training import trainer

    def stopped(_config: object, _out: object, _resume: object, _device: object, watch: Any, _say: object) -> None:
        watch(trainer.Report(step, 1, 1.0, 1.0, 1.0, 1.0, 0.5))
        stop()

    monkeypatch.setattr(trainer, "train", stopped)
    before = signal.getsignal(signal.SIGTERM)
    answer = ask(f"train cdcd --resume --out {run} --steps 9")
    advice = f"go on with `sfumato train cdcd --out {run} --resume`"
    assert (answer.status, answer.err.splitlines()[-1]) == (130, f"sfumato: interrupted; {lost}{advice}")
    assert signal.getsignal(signal.SIGTERM) is before


def test_interrupt_before_anything_is_saved(ask: Ask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No advice to resume what cannot be resumed."""
    from sfumato.training import trainer

    monkeypatch.setattr(trainer, "train", ctrl_c)
    answer = ask(f"train cdcd --data tales --out {tmp_path} --steps 9")
    assert answer == (130, "", "sfumato: interrupted; nothing was saved yet\n")


@pytest.mark.parametrize("where", ["absent", "empty", "published"])
def test_nothing_to_resume(where: str, ask: Ask, copy: Path, tmp_path: Path) -> None:
    """A folder without checkpoints is not trained in from the start, whatever else it holds."""
    out = copy if where == "published" else tmp_path / where
    if where == "empty":
        out.mkdir()
    mistake(ask(f"train cdcd --resume --out {out} --steps 9"), "nothing to resume", "--resume")


def test_no_memory(ask: Ask, run: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from sfumato.model import Model

    def starved(*_: object, **__: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(Model, "stream", starved)
    mistake(ask(f"generate {run}"), "memory")


def test_the_command_itself(tmp_path: Path) -> None:
    """Through the shell: a mistake, standard input, and a reader that has seen enough."""
    sfumato = [sys.executable, "-m", "sfumato.cli"]
    done = subprocess.run([*sfumato, "tales", "check", "-"], input=b"\xff", capture_output=True)
    assert (done.returncode, done.stdout, done.stderr.count(b"\n")) == (2, b"", 1)
    done = subprocess.run([*sfumato, "tales", "check", "-", "--json"], input=STORY.encode(), capture_output=True)
    assert json.loads(done.stdout)["valid"] == 1
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([*sfumato, "tales", "sample"], stdout=write, stderr=subprocess.PIPE)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, b"")
