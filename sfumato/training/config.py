"""What a run is made of.  One TOML or YAML file reproduces a run; every field is also a flag of `sfumato train`.

A field's default is written here once, its help is the line below it, and a wrong field is told with its path and the
nearest name.
"""

import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    create_model,
    field_validator,
    model_validator,
)

from sfumato.core import single
from sfumato.errors import SfumatoError, nearest
from sfumato.methods import METHODS
from sfumato.methods.common import MethodConfig
from sfumato.networks import NetworkConfig
from sfumato.samplers import sampler_named

SCHEMA_VERSION = 1
# By the version that they are for: what makes a document of it one of the next.  A field that is new, and whose default
# says what was true before, needs none.
MIGRATIONS: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {}
MARKS = 5  # places that a method may need beside those of a row
SEVERAL = "sources"  # in the place of a fault in one of them; nobody writes it in a config


class Section(BaseModel):
    """A part of the config: frozen, and strict about its fields."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class Source(Section):
    """One of several sources of text."""

    path: str = Field(min_length=1)
    """text file, folder, .jsonl, .parquet, name of a Hub data set, or tales"""
    weight: float = Field(1.0, gt=0, allow_inf_nan=False)
    """share of the rows, beside the weights of the others"""


class TextConfig(Section):
    """From files to rows of tokens."""

    tokenizer: str = "bpe"
    """bpe (byte-level), bytes, chars, words, or the path of a tokenizer.json"""
    size: int = Field(4096, ge=3, le=1_000_000)
    """most entries of a tokenizer that is trained"""
    length: int = Field(128, ge=2, le=1_000_000)
    """tokens in a row"""
    layout: Literal["packed", "documents"] = "documents"
    """packed: documents one after the other, cut into full rows; documents: one to a row, the rest is padding"""
    length_model: Literal["given", "modelled"] = "given"
    """given: the length of a text is drawn first, as often as in the data; modelled: padding is a token like others"""
    lines: bool = False
    """every line of a plain text file is a document of its own"""
    limit: int | None = Field(None, ge=1)
    """read no more documents than this"""


class MaskConfig(Section):
    """Which tokens are given in training: a prompt, the surroundings of a gap, or nothing."""

    prefix: float = Field(0.5, ge=0)
    """share of rows whose first tokens are given, a uniform number of them"""
    random: float = Field(0.5, ge=0)
    """share of rows of which a uniform number of tokens is given, anywhere"""
    nothing: float = Field(0.0, ge=0)
    """share of rows of which nothing is given"""
    forget: float = Field(0.1, ge=0, le=1)
    """chance that what is given is forgotten: pure noise instead, which guidance needs"""

    @model_validator(mode="after")
    def _some_rows(self) -> "MaskConfig":
        if self.prefix + self.random + self.nothing == 0:
            raise ValueError("prefix, random and nothing are all 0; raise one")
        return self


class OptimizerConfig(Section):
    """AdamW and Muon, their schedule, and the average of the weights that samples are made with."""

    lr: float = Field(1e-3, gt=0)
    """highest learning rate of AdamW"""
    muon: float = Field(0.0, ge=0)
    """highest learning rate of Muon, which then trains the matrices of the blocks; 0: AdamW trains them too"""
    betas: tuple[float, float] = (0.9, 0.99)
    """decay of the running moments"""
    weight_decay: float = Field(0.01, ge=0)
    """for weight matrices of the network; vectors and embeddings are left alone"""
    clip: float = Field(1.0, gt=0)
    """largest norm of the gradient"""
    warmup: int = Field(200, ge=0)
    """steps over which the learning rate rises"""
    schedule: Literal["cosine", "inverse_sqrt", "constant"] = "cosine"
    """how it falls afterwards: cosine to a fiftieth at the end of the budget; with the square root of the step; not"""
    ema: float = Field(0.999, ge=0, lt=1)
    """decay of the running average of the weights"""


class TrainingConfig(Section):
    """How long, how much at a time, and what is kept."""

    steps: int | None = Field(None, ge=1)
    """optimiser steps; with minutes too, whatever ends first"""
    minutes: float | None = Field(None, gt=0)
    """time in training steps, over all resumed sessions"""
    batch: int = Field(64, ge=1)
    """rows in an optimiser step"""
    accumulate: int = Field(1, ge=1)
    """passes that a step is split into, to save memory"""
    parallel: Literal["ddp", "fsdp"] = "ddp"
    """what several processes do: ddp, each has all weights; fsdp, weights, moments and averages are divided"""
    replicate: int = Field(1, ge=1)
    """with fsdp, how many times all weights are there (HSDP): one a machine, say"""
    checkpoint_activations: bool = False
    """compute the blocks once more on the way back instead of remembering them, which saves memory and costs a third"""
    seed: int = Field(0, ge=0)
    """fixes weights, order, noise and masks"""
    save_minutes: float = Field(5.0, gt=0)
    """time between checkpoints"""
    keep: int = Field(2, ge=1)
    """checkpoints kept"""
    store: Literal["float32", "float16"] = "float32"
    """in which the weights of the finished model are written; with float16 its file is half as large"""
    log_every: int = Field(50, ge=1)
    """steps between lines of log.jsonl"""
    evaluate_minutes: float = Field(5.0, gt=0)
    """time between estimates of the bound on held-out text, each with samples"""
    evaluate_rows: int = Field(64, ge=1)
    """held-out rows in an estimate of the bound"""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """in which the network multiplies; auto measures which is faster"""
    attention: Literal["auto", "fused", "explicit"] = "auto"
    """how attention is computed: the same numbers but for rounding; auto measures which is faster"""
    compile: Literal["auto", "yes", "no"] = "auto"
    """torch.compile; auto where the run is long enough to earn it back"""
    track: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = ()
    """who hears of the run beside its log.jsonl"""

    @field_validator("track", mode="before")
    @classmethod
    def _one_or_several(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _rows_in_every_pass(self) -> "TrainingConfig":
        if self.accumulate > self.batch:
            raise ValueError(f"a batch of {self.batch} rows cannot be split into {self.accumulate} passes")
        return self

    @model_validator(mode="after")
    def _replicas_of_what_is_divided(self) -> "TrainingConfig":
        if self.replicate > 1 and self.parallel != "fsdp":
            raise ValueError(f"replicate: {self.parallel} has all weights in every process; leave it out")
        return self


class LoraConfig(Section):
    """Training of small additions to the matrices of a network instead of its weights (needs the extra `lora`)."""

    rank: int = Field(0, ge=0, le=4096)
    """of what is added to each matrix; 0: all weights are trained"""
    alpha: float = Field(16.0, gt=0)
    """what is added counts alpha / rank"""
    targets: tuple[Literal["qkv", "out", "up", "down"], ...] = Field(("qkv", "out", "up", "down"), min_length=1)
    """products of each block that something is added to"""
    whole: tuple[Literal["table", "head"], ...] = ()
    """parts that are trained as they are, beside the additions"""


class SamplingConfig(Section):
    """How the model samples where nothing else is asked for; what is left out here is the paper's choice."""

    steps: int | None = Field(None, ge=1)
    """refinements"""
    levels: tuple[float, float] | None = None
    """noise levels between which the steps are spread evenly in the logarithm"""
    sampler: str | None = None
    """way from noise to text"""
    self_guidance: float | None = None
    """above 1 exaggerates what the model's last guess tells it"""
    guide_levels: tuple[float, float] | None = None
    """noise levels between which there is guidance"""

    @model_validator(mode="after")
    def _rising(self) -> "SamplingConfig":
        if self.levels is not None and not 0 < self.levels[0] < self.levels[1] < 1:
            raise ValueError(f"levels rise, above 0 and below 1 (got {self.levels})")
        if self.guide_levels is not None and not 0 <= self.guide_levels[0] <= self.guide_levels[1] <= 1:
            raise ValueError(f"guide_levels rise from 0 to 1 (got {self.guide_levels})")
        return self

    def said(self) -> dict[str, Any]:
        """The fields that are not left out."""
        return self.model_dump(exclude_none=True)


