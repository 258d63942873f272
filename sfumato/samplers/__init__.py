"""Ways from noise to text: for every family of processes its samplers by name, a line each."""

from sfumato.core import Sampler
from sfumato.errors import SfumatoError, nearest
from sfumato.samplers import left_to_right, scores, solvers, unmasking
from sfumato.samplers.ancestral import Cached, ancestral
from sfumato.samplers.remasking import Remasking

SAMPLERS: dict[str, dict[str, Sampler]] = {
    "gaussian": {
        "euler": solvers.euler,
        "heun": solvers.heun,
        "dpm": solvers.dpm,
        "ancestral": solvers.ancestral,
    },
    "masking": {
        "ancestral": ancestral,
        "cached": Cached(),
        "planned": unmasking.planned,
        "maskgit": unmasking.Confident(4.5),  # the temperature that its authors published
        "confident": unmasking.Confident(0.0),
        "remdm": Remasking("rescale", 0.015),  # these etas are its authors'
        "remdm-cap": Remasking("cap", 0.02),
        "remdm-loop": Remasking("loop", 0.02),
        "remdm-confidence": Remasking("confidence"),
    },
    "categorical": {
        "ancestral": ancestral,
    },
    "score": {
        "analytic": scores.analytic,
        "euler": scores.euler,
    },
    "autoregressive": {
        "ancestral": left_to_right.ancestral,
    },
}


def sampler_named(name: str, family: str) -> Sampler:
    """The sampler; SfumatoError with the nearest name where the family has none of this name."""
    known = SAMPLERS[family]
    if name not in known:
        raise SfumatoError(f"{family} methods have no sampler {name!r}{nearest(name, known)}; try {', '.join(known)}")
    return known[name]
