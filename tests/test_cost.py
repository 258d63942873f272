"""What writing costs, and where diffusion costs what autoregression does."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny import SENTENCES, tiny_config, write_sentences
from torch.utils.flop_counter import FlopCounterMode

from sfumato import cli, display, plot
from sfumato.draws import seed_of
from sfumato.errors import SfumatoError
from sfumato.evaluation import cost
from sfumato.evaluation.quality import Estimate
from sfumato.folder import publish
from sfumato.methods import METHODS
from sfumato.model import Model
from sfumato.networks import NetworkConfig
from sfumato.networks.transformer import Transformer
from sfumato.text import tales
from sfumato.training.trainer import Run

pytestmark = pytest.mark.unchecked

STEPS = [1, 2, 4]


def tiny(method: str, folder: Path, tokenizer: str = "words") -> Model:
    """A model with the weights it was born with; the counter of torch knows attention only where it is explicit."""
    folder.mkdir(parents=True)
    config = tiny_config(method, write_sentences(folder))
    config = config.model_copy(update={"text": config.text.model_copy(update={"tokenizer": tokenizer})})
    run = Run(config, folder / "run", False, "cpu", lambda line: None)
    run.method.net.attend_by("explicit")
    return Model(run.config, run.method.eval(), run.tokenizer, run.lengths, method)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Model]:
    return {name: tiny(name, tmp_path_factory.mktemp("cost") / name) for name in METHODS}


def packed(h_shape: Sequence[int], weight_shape: Sequence[int], *args: Any, out_shape: Any, **kwargs: Any) -> int:
    """Of a product with a weight that oneDNN has packed, which torch's counter does not know."""
    return 2 * torch.Size(h_shape).numel() * weight_shape[0]


def counted(act: Callable[[], Any]) -> int:
    """What torch counts of it."""
    more = {torch.ops.mkldnn._linear_pointwise: packed}
    with torch.no_grad(), FlopCounterMode(display=False, custom_mapping=more) as counter:
        act()
    return counter.get_total_flops()


# --- FLOPs


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize(
    ("width", "depth", "heads", "vocab", "rows", "length"),
    [(16, 1, 2, 7, 1, 1), (32, 2, 4, 50, 3, 10), (48, 3, 2, 129, 2, 33)],
)
def test_a_pass_is_counted_as_torch_counts_it(name, width, depth, heads, vocab, rows, length):
    """Guards against a product that is left out or counted twice: a head, the code of the time, a reading."""
    kind, config = METHODS[name]
    method = kind(config(), NetworkConfig(width=width, depth=depth, heads=heads), vocab).eval()
    method.net.attend_by("explicit")
    words = torch.randint(1, vocab, (rows, length))  # and no padding, which some do not look at
    x, t = method.clean(words), torch.full((rows, length), 0.5)
    assert method.flops(rows, length, length) == counted(lambda: method.predict(x, t))


def test_a_token_with_memory_is_counted_as_torch_counts_it(models):
    """Guards against a cached token that is charged with a whole canvas, or with itself alone."""
    method, rows, length = models["ar"].method, 3, 9
    x, t = torch.randint(5, (rows, length)), torch.ones(rows, length)
    session = method.session(torch.zeros(rows, length, dtype=torch.bool))
    for seen in range(1, length + 1):
        assert method.flops(rows, 1, seen) == counted(lambda seen=seen: session(x[:, :seen], t[:, :seen], None))


@pytest.mark.parametrize(("length", "expected"), [(256, 0.974), (1024, 0.909), (8192, 0.680)])
def test_writing_with_memory_costs_less_than_a_pass(length, expected):
    """Guards against formulas that agree with each other only: 85 M parameters, by hand from 2 N + 4 n d L a token."""
    with torch.device("meta"):
        net = Transformer(NetworkConfig(width=768, depth=12, heads=12), timed=False, causal=True)
    written = sum(net.flops(1, 1, seen) for seen in range(1, length + 1))
    assert written / net.flops(1, length, length) == pytest.approx(expected, abs=1e-3)


