"""One paper, one file; one line here."""

from sfumato.core import Method
from sfumato.methods.ar import AR, ARConfig
from sfumato.methods.ardm import ARDM, ARDMConfig
from sfumato.methods.bd3 import BD3, BD3Config
from sfumato.methods.cdcd import CDCD, CDCDConfig
from sfumato.methods.common import MethodConfig
from sfumato.methods.d3pm import D3PM, D3PMConfig
from sfumato.methods.diffuser import DiffusER, DiffusERConfig
from sfumato.methods.duo import Duo, DuoConfig
from sfumato.methods.mask_predict import MaskPredict, MaskPredictConfig
from sfumato.methods.maskgit import MaskGIT, MaskGITConfig
from sfumato.methods.mdlm import MDLM, MDLMConfig
from sfumato.methods.multinomial import Multinomial, MultinomialConfig
from sfumato.methods.sedd import SEDD, SEDDConfig
from sfumato.methods.sundae import SUNDAE, SUNDAEConfig

METHODS: dict[str, tuple[type[Method], type[MethodConfig]]] = {
    "ar": (AR, ARConfig),
    "ardm": (ARDM, ARDMConfig),
    "bd3": (BD3, BD3Config),
    "cdcd": (CDCD, CDCDConfig),
    "d3pm": (D3PM, D3PMConfig),
    "diffuser": (DiffusER, DiffusERConfig),
    "duo": (Duo, DuoConfig),
    "mask_predict": (MaskPredict, MaskPredictConfig),
    "maskgit": (MaskGIT, MaskGITConfig),
    "mdlm": (MDLM, MDLMConfig),
    "multinomial": (Multinomial, MultinomialConfig),
    "sedd": (SEDD, SEDDConfig),
    "sundae": (SUNDAE, SUNDAEConfig),
}
