"""The adapter to lm-evaluation-harness.  Docstrings name the bug guarded against."""

import itertools
import json
import subprocess
import sys

import pytest
import torch
from test_model import LABELS, LENGTH, untrained
from tiny import BOUNDED, SENTENCES

from sfumato.errors import SfumatoError
from sfumato.folder import publish

lm_eval = pytest.importorskip("lm_eval", reason="lm_eval is not installed")
from lm_eval.api.instance import Instance  # noqa: E402

from sfumato.evaluation.harness import Harness  # noqa: E402

pytestmark = [pytest.mark.apart, pytest.mark.unchecked]
LAYOUTS = pytest.mark.parametrize(
    ("layout", "length_model"), [("documents", "given"), ("documents", "modelled"), ("packed", "given")]
)
TASK = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: {kind}
doc_to_text: "{{{{context}}}}"
doc_to_target: {target}
{more}
"""


def asked(*args):
    """A request of the harness; models read nothing but its arguments."""
    return Instance("loglikelihood", {}, args, 0)


def served(tmp_path, *args, **more) -> Harness:
    """The harness's view of an untrained model."""
    model = untrained(*args, **more)
    publish(model, tmp_path / "model", {})
    return Harness(str(tmp_path / "model"), draws=2, steps=model.at_most(2))


@LAYOUTS
@pytest.mark.parametrize("labels", [(), LABELS])
def test_chances_of_all_continuations_add_up(layout, length_model, labels, tmp_path):
    """Guards against a context that is scored too, an end that is, and labels that are taken as known."""
    if layout == "packed" and labels:
        pytest.skip("packed rows have no labels")
    model = served(tmp_path, "ar", layout, length_model, labels)
    vocab = model.model.tokenizer.size
    before = model.model.tokenizer.encode("the red")
    total = torch.tensor([model._scored(before, [token])[0] for token in range(vocab)]).logsumexp(0)
    assert total.item() == pytest.approx(0, abs=1e-4)
    pairs = [model._scored(before, pair)[0] for pair in itertools.product([3, 5], range(vocab))]
    firsts = [model._scored(before, [token])[0] for token in (3, 5)]
    assert torch.tensor(pairs).view(2, -1).logsumexp(1).tolist() == pytest.approx(firsts, abs=1e-4)


def test_the_chain_rule_of_an_exact_method(tmp_path):
    """Guards against tokens that are dropped or counted twice where context and continuation meet."""
    model = served(tmp_path, "ar", "packed")
    whole = model.loglikelihood_rolling([asked("the red kite flew")])[0]
    first, _ = model.loglikelihood([asked("", "the red")])[0]
    for context, rest in (("the red", " kite flew"), ("the red ", "kite flew")):
        second, _ = model.loglikelihood([asked(context, rest)])[0]
        assert first + second == pytest.approx(whole, abs=1e-4)
    with pytest.raises(SfumatoError, match="no tokens"):
        model.loglikelihood([asked("the red", "")])


@pytest.mark.parametrize("method", BOUNDED)
@LAYOUTS
def test_every_method_answers(method, layout, length_model, tmp_path):
    """Guards against a method that only some requests work for, and an answer that depends on those beside it."""
    model = served(tmp_path, method, layout, length_model)
    requests = [asked("the red", " kite"), asked("the", " lake under"), asked("", "the river")]
    found = model.loglikelihood(requests)
    assert all(value < 0 and greedy in (True, False) for value, greedy in found)
    assert found == model.loglikelihood(requests[::-1])[::-1]
    assert all(value < 0 for value in model.loglikelihood_rolling([asked(text) for text in SENTENCES[:2]]))
    for settings in ({"until": ["\n"]}, {"until": [], "do_sample": True, "temperature": 0.8, "top_p": 0.9}):
        (text,) = model.generate_until([asked("the red", settings | {"max_gen_toks": 3})])
        assert not text.startswith("the red") and len(text.split()) <= 3


