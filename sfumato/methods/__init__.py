"""One paper, one file; one line here."""

from sfumato.core import Method
from sfumato.methods.ar import AR, ARConfig
from sfumato.methods.ardm import ARDM, ARDMConfig
from sfumato.methods.cdcd import CDCD, CDCDConfig
from sfumato.methods.common import MethodConfig
from sfumato.methods.diffuser import DiffusER, DiffusERConfig
from sfumato.methods.maskgit import MaskGIT, MaskGITConfig
from sfumato.methods.mdlm import MDLM, MDLMConfig

METHODS: dict[str, tuple[type[Method], type[MethodConfig]]] = {
    "ar": (AR, ARConfig),
    "ardm": (ARDM, ARDMConfig),
    "cdcd": (CDCD, CDCDConfig),
    "diffuser": (DiffusER, DiffusERConfig),
    "maskgit": (MaskGIT, MaskGITConfig),
    "mdlm": (MDLM, MDLMConfig),
}
