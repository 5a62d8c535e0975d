"""One file for each kind of projector; importing the package registers them all."""

from llamo_jax.models.interfaces import PROJECTORS as PROJECTORS
from llamo_jax.models.projectors import concat as concat
from llamo_jax.models.projectors import mlp_nodes as mlp_nodes
from llamo_jax.models.projectors import multi_level as multi_level
from llamo_jax.models.projectors import multi_level_without_motifs as multi_level_without_motifs
from llamo_jax.models.projectors import none as none
from llamo_jax.models.projectors import resampler as resampler
from llamo_jax.models.projectors import single_level as single_level
from llamo_jax.models.projectors import skip as skip
from llamo_jax.models.projectors import weighted_mean as weighted_mean
