"""How gradients are grouped into messages: pure functions from a workload to buckets, in the order of arrival."""

from collections.abc import Iterable

from simgd.schedule import Bucket, Slice
from simgd.units import MIB
from simgd.workload import Tensor, Workload

#: Gradients travel and are applied in 32 bits.
GRADIENT_BYTES = 4

#: DDP closes its first bucket at 1 MiB, so that communication starts early (torch.distributed,
#: _DEFAULT_FIRST_BUCKET_BYTES).
FIRST_BUCKET_BYTES = MIB


def whole(workload: Workload) -> tuple[Bucket, ...]:
    """Return one bucket with every parameter."""
    return (_bucket("all", [tensor for _, tensor in workload.arrivals]),)


def by_layer(workload: Workload) -> tuple[Bucket, ...]:
    """Return one bucket for each layer that owns parameters."""
    return tuple(_bucket(layer.name, layer.tensors) for layer in workload.backward if layer.tensors)


def by_tensor(workload: Workload) -> tuple[Bucket, ...]:
    """Return one bucket for each tensor."""
    return tuple(_bucket(tensor.name, [tensor]) for _, tensor in workload.arrivals)


def by_bytes(workload: Workload, nbytes: int, *, first: int | None = None) -> tuple[Bucket, ...]:
    """Return buckets that are closed as soon as they hold *nbytes* or more, the first one at *first*.

    A tensor is never split, so a bucket can be larger than *nbytes*, as DDP's can.
    """
    buckets: list[Bucket] = []
    open_: list[Tensor] = []
    for _, tensor in workload.arrivals:
        open_.append(tensor)
        limit = nbytes if buckets or first is None else min(first, nbytes)
        if GRADIENT_BYTES * sum(each.elements for each in open_) >= limit:
            buckets.append(_bucket(f"bucket{len(buckets)}", open_))
            open_ = []
    if open_:
        buckets.append(_bucket(f"bucket{len(buckets)}", open_))
    return tuple(buckets)


def _bucket(name: str, tensors: Iterable[Tensor]) -> Bucket:
    return Bucket(name=name, slices=tuple(Slice(tensor.name, 0, tensor.elements) for tensor in tensors))
