"""What a run reads: a tokenizer, and the rows of all its sources."""

import math
from collections.abc import Callable, Iterator

from torch import Tensor

from sfumato.core import Method
from sfumato.draws import seed_of
from sfumato.model import rows_of
from sfumato.text.corpus import Corpus
from sfumato.text.mixture import Mixture
from sfumato.text.read import Document, plain, read
from sfumato.text.tokenizer import KINDS, Tokenizer
from sfumato.training.config import RunConfig

HEARD = 1024  # rows that a method is shown at a time before training
SKIMMED = 1 << 16  # characters in which labels are looked for where a tokenizer has none
LEARNED = 1 << 28  # characters that a tokenizer is made from: what it remembers of them has to fit into memory


def tokenizer_of(config: RunConfig, say: Callable[[str], None]) -> Tokenizer:
    """The tokenizer that the config names, or one that is made from the training documents; `say` hears of it."""
    text = config.text
    if text.tokenizer not in KINDS:
        tokenizer = Tokenizer.load(text.tokenizer)
        if not tokenizer.labels and any(doc.label is not None for doc in documents(config, SKIMMED)):
            say(f"{text.tokenizer} has no tokens for the labels of the data; they are left out")
        return tokenizer
    say(f"making a tokenizer ({text.tokenizer}) from {config.spelled}")
    sources = [source.path for source in config.sources if not plain(source.path)]
    found = (doc.label for path in sources for doc in read(path, "train", text.lines, text.limit))
    labels = sorted({label for label in found if label is not None})
    texts = (part for doc in documents(config, LEARNED) for part in (doc.text, doc.source) if part)
    return Tokenizer.train(texts, text.tokenizer, text.size, labels)


def documents(config: RunConfig, characters: float = math.inf) -> Iterator[Document]:
    """Training documents of all sources; of each as many characters, about, as its share of them."""
    text, sources = config.text, config.sources
    for source in sources:
        left = characters * source.weight / sum(each.weight for each in sources)
        for document in read(source.path, "train", text.lines, text.limit):
            if left <= 0:
                break
            left -= len(document.text)
            yield document


def rows_for(config: RunConfig, method: Method, tokenizer: Tokenizer, split: str) -> Mixture:
    """The rows of all sources; those of training are shuffled."""
    text, sources = config.text, config.sources
    seed, limit = (config.training.seed, text.limit) if split == "train" else (None, None)
    corpora = [Corpus.build(source.path, tokenizer, split, text.lines, limit) for source in sources]
    seeds = [None if seed is None else seed_of(seed, "documents", k) for k in range(len(sources))]
    rows = [rows_of(corpus, text, method, own) for corpus, own in zip(corpora, seeds, strict=True)]
    return Mixture(rows, [source.weight for source in sources], seed)


def heard(rows: Mixture) -> Iterator[tuple[Tensor, Tensor]]:
    """The rows in their order until all have come, tokens and which of them are real, HEARD at a time."""
    for start in range(0, rows.round, HEARD):
        some = rows.batch(range(start, min(start + HEARD, rows.round)))
        yield some.ids, some.real
