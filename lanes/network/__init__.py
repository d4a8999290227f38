"""Ranks on their network: do they find one another, how fast are the links between them, which one is slow."""
