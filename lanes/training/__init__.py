"""Training with Lightning and logging with Weights & Biases: the only room that knows them."""
