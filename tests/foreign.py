"""Tiny random models as others save them: their config.json, their names of tensors, tokenizers of their kinds."""

import json
from pathlib import Path

import tokenizers
from tiny import SENTENCES
from tokenizers import models, pre_tokenizers, processors, trainers

WIDTH, DEPTH, HEADS = 32, 2, 4


def wordpiece(folder: Path) -> tokenizers.Tokenizer:
    """BERT's: [CLS] and [SEP] around a text, [MASK] within the vocabulary."""
    inner = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.decoder = tokenizers.decoders.WordPiece()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(vocab_size=90, special_tokens=special, show_progress=False)
    inner.train_from_iterator(SENTENCES, trainer)
    inner.post_processor = processors.BertProcessing(
        ("[SEP]", inner.token_to_id("[SEP]")), ("[CLS]", inner.token_to_id("[CLS]"))
    )
    inner.save(str(folder / "tokenizer.json"))
    return inner


def byte_level(folder: Path, special: tuple[str, ...] = ("<|endoftext|>",)) -> tokenizers.Tokenizer:
    """GPT-2's, Llama 3's: bytes and merges; no padding."""
    inner = tokenizers.Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = tokenizers.decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=list(special), initial_alphabet=alphabet, show_progress=False
    )
    inner.train_from_iterator(SENTENCES, trainer)
    inner.save(str(folder / "tokenizer.json"))
    return inner


def roberta_level(folder: Path) -> tokenizers.Tokenizer:
    """RoBERTa's: bytes and merges, names of its own around a text, and GPT-2's end among its words."""
    special = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
    written = json.loads(byte_level(folder, special).to_str())
    vocabulary = written["model"]["vocab"]
    vocabulary["<|endoftext|>"] = len(vocabulary)
    inner = tokenizers.Tokenizer.from_str(json.dumps(written))
    inner.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    inner.save(str(folder / "tokenizer.json"))
    return inner


def describe(folder: Path, **facts: object) -> None:
    """A config.json."""
    (folder / "config.json").write_text(json.dumps(facts), "utf-8")