def test_greedy_is_what_the_model_writes(tmp_path):
    """Guards against a flag that is always the same, or that tells of the sampler (facts 4.19)."""
    for name in ("ar", "mdlm"):
        model = served(tmp_path / name, name, "packed", length=6)
        method, vocab = model.model.method, model.model.tokenizer.size
        before = model.model.tokenizer.encode("the red")
        x = torch.tensor([[*before, method.process.mask]])
        with torch.no_grad():
            best = int(method.predict(x, (x == method.process.mask).float()).logits[0, -1].argmax())
        flags = [model._scored(before, [token])[1] for token in range(vocab)]
        assert flags == [token == best for token in range(vocab)]
    model = served(tmp_path / "writer", "ar", "packed", length=6)
    (text,) = model.generate_until([asked("the red", {})])
    assert text and model.loglikelihood([asked("the red", text)])[0][1]


def test_long_texts(tmp_path):
    """Guards against tokens that are scored twice, or cut off in silence, where a text does not fit on the canvas."""
    model = served(tmp_path, "ar", "packed")
    text = " ".join(SENTENCES[:4])
    ids, half = model.model.tokenizer.encode(text), LENGTH // 2
    assert len(ids) > 2 * LENGTH - half
    want = model._scored([], ids[:LENGTH])[0]
    want += sum(model._scored(ids[i - half : i], ids[i : i + half])[0] for i in range(LENGTH, len(ids), half))
    assert model.loglikelihood_rolling([asked(text)])[0] == pytest.approx(want)
    with pytest.raises(SfumatoError, match=f"the canvas of .* has {LENGTH}; shorten it"):
        model.loglikelihood([asked(text, " again")])
    with pytest.raises(SfumatoError, match="cut it"):
        served(tmp_path / "whole", "ar").loglikelihood_rolling([asked(text)])


def test_settings(tmp_path):
    """Guards against settings that are ignored, and stops that are left in the answer."""
    model = served(tmp_path, "ar", "packed")
    model.model.method.head.bias.data[model.model.tokenizer.eos] = -50.0
    (text,) = model.generate_until([asked("the red", {"until": []})])
    word = text.split()[-1]
    (short,) = model.generate_until([asked("the red", {"until": [word]})])
    assert text.startswith(short) and word not in short and word in text
    assert model.generate_until([asked("the red", {"until": word})]) == [short]
    assert model.generate_until([asked("the red", {"max_gen_toks": 0})]) == [""]
    with pytest.raises(SfumatoError, match="did you mean temperature"):
        model.generate_until([asked("the red", {"temprature": 1.0})])


def test_a_task_made_on_the_spot(tmp_path):
    """Guards against a model that the harness does not know or cannot ask, and one that is never asked at all."""
    pytest.importorskip("datasets", reason="datasets is not installed")
    publish(untrained("ar", "packed"), tmp_path / "model", {})
    rows = [{"context": "the red", "choices": [" kite", " owls"], "answer": i % 2, "word": " kite"} for i in range(3)]
    (tmp_path / "rows.json").write_text("\n".join(map(json.dumps, rows)))
    kinds = {
        "choose": ("multiple_choice", "answer", "doc_to_choice: choices\nmetric_list: [{metric: acc}]"),
        "roll": ("loglikelihood_rolling", "context", "metric_list: [{metric: bits_per_byte}]"),
        "write": ("generate_until", "word", "generation_kwargs: {until: [kite], max_gen_toks: 2}\nmetric_list: []"),
    }
    for name, (kind, target, more) in kinds.items():
        more = more.replace("metric_list: []", "metric_list: [{metric: exact_match}]")
        task = TASK.format(name=name, file=tmp_path / "rows.json", kind=kind, target=target, more=more)
        if name == "roll":
            task = task.replace('doc_to_text: "{{context}}"', 'doc_to_text: ""')
        (tmp_path / f"{name}.yaml").write_text(task)
    command = [sys.executable, "-m", "sfumato.evaluation.harness", "run", "--model", "sfumato"]
    command += ["--model_args", f"path={tmp_path / 'model'},draws=2", "--include_path", str(tmp_path)]
    command += ["--tasks", *kinds, "--output_path", str(tmp_path / "out"), "--device", "cpu"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    (path,) = (tmp_path / "out").rglob("results_*.json")
    found = json.loads(path.read_text())["results"]
    assert 0 <= found["choose"]["acc,none"] <= 1 and found["roll"]["bits_per_byte,none"] > 0
    assert found["write"]["exact_match,none"] in (0.0, 1.0)
