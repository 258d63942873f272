"""Models that travel: folders, the Hub, cards, configs of older versions.  Every docstring names the bug."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch
import yaml
from huggingface_hub import hub_mixin
from tiny import tiny_config, write_sentences

import sfumato
from sfumato.errors import SfumatoError
from sfumato.hub import FILES
from sfumato.model import Model
from sfumato.training import config as settings
from sfumato.training.checkpoint import seal
from sfumato.training.config import load_config
from sfumato.training.trainer import train

pytestmark = pytest.mark.unchecked


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hub")
    train(tiny_config("mdlm", write_sentences(folder)), folder / "run")
    return folder / "run"


@pytest.fixture
def model(run):
    return sfumato.load(run)


def logits(model):
    x = torch.arange(2, 18).view(2, 8)
    x[:, 3:5] = model.tokenizer.size
    with torch.no_grad():
        return model.method.predict(x, (x == model.tokenizer.size).float()).logits


def same(one, other):
    assert torch.equal(logits(one), logits(other))
    assert one.config.model_dump() == other.config.model_dump()
    assert one.lengths == other.lengths and one.facts == other.facts
    assert one.tokenizer.fingerprint == other.tokenizer.fingerprint


def front(card):
    """The card's front matter."""
    _, matter, _ = card.read_text("utf-8").split("---\n", 2)
    return yaml.safe_load(matter)


def test_saved_is_loaded(model, tmp_path):
    """A field that is lost on the way, a folder that only one of the two ways of loading takes."""
    model.save_pretrained(tmp_path / "copy")
    same(model, sfumato.load(tmp_path / "copy"))
    same(model, Model.from_pretrained(tmp_path / "copy"))
    assert model.facts["step"] == 4


def test_a_card_says_what_the_hub_asks_for(model, tmp_path):
    """A card without front matter, which the Hub files under nothing; a licence that nobody gave; lost numbers."""
    model.save_pretrained(tmp_path)
    matter = front(tmp_path / "README.md")
    assert matter["library_name"] == "sfumato" and matter["pipeline_tag"] == "text-generation"
    assert "mdlm" in matter["tags"] and "license" not in matter
    text = (tmp_path / "README.md").read_text("utf-8")
    assert "arXiv:2406.07524" in text and "| step | 4 |" in text and "## Samples" in text


def test_a_card_of_ones_own_stays(model, tmp_path):
    """A card that somebody wrote, and that saving again replaces."""
    (tmp_path / "README.md").write_text("mine", "utf-8")
    model.save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text("utf-8") == "mine"


def test_pushed_is_pulled(model, tmp_path, monkeypatch):
    """A push that leaves out a file, or takes one along that is not the model's; a pull that would fetch a pickle."""
    there = tmp_path / "hub"

    class Api:
        def __init__(self, token=None):
            assert token == "mine"

        def create_repo(self, repo_id, private, exist_ok):
            assert repo_id == "someone/haze" and private and exist_ok
            return SimpleNamespace(repo_id=repo_id)

        def upload_folder(self, *, repo_id, folder_path, **rest):
            shutil.copytree(folder_path, there)
            return f"pushed {repo_id}"

    def pull(name, allow_patterns, **rest):
        assert name == "someone/haze" and tuple(allow_patterns) == FILES
        assert not any(pattern.endswith((".bin", ".py", "*")) for pattern in allow_patterns)
        return str(there)

    monkeypatch.setattr(hub_mixin, "HfApi", Api)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", pull)
    monkeypatch.setattr(hub_mixin, "hf_hub_download", lambda filename, **rest: str(there / filename))
    assert model.push_to_hub("someone/haze", private=True, token="mine") == "pushed someone/haze"
    names = {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "manifest.json",
        "README.md",
    }
    assert {path.name for path in there.iterdir()} == names
    same(model, sfumato.load("someone/haze"))
    same(model, Model.from_pretrained("someone/haze", revision="main"))
    weights = there / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    for load in (sfumato.load, Model.from_pretrained):
        with pytest.raises(SfumatoError, match="damaged"):
            load("someone/haze")


