"""Images without Lightning: where they come from, decoding, a cache of pixels, statistics, augmentation."""