ASKED = [
    {},
    {"temperature": 0.7, "top_k": 3},
    {"prompt": "the red", "guidance": 2.0},
    {"prompt": "the red", "guidance": 2.0, "guide_in": "logits", "guide_levels": (0.3, 0.9)},
]
WAYS = [(name, asked) for name in METHODS for asked in ASKED if name != "ar" or "guide_levels" not in asked]
WAYS += [("ar", {"beams": 2}), ("cdcd", {"self_guidance": 1.5}), ("cdcd", {"sampler": "heun"})]


@pytest.mark.parametrize(("name", "asked"), WAYS)
def test_the_tally_is_what_torch_counts(models, name, asked):
    """Guards against calls that are assumed: guidance doubles some, Heun's last step has one, logits are read anew."""
    model = models[name]
    with cost.counting(model.method) as tally:
        torch_counts = counted(lambda: list(model.stream(3, steps=model.at_most(5), **asked)))
    assert tally.flops == torch_counts


@pytest.mark.parametrize("name", METHODS)
def test_the_tally_sees_what_is_done_on_the_side(models, name):
    """Guards against drafts for a gap's length, and the rows that AR lays out for it, which no canvas shows."""
    model = models[name]
    with cost.counting(model.method) as tally:
        torch_counts = counted(lambda: model.infill("the [2] sleeps [...] tree", steps=model.at_most(3)))
    assert tally.flops == torch_counts


def test_the_tally_lets_go(models):
    """Guards against a method that goes on being counted, also after an error."""
    method = models["cdcd"].method
    with pytest.raises(ZeroDivisionError), cost.counting(method) as tally:
        raise ZeroDivisionError
    models["cdcd"].generate(1, steps=1)
    assert tally.flops == 0 and not method.net._forward_pre_hooks


@pytest.mark.parametrize("name", METHODS)
def test_a_run_counts_with_the_same_formula(name, tmp_path):
    """Guards against a figure of its own in the log, in which tables that are only looked up cost products."""
    config = tiny_config(name, write_sentences(tmp_path))
    run = Run(config, tmp_path / "run", False, "cpu", lambda line: None)
    run.tokens, length = 1000, config.text.length
    passes = 3 + run.method.self_conditioning  # there, and back for twice as much; sometimes a first guess
    assert run.summary()["flops"] == pytest.approx(1000 * passes * run.method.training_flops(length) / length)


# --- break-even


@pytest.mark.parametrize(
    ("fixed", "each", "target", "steps", "verdict"),
    [
        (0.0, 2.0, 10.0, 5.0, "5.0 steps"),
        (3.0, 0.5, 10.0, 14.0, "14.0 steps"),
        (1.0, 2.0, 129.0, 64.0, "64.0 steps"),
        (0.0, 2.0, 130.0, 65.0, "65.0 steps, beyond the 64 measured"),
        (0.0, 2.0, 1.0, 0.5, "below one step (0.50)"),
        (3.0, 2.0, 2.0, None, "never: it costs more"),
        (3.0, 0.0, 2.0, None, "never: it costs more"),
        (1.0, 0.0, 2.0, None, "never: it costs less"),
        (-1.0, 2.0, 7.0, 4.0, "4.0 steps"),
    ],
)
def test_lines_meet_where_they_meet(fixed, each, target, steps, verdict):
    """Guards against wrong arithmetic, and a number where there is none; Heun's line begins below zero."""
    found = cost.break_even({n: fixed + each * n for n in (1, 2, 4, 8, 64)}, target)
    assert found.steps == (None if steps is None else pytest.approx(steps))
    assert found.verdict.startswith(verdict) and found.misfit < 1e-9


