"""One file for each kind of projector; importing the package registers them all."""

from llamo_jax.models.interfaces import PROJECTORS as PROJECTORS
from llamo_jax.models.projectors import multi_level as multi_level
