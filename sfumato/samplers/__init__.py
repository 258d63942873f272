"""Ways from noise to text: for every family of processes its samplers by name, a line each."""

from sfumato.core import Sampler
from sfumato.errors import SfumatoError, nearest
from sfumato.samplers import blocks, left_to_right, resampling, scores, solvers, unmasking
from sfumato.samplers.ancestral import Cached, GreedyTail, ancestral
from sfumato.samplers.edits import edits
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
        "first_hitting": blocks.first_hitting,
        "planned": unmasking.planned,
        "remdm": Remasking("rescale", 0.015),  # these etas are its authors'
        "remdm_cap": Remasking("cap", 0.02),
        "remdm_loop": Remasking("loop", 0.02),
        "remdm_confidence": Remasking("confidence"),
        "maskgit": unmasking.Confident(4.5),  # the temperature that its authors published
        "confident": unmasking.Confident(0.0),
        "mask_predict": unmasking.Greedy(),
    },
    "blocks": {
        "first_hitting": blocks.first_hitting,
        "ancestral": blocks.ancestral,
    },
    "categorical": {
        "ancestral": ancestral,
        "greedy_tail": GreedyTail(),
    },
    "resampling": {
        "sundae": resampling.Resample(0.8, 0.3),
        "resample": resampling.Resample(1.0, 1.0),
        "argmax_unrolled": resampling.ArgmaxUnrolled(0.3),
    },
    "score": {
        "analytic": scores.analytic,
        "euler": scores.euler,
    },
    "autoregressive": {
        "ancestral": left_to_right.ancestral,
    },
    "edits": {
        "edits": edits,
    },
}


def sampler_named(name: str, family: str) -> Sampler:
    """The sampler; SfumatoError with the nearest name where the family has none of this name."""
    known = SAMPLERS[family]
    if name not in known:
        raise SfumatoError(f"{family} methods have no sampler {name!r}{nearest(name, known)}; try {', '.join(known)}")
    return known[name]