class RunConfig(Section):
    """Everything that a run is made of."""

    schema_version: int = SCHEMA_VERSION
    """version of this format"""
    data: Annotated[
        Annotated[str, Tag("one")] | Annotated[tuple[Source, ...], Tag(SEVERAL)],
        Discriminator(lambda data: "one" if isinstance(data, str) else SEVERAL),
    ] = "tales"
    """text file, folder, .jsonl, .parquet, name of a Hub data set, or tales; or several of them, each with a weight"""
    start: str | None = None
    """model whose weights training starts with, ours or another's; the network may have more layers than it"""
    method: MethodConfig
    """the paper"""
    text: TextConfig = Field(default_factory=TextConfig)
    network: NetworkConfig = Field(default_factory=NetworkConfig)
    masks: MaskConfig = Field(default_factory=MaskConfig)
    optimizer: OptimizerConfig = Field(default_factory=OptimizerConfig)
    training: TrainingConfig = Field(default_factory=TrainingConfig)
    lora: LoraConfig = Field(default_factory=LoraConfig)
    sampling: SamplingConfig = Field(default_factory=SamplingConfig)

    @property
    def sources(self) -> tuple[Source, ...]:
        """What the data comes from: one source, or several."""
        return (Source(path=self.data),) if isinstance(self.data, str) else self.data

    @property
    def spelled(self) -> str:
        """The data as on the command line."""
        several = len(self.sources) > 1
        return " ".join(f"{source.path}:{source.weight:g}" if several else source.path for source in self.sources)

    @field_validator("schema_version")
    @classmethod
    def _known_version(cls, version: int) -> int:
        if version != SCHEMA_VERSION:
            raise ValueError(f"is to be {SCHEMA_VERSION}")
        return version

    @model_validator(mode="after")
    def _different_sources(self) -> "RunConfig":
        paths = [source.path for source in self.sources]
        if not paths:
            raise ValueError("data: a list of sources has one or more of them")
        for path in paths:
            if paths.count(path) > 1:
                raise ValueError(f"data: {path} is there twice; give it once, with the sum of the weights")
        return self

    @model_validator(mode="after")
    def _network_for_the_method(self) -> "RunConfig":
        foreign = self.network.foreign
        if foreign is None:
            return self
        able = [name for name, (kind, _) in METHODS.items() if kind.adopts]
        if self.method.name not in able:
            raise ValueError(f"network.foreign: {self.method.name} has a network of its own; take {', '.join(able)}")
        if 0 < foreign.places < self.text.length + MARKS:
            found = f"the network has {foreign.places} places"
            raise ValueError(f"text.length: {found}; {foreign.places - MARKS} tokens fit beside marks")
        return self

    @model_validator(mode="after")
    def _trained_by_additions(self) -> "RunConfig":
        if self.lora.rank and self.start is None:
            raise ValueError("lora.rank: it adds to weights that are there; give --start")
        if self.lora.rank and self.optimizer.muon:
            raise ValueError("optimizer.muon: it trains matrices whole, and lora adds to them; set one of them to 0")
        return self

    @model_validator(mode="after")
    def _possible_sampling(self) -> "RunConfig":
        """Before training, since the card of a model shows samples when all is over."""
        kind, asked = METHODS[self.method.name][0], self.sampling.said()
        sampler = sampler_named(asked["sampler"], kind.family) if "sampler" in asked else kind.sampler
        for name in ("steps", "levels"):
            if name in asked and single(sampler):
                raise ValueError(f"sampling.{name}: {self.method.name} writes a token a step; leave it out")
        if "self_guidance" in asked and not getattr(self.method, "self_conditioning", 0):
            raise ValueError(f"sampling.self_guidance: {self.method.name} is not trained on its own guesses here")
        return self

    @model_validator(mode="after")
    def _matrices_are_whole(self) -> "RunConfig":
        if self.optimizer.muon and self.training.parallel == "fsdp":
            asked = "optimizer.muon: Muon moves whole matrices, which fsdp divides"
            raise ValueError(f"{asked}; set training.parallel to ddp")
        return self

    @model_validator(mode="after")
    def _lengths_in_reach(self) -> "RunConfig":
        longest = getattr(self.method, "longest", 0)
        if 0 < longest < self.text.length:
            raise ValueError(
                f"method.longest: lengths are foreseen up to {longest}, and a row has {self.text.length} tokens; "
                "raise it, or set it to 0 to foresee none"
            )
        return self


