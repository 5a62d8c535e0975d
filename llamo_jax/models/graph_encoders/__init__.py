"""One file for each kind of graph encoder; importing the package registers them all."""

from llamo_jax.models.graph_encoders import gatv2 as gatv2
from llamo_jax.models.graph_encoders import gin as gin
from llamo_jax.models.interfaces import GRAPH_ENCODERS as GRAPH_ENCODERS
