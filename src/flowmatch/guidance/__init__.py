"""Fields around fields: guidance and counting."""

from flowmatch.guidance.autoguidance import AutoGuided as AutoGuided
from flowmatch.guidance.cfg_zero import CFGZero as CFGZero
from flowmatch.guidance.classifier_free import Guided as Guided
from flowmatch.guidance.conditions import under as under
from flowmatch.guidance.counting import CountNFE as CountNFE
from flowmatch.guidance.projected import APG as APG
from flowmatch.guidance.scales import CosineScale as CosineScale
from flowmatch.guidance.scales import LinearScale as LinearScale
from flowmatch.guidance.scales import Scale as Scale
from flowmatch.guidance.settings import Guidance as Guidance