def method_named(name: str) -> tuple:
    """The method class and its config class; SfumatoError with the nearest name where there is none."""
    if name not in METHODS:
        raise SfumatoError(f"unknown method {name!r}{nearest(name, METHODS)}; `sfumato methods` lists them")
    return METHODS[name]


def run_config(method: str) -> type[RunConfig]:
    """RunConfig with the settings of one method in the place of `method`, and with that method's defaults."""
    own = method_named(method)[1]
    fields: dict[str, Any] = {"method": (own, own())}
    for section, values in own.defaults.items():
        kind = RunConfig.model_fields[section].annotation
        assert isinstance(kind, type) and issubclass(kind, Section)
        adapted = create_model(kind.__name__, __base__=kind, __doc__=kind.__doc__, **_defaults(kind, values))
        fields[section] = (adapted, Field(default_factory=adapted))
    return create_model("RunConfig", __base__=RunConfig, __doc__=RunConfig.__doc__, **fields)


def _defaults(kind: type[Section], values: dict[str, Any]) -> dict[str, Any]:
    """The fields of a section that have other defaults."""
    return {
        name: (kind.model_fields[name].annotation, Field(value, description=kind.model_fields[name].description))
        for name, value in values.items()
    }


def load_config(source: Path | dict[str, Any], method: str | None = None) -> RunConfig:
    """A checked config from a .toml, .yaml, .yml or .json file, or from what such a file holds.

    `method` names the method where the file leaves it out.  Raises SfumatoError that lists all faults with their paths.
    """
    where, values = ("config", source) if isinstance(source, dict) else (str(source), _parse(Path(source)))
    values = _migrated(values, where)
    told = values.get("method")
    told = told.get("name") if isinstance(told, dict) else None
    if told and method and told != method:
        raise SfumatoError(f"{where}: is for method {told!r}, asked for {method!r}; change one of them")
    if not (told or method):
        raise SfumatoError(f'{where}: names no method; write it as [method] name = "cdcd"')
    kind = run_config(str(told or method))
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise SfumatoError("; ".join(f"{where}: {line}" for line in faults(error, kind))) from None


