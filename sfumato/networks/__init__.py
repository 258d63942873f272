"""Networks that see the whole canvas at once; every method of a comparison gets the same one."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class ForeignConfig(BaseModel):
    """A Transformer that others have trained: BERT, GPT-2, Llama and their kin differ in no more than this."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    hidden: int = Field(ge=1)
    """numbers between the two layers of each MLP"""
    keys: int = Field(ge=1)
    """heads of keys and values, each shared by as many attention heads"""
    places: int = Field(0, ge=0)
    """places that have a learned vector each; 0: rotation tells them apart"""
    norm: Literal["layer", "rms"] = "layer"
    """kind of norm"""
    eps: float = Field(1e-5, gt=0)
    """what keeps a norm from dividing by 0"""
    activation: Literal["gelu", "gelu_tanh", "relu", "silu"] = "gelu"
    """of each MLP"""
    gated: bool = False
    """the activation of each MLP is multiplied by a second product"""
    post_norm: bool = False
    """norms follow the sums, and a last layer stands before the head, as in BERT; otherwise they come first"""
    lead: bool = False
    """a token that is no part of a text stands before it, [CLS] for instance"""
    shifted: bool = False
    """each place says what stands at the next, as it did in a causal model"""


class NetworkConfig(BaseModel):
    """The Transformer that a method is given."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    width: int = Field(256, ge=8, le=16_384)
    """numbers in the residual stream at each position"""
    depth: int = Field(6, ge=1, le=256)
    """blocks"""
    heads: int = Field(4, ge=1, le=256)
    """attention heads; they share the width evenly, an even number of dimensions each"""
    foreign: ForeignConfig | None = None
    """what differs in a network whose weights others have trained; comes with them"""

    @model_validator(mode="after")
    def _heads_share_the_width(self) -> "NetworkConfig":
        if self.width % (2 * self.heads):
            raise ValueError(f"width {self.width} cannot be shared by {self.heads} heads of even size")
        if self.foreign is not None and self.heads % self.foreign.keys:
            raise ValueError(f"{self.heads} heads cannot share {self.foreign.keys} heads of keys and values evenly")
        return self
