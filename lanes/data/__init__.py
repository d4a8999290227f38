"""Images without Lightning: where they come from, decoding, a cache of pixels, statistics, augmentation."""

from lanes.data.colour import ColorNoise as ColorNoise
from lanes.data.mixing import CutMix as CutMix
from lanes.data.mixing import MixUp as MixUp
from lanes.data.views import center_crop as center_crop
from lanes.data.views import ten_views as ten_views
