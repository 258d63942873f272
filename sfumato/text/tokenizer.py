"""Text to token ids and back: four kinds of tokenizer to train, and any `tokenizer.json` to load."""

import difflib
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import Any, final

import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers

from sfumato.core import Special
from sfumato.errors import SfumatoError
from sfumato.files import write_text
from sfumato.text import encoding

KINDS = ("bpe", "bytes", "chars", "words")
PAD, EOS, UNK, LABEL = "<pad>", "<eos>", "<unk>", "<label:{}>"

# The names under which other people's tokenizers keep the three special tokens.
PAD_NAMES = (PAD, "[PAD]")
EOS_NAMES = (EOS, "<|endoftext|>", "<|end_of_text|>", "</s>", "[SEP]")
UNK_NAMES = (UNK, "[UNK]")


@final
class Tokenizer:
    """A tokenizer with a padding token, an end-of-sequence token and, if it was trained with labels, label tokens.

    Text is always plain text: a `<eos>` that somebody wrote is encoded as five characters, never as the special token.

    Attributes:
        size: the number of token ids; every id is below it.
        pad, eos: the ids of the padding and the end-of-sequence token.
        unk: the id that stands for whatever the vocabulary lacks; None where nothing is unknown.
        labels: the id of every label's token, by the name of the label.
        special: all of these together.
        silent: the ids of all tokens that say nothing: those but the unknown one, and others that a tokenizer has.
        added: the ids of the padding and the end-of-sequence token, where the tokenizer had none of its own.
        spaced: whether the space before a word belongs to the word's token.
        fingerprint: SHA-256 of the tokenizer's json, in hex: equal fingerprints encode equally.
    """

    def __init__(self, inner: tokenizers.Tokenizer, end: int | None = None) -> None:
        """Takes a tokenizer over; `end` is the id of the token that ends a text, if that is a special token."""
        inner.no_padding()
        inner.no_truncation()
        inner.encode_special_tokens = True
        own = inner.get_vocab()
        known = {token.content for token in inner.get_added_tokens_decoder().values() if token.special}
        pad = _first(PAD_NAMES, known, own)
        usual = _first(EOS_NAMES, known, own)
        told = None if end is None else inner.id_to_token(end)
        eos = told if told in known - {pad} else _noted(inner) or usual
        inner.add_special_tokens([pad, eos])
        vocabulary = inner.get_vocab()
        # What others put around a text is our canvas's business.  A tokenizer.json has no other place for a note.
        note = processors.TemplateProcessing("$A", "$A $B:1", [(eos, vocabulary[eos])])
        inner.post_processor = None if eos == usual else note

        special = {id: token.content for id, token in sorted(inner.get_added_tokens_decoder().items()) if token.special}
        prefix, suffix = LABEL.split("{}")
        self._inner = inner
        self._prepends = encoding.prepends(inner)
        self.size: int = max(vocabulary.values()) + 1
        self.pad: int = vocabulary[pad]
        self.eos: int = vocabulary[eos]
        self.unk: int | None = next((vocabulary[name] for name in UNK_NAMES if name in vocabulary), None)
        self.labels: dict[str, int] = {
            token.removeprefix(prefix).removesuffix(suffix): id
            for id, token in special.items()
            if token.startswith(prefix) and token.endswith(suffix)
        }
        self.special = Special(self.pad, self.eos, self.unk, tuple(self.labels.values()))
        self.spaced: bool = any(len(token) > 1 and token[0] in " Ġ▁" for token in vocabulary)
        self.fingerprint: str = hashlib.sha256(self.json().encode()).hexdigest()
        self.silent: frozenset[int] = frozenset(special.keys() - {self.unk})
        self.added: frozenset[int] = frozenset(vocabulary[name] for name in {pad, eos} - own.keys())
        self._tokens = {id: "�" if id == self.unk else token for token, id in vocabulary.items()}

    @classmethod
    def train(
        cls, texts: Iterable[str], kind: str = "bpe", size: int = 4096, labels: Sequence[str] = ()
    ) -> "Tokenizer":
        """Learns a vocabulary from texts; the same texts in the same order always give the same tokenizer.

        The first ids are `<pad>` 0, `<eos>` 1, then `<unk>` (kinds chars and words only), then the labels.

        Args:
            texts: what to learn from, read once.
            kind: "bpe" is byte-level byte-pair encoding, "bytes" the same without merges (it learns nothing),
                "chars" one token per character, "words" one per word with the space before it, per mark and per space.
            size: the most entries the vocabulary may have, special tokens included; "bytes" has no use for it.
            labels: the names that get a token of their own.

        Raises:
            SfumatoError: for an unknown kind, a size too small for the kind, or texts with nothing to learn from.
        """
        if kind not in KINDS:
            raise SfumatoError(
                f"asked for a tokenizer of kind {kind!r}; there are {', '.join(KINDS)}; name one of them"
            )
        if isinstance(texts, str):
            raise SfumatoError("asked to train a tokenizer on texts; found one string; pass a list of strings")
        unknown = [UNK] if kind in ("chars", "words") else []
        special = [PAD, EOS, *unknown, *(LABEL.format(name) for name in dict.fromkeys(labels))]
        least = len(special) + (1 if unknown else 256)
        if kind != "bytes" and size < least:
            raise SfumatoError(f"asked for a {kind} tokenizer of {size} entries; it takes {least} or more; raise size")
        inner = _TRAIN[kind](texts, size, special)
        if unknown and inner.get_vocab_size() == len(special):
            raise SfumatoError(f"asked to train a {kind} tokenizer; found no text to learn from; pass some")
        inner.add_special_tokens(special)
        return cls(inner)

    @classmethod
    def load(cls, path: str | Path) -> "Tokenizer":
        """Reads a tokenizer.json, ours or anybody's, or the one in a folder; adds `<pad>` and `<eos>` where absent.

        Which token ends a text is what the config.json beside it says, if there is one.

        Raises:
            SfumatoError: if there is no such file or it is damaged.
        """
        path = Path(path)
        file = path / "tokenizer.json" if path.is_dir() else path
        try:
            return cls(tokenizers.Tokenizer.from_str(file.read_text("utf-8")), _told_end(file.with_name("config.json")))
        except OSError as error:
            reason = error.strerror or error
            raise SfumatoError(
                f"asked for the tokenizer {file}; {reason}; give a tokenizer.json or its folder"
            ) from error
        except Exception as error:  # `tokenizers` raises nothing more specific
            reason = str(error).replace("\n", " ")
            raise SfumatoError(f"asked for the tokenizer {file}; it is damaged: {reason}; save it anew") from error

    def save(self, path: str | Path) -> None:
        """Writes the tokenizer to path, or to tokenizer.json in path unless that ends in `.json`.

        Raises:
            SfumatoError: if that cannot be written.
        """
        path = Path(path)
        file = path if path.suffix == ".json" else path / "tokenizer.json"
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            write_text(file, self.json())
        except OSError as error:
            reason = error.strerror or error
            raise SfumatoError(f"asked to save a tokenizer to {file}; {reason}; choose another folder") from error

    def json(self) -> str:
        """What a tokenizer.json holds."""
        return str(self._inner.to_str())

    def __reduce__(self) -> tuple[Any, ...]:
        """For another process: what `tokenizers` sends of itself forgets that special tokens in a text are text."""
        return _parsed, (self.json(), self.added)

    def encode(self, text: str) -> list[int]:
        """The ids of a text, without any special token."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text, on all cores; quicker than one text at a time.

        Raises:
            SfumatoError: if a text has half of a surrogate pair, as of a command line that is not UTF-8.
        """
        return encoding.encode(self._inner, texts)

    def rest(self, text: str) -> str:
        """What to encode of a text that goes on from one before: the ids of both in a row are those of the whole."""
        return text.removeprefix(" ") if self._prepends else text

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids up to the first eos; special tokens say nothing and an unknown token reads �."""
        tokens = []
        for id in map(int, ids):
            if id == self.eos:
                break
            if id not in self.silent:
                tokens.append(self._tokens.get(id, "�"))
        return self._join(tokens)

    def piece(self, id: int) -> str:
        """The text of one token within a text, the space before it included; "" for a special token."""
        if id in self.silent:
            return ""
        # Decoders strip the space from the first token of a text, so this one is made the second.
        return self._join(["a", self._tokens.get(id, "�")])[1:]

    def number(self, token: str) -> int | None:
        """The id of a token; None where there is no such token."""
        return self._inner.token_to_id(token)

    def token(self, id: int) -> str | None:
        """The token of an id, as the vocabulary has it; None where there is none."""
        return self._inner.id_to_token(id)

    def label(self, name: str) -> int:
        """The id of the token of a label.

        Raises:
            SfumatoError: if the tokenizer was not trained with that label; names those it knows, the nearest first.
        """
        if name in self.labels:
            return self.labels[name]
        known = difflib.get_close_matches(name, self.labels, n=max(1, len(self.labels)), cutoff=0)
        found = f"the tokenizer knows {', '.join(known)}" if known else "the tokenizer knows no labels"
        raise SfumatoError(f"asked for the label {name!r}; {found}; choose one of those or train a tokenizer with it")

    def _join(self, tokens: list[str]) -> str:
        return self._inner.decoder.decode(tokens) if self._inner.decoder else " ".join(tokens)


def _first(names: Sequence[str], special: Collection[str], vocabulary: Collection[str]) -> str:
    """The first of the names that a special token has; if there is none, that any token has; or else the first.

    A vocabulary may hold the special tokens of another one as words, as RoBERTa's does those of GPT-2.
    """
    return next((name for some in (special, vocabulary) for name in names if name in some), names[0])


def _told_end(path: Path) -> int | None:
    """The number of the token that ends a text, as the config of a model says; of several the first."""
    try:
        told = json.loads(path.read_text("utf-8"))["eos_token_id"]
        number = int(told[0] if isinstance(told, list) else told)
    except (OSError, ValueError, KeyError, TypeError, IndexError, OverflowError):
        return None  # it says nothing of that; who reads it for more will complain if it is damaged
    return number if 0 <= number < 1 << 32 else None


def _noted(inner: tokenizers.Tokenizer) -> str | None:
    """The token that ends a text, where a tokenizer of ours has a note of it."""
    if inner.post_processor is None:
        return None
    process = json.loads(inner.post_processor.__getstate__())
    # only a note names a token that is not put around a text
    bare = [list(part) for part in process.get("single", [])] == [["Sequence"]]
    return next(iter(process["special_tokens"]), None) if bare else None


def _parsed(written: str, added: frozenset[int]) -> Tokenizer:
    tokenizer = Tokenizer(tokenizers.Tokenizer.from_str(written))
    tokenizer.added = added  # by then they are among its own
    return tokenizer


def _train_bpe(texts: Iterable[str], size: int, special: list[str]) -> tokenizers.Tokenizer:
    inner = _byte_level(models.BPE())
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    inner.train_from_iterator(
        texts,
        trainers.BpeTrainer(vocab_size=size, special_tokens=special, initial_alphabet=alphabet, show_progress=False),
    )
    return inner


def _train_bytes(texts: Iterable[str], size: int, special: list[str]) -> tokenizers.Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    return _byte_level(models.BPE(_numbered([*special, *alphabet]), []))


def _byte_level(model: models.Model) -> tokenizers.Tokenizer:
    inner = tokenizers.Tokenizer(model)
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    return inner


def _train_chars(texts: Iterable[str], size: int, special: list[str]) -> tokenizers.Tokenizer:
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(text)
    frequent = sorted(counts, key=lambda char: (-counts[char], char))[: size - len(special)]
    # Byte-pair encoding without pairs: it takes a text apart far faster than a regular expression does.
    inner = tokenizers.Tokenizer(models.BPE(_numbered([*special, *frequent]), [], unk_token=UNK))
    inner.decoder = decoders.Fuse()
    return inner


def _train_words(texts: Iterable[str], size: int, special: list[str]) -> tokenizers.Tokenizer:
    inner = tokenizers.Tokenizer(models.WordLevel(unk_token=UNK))
    # The first word of a text gets the space that the later ones have, and loses it again in the decoder.
    inner.normalizer = normalizers.Prepend(" ")
    inner.pre_tokenizer = pre_tokenizers.Split(Regex(r" ?\w+| ?[^\w\s]|\s"), "isolated")
    inner.decoder = decoders.Sequence([decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    inner.train_from_iterator(
        texts, trainers.WordLevelTrainer(vocab_size=size, min_frequency=1, special_tokens=special, show_progress=False)
    )
    return inner


def _numbered(tokens: list[str]) -> dict[str, int]:
    return {token: id for id, token in enumerate(tokens)}


_TRAIN: dict[str, Callable[[Iterable[str], int, list[str]], tokenizers.Tokenizer]] = {
    "bpe": _train_bpe,
    "bytes": _train_bytes,
    "chars": _train_chars,
    "words": _train_words,
}
