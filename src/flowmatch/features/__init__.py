"""Features: images in, vectors out, by which real and generated images are compared."""

from flowmatch.caching import cache_dir as cache_dir
from flowmatch.features.cache import fitted as fitted
from flowmatch.features.fittednet import FittedNet as FittedNet
from flowmatch.features.fitting import fit as fit
from flowmatch.features.net import Extracted as Extracted
from flowmatch.features.net import FeatureKind as FeatureKind
from flowmatch.features.net import FeatureNet as FeatureNet
from flowmatch.features.published import PublishedNet as PublishedNet
from flowmatch.features.published import load_dinov2 as load_dinov2
from flowmatch.features.published import load_inception as load_inception
