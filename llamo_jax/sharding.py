"""The mesh, and where everything lives on it: one table maps logical axis names to mesh axes."""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from flax import nnx
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from data_pipeline.batch import Shards
from llamo_jax.config import ConfigError, MeshConfig

T = TypeVar("T")

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
    ("head_width", None),
    ("graph", None),  # the graph side is small: replicated
)


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh over all devices (or the given ones); raises ConfigError if the sizes do not give their number."""
    # Auto: XLA propagates shardings; explicit axes would refuse segment sums on sharded operands.
    grid = device_grid(config, jax.devices() if devices is None else devices)
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * 3)


def device_grid(config: MeshConfig, devices: Sequence[jax.Device]) -> np.ndarray:
    """The devices by their place on the mesh: neighbours on "tensor" and "fsdp" are neighbours in the network.

    Where TPUs form several slices, connected by a slower network, only "data" goes from slice to slice.
    """
    sizes = mesh_sizes(config, len(devices))
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if slices > 1 and devices[0].platform == "tpu" and sizes[0] % slices:
        raise ConfigError(f"config.mesh.data={sizes[0]} does not divide over the {slices} slices of TPUs")

    def layout(**settings: bool) -> np.ndarray:
        # between slices, traffic goes over the data centre's network, which is far slower than that within one
        if slices == 1 or devices[0].platform != "tpu":
            return mesh_utils.create_device_mesh(sizes, devices, **settings)
        within = (sizes[0] // slices, *sizes[1:])
        return mesh_utils.create_hybrid_device_mesh(within, (slices, 1, 1), devices, **settings)

    try:
        return layout()
    except NotImplementedError:
        # 9 of the 15 factorisations of v5e:4x4 need an axis of the torus to be cut in two
        return layout(allow_split_physical_axes=True)


def mesh_sizes(config: MeshConfig, devices: int) -> tuple[int, int, int]:
    """The sizes of the mesh axes, -1 replaced; raises ConfigError if they do not give the number of devices."""
    sizes = (config.data, config.fsdp, config.tensor)
    # with one -1 the product is minus that of the others
    if sizes.count(-1) == 1:
        data, fsdp, tensor = (devices // max(1, -math.prod(sizes)) if size == -1 else size for size in sizes)
        sizes = (data, fsdp, tensor)
    if math.prod(sizes) != devices or min(sizes) < 1:
        given = f"data={config.data}, fsdp={config.fsdp}, tensor={config.tensor}"
        raise ConfigError(f"config.mesh ({given}) does not fit {devices} devices; use -1 once for the rest")
    return sizes


def single_device_mesh() -> Mesh:
    """A mesh of the first device alone."""
    return make_mesh(MeshConfig(data=1, fsdp=1, tensor=1), jax.devices()[:1])


def describe(mesh: Mesh, rows: int | None = None) -> str:
    """One line about who takes part; rows: of a batch."""
    kinds = Counter(device.device_kind for device in mesh.devices.flat)
    devices = ", ".join(f"{count} x {kind}" for kind, count in kinds.items())
    processes = len({device.process_index for device in mesh.devices.flat})
    axes = " ".join(f"{axis}={mesh.shape[axis]}" for axis in AXES)
    share = None if rows is None else rows / batch_shards(mesh)
    each = "" if share is None else f"; {share:g} row{'s' * (share != 1)} per device"
    return f"{processes} process{'es' * (processes > 1)}, {devices}; mesh {axes}{each}"


def batch_shards(mesh: Mesh) -> int:
    """S: over how many parts the rows of a batch are divided."""
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def local_shards(mesh: Mesh, process: int | None = None) -> Shards:
    """The batch shards whose rows a process, by default this one, gives to its devices.

    Any of them: TPU meshes follow the torus, and on v5e:4x4 the first process has the shards 0, 1, 6 and 15. Where
    "tensor" goes over several processes, these hold the same rows.
    """
    process = jax.process_index() if process is None else process
    by_shard = mesh.devices.reshape(batch_shards(mesh), -1)
    held = [any(device.process_index == process for device in devices) for devices in by_shard]
    return Shards(tuple(np.flatnonzero(held).tolist()))


def without_values(make: Callable[..., T], *args: Any) -> T:
    """What `make(*args)` returns, its arrays as shapes; nothing is allocated, also inside of jax.set_mesh."""
    with nnx.logical_axis_rules(RULES):  # where there is a mesh, eval_shape looks the axes up
        found: T = nnx.eval_shape(make, *args)
    return found


def current_mesh() -> AbstractMesh | None:
    """The mesh of the enclosing `jax.set_mesh`; None outside of one, where everything is on one device."""
    mesh = jax.sharding.get_abstract_mesh()
    return None if mesh.empty else mesh


def platform() -> str:
    """What programs are compiled for: cpu, gpu or tpu; that of the current mesh, which may be of absent devices."""
    mesh = current_mesh()
    device = None if mesh is None else mesh.abstract_device
    return jax.default_backend() if device is None else {"cuda": "gpu"}.get(device.platform, device.platform)


def constrain(x: jax.Array, spec: PartitionSpec) -> jax.Array:
    """`x`, divided over the current mesh as `spec` says; left alone outside of `jax.set_mesh`."""
    return x if current_mesh() is None else jax.lax.with_sharding_constraint(x, spec)


def constrain_axes(x: jax.Array, axes: Sequence[str | tuple[str, ...] | None]) -> jax.Array:
    """`x` with each of its axes divided over these axes of the current mesh, where its size allows that."""
    mesh = current_mesh()
    if mesh is None:
        return x

    def divides(size: int, axis: str | tuple[str, ...] | None) -> bool:
        names = (axis,) if isinstance(axis, str) else axis or ()
        return size % math.prod(mesh.shape[name] for name in names) == 0

    spec = (axis if divides(size, axis) else None for size, axis in zip(x.shape, axes, strict=True))
    return constrain(x, PartitionSpec(*spec))


# Without it, XLA may divide activations [B, T, D] along D like the "embed" axis of the matrices: then every product
# ends in an all-reduce of activations, instead of one all-gather of a layer's weights.
def constrain_rows(x: jax.Array) -> jax.Array:
    """`x` with its leading axis, rows, divided over the batch axes, as long as there are enough.

    Keeps XLA from dividing activations like the parameters they meet: it gathers each layer's parameters instead.
    """
    return constrain_axes(x, (BATCH_AXES, *(None,) * (x.ndim - 1)))


def parameter_shardings(state: nnx.State, mesh: Mesh) -> nnx.State:
    """A NamedSharding for every variable.

    Raises ConfigError, naming the parameter, if RULES does not know an axis or a size does not divide.
    """
    known = [axis for axis, _ in RULES]
    for path, variable in nnx.to_flat_state(state):
        for axis in variable.out_sharding:
            if axis is not None and axis not in known:
                name = "/".join(map(str, path))
                raise ConfigError(f"{name}: no rule for the logical axis {axis!r}; known: {', '.join(known)}")
    with nnx.logical_axis_rules(RULES):  # logical names are resolved here, and nowhere inside of the model
        shardings = nnx.get_named_sharding(state, mesh)
    flat_shardings = dict(nnx.to_flat_state(shardings))
    for path, variable in nnx.to_flat_state(state):
        spec = flat_shardings[path].get_value().spec
        for size, axis in zip(variable.shape, spec, strict=False):
            if axis is not None and size % mesh.shape[axis]:
                name = "/".join(map(str, path))
                raise ConfigError(f"{name}: size {size} does not divide over {mesh.shape[axis]} devices of {axis!r}")
    return shardings


def batch_sharding(mesh: Mesh, *, leading: int = 0) -> NamedSharding:
    """Axis `leading` divided over the batch axes."""
    return NamedSharding(mesh, PartitionSpec(*[None] * leading, BATCH_AXES))


def put_batch(batch: Any, mesh: Mesh, *, leading: int = 0) -> Any:
    """Host arrays as global arrays, divided over the batch axes along axis `leading`.

    Each process gives its part: the rows of its `local_shards`, one shard after the other.
    """
    place = batch_sharding(mesh, leading=leading)
    count, mine = batch_shards(mesh), local_shards(mesh).numbers

    def put(x: np.ndarray) -> jax.Array:
        size = x.shape[leading] // len(mine)  # of a shard
        shape = (*x.shape[:leading], size * count, *x.shape[leading + 1 :])

        def part(index: Any) -> np.ndarray:
            first = mine.index((index[leading].start or 0) // size) * size
            return x[(slice(None),) * leading + (slice(first, first + size),)]

        return jax.make_array_from_callback(shape, place, part)

    return jax.tree.map(lambda x: put(np.asarray(x)), batch)


def put_global(batch: Any, mesh: Mesh) -> Any:
    """Host arrays, which every process holds whole, as global arrays, divided over the batch axes."""
    place = batch_sharding(mesh)
    return jax.tree.map(lambda x: jax.make_array_from_callback(x.shape, place, lambda index: x[index]), batch)


def replicated(mesh: Mesh) -> NamedSharding:
    """The same value on every device."""
    return NamedSharding(mesh, PartitionSpec())