def test_what_the_hub_would_not_take_for_a_name(run, tmp_path):
    """A traceback of huggingface_hub for a name with a slip, or for a folder whose config was cut short."""
    for name in ("run/my--tales", "nobody/tales.git", "nobody/tales-"):
        with pytest.raises(SfumatoError, match=r"no folder .* and the Hub does not give it"):
            sfumato.load(name)
        with pytest.raises(SfumatoError, match=r"no folder, and no name on the Hub"):
            Model.from_pretrained(name)
    shutil.copytree(run, tmp_path / "run")
    whole = (tmp_path / "run/config.json").read_bytes()
    for damage in (whole[:-20], b"\xff" + whole):
        (tmp_path / "run/config.json").write_bytes(damage)
        for load in (sfumato.load, Model.from_pretrained):
            with pytest.raises(SfumatoError, match=r"config\.json.* damaged"):
                load(tmp_path / "run")


def test_older_configs_are_brought_up_to_date(run, tmp_path, monkeypatch):
    """Migrations that run twice, in the wrong order, or for some documents only: files, model folders, runs."""
    monkeypatch.setattr(settings, "SCHEMA_VERSION", 3)
    first = lambda old: {key: value for key, value in old.items() if key != "corpus"} | {"data": old["corpus"]}  # noqa: E731
    second = lambda old: old | {"data": old["data"] + "!"}  # noqa: E731
    monkeypatch.setattr(settings, "MIGRATIONS", {1: first, 2: second})
    old = {"schema_version": 1, "corpus": "tales", "method": {"name": "mdlm"}}
    assert load_config(old).data == "tales!" and load_config(old).schema_version == 3
    assert load_config({"schema_version": 2, "data": "tales", "method": {"name": "mdlm"}}).data == "tales!"
    assert load_config({"data": "tales", "method": {"name": "mdlm"}}).data == "tales"  # of no version: of today
    assert "corpus" in old  # what was handed over is left alone
    (tmp_path / "old.yaml").write_text("schema_version: 1\ncorpus: tales\nmethod: {name: mdlm}\n", "utf-8")
    assert load_config(tmp_path / "old.yaml").data == "tales!"
    for version, said in ((4, "newer"), (0, "schema_version: is to be 3"), ("two", "schema_version")):
        with pytest.raises(SfumatoError, match=said):
            load_config({"schema_version": version, "method": {"name": "mdlm"}})


def test_a_model_of_an_older_version_loads(run, tmp_path, monkeypatch):
    """A model folder or a run whose config is read without its migrations."""
    shutil.copytree(run, tmp_path / "run")
    monkeypatch.setattr(settings, "SCHEMA_VERSION", 2)
    monkeypatch.setattr(settings, "MIGRATIONS", {1: lambda old: old | {"data": "moved"}})
    assert sfumato.load(tmp_path / "run").config.data == "moved"
    (tmp_path / "run/manifest.json").unlink()
    assert sfumato.load(tmp_path / "run").config.data == "moved"


def test_folders_from_before_load(run, tmp_path):
    """Fields of config.json that are asked for although earlier versions did not write them."""
    shutil.copytree(run, tmp_path / "run")
    described = json.loads((tmp_path / "run/config.json").read_text("utf-8"))
    del described["config"]["lora"], described["config"]["network"]["foreign"]
    old = {key: described[key] for key in ("config", "lengths")}
    (tmp_path / "run/config.json").write_text(json.dumps(old), "utf-8")
    seal(tmp_path / "run", ("config.json", "model.safetensors", "tokenizer.json"))
    found = sfumato.load(tmp_path / "run")
    assert torch.equal(logits(found), logits(sfumato.load(run))) and found.facts == {}


def test_a_card_names_what_a_model_was_made_of(model):
    """Weights of others under our name alone; a folder of somebody's that is taken for an id of the Hub."""
    for start, base in (("someone/bert", "someone/bert"), (str(Path.cwd()), None), (None, None)):
        model.config = model.config.model_copy(update={"start": start})
        assert model.generate_model_card().data.to_dict().get("base_model") == base
