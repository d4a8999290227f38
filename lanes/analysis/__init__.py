"""Numbers from filters and activations."""
