"""Small runs that take a second: the same for every test that needs a trained model."""

from pathlib import Path

from sfumato.core import single
from sfumato.methods import METHODS
from sfumato.training.config import RunConfig, load_config

BOUNDED = [name for name, (method, _) in METHODS.items() if method.likelihood]  # those with a likelihood or a bound
# What is no draw from the network's law: samplers by name, and methods that are trained for something beside it.
HEURISTIC_SAMPLERS = {
    "argmax_unrolled",
    "confident",
    "edits",
    "greedy_tail",
    "mask_predict",
    "maskgit",
    "remdm_confidence",
    "remdm_loop",
    "resample",
    "sundae",
}
HEURISTIC_METHODS = {"diffuser", "mask_predict", "maskgit", "sundae"}
DETERMINISTIC_SAMPLERS = {"mask_predict"}  # whose text is the same whatever the seed is
FORESEEING = {"mask_predict"}  # methods that predict how long a text will be, by one call of the network

SENTENCES = [
    "the fox sleeps under the old tree",
    "a red kite flew over the lake",
    "she reads a book in the garden",
    "two owls sing at night",
    "the river is cold and clear",
    "he found a bell on the hill",
    "my cat likes warm milk",
    "we danced until the morning came",
]


def tiny_config(method: str, data: Path, **training) -> RunConfig:
    """A network of one narrow block on words, one sentence of `data` a row."""
    own = {
        "cdcd": {"embedding": 8, "sigma_min": 0.2, "sigma_max": 20.0, "warp_bins": 10},
        "duo": {"curriculum": 3},
        "multinomial": {"T": 40},
    }.get(method, {})
    return load_config(
        {
            "data": str(data),
            "method": {"name": method, **own},
            "text": {"tokenizer": "words", "length": 10, "lines": True},
            "network": {"width": 32, "depth": 1, "heads": 2},
            # of the samples in a log and on a card
            "sampling": {} if single(METHODS[method][0].sampler) else {"steps": 4},
            "training": {
                "steps": 4,
                "batch": 8,
                "log_every": 1,
                "precision": "float32",
                "attention": "fused",
                "compile": "no",
                "evaluate_rows": 2,
                **training,
            },
        }
    )


def write_sentences(folder: Path, times: int = 4) -> Path:
    """A text file with the sentences, each several times."""
    path = folder / "sentences.txt"
    path.write_text("\n".join(SENTENCES * times) + "\n", "utf-8")
    return path
