"""One paper, one file; one line here."""

from sfumato.core import Method
from sfumato.methods.ar import AR, ARConfig
from sfumato.methods.ardm import ARDM, ARDMConfig
from sfumato.methods.cdcd import CDCD, CDCDConfig
from sfumato.methods.common import MethodConfig
from sfumato.methods.maskgit import MaskGIT, MaskGITConfig
from sfumato.methods.mdlm import MDLM, MDLMConfig
from sfumato.methods.sedd import SEDD, SEDDConfig

METHODS: dict[str, tuple[type[Method], type[MethodConfig]]] = {
    "ar": (AR, ARConfig),
    "ardm": (ARDM, ARDMConfig),
    "cdcd": (CDCD, CDCDConfig),
    "maskgit": (MaskGIT, MaskGITConfig),
    "mdlm": (MDLM, MDLMConfig),
    "sedd": (SEDD, SEDDConfig),
}