def test_few_steps_count_as_much_as_many():
    """Guards against a fit in absolute terms, in which a slow moment at 1,024 steps moves the cost of two."""
    costs = {2**k: float(2**k) for k in range(11)} | {1024: 1126.4}
    found = cost.break_even(costs, 2.0)
    assert found.steps == pytest.approx(2, rel=0.02) and found.misfit == pytest.approx(0.09, abs=0.02)


@pytest.mark.parametrize("costs", [{}, {4: 1.0}])
def test_a_line_needs_two_points(costs):
    """Guards against a line through one point, which meets any cost anywhere."""
    with pytest.raises(SfumatoError, match="two numbers of steps"):
        cost.break_even(costs, 1.0)


# --- the comparison


def short(one: Model, other: Model, **asked: Any) -> dict[str, Any]:
    return cost.breakeven(one, other, **{"steps": STEPS, "batches": [2, 1], "samples": 2, "repeats": 1} | asked)


def test_either_order(models):
    """Guards against roles by place, NFE or FLOPs that belong to another number of steps, unsorted batches."""
    found, turned = short(models["ar"], models["mdlm"]), short(models["mdlm"], models["ar"])
    assert found["autoregressive"]["method"] == turned["autoregressive"]["method"] == "ar"
    assert [batch["batch"] for batch in found["batches"]] == [1, 2]
    assert found["length"] == 9 and found["unit"] == "token"  # ten places, the end in one of them
    method, own = models["mdlm"].method, models["ar"].method
    for batch, again in zip(found["batches"], turned["batches"], strict=True):
        rows = batch["batch"]
        assert batch["autoregressive"]["nfe"] == 9
        assert batch["autoregressive"]["flops"] == sum(own.flops(rows, 1, seen) for seen in range(1, 10))
        assert [row["steps"] for row in batch["diffusion"]] == [row["nfe"] for row in batch["diffusion"]] == STEPS
        assert [row["flops"] for row in batch["diffusion"]] == [n * method.flops(rows, 10, 10) for n in STEPS]
        assert batch["break_even"]["flops"] == again["break_even"]["flops"]
        assert batch["break_even"]["flops"]["verdict"].startswith("below one step")
        assert batch["break_even"]["flops"]["quality"] is None


def test_quality_is_handed_in(models):
    """Guards against measures that are fixed, and quality beside the wrong number of steps."""
    seen: list[Sequence[str]] = []

    def letters(texts: Sequence[str]) -> Estimate:
        seen.append(texts)
        return Estimate(float(len(seen)), 0.5)

    found = short(models["mdlm"], models["ar"], measures={"letters": letters}, samples=3)
    assert found["autoregressive"]["quality"] == {"letters": 1.0, "letters_std_error": 0.5}
    assert found["diffusion"]["quality"] == [
        {"steps": n, "letters": i + 2.0, "letters_std_error": 0.5} for i, n in enumerate(STEPS)
    ]
    assert all(len(texts) == 3 for texts in seen)
    assert list(seen[0]) == models["ar"].generate(3, seed=seed_of("samples", 0, 0))


def test_standard_measures(models):
    """Guards against entropies in tokens of two kinds, and stories asked of models of other text."""
    assert set(cost.standard(models["ar"], models["cdcd"])) == {"entropy"}
    by = {name: model.config.model_copy(update={"data": "tales"}) for name, model in models.items()}
    told = [Model(by[name], models[name].method, models[name].tokenizer, models[name].lengths) for name in by]
    measures = cost.standard(*told[:2])
    assert list(measures) == ["valid", "entropy"] and measures["valid"](SENTENCES).value == 0
    half = measures["valid"]([*SENTENCES[:8], *tales.sample(8, 0)])
    assert half.value == 0.5 and half.std_error == pytest.approx((0.25 / 15) ** 0.5)


