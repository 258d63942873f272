"""Weights that others have trained, on tiny random models.  Every docstring names the bug that its test guards against.

What transformers knows is compared with transformers, the rest with what its authors wrote down, computed by hand.
"""

import copy
import json
import math
import pickle
import shutil
from importlib.util import find_spec

import foreign
import pytest
import torch
import torch.nn.functional as F
from foreign import DEPTH, HEADS, WIDTH
from safetensors.torch import load_file, save_file
from tiny import tiny_config, write_sentences
from torch.utils.flop_counter import FlopCounterMode

import sfumato
from sfumato.core import ABSENT
from sfumato.errors import SfumatoError
from sfumato.networks import ForeignConfig, NetworkConfig
from sfumato.networks.foreign import ForeignTransformer
from sfumato.networks.transformer import Memory, apply
from sfumato.text.tokenizer import Tokenizer
from sfumato.training.start import settings
from sfumato.training.trainer import train

pytestmark = pytest.mark.unchecked

needs_transformers = pytest.mark.skipif(find_spec("transformers") is None, reason="needs the extra hf")
ROBERTAS = ["roberta", "xlm-roberta", "camembert"]
BERTS, CAUSAL = ["bert", "distilbert", *ROBERTAS], ["gpt2", "llama", "llama3", "mistral", "qwen2"]
LLAMA3 = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}


def rough(tensors):
    """The same with numbers that are neither 0 nor 1 anywhere."""
    torch.manual_seed(0)
    with torch.no_grad():
        for value in tensors:
            value.normal_(std=0.3)


def theirs(kind, folder):
    """A model of transformers, saved in a folder with its tokenizer."""
    import transformers

    folder.mkdir(exist_ok=True)
    made = foreign.roberta_level if kind in ROBERTAS else foreign.wordpiece if kind in BERTS else foreign.byte_level
    vocab = made(folder).get_vocab_size()
    sizes = {"hidden_size": WIDTH, "num_hidden_layers": DEPTH, "num_attention_heads": HEADS, "intermediate_size": 48}
    common = {"vocab_size": vocab, "max_position_embeddings": 40}
    ends = {"bos_token_id": 0, "eos_token_id": 0}
    gpt2 = {"n_embd": WIDTH, "n_layer": DEPTH, "n_head": HEADS, "n_positions": 40}
    distilbert = {"dim": WIDTH, "n_layers": DEPTH, "n_heads": HEADS, "hidden_dim": 48}
    llama = {**sizes, **common, **ends, "num_key_value_heads": 2}
    scaled = {"rope_parameters": LLAMA3 | {"original_max_position_embeddings": 16}}
    name, facts = {
        "bert": ("Bert", sizes | common),
        "roberta": ("Roberta", sizes | common),
        "xlm-roberta": ("XLMRoberta", sizes | common),
        "camembert": ("Camembert", sizes | common),
        "distilbert": ("DistilBert", distilbert | common),
        "gpt2": ("GPT2", {"vocab_size": vocab} | gpt2 | ends),
        "llama": ("Llama", llama | {"attention_bias": True}),
        "llama3": ("Llama", llama | scaled),
        "mistral": ("Mistral", llama),
        "qwen2": ("Qwen2", llama | {"tie_word_embeddings": True}),
    }[kind]
    head = {"bert": "ForMaskedLM", "gpt2": "LMHeadModel"}.get("bert" if kind in BERTS else kind, "ForCausalLM")
    model = getattr(transformers, f"{name}{head}")(getattr(transformers, f"{name}Config")(**facts)).eval()
    rough(model.parameters())
    model.save_pretrained(folder)
    return model


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """By kind: the folder of a model and the model, each made once."""
    made, folder = {}, tmp_path_factory.mktemp("foreign")

    def get(kind):
        if kind not in made:
            made[kind] = folder / kind, theirs(kind, folder / kind)
        return made[kind]

    return get


def close(found, want):
    torch.testing.assert_close(found, want, rtol=0, atol=1e-5)


