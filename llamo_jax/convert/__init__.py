"""Weights of other implementations, as this model's parameters."""
