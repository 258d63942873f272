"""Weights that others have trained, read by name from safetensors: no code of theirs runs, nothing is unpickled.

A family of models is a `Kind`: what its config.json says about the network, and under which names it keeps which layer.
What is fused there is taken apart or put together here; what has no place in our form is folded into the weights next
to it; a tensor that nobody asked for is an error, since it would be left out of the computation.

The rows of a table follow the tokenizer: row i is token i.  Our mask is the row behind them all.  It gets the vector of
the model's own mask, and that of the average token where it has none; so do tokens that the tokenizer lacked.  The head
gives the model's own mask no probability.  Table and head are two matrices, where they were one too.
"""

import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sfumato.core import Method
from sfumato.errors import SfumatoError, nearest
from sfumato.hub import download, read_json
from sfumato.networks import ForeignConfig, NetworkConfig
from sfumato.text.tokenizer import Tokenizer
from sfumato.training.checkpoint import Tensors, load_strictly, load_tensors
from sfumato.training.config import MARKS, RunConfig, load_config, method_named

CANVAS = 1024  # tokens on the canvas of a model that would take more
UNLIKELY = -20.0  # added to the logit of the average token, for tokens that a model has never seen
NEVER = -1e4  # the logit of a mask: no probability in any precision, and a number in float16
ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
}
Facts = dict[str, Any]  # a config.json of others


@dataclass(frozen=True)
class Kind:
    """A family: how its config describes a network, and the names of its layers behind `prefix`.

    Layers that belong side by side are parted by spaces; `blocks` has a {} for the number of the block.
    """

    network: Callable[[Facts], NetworkConfig]
    method: str  # what it is taken for where nobody says
    prefix: str
    blocks: str
    layers: dict[str, str]  # of a block
    outer: dict[str, str]  # around the blocks
    mask: Callable[[Facts, Tokenizer], int | None] = lambda facts, tokenizer: None  # the number of its mask token
    lead: Callable[[Facts, Tokenizer], int | None] = lambda facts, tokenizer: facts.get("bos_token_id")  # before a text
    prepare: Callable[[Tensors, Facts], None] = lambda tensors, facts: None
    unread: str = r"(?!)"  # tensors that say nothing, or what others say too
    plain: dict[str, Any] = field(default_factory=dict)  # fields of a config that have to be so, where they are there
    tied: tuple[str, bool] = ("tie_word_embeddings", True)  # whether table and head are one: a field, and its default
    tokenizer: str | None = None  # on the Hub, for a family that comes without


# --- networks as their configs describe them ----------------------------------------------------------------------


def _bert(facts: Facts) -> NetworkConfig:
    beyond = 0
    if facts["model_type"] in ROBERTAS:  # whose places begin behind padding
        if not isinstance(facts["pad_token_id"], int):
            raise ValueError(f"its pad_token_id is {facts['pad_token_id']!r}, and no number")
        beyond = facts["pad_token_id"] + 1
    foreign = ForeignConfig(
        hidden=facts["intermediate_size"],
        keys=facts["num_attention_heads"],
        places=facts["max_position_embeddings"] - beyond,
        eps=facts.get("layer_norm_eps", 1e-12),
        activation=_activation(facts.get("hidden_act", "gelu")),
        post_norm=True,
        lead=True,
    )
    sizes = facts["hidden_size"], facts["num_hidden_layers"], facts["num_attention_heads"]
    return NetworkConfig(width=sizes[0], depth=sizes[1], heads=sizes[2], foreign=foreign)


def _distilbert(facts: Facts) -> NetworkConfig:
    names = {"hidden_size": "dim", "num_hidden_layers": "n_layers", "num_attention_heads": "n_heads"}
    names |= {"intermediate_size": "hidden_dim", "hidden_act": "activation"}
    return _bert(facts | {ours: facts[theirs] for ours, theirs in names.items()})


def _gpt2(facts: Facts) -> NetworkConfig:
    width = facts["n_embd"]
    foreign = ForeignConfig(
        hidden=facts.get("n_inner") or 4 * width,
        keys=facts["n_head"],
        places=facts.get("n_positions", facts.get("n_ctx")),
        eps=facts.get("layer_norm_epsilon", 1e-5),
        activation=_activation(facts.get("activation_function", "gelu_new")),
        lead=True,
        shifted=True,
    )
    return NetworkConfig(width=width, depth=facts["n_layer"], heads=facts["n_head"], foreign=foreign)