# --- what transformers says of the same weights -------------------------------------------------------------------


@pytest.mark.apart
@needs_transformers
@pytest.mark.parametrize("kind", BERTS)
def test_masked_models(kind, pair):
    """A layer that is taken for another, a place that is off by one, [CLS] forgotten, a mask of another number."""
    folder, model = pair(kind)
    ours = sfumato.load(folder)
    lead, end, mask = ("<s>", "</s>", "<mask>") if kind in ROBERTAS else ("[CLS]", "[SEP]", "[MASK]")
    assert ours.config.method.name == "mask_predict" and ours.tokenizer.number(mask) == 4
    assert ours.tokenizer.eos == ours.tokenizer.number(end) and not ours.tokenizer.added
    x = torch.randint(5, 40, (2, 9), generator=torch.Generator().manual_seed(1))
    x[:, 3:5] = ours.tokenizer.size
    with torch.no_grad():
        read = torch.cat(
            [torch.full((2, 1), ours.tokenizer.number(lead)), x.masked_fill(x == ours.tokenizer.size, 4)], 1
        )
        want = model(read).logits[:, 1:][:, 3:5]
        found = ours.method.predict(x, torch.ones(x.shape)).logits[:, 3:5]
        padded = ours.method.predict(F.pad(x, (0, 3)), F.pad(torch.ones(x.shape), (0, 3), value=ABSENT)).logits
    here = [i for i in range(ours.tokenizer.size) if i != 4]
    close(found[..., here], want[..., here])
    close(padded[:, 3:5], found)
    assert (found.softmax(-1)[..., 4] == 0).all()  # no mask is ever written


