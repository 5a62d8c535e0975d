"""LLaMo in JAX: a language model that looks at molecular graphs (arXiv 2411.00871)."""

__version__ = "0.1.0"