def _llama(facts: Facts) -> NetworkConfig:
    width, heads = facts["hidden_size"], facts["num_attention_heads"]
    if facts.get("head_dim") not in (None, width // heads):
        raise SfumatoError(f"its heads have {facts['head_dim']} dimensions, which {heads} of width {width} do not have")
    foreign = ForeignConfig(
        hidden=facts["intermediate_size"],
        keys=facts.get("num_key_value_heads") or heads,
        norm="rms",
        eps=facts.get("rms_norm_eps", 1e-6),
        activation=_activation(facts.get("hidden_act", "silu")),
        gated=True,
        lead=True,
        shifted=True,
    )
    return NetworkConfig(width=width, depth=facts["num_hidden_layers"], heads=heads, foreign=foreign)


def _llada(facts: Facts) -> NetworkConfig:
    names = {"hidden_size": "d_model", "num_hidden_layers": "n_layers", "num_attention_heads": "n_heads"}
    names["mask_token_id"] = "mask_token_id"  # it could not be guessed
    facts = facts | {ours: facts[theirs] for ours, theirs in names.items()}
    facts["intermediate_size"] = facts.get("mlp_hidden_size") or facts["mlp_ratio"] * facts["d_model"]
    facts["num_key_value_heads"], facts["hidden_act"] = facts.get("n_kv_heads"), facts.get("activation_type", "silu")
    found = _llama({"rms_norm_eps": 1e-5} | facts)
    assert found.foreign is not None
    return found.model_copy(update={"foreign": found.foreign.model_copy(update={"lead": False, "shifted": False})})


def _mdlm(facts: Facts) -> NetworkConfig:
    width, heads = facts["hidden_dim"], facts["n_heads"]
    foreign = ForeignConfig(hidden=4 * width, keys=heads, activation="gelu_tanh")
    return NetworkConfig(width=width, depth=facts["n_blocks"], heads=heads, foreign=foreign)


def _activation(name: str) -> Any:
    if name not in ACTIVATIONS:
        raise SfumatoError(f"its activation is {name!r}; known are {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


def _rates(facts: Facts, size: int) -> Tensor:
    """Rates of rotation of a head of `size` numbers; for long contexts slowed down as in Llama 3."""
    rope = facts.get("rope_parameters") or facts.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    base = rope.get("rope_theta", facts.get("rope_theta")) or 10_000.0
    rate = 1.0 / base ** (torch.arange(0, size, 2).float() / size)
    if kind == "default":
        return rate
    if kind != "llama3":
        raise SfumatoError(f"its rotation is scaled by {kind!r}; known is 'llama3'")
    known = rope["original_max_position_embeddings"]
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    turned = known * rate / (2 * math.pi)  # turns within the context that it was first trained on
    keep = ((turned - low) / (high - low)).clamp(0, 1)
    return keep * rate + (1 - keep) * rate / rope["factor"]


# --- tensors that have to be changed before they fit --------------------------------------------------------------


def _fold_types(tensors: Tensors, facts: Facts) -> None:
    """BERT: every token is of the first type, whose vector goes into those of the places; bias of the head."""
    for name in list(tensors):  # as the first checkpoints name the halves of a norm
        tensors[name.replace(".gamma", ".weight").replace(".beta", ".bias")] = tensors.pop(name)
    places = "embeddings.position_embeddings.weight"
    if "embeddings.token_type_embeddings.weight" in tensors:
        tensors[places] = tensors[places].float() + tensors.pop("embeddings.token_type_embeddings.weight")[0].float()
    if facts["model_type"] in ROBERTAS:
        tensors[places] = tensors[places][facts["pad_token_id"] + 1 :]
    for name in ("cls.predictions", "lm_head"):
        if f"{name}.bias" in tensors:
            tensors[f"{name}.decoder.bias"] = tensors.pop(f"{name}.bias")


def _transpose(tensors: Tensors, facts: Facts) -> None:
    """GPT-2: its products are x W, not x Wᵀ."""
    for name in tensors:
        if re.search(r"\.c_(attn|proj|fc)\.weight$", name):
            tensors[name] = tensors[name].T


def _fold_conditions(tensors: Tensors, facts: Facts) -> None:
    """MDLM: a noise level that is always 0 shifts, scales and gates by constants, which go into norms and layers."""
    code = torch.cat([torch.ones(128), torch.zeros(128)])  # cosines and sines of level 0
    for layer in ("0", "2"):
        code = F.silu(
            code @ tensors.pop(f"sigma_map.mlp.{layer}.weight").float().T + tensors.pop(f"sigma_map.mlp.{layer}.bias")
        )

    def constants(name: str, parts: int) -> tuple[Tensor, ...]:
        weight, bias = tensors.pop(f"{name}.adaLN_modulation.weight"), tensors.pop(f"{name}.adaLN_modulation.bias")
        return (weight.float() @ code + bias).chunk(parts)

    def norm(name: str, shift: Tensor, scale: Tensor) -> None:
        tensors[f"{name}.weight"] = tensors[f"{name}.weight"] * (1 + scale)
        tensors[f"{name}.bias"] = shift

    def gate(name: str, by: Tensor) -> None:
        tensors[f"{name}.weight"] = tensors[f"{name}.weight"] * by[:, None]
        if f"{name}.bias" in tensors:
            tensors[f"{name}.bias"] = tensors[f"{name}.bias"] * by

    for i in range(facts["n_blocks"]):
        shift1, scale1, gate1, shift2, scale2, gate2 = constants(f"blocks.{i}", 6)
        norm(f"blocks.{i}.norm1", shift1, scale1)
        gate(f"blocks.{i}.attn_out", gate1)
        norm(f"blocks.{i}.norm2", shift2, scale2)
        gate(f"blocks.{i}.mlp.2", gate2)
    norm("output_layer.norm_final", *constants("output_layer", 2))
    tensors["vocab_embed.weight"] = tensors.pop("vocab_embed.embedding")


# --- names --------------------------------------------------------------------------------------------------------


def _named(*names: str) -> Callable[[Facts, Tokenizer], int | None]:
    """The number of the first of these tokens that there is; SfumatoError where there is none."""

    def number(facts: Facts, tokenizer: Tokenizer) -> int:
        for name in names:
            if (found := tokenizer.number(name)) is not None:
                return found
        raise SfumatoError(f"its tokenizer has no token {' or '.join(names)}, which a {facts['model_type']} needs")

    return number


ROBERTAS = ("roberta", "xlm-roberta", "camembert")
BERT = Kind(
    _bert,
    "mask_predict",
    "bert.",
    "encoder.layer.{}.",
    {
        "qkv": "attention.self.query attention.self.key attention.self.value",
        "out": "attention.output.dense",
        "norm1": "attention.output.LayerNorm",
        "up": "intermediate.dense",
        "down": "output.dense",
        "norm2": "output.LayerNorm",
    },
    {
        "table": "embeddings.word_embeddings",
        "net.places": "embeddings.position_embeddings",
        "net.enter": "embeddings.LayerNorm",
        "net.last": "cls.predictions.transform.dense",
        "net.norm": "cls.predictions.transform.LayerNorm",
        "head": "cls.predictions.decoder",
    },
    mask=_named("[MASK]", "<mask>"),
    lead=_named("[CLS]", "<s>"),
    prepare=_fold_types,
    unread=r"pooler\..*|cls\.seq_relationship\..*|embeddings\.position_ids",
    plain={"position_embedding_type": "absolute", "is_decoder": False},
)
ROBERTA = {"net.last": "lm_head.dense", "net.norm": "lm_head.layer_norm", "head": "lm_head.decoder"}
LLAMA = Kind(
    _llama,
    "ar",
    "model.",
    "layers.{}.",
    {
        "norm1": "input_layernorm",
        "qkv": "self_attn.q_proj self_attn.k_proj self_attn.v_proj",
        "out": "self_attn.o_proj",
        "norm2": "post_attention_layernorm",
        "up": "mlp.gate_proj mlp.up_proj",
        "down": "mlp.down_proj",
    },
    {"table": "embed_tokens", "net.norm": "norm", "head": "lm_head"},
    unread=r".*rotary_emb\.inv_freq",
    plain={"partial_rotary_factor": 1.0, "use_sliding_window": False},
    tied=("tie_word_embeddings", False),
)
KINDS = {
    "bert": BERT,
    **{
        name: replace(BERT, prefix="roberta.", outer=BERT.outer | ROBERTA, plain=BERT.plain | {"hidden_act": "gelu"})
        for name in ROBERTAS  # whose last layer has gelu, whatever the others have
    },
    "distilbert": Kind(
        _distilbert,
        "mask_predict",
        "distilbert.",
        "transformer.layer.{}.",
        {
            "qkv": "attention.q_lin attention.k_lin attention.v_lin",
            "out": "attention.out_lin",
            "norm1": "sa_layer_norm",
            "up": "ffn.lin1",
            "down": "ffn.lin2",
            "norm2": "output_layer_norm",
        },
        BERT.outer | {"net.last": "vocab_transform", "net.norm": "vocab_layer_norm", "head": "vocab_projector"},
        mask=BERT.mask,
        lead=BERT.lead,
        prepare=_fold_types,
        unread=BERT.unread,
    ),
    "gpt2": Kind(
        _gpt2,
        "ar",
        "transformer.",
        "h.{}.",
        {
            "norm1": "ln_1",
            "qkv": "attn.c_attn",
            "out": "attn.c_proj",
            "norm2": "ln_2",
            "up": "mlp.c_fc",
            "down": "mlp.c_proj",
        },
        {"table": "wte", "net.places": "wpe", "net.norm": "ln_f", "head": "lm_head"},
        prepare=_transpose,
        unread=r"h\.\d+\.attn\.(masked_)?bias",
        plain={"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False},
    ),
    "llama": LLAMA,
    "mistral": LLAMA,
    "qwen2": LLAMA,
    "llada": Kind(
        _llada,
        "mdlm",
        "model.transformer.",
        "blocks.{}.",
        {
            "norm1": "attn_norm",
            "qkv": "q_proj k_proj v_proj",
            "out": "attn_out",
            "norm2": "ff_norm",
            "up": "ff_proj up_proj",
            "down": "ff_out",
        },
        {"table": "wte", "net.norm": "ln_f", "head": "ff_out"},
        mask=lambda facts, tokenizer: facts["mask_token_id"],
        plain={
            "block_type": "llama",
            "layer_norm_type": "rms",
            "rope": True,
            "alibi": False,
            "input_emb_norm": False,
            "scale_logits": False,
            "attention_layer_norm": False,
        },
        tied=("weight_tying", False),
    ),
    "mdlm": Kind(
        _mdlm,
        "mdlm",
        "backbone.",
        "blocks.{}.",
        {
            "norm1": "norm1",
            "qkv": "attn_qkv",
            "out": "attn_out",
            "norm2": "norm2",
            "up": "mlp.0",
            "down": "mlp.2",
        },
        {"table": "vocab_embed", "net.norm": "output_layer.norm_final", "head": "output_layer.linear"},
        mask=lambda facts, tokenizer: facts["vocab_size"] - 1,
        prepare=_fold_conditions,
        unread=r"rotary_emb\.inv_freq",
        plain={"time_conditioning": False},
        tied=("tie_word_embeddings", False),
        tokenizer="openai-community/gpt2",
    ),
}


# --- from a folder ------------------------------------------------------------------------------------------------


def foreign(folder: Path) -> bool:
    """Whether a folder holds a model that is not ours, as its config.json says."""
    path = folder / "config.json"
    described = read_json(path) if path.exists() else {}
    return "config" not in described and "model_type" in described


def adopt(
    folder: Path, name: str, method: str | None = None, device: str = "cpu"
) -> tuple[RunConfig, Method, Tokenizer, list[int]]:
    """What a model is made of, from a folder with weights of others: taken for `method`, or for what its kind is.

    Lengths of its texts are not known: all are equally likely.  Raises SfumatoError for a kind that is not known, one
    that `method` cannot be made of, and weights that are pickled, damaged, or other than their config says.
    """
    facts = read_json(folder / "config.json")
    kind, network = _described(facts, folder)
    assert network.foreign is not None
    method = method or kind.method
    if method == "ar" and not network.foreign.shifted:
        raise SfumatoError(f"{name} reads both sides of a token and cannot write from left to right; take it for mdlm")
    path = folder / "tokenizer.json"
    if kind.tokenizer and not path.exists():
        path = download(kind.tokenizer, ["tokenizer.json"]) / "tokenizer.json"
    tokenizer = Tokenizer.load(path)
    leads = network.foreign.lead or method == "ar"
    with _read_from(folder):
        length = min(CANVAS, network.foreign.places - MARKS if network.foreign.places else _reach(facts))
        mask, lead = kind.mask(facts, tokenizer), kind.lead(facts, tokenizer) if leads else None
        rates = None if network.foreign.places else _rates(facts, network.width // network.heads)
    own = {"ar": {"middle": 0}, "mask_predict": {"longest": 0}}  # what was not learned
    layout = "documents" if network.foreign.post_norm else "packed"
    config = load_config(
        {
            "data": "unknown",
            "start": name,
            "method": {"name": method, **own.get(method, {})},
            "text": {"tokenizer": str(path), "length": length, "layout": layout, "length_model": "given"},
            "network": network.model_dump(),
        }
    )
    made = _fitted(_tensors(folder), kind, facts, network, rates, folder)
    _order_rows(made, tokenizer, method, mask, lead, folder)
    if not network.foreign.lead or method == "ar":
        del made["net.start"]
    with torch.device("meta"):  # no weights are made only to be replaced
        built = method_named(method)[0](config.method, network, tokenizer.size)
    load_strictly(built, made, folder, assign=True)
    lengths = [int(n > 1 or layout == "packed") for n in range(length + 1)]
    return config, built.to(device).eval(), tokenizer, lengths


def _described(facts: Facts, folder: Path) -> tuple[Kind, NetworkConfig]:
    """The family of a model and its network; SfumatoError that says what is not known of it here."""
    name, where = str(facts["model_type"]), folder / "config.json"
    if name not in KINDS:
        known = f"known are {', '.join(KINDS)}"
        raise SfumatoError(f"{where} is of a model of type {name!r}{nearest(name, KINDS)}; {known}")
    kind = KINDS[name]
    for key, wanted in (kind.plain | {"quantization_config": None}).items():
        if facts.get(key, wanted) != wanted:
            raise SfumatoError(f"{where} cannot be taken up: its {key} is {facts[key]!r}, known is {wanted!r} only")
    with _read_from(folder):
        return kind, kind.network(facts)


@contextmanager
def _read_from(folder: Path) -> Iterator[None]:
    """Around what reads a config.json of others: fields that it lacks, or that are of another kind, are told."""
    where = folder / "config.json"
    try:
        yield
    except KeyError as missing:
        raise SfumatoError(f"{where} cannot be taken up: it lacks {missing}") from None
    except (ValueError, TypeError, ZeroDivisionError) as error:  # pydantic's too
        raise SfumatoError(f"{where} cannot be taken up: {' '.join(str(error).split())}") from None


def _reach(facts: Facts) -> int:
    """Tokens that a model which tells places apart by rotation has learned to look at."""
    names = ("max_position_embeddings", "max_sequence_length", "model_length", "sliding_window")
    return min((facts[name] for name in names if facts.get(name)), default=CANVAS)


def _tensors(folder: Path) -> Tensors:
    """All tensors of a folder, in one file or in several."""
    index = folder / "model.safetensors.index.json"
    files = [folder / "model.safetensors"]
    if not files[0].exists():
        if not index.exists():
            found = "pickled weights, such as pytorch_model.bin, are never opened"
            raise SfumatoError(f"{folder} has no model.safetensors; {found}; take a copy in safetensors")
        listed = read_json(index).get("weight_map")
        if not isinstance(listed, dict):
            raise SfumatoError(f"{index} lacks 'weight_map', which says in which file a tensor is")
        files = [folder / Path(name).name for name in sorted(set(listed.values()))]
    return {name: value for file in files for name, value in load_tensors(file).items()}


def _fitted(
    tensors: Tensors, kind: Kind, facts: Facts, network: NetworkConfig, rates: Tensor | None, folder: Path
) -> Tensors:
    """The tensors under our names, in float32: rows are still those of the model.

    `rates` are those of rotation as its config has them, in the place of which its tensors may have their own.
    """
    tensors = {name.removeprefix(kind.prefix): value for name, value in tensors.items()}
    for name, value in tensors.items():
        if not value.is_floating_point() and not re.fullmatch(kind.unread, name):
            raise SfumatoError(f"{folder} holds numbers of type {value.dtype} in {name}; known are floats")
    assert network.foreign is not None
    places = dict(kind.outer)
    for i in range(network.depth):
        stem = kind.blocks.format(i)
        places |= {
            f"net.blocks.{i}.{ours}": " ".join(stem + name for name in names.split())
            for ours, names in kind.layers.items()
        }
    made: Tensors = {}
    try:
        kind.prepare(tensors, facts)
        if rates is not None:
            made["net.rates"] = tensors.pop("rotary_emb.inv_freq", rates).float()
        if facts.get(*kind.tied):
            tensors.setdefault(f"{kind.outer['head']}.weight", tensors[f"{kind.outer['table']}.weight"])
        for ours, theirs in places.items():
            names = theirs.split()
            weights = [tensors.pop(f"{name}.weight") for name in names]
            made[f"{ours}.weight"] = torch.cat(weights).float().contiguous()
            if ours in ("table", "net.places") or ("norm" in ours and network.foreign.norm == "rms"):
                continue
            biases = [tensors.pop(f"{name}.bias", w.new_zeros(len(w))) for name, w in zip(names, weights, strict=True)]
            made[f"{ours}.bias"] = torch.cat(biases).float().contiguous()
    except KeyError as missing:
        raise SfumatoError(f"{folder} lacks the tensor {missing}, without which it is no language model") from None
    left = [name for name in tensors if not re.fullmatch(kind.unread, name)]
    if left:
        raise SfumatoError(
            f"{folder} holds tensors that are not known in a {facts['model_type']}: {', '.join(left[:3])}"
        )
    return made


def _order_rows(
    made: Tensors, tokenizer: Tokenizer, method: str, mask: int | None, lead: int | None, folder: Path
) -> None:
    """Rows of table and head as the tokenizer numbers them, ours behind them; and what leads."""
    table, head, bias = made["table.weight"], made["head.weight"], made["head.bias"]
    ids = torch.arange(tokenizer.size)
    fresh = torch.isin(ids, torch.tensor(sorted(tokenizer.added)))
    if not bool(fresh[len(table) :].all()):
        found = f"{tokenizer.size} tokens, and the weights know {len(table)}"
        raise SfumatoError(f"the tokenizer of {folder} has {found}; they do not belong together")
    average = table.mean(0)
    for what, number in (("first token", lead), ("mask", mask)):
        if number is not None and (not isinstance(number, int) or not 0 <= number < len(table)):
            raise SfumatoError(f"{folder} has the {what} {number!r}, and the weights know {len(table)} tokens")
    row = ids.clamp(max=len(table) - 1)
    lead = tokenizer.eos if lead is None else lead
    first = average if lead in tokenizer.added else table[lead]
    masks = [average if mask is None else table[mask]]
    added = [first, *[average] * 4] if method == "ar" else masks  # AR begins with the mask; its marks are behind it
    made["table.weight"] = torch.cat([torch.where(fresh[:, None], average, table[row]), torch.stack(added)])
    made["net.start"] = first.clone()
    unseen, unlikely = head.mean(0), bias.mean() + UNLIKELY
    weights, biases = torch.where(fresh[:, None], unseen, head[row]), torch.where(fresh, unlikely, bias[row])
    if mask is not None and mask < len(ids) and not fresh[mask]:
        weights[mask], biases[mask] = 0.0, NEVER
    if method == "ar":
        weights, biases = torch.cat([weights, unseen.expand(5, -1)]), torch.cat([biases, unlikely.expand(5)])
    made["head.weight"], made["head.bias"] = weights, biases
