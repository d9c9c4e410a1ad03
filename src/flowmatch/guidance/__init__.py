"""Fields around fields: guidance and counting."""

from flowmatch.guidance.classifier_free import Guided as Guided
from flowmatch.guidance.counting import CountNFE as CountNFE
