"""The mesh, and where everything lives on it: one table maps logical axis names to mesh axes."""

import math
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from data_pipeline.batch import Shards
from llamo_jax.config import ConfigError, MeshConfig

AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")
"""Mesh axes over which rows and graph shards are divided."""

RULES = (
    ("embed", "fsdp"),
    ("mlp", "tensor"),
    ("heads", "tensor"),
    ("kv_heads", "tensor"),
    ("vocab", "tensor"),
    ("layers", None),
    ("graph", None),  # the graph side is small: replicated
)


def make_mesh(config: MeshConfig) -> Mesh:
    """The mesh over all devices; raises ConfigError if the sizes do not give their number."""
    sizes = [config.data, config.fsdp, config.tensor]
    devices = jax.device_count()
    if sizes.count(-1) == 1:
        sizes[sizes.index(-1)] = devices // max(1, -math.prod(sizes))
    if math.prod(sizes) != devices or min(sizes) < 1:
        given = f"data={config.data}, fsdp={config.fsdp}, tensor={config.tensor}"
        raise ConfigError(f"config.mesh ({given}) does not fit {devices} devices; use -1 once for the rest")
    # Auto: XLA propagates shardings; explicit axes would refuse segment sums on sharded operands.
    return jax.make_mesh(tuple(sizes), AXES, axis_types=(AxisType.Auto,) * 3)


def single_device_mesh() -> Mesh:
    """A mesh of the first device alone."""
    return jax.make_mesh((1, 1, 1), AXES, axis_types=(AxisType.Auto,) * 3, devices=jax.devices()[:1])


def batch_shards(mesh: Mesh) -> int:
    """S: over how many parts the rows of a batch are divided."""
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def local_shards(mesh: Mesh) -> Shards:
    """The batch shards whose rows this process gives to its devices; raises ConfigError if they are not neighbours."""
    count = batch_shards(mesh)
    places = NamedSharding(mesh, PartitionSpec(BATCH_AXES)).addressable_devices_indices_map((count,))
    mine = sorted({index for place in places.values() if place for index in range(count)[place[0]]})
    if mine != list(range(mine[0], mine[-1] + 1)):
        raise ConfigError(f"config.mesh gives this process the batch shards {mine}, which are not neighbours")
    return Shards(mine[0], mine[-1] + 1)


def parameter_shardings(state: nnx.State, mesh: Mesh) -> nnx.State:
    """A NamedSharding for every variable; raises ConfigError, naming the parameter, if a size does not divide."""
    with nnx.logical_axis_rules(RULES):
        shardings = nnx.get_named_sharding(state, mesh)
    flat_shardings = dict(nnx.to_flat_state(shardings))
    for path, variable in nnx.to_flat_state(state):
        spec = flat_shardings[path].get_value().spec
        for size, axis in zip(variable.shape, spec, strict=False):
            if axis is not None and size % mesh.shape[axis]:
                name = "/".join(map(str, path))
                raise ConfigError(f"{name}: size {size} does not divide over {mesh.shape[axis]} devices of {axis!r}")
    return shardings


def put_batch(batch: Any, mesh: Mesh, *, leading: int = 0) -> Any:
    """Host arrays as global arrays, divided over the batch axes along axis `leading` (each process gives its part)."""
    sharding = NamedSharding(mesh, PartitionSpec(*[None] * leading, BATCH_AXES))
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), batch)


def replicated(mesh: Mesh) -> NamedSharding:
    """The same value on every device."""
    return NamedSharding(mesh, PartitionSpec())
