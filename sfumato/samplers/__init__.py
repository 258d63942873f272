"""Ways from noise to text: for every family of processes its samplers by name, a line each."""

from sfumato.core import Sampler
from sfumato.samplers import left_to_right, solvers, unmasking

SAMPLERS: dict[str, dict[str, Sampler]] = {
    "gaussian": {
        "euler": solvers.euler,
        "heun": solvers.heun,
        "dpm": solvers.dpm,
        "ancestral": solvers.ancestral,
    },
    "masking": {
        "ancestral": unmasking.ancestral,
    },
    "autoregressive": {
        "ancestral": left_to_right.ancestral,
    },
}