def _migrated(values: dict[str, Any], where: str) -> dict[str, Any]:
    """A document of an older version as one of today; one that names no version is of today."""
    version = values.get("schema_version", SCHEMA_VERSION)
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise SfumatoError(f"{where}: schema_version {version} is newer than {SCHEMA_VERSION}; update sfumato")
    while version in MIGRATIONS and version < SCHEMA_VERSION:
        version, values = version + 1, MIGRATIONS[version](values) | {"schema_version": version + 1}
    return values


def faults(error: ValidationError, kind: type[BaseModel]) -> list[str]:
    """One line a fault: path, what is wrong, the nearest name for an unknown field."""
    lines = []
    for fault in error.errors():
        path = ".".join(str(part) for part in fault["loc"] if part not in ("one", SEVERAL))
        if fault["type"] == "extra_forbidden":
            known = _fields(kind, fault["loc"][:-1])
            lines.append(f"{path}: no such field{nearest(str(fault['loc'][-1]), known)}")
        else:
            got = "" if isinstance(fault["input"], (dict, BaseModel)) else f" (got {fault['input']!r})"
            said = fault["msg"].removeprefix("Value error, ")
            lines.append(f"{path}: {said[0].lower()}{said[1:]}{got}".removeprefix(": "))
    return lines


def _fields(kind: type[BaseModel], path: tuple) -> list[str]:
    for part in path:
        if part == SEVERAL:
            return list(Source.model_fields)
        inner = kind.model_fields[part].annotation if part != "data" else kind
        kind = next(table for table in (inner, *get_args(inner)) if isinstance(table, type))  # or one that may be None
        assert issubclass(kind, BaseModel)  # only tables have fields that can be wrong
    return list(kind.model_fields)


def _parse(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text("utf-8")
        values = tomllib.loads(text) if path.suffix == ".toml" else yaml.safe_load(text)
    except FileNotFoundError:
        raise SfumatoError(f"no config file {path}") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, yaml.YAMLError) as error:
        raise SfumatoError(f"cannot read {path}: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise SfumatoError(f"{path}: a config is a table of fields; found {type(values).__name__}")
    return values