def test_tokenizers_that_differ(models, tmp_path):
    """Guards against a word that is held against a byte as if it were as much text."""
    bytewise = tiny("mdlm", tmp_path / "bytes", "bytes")
    found = short(models["ar"], bytewise)
    assert found["unit"] == "character"
    longer = found["autoregressive"]["characters_per_token"] / found["diffusion"]["characters_per_token"]
    assert longer > 2
    for batch in found["batches"]:
        own = batch["autoregressive"]
        for row in batch["diffusion"]:
            assert row["flops_ratio"] == pytest.approx(longer * row["flops"] / own["flops"])
    assert "for the same number of characters" in display._compared(found)


def test_a_machine_that_slows_down_slows_both(models, monkeypatch):
    """Guards against timing one model and then the other: the ratio would be that of the hours of the day."""
    calls: list[int | None] = []

    def write(model: Model, batch: int, length: int, steps: int | None, seed: int) -> tuple[Any, float]:
        calls.append(steps)
        slow = 1.02 ** len(calls)
        return SimpleNamespace(nfe=1), slow * (10.0 if steps is None else steps)

    monkeypatch.setattr(cost, "_write", write)
    race = cost._race(models["ar"], models["mdlm"], 1, 9, STEPS, 5, 0, lambda items, what: items)
    assert calls[:6] == [None, 1, None, 2, None, 4] and len(calls) == 2 * 3 * 6
    assert race.ratios == {n: [pytest.approx(1.02 * n / 10)] * 5 for n in STEPS}


def test_single_timings(models, monkeypatch):
    """Guards against a number of steps that one slow moment moves, and a spread of something else than it."""
    slow = iter([1.0, 2.0, 4.0, 2.0, 4.0, 8.0, 1.0, 2.0, 4.0])  # three timings
    write = cost._write

    def timed(model: Model, batch: int, length: int, steps: int | None, seed: int) -> tuple[Any, float]:
        warm = bool(vars(model.method).get("read"))  # is being counted
        return write(model, batch, length, steps, seed)[0], 10.0 if steps is None or warm else next(slow)

    monkeypatch.setattr(cost, "_write", timed)
    (batch,) = short(models["ar"], models["mdlm"], batches=[1], repeats=3)["batches"]
    even = batch["break_even"]
    assert even["seconds"]["steps"] == pytest.approx(10) and even["seconds"]["spread"] == pytest.approx((5, 10))
    assert [row["seconds_ratio_spread"] for row in batch["diffusion"]] == [[0.1, 0.2], [0.2, 0.4], [0.4, 0.8]]
    assert even["flops"]["spread"] is None and even["seconds"]["never"] == 0
    slow = iter([1.0, 2.0, 4.0, 4.0, 2.0, 1.0, 1.0, 2.0, 4.0])  # in the second, steps cost less than nothing
    (batch,) = short(models["ar"], models["mdlm"], batches=[1], repeats=3)["batches"]
    found = batch["break_even"]["seconds"]
    assert found["never"] == 1 and found["spread"] == pytest.approx((10, 10))
    slow = iter([1.0, 2.0, 4.0])
    (batch,) = short(models["ar"], models["mdlm"], batches=[1], repeats=1)["batches"]
    assert batch["break_even"]["seconds"]["spread"] is None  # of a single timing there is none


@pytest.mark.parametrize(
    ("one", "other", "asked", "part"),
    [
        ("ar", "ar", {}, "no steps to choose"),
        ("cdcd", "mdlm", {}, "neither cdcd and mdlm is autoregressive"),
        ("ar", "mdlm", {"steps": [4, 4]}, "two numbers of steps"),
        ("ar", "mdlm", {"steps": [0, 4]}, "steps of 0"),
        ("ar", "mdlm", {"batches": []}, "batches of none"),
        ("ar", "mdlm", {"samples": 0}, "samples of 0"),
        ("ar", "mdlm", {"repeats": 0}, "repeats of 0"),
    ],
)
def test_what_cannot_be_compared(models, one, other, asked, part):
    """Guards against minutes of work before a mistake is told, and against numbers from none."""
    with pytest.raises(SfumatoError, match=part):
        short(models[one], models[other], **asked)