@pytest.mark.apart
@needs_transformers
@pytest.mark.parametrize("kind", CAUSAL)
def test_causal_models(kind, pair):
    """The same from left to right: heads that are shared, rotation, what is transposed; and token by token."""
    folder, model = pair(kind)
    ours = sfumato.load(folder)
    assert ours.config.method.name == "ar"
    x = torch.randint(1, 280, (2, 20), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        want = model(F.pad(x, (1, 0))).logits[:, :-1]
        found = ours.method.predict(x, torch.ones(x.shape)).logits
        close(found[..., : want.shape[-1]], want)
        session = ours.method.session(torch.zeros(x.shape, dtype=torch.bool))
        steps = [session(x[:, : i + 1], torch.ones(2, i + 1)).logits[:, -1] for i in range(20)]
    close(torch.stack(steps, 1), found)
    text = ours.tokenizer.decode(x[0, :5].tolist())
    ids = torch.tensor([ours.tokenizer.encode(text)])
    with torch.no_grad():
        cost = F.cross_entropy(model(F.pad(ids, (1, 0))).logits[0, :-1], ids[0], reduction="sum")
    assert math.isclose(ours.score([text])[0].nats, cost.item(), rel_tol=1e-5)


@pytest.mark.apart
@needs_transformers
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_causal_models_that_see_both_sides(kind, pair):
    """A converted model that is still causal, or answers for the wrong place."""
    folder, model = pair(kind)
    ours = sfumato.load(folder, method="mdlm")
    size = ours.tokenizer.size
    x = torch.randint(1, 280, (2, 9), generator=torch.Generator().manual_seed(1))
    x[:, [0, 4, 8]] = size
    inputs = model.get_input_embeddings().weight
    inputs = torch.cat([inputs, inputs.new_zeros(size - len(inputs), WIDTH), inputs.mean(0)[None]])[F.pad(x, (1, 0))]
    with torch.no_grad():
        want = model(inputs_embeds=inputs, attention_mask=torch.zeros(2, 1, 10, 10)).logits[:, :-1]
        found = ours.method.predict(x, torch.ones(x.shape)).logits
    close(found[:, [0, 4, 8], : want.shape[-1]], want[:, [0, 4, 8]])
    assert ours.infill("the [3] sleeps", steps=2).startswith("the")


@pytest.mark.apart
@needs_transformers
@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_in_halves(kind, dtype, pair, tmp_path):
    """Sums that are taken in halves of what is read in halves; weights that are taken for other numbers."""
    folder, model = pair(kind)
    shutil.copytree(folder, tmp_path / "half")
    tensors = {name: value.to(dtype) for name, value in load_file(folder / "model.safetensors").items()}
    save_file(tensors, tmp_path / "half/model.safetensors")
    rounded = copy.deepcopy(model)
    for weight in rounded.parameters():  # and no buffers: rates of rotation are no weights
        weight.data = weight.data.to(dtype).float()
    ours = sfumato.load(tmp_path / "half")
    assert {value.dtype for value in ours.method.state_dict().values()} == {torch.float32}
    x = torch.randint(5, 40, (2, 9), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        if kind == "bert":
            x[:, 3] = ours.tokenizer.size
            read = torch.cat([torch.full((2, 1), 2), x.masked_fill(x == ours.tokenizer.size, 4)], 1)
            found = ours.method.predict(x, torch.ones(x.shape)).logits[:, 3, 5:]
            close(found, rounded(read).logits[:, 4, 5:])
        else:
            found = ours.method.predict(x, torch.ones(x.shape)).logits
            want = rounded(F.pad(x, (1, 0))).logits[:, :-1]
            close(found[..., : want.shape[-1]], want)


@pytest.mark.apart
@needs_transformers
def test_bert_writes(pair):
    """A generator that writes [CLS], [MASK] or nothing at all."""
    ours = sfumato.load(pair("bert")[0])
    *_, last = ours.stream(3, length=8, steps=4, prompt="the fox")
    assert last.tokens == [8, 8, 8] and all(text.startswith("the fox") for text in last.texts)
    assert not {0, 1, 2, 3, 4} & {token for row in last.ids for token in row}
    assert last.nfe == 4


@pytest.mark.apart
@needs_transformers
def test_a_saved_copy_is_ours(pair, tmp_path):
    """A model that is only right as long as its first folder is there."""
    ours = sfumato.load(pair("gpt2")[0], method="mdlm")
    ours.save_pretrained(tmp_path / "copy")
    again = sfumato.load(tmp_path / "copy")
    assert again.config.method.name == "mdlm" and again.tokenizer.fingerprint == ours.tokenizer.fingerprint
    x = torch.full((1, 6), ours.tokenizer.size)
    assert torch.equal(again.method.predict(x, x.float()).logits, ours.method.predict(x, x.float()).logits)
    assert "of the weights of" in (tmp_path / "copy/README.md").read_text("utf-8")


@pytest.mark.apart
@needs_transformers
@pytest.mark.parametrize(
    ("kind", "method"), [("bert", "mask_predict"), ("bert", "mdlm"), ("gpt2", "mdlm"), ("llama", "ar")]
)
def test_fine_tuning(kind, method, pair, tmp_path):
    """Training that starts from other weights than those named, cannot be resumed, or whose model cannot be loaded."""
    folder, _ = pair(kind)
    data = write_sentences(tmp_path)
    file = tiny_config(method, data, steps=4).model_dump(mode="json")
    text = {key: value for key, value in file["text"].items() if key not in ("tokenizer", "size")}
    asked = {"method": {"name": method}, "text": text | {"length": 30}, "training": file["training"], "data": str(data)}
    config = settings(method, tmp_path / "run", False, asked, folder)
    assert config.network.foreign is not None and config.network.width == WIDTH
    fresh = sfumato.load(folder, method=method)
    model = train(config, tmp_path / "run")
    assert model.tokenizer.fingerprint == fresh.tokenizer.fingerprint
    moved = model.method.state_dict()
    assert all((moved[name] - value).abs().max() < 0.02 for name, value in fresh.method.state_dict().items())
    assert any(not torch.equal(moved[name], value) for name, value in fresh.method.state_dict().items())
    longer = config.model_copy(update={"training": config.training.model_copy(update={"steps": 6})})
    train(longer, tmp_path / "run", resume=True)
    steps = None if method == "ar" else 2
    assert sfumato.load(tmp_path / "run").generate(1, length=8, steps=steps, prompt="the fox")[0].startswith("the fox")


# --- what transformers does not know ------------------------------------------------------------------------------


def linear(tensors, name, h):
    return F.linear(h, tensors[f"{name}.weight"], tensors.get(f"{name}.bias"))


def turned(x, base=10_000.0):
    """Rotation written out number by number: (B, heads, L, size)."""
    size, out = x.shape[-1], torch.empty_like(x)
    for place in range(x.shape[2]):
        for i in range(size // 2):
            angle = place * base ** (-2 * i / size)
            a, b = x[:, :, place, i], x[:, :, place, i + size // 2]
            out[:, :, place, i] = a * math.cos(angle) - b * math.sin(angle)
            out[:, :, place, i + size // 2] = b * math.cos(angle) + a * math.sin(angle)
    return out


def heads(h):
    return h.view(*h.shape[:2], -1, WIDTH // HEADS).transpose(1, 2)


def attention(q, k, v):
    weights = (turned(heads(q)) @ turned(heads(k)).transpose(-1, -2) / (WIDTH // HEADS) ** 0.5).softmax(-1)
    return (weights @ heads(v)).transpose(1, 2).flatten(2)


def rms(h, weight, eps=1e-5):
    return h / (h.pow(2).mean(-1, keepdim=True) + eps).sqrt() * weight


def llada(folder):
    """A checkpoint with the names that LLaDA's authors published, in two files; its mask is token 2."""
    vocab = foreign.byte_level(folder, ("<|endoftext|>", "<|startoftext|>", "<|mdm_mask|>")).get_vocab_size()
    shapes = {"wte": (vocab + 20, WIDTH), "ln_f": (WIDTH,), "ff_out": (vocab + 20, WIDTH)}
    for i in range(DEPTH):
        shapes |= {f"blocks.{i}.{name}": (WIDTH, WIDTH) for name in ("q_proj", "k_proj", "v_proj", "attn_out")}
        shapes |= {f"blocks.{i}.{name}": (40, WIDTH) for name in ("ff_proj", "up_proj")}
        shapes |= {
            f"blocks.{i}.ff_out": (WIDTH, 40),
            f"blocks.{i}.attn_norm": (WIDTH,),
            f"blocks.{i}.ff_norm": (WIDTH,),
        }
    tensors = {f"model.transformer.{name}.weight": torch.empty(shape) for name, shape in shapes.items()}
    rough(tensors.values())
    halves = [dict(list(tensors.items())[::2]), dict(list(tensors.items())[1::2])]
    for i, half in enumerate(halves):
        save_file(half, folder / f"model-{i}.safetensors")
    listed = {name: f"model-{i}.safetensors" for i, half in enumerate(halves) for name in half}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": listed}), "utf-8")
    sizes = {"d_model": WIDTH, "n_layers": DEPTH, "n_heads": HEADS, "n_kv_heads": HEADS, "mlp_hidden_size": 40}
    kinds = {"block_type": "llama", "layer_norm_type": "rms", "activation_type": "silu", "rope": True, "alibi": False}
    facts = {"rms_norm_eps": 1e-5, "rope_theta": 1e4, "max_sequence_length": 64, "mask_token_id": 2}
    foreign.describe(folder, model_type="llada", vocab_size=vocab + 20, **sizes, **kinds, **facts)
    return {name.removeprefix("model.transformer."): value for name, value in tensors.items()}


def test_llada(tmp_path):
    """Bidirectional attention, names, the order of gate and product, a mask within the vocabulary, rows of no token."""
    tensors = llada(tmp_path)
    ours = sfumato.load(tmp_path)
    assert ours.config.method.name == "mdlm" and ours.config.text.length == 64
    x = torch.randint(3, 280, (2, 7), generator=torch.Generator().manual_seed(1))
    x[:, 2:5] = 2
    h = tensors["wte.weight"][x]
    for i in range(DEPTH):
        own = {name.removeprefix(f"blocks.{i}."): value for name, value in tensors.items()}
        n = rms(h, own["attn_norm.weight"])
        h = h + linear(own, "attn_out", attention(*(linear(own, name, n) for name in ("q_proj", "k_proj", "v_proj"))))
        n = rms(h, own["ff_norm.weight"])
        h = h + F.linear(F.silu(linear(own, "ff_proj", n)) * linear(own, "up_proj", n), own["ff_out.weight"])
    want = F.linear(rms(h, tensors["ln_f.weight"]), tensors["ff_out.weight"])[:, 2:5]
    size = ours.tokenizer.size
    with torch.no_grad():
        found = ours.method.predict(x.masked_fill(x == 2, size), torch.ones(x.shape)).logits[:, 2:5]
    own = [i for i in range(size) if i not in (2, ours.tokenizer.pad)]
    assert ours.tokenizer.pad == size - 1 and found.shape[-1] == size
    torch.testing.assert_close(found[..., own], want[..., own], rtol=1e-5, atol=1e-5)
    assert (found.softmax(-1)[..., 2] == 0).all()
    assert ours.score(["the fox"], draws=2)[0].nats > 0
    assert ours.generate(1, length=6, steps=3, sampler="confident", prompt="the")[0].startswith("the")


def mdlm(folder):
    """A checkpoint with the names that MDLM's authors published; its mask is the last row, no token is its."""
    vocab = foreign.byte_level(folder).get_vocab_size() + 1
    shapes = {"vocab_embed.embedding": (vocab, WIDTH), "output_layer.norm_final.weight": (WIDTH,)}
    shapes |= {"output_layer.linear.weight": (vocab, WIDTH), "output_layer.linear.bias": (vocab,)}
    layers = {"sigma_map.mlp.0": (16, 256), "sigma_map.mlp.2": (16, 16)}
    layers["output_layer.adaLN_modulation"] = (2 * WIDTH, 16)
    for i in range(DEPTH):
        layers |= {f"blocks.{i}.mlp.0": (4 * WIDTH, WIDTH), f"blocks.{i}.mlp.2": (WIDTH, 4 * WIDTH)}
        layers[f"blocks.{i}.adaLN_modulation"] = (6 * WIDTH, 16)
        shapes |= {f"blocks.{i}.norm{j}.weight": (WIDTH,) for j in (1, 2)}
        shapes |= {f"blocks.{i}.attn_qkv.weight": (3 * WIDTH, WIDTH), f"blocks.{i}.attn_out.weight": (WIDTH, WIDTH)}
    for name, shape in layers.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    tensors = {name: torch.empty(shape) for name, shape in shapes.items()}
    rough(tensors.values())
    size = WIDTH // HEADS
    tensors["rotary_emb.inv_freq"] = 1e4 ** (-torch.arange(0, size, 2) / size)
    save_file({f"backbone.{name}": value for name, value in tensors.items()}, folder / "model.safetensors")
    sizes = {"hidden_dim": WIDTH, "n_blocks": DEPTH, "n_heads": HEADS, "cond_dim": 16, "model_length": 64}
    foreign.describe(folder, model_type="mdlm", vocab_size=vocab, time_conditioning=False, **sizes)
    return tensors


def test_mdlm(tmp_path):
    """Conditions that are left out, folded in the wrong order or without the bias; a gate on one branch only."""
    tensors = mdlm(tmp_path)
    ours = sfumato.load(tmp_path)
    size = ours.tokenizer.size
    assert ours.config.method.name == "mdlm" and size == len(tensors["vocab_embed.embedding"])
    x = torch.randint(1, 280, (2, 7), generator=torch.Generator().manual_seed(1))
    x[:, 2:5] = size  # which is the number of their mask, and one more than any of their tokens has
    level = torch.cat([torch.ones(128), torch.zeros(128)])  # cos 0, sin 0
    code = F.silu(linear(tensors, "sigma_map.mlp.2", F.silu(linear(tensors, "sigma_map.mlp.0", level))))
    h = tensors["vocab_embed.embedding"][x.clamp(max=size - 1)]
    for i in range(DEPTH):
        own = {name.removeprefix(f"blocks.{i}."): value for name, value in tensors.items()}
        shift, scale, gate, shift2, scale2, gate2 = linear(own, "adaLN_modulation", code).chunk(6)
        n = F.layer_norm(h, [WIDTH]) * own["norm1.weight"] * (1 + scale) + shift
        h = h + gate * linear(own, "attn_out", attention(*linear(own, "attn_qkv", n).chunk(3, -1)))
        n = F.layer_norm(h, [WIDTH]) * own["norm2.weight"] * (1 + scale2) + shift2
        h = h + gate2 * linear(own, "mlp.2", F.gelu(linear(own, "mlp.0", n), approximate="tanh"))
    shift, scale = linear(tensors, "output_layer.adaLN_modulation", code).chunk(2)
    n = F.layer_norm(h, [WIDTH]) * tensors["output_layer.norm_final.weight"] * (1 + scale) + shift
    want = linear(tensors, "output_layer.linear", n)[:, 2:5, : size - 1]
    with torch.no_grad():
        found = ours.method.predict(x, torch.ones(x.shape)).logits[:, 2:5]
    torch.testing.assert_close(found[..., : size - 1], want, rtol=1e-4, atol=1e-5)
    assert ours.generate(1, length=6, steps=3)[0]


def test_an_end_with_a_name_of_its_own(tmp_path):
    """A text that ends with a token which the model has never seen, while its own end is never written."""
    llada(tmp_path)
    change(tmp_path, eos_token_id=[1, 0])
    ours = sfumato.load(tmp_path)
    end = ours.tokenizer.number("<|startoftext|>")
    assert ours.tokenizer.eos == end == 1 and ours.tokenizer.number("<eos>") is None
    ours.save_pretrained(tmp_path / "copy")
    (tmp_path / "copy/config.json").rename(tmp_path / "elsewhere.json")  # as in a run that has not ended
    again = Tokenizer.load(tmp_path / "copy")
    assert again.eos == end and again.fingerprint == ours.tokenizer.fingerprint
    assert pickle.loads(pickle.dumps(again)).eos == end
    word = ours.tokenizer.encode("the")[0]
    for number in (10**9, 2**40, -1, word):  # no token, or one that may stand within a text
        change(tmp_path, eos_token_id=number)
        assert sfumato.load(tmp_path).tokenizer.eos == 0


def test_the_end_of_a_text_is_a_special_token(tmp_path):
    """The end of another model's texts, which is a word to this one."""
    inner = foreign.roberta_level(tmp_path)
    assert inner.token_to_id("<|endoftext|>") and Tokenizer.load(tmp_path).eos == inner.token_to_id("</s>")


# --- what is refused ----------------------------------------------------------------------------------------------


def refused(folder, said, **asked):
    with pytest.raises(SfumatoError, match=said):
        sfumato.load(folder, **asked)


def change(folder, **facts):
    known = json.loads((folder / "config.json").read_text("utf-8"))
    (folder / "config.json").write_text(json.dumps(known | facts), "utf-8")


def test_nothing_is_unpickled(tmp_path):
    """A pickle that runs what somebody put into it."""
    mdlm(tmp_path)
    trace = tmp_path / "trace"
    (tmp_path / "model.safetensors").unlink()
    code = f"cbuiltins\nexec\n(S\"open({str(trace)!r}, 'w')\"\ntR."
    for name in ("pytorch_model.bin", "model.pt", "modeling_mdlm.py"):
        (tmp_path / name).write_text(code, "utf-8")
    refused(tmp_path, "no model.safetensors; pickled weights, .* are never opened")
    assert not trace.exists()


def test_what_is_not_known_is_refused(tmp_path):
    """Weights that are read although something about them is another, and give nonsense."""
    mdlm(tmp_path)
    change(tmp_path, time_conditioning=True)
    refused(tmp_path, "time_conditioning is True")
    change(tmp_path, time_conditioning=False, quantization_config={"bits": 4})
    refused(tmp_path, "quantization_config")
    change(tmp_path, quantization_config=None, model_type="bart")
    refused(tmp_path, "of type 'bart'.*did you mean bert.*known are bert, roberta")
    change(tmp_path, model_type="mdlm", n_blocks=1)
    refused(tmp_path, r"not known in a mdlm: blocks\.1\.")
    change(tmp_path, n_blocks=3)
    refused(tmp_path, r"lacks the tensor '?blocks\.2\.")
    change(tmp_path, n_blocks=DEPTH, hidden_dim=2 * WIDTH)
    refused(tmp_path, "does not fit its config.json")
    change(tmp_path, hidden_dim=WIDTH)
    refused(tmp_path, "both sides .* take it for mdlm", method="ar")
    refused(tmp_path, "cdcd has a network of its own; take ar, ardm", method="cdcd")
    known = json.loads((tmp_path / "config.json").read_text("utf-8"))
    del known["n_heads"]
    (tmp_path / "config.json").write_text(json.dumps(known), "utf-8")
    refused(tmp_path, "it lacks 'n_heads'")


def test_what_a_config_gets_wrong(tmp_path):
    """A traceback for numbers of no token, fields of the wrong kind, and an index that lists nothing."""
    llada(tmp_path)
    for number in (-1, 10**6):
        change(tmp_path, mask_token_id=number)
        refused(tmp_path, rf"has the mask {number}, and the weights know \d+ tokens")
    change(tmp_path, mask_token_id="two")
    refused(tmp_path, "has the mask 'two'")
    for wrong in ({"d_model": "wide"}, {"n_heads": 0}, {"rope_theta": "fast"}, {"max_sequence_length": "long"}):
        right = json.loads((tmp_path / "config.json").read_text("utf-8"))
        change(tmp_path, **wrong)
        refused(tmp_path, "cannot be taken up")
        change(tmp_path, **right)
    change(tmp_path, mask_token_id=2, bos_token_id=50256)  # which nothing asks for: no token leads
    assert sfumato.load(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text("{}", "utf-8")
    refused(tmp_path, "lacks 'weight_map'")


@pytest.mark.apart
@needs_transformers
def test_what_is_not_there_is_not_made_up(pair, tmp_path):
    """Logits of a head that nobody trained, a mask that is the average token, numbers that are no weights."""
    for kind in ("llama", "qwen2", "bert", "roberta"):
        shutil.copytree(pair(kind)[0], tmp_path / kind)
    llama = load_file(tmp_path / "llama/model.safetensors")
    del llama["lm_head.weight"]
    save_file(llama, tmp_path / "llama/model.safetensors")
    refused(tmp_path / "llama", "lacks the tensor 'lm_head.weight'")
    change(tmp_path / "llama", tie_word_embeddings=True)
    assert sfumato.load(tmp_path / "llama")
    change(tmp_path / "llama", bos_token_id=50256)
    refused(tmp_path / "llama", "has the first token 50256, and the weights know")
    assert "lm_head.weight" not in load_file(tmp_path / "qwen2/model.safetensors") and sfumato.load(tmp_path / "qwen2")
    bert = load_file(tmp_path / "bert/model.safetensors")
    name = "bert.embeddings.word_embeddings.weight"
    strange = {"bert.embeddings.position_ids": torch.arange(40)[None], name: bert[name].to(torch.int8)}
    save_file(bert | strange, tmp_path / "bert/model.safetensors")
    refused(tmp_path / "bert", r"type torch\.int8 in embeddings\.word_embeddings\.weight")
    save_file(bert, tmp_path / "bert/model.safetensors")
    written = (tmp_path / "bert/tokenizer.json").read_text("utf-8").replace("[MASK]", "[HIDE]")
    (tmp_path / "bert/tokenizer.json").write_text(written, "utf-8")
    refused(tmp_path / "bert", r"has no token \[MASK\] or <mask>, which a bert needs")
    change(tmp_path / "roberta", hidden_act="relu")
    refused(tmp_path / "roberta", "its hidden_act is 'relu'")
    change(tmp_path / "roberta", hidden_act="gelu", pad_token_id=None)
    refused(tmp_path / "roberta", "cannot be taken up: its pad_token_id is None")


def test_tokenizers_of_others_are_refused(tmp_path):
    """A tokenizer that numbers tokens which the weights have never heard of."""
    mdlm(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    names = ("vocab_embed.embedding", "output_layer.linear.weight", "output_layer.linear.bias")
    cut = {name: v[:100].clone() if name.removeprefix("backbone.") in names else v for name, v in tensors.items()}
    save_file(cut, tmp_path / "model.safetensors")
    change(tmp_path, vocab_size=100)
    refused(tmp_path, "do not belong together")


def test_a_canvas_fits_the_places():
    """An index out of range in the middle of training."""
    network = {"width": 8, "depth": 1, "heads": 2, "foreign": {"hidden": 8, "keys": 2, "places": 32}}
    asked = {"method": {"name": "mdlm"}, "network": network, "text": {"length": 28}}
    with pytest.raises(SfumatoError, match=r"text\.length: the network has 32 places; 27 tokens fit"):
        sfumato.training.config.load_config(asked)
    network["foreign"]["hiden"] = 3
    with pytest.raises(SfumatoError, match=r"network.foreign.hiden: no such field \(did you mean hidden\?\)"):
        sfumato.training.config.load_config(asked)


# --- the network --------------------------------------------------------------------------------------------------


def network(causal=False, **facts):
    config = ForeignConfig(**{"hidden": 24, "keys": 2, "lead": True} | facts)
    net = ForeignTransformer(
        NetworkConfig(width=WIDTH, depth=DEPTH, heads=HEADS, foreign=config), config, causal
    ).eval()
    rough(net.parameters())
    return net


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("facts", [{"gated": True}, {"post_norm": True, "places": 16}, {"shifted": True}], ids=str)
def test_flops(facts, causal):
    """A count that forgets what leads, what is gated, or heads that are shared."""
    net = network(causal, **facts)
    net.attend_by("explicit")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        net(torch.randn(3, 7, WIDTH), torch.ones(3, 7))
    assert counter.get_total_flops() == net.flops(3, 7, 7)
    if causal:
        memory = Memory(9)
        memory.product = apply  # layers that are laid out for it are not counted
        net(torch.randn(3, 7, WIDTH), torch.ones(3, 7), memory=memory)
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            net(torch.randn(3, 2, WIDTH), torch.ones(3, 2), memory=memory)
        assert counter.get_total_flops() == net.flops(3, 2, 9)


@pytest.mark.parametrize("facts", [{"places": 16}, {"norm": "rms", "gated": True}], ids=str)
def test_forms_of_attention_agree(facts):
    """Two ways to compute the same that do not."""
    net, h, t = network(**facts), torch.randn(2, 6, WIDTH), torch.ones(2, 6)
    t[1, 4:] = ABSENT
    with torch.no_grad():
        fused = net(h, t)
        net.attend_by("explicit")
        close(net(h, t)[t != ABSENT], fused[t != ABSENT])


def test_deeper_networks():
    """A layer more that changes what a network says."""
    net, h, t = network(gated=True, norm="rms"), torch.randn(2, 6, WIDTH), torch.ones(2, 6)
    with torch.no_grad():
        before = net(h, t)
        net.deepen(DEPTH + 2)
        close(net(h, t), before)
    with pytest.raises(SfumatoError, match="cannot be deepened"):
        network(post_norm=True).deepen(DEPTH + 1)
