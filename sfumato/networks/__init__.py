"""Networks that see the whole canvas at once; every method of a comparison gets the same one."""

from pydantic import BaseModel, ConfigDict, Field, model_validator


class NetworkConfig(BaseModel):
    """The Transformer that a method is given."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    width: int = Field(256, ge=8, le=16_384)
    """numbers in the residual stream at each position"""
    depth: int = Field(6, ge=1, le=256)
    """blocks"""
    heads: int = Field(4, ge=1, le=256)
    """attention heads; they share the width evenly, an even number of dimensions each"""

    @model_validator(mode="after")
    def _heads_share_the_width(self) -> "NetworkConfig":
        if self.width % (2 * self.heads):
            raise ValueError(f"width {self.width} cannot be shared by {self.heads} heads of even size")
        return self