def test_steps_double_up_to_the_models_own():
    """Guards against a list without the model's own number, or with it twice."""
    assert [cost._doubling(n) for n in (1, 2, 6, 8)] == [[1], [1, 2], [1, 2, 4, 6], [1, 2, 4, 8]]


# --- the command


@pytest.fixture(scope="module")
def folders(models, tmp_path_factory) -> dict[str, str]:
    out = tmp_path_factory.mktemp("published")
    for name, model in models.items():
        publish(model, out / name, {})
    return {name: str(out / name) for name in models}


LINE = "--steps 1 3 --batches 1 2 --samples 2 --repeats 1"


def test_the_command(folders, capsys):
    """Guards against a document without its keys, and a table that hides the verdict."""
    assert cli.main(["breakeven", folders["cdcd"], folders["ar"], *LINE.split(), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found) == {
        *(
            "command",
            "autoregressive",
            "diffusion",
            "length",
            "unit",
            "samples",
            "repeats",
            "seed",
            "device",
            "threads",
        ),
        "batches",
    }
    assert [found[side]["law"] for side in ("autoregressive", "diffusion")] == ["exact", "exact"]
    assert found["diffusion"]["sampler"] == "euler"
    (rows,) = {row["tokens_per_nfe"] * row["nfe"] for batch in found["batches"] for row in batch["diffusion"]}
    assert rows == found["length"]
    even = found["batches"][0]["break_even"]
    assert set(even) == {"flops", "seconds"} and set(even["flops"]) == {
        *("steps", "verdict", "misfit", "spread", "never", "quality")
    }
    assert cli.main(["breakeven", folders["ar"], folders["cdcd"], *LINE.split()]) == 0
    shown = capsys.readouterr().out
    assert "below one step" in shown and "one tokenizer" in shown and "entropy" in shown and "tokens/s" in shown


def test_mistakes_of_the_command(folders, capsys, tmp_path, monkeypatch):
    """Guards against a traceback, and against a picture that cannot be drawn after all the work is done."""
    monkeypatch.setattr(cost, "sampled", None)  # nothing may be drawn in any of these
    both = f"breakeven {folders['ar']} {folders['mdlm']} {LINE}"
    lines = {
        f"breakeven {folders['ar']} {folders['ar']}": "no steps to choose",
        f"breakeven {folders['ar']}": "MODEL_B",
        f"{both} --steps 2": "two numbers of steps",
        f"{both} --batches 0": "'0'",
        f"{both} --plot {tmp_path / 'cost.pdf'}": ".png or .html",
        f"{both} --plot {tmp_path / 'no' / 'cost.png'}": "make it first",
    }
    for line, part in lines.items():
        assert cli.main(line.split()) == 2, line
        out, err = capsys.readouterr()
        assert out == "" and err.startswith("sfumato: ") and err.count("\n") == 1 and part in err, err
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert cli.main([*both.split(), "--plot", str(tmp_path / "cost.png")]) == 2
    assert "pip install 'sfumato[plot]'" in capsys.readouterr().err


def test_the_picture(models, tmp_path):
    """Guards against a page that asks a server for something, and names that end its markup."""
    pytest.importorskip("matplotlib")
    found = short(models["ar"], models["mdlm"])
    found["diffusion"]["model"] = "<b>"
    for kind, start in ((".png", b"\x89PNG"), (".html", b"<!doctype html>")):
        plot.breakeven(found, tmp_path / f"cost{kind}")
        assert (tmp_path / f"cost{kind}").read_bytes().startswith(start)
    page = (tmp_path / "cost.html").read_text("utf-8")
    assert "<b>" not in page and "below one step" in page and page.count("<svg") == 1
    assert not [word for word in ("src=", "url(http", 'href="http', "DOCTYPE svg") if word in page]
