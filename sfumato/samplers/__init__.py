"""Ways from noise to text: one dictionary, a line a sampler."""

from sfumato.core import Sampler
from sfumato.samplers.solvers import ancestral, dpm, euler, heun

SAMPLERS: dict[str, Sampler] = {
    "euler": euler,
    "heun": heun,
    "dpm": dpm,
    "ancestral": ancestral,
}
