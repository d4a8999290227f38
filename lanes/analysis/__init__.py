"""Numbers from filters and activations, and pictures from numbers."""
