"""Names with arguments, such as ``bucketed:25MiB``, and the schedules that they stand for."""

from collections.abc import Mapping
from typing import Literal

from simgd import units
from simgd.errors import ScheduleError, UnitError, unknown
from simgd.files import Value
from simgd.schedule import Bucket, Schedule, Wire
from simgd.schedules import grouping
from simgd.schedules.core import compose, delayed_whole
from simgd.workload import Workload

NAMES: dict[str, str] = {
    "sync": "forward, backward, one all-reduce, one update",
    "bucketed:BYTES": "buckets of at least BYTES sent as soon as they are complete, one update (DDP, Horovod)",
    "layerwise": "one message a layer, its own update beside the others; the next forward waits only for its own",
    "layerwise:tensor": "one message a tensor",
    "layerwise:BYTES": "neighbouring layers merged into messages of at least BYTES",
    "layerwise:join": "as layerwise, but the next forward waits for every update",
    "async:D": "buckets of 25 MiB, each update applies the gradient of D iterations ago (staleness D)",
    "async:D:BYTES": "the same with buckets of at least BYTES",
    "async:D:all": "one flat message, D + 1 gradient copies",
    "async_layerwise:D": "one message a layer, each update applies the gradient of D iterations ago",
    "async_layerwise:auto": "the same, each layer with the smallest delay that hides its communication",
}

DEFAULT_SCHEDULES = ("sync", "bucketed:25MiB", "layerwise", "async:1", "async_layerwise:auto")

DEFAULT_BUCKET_BYTES = 25 * units.MIB

#: More than this would need more gradient copies than any machine has memory for.
LARGEST_DELAY = 64


class Choice(Value, frozen=True, kw_only=True):
    """A schedule's name, read: which family, how messages are grouped, which delay (None: to be planned)."""

    name: str
    family: Literal["sync", "bucketed", "layerwise", "async", "async_layerwise"]
    grouping: Literal["whole", "layer", "tensor", "bytes"]
    nbytes: int = 0
    delay: int | None = 0
    join: bool = False

    @property
    def needs_delays(self) -> bool:
        """Say whether the delay of each layer is still to be chosen."""
        return self.delay is None


def parse(name: str) -> Choice:
    """Return what *name* stands for.

    >>> parse("bucketed:25MiB").nbytes
    26214400
    >>> parse("async:0")
    Traceback (most recent call last):
    simgd.errors.ScheduleError: schedule 'async:0': delay '0' is not a whole number from 1 to 64
    """
    family, *arguments = name.split(":")
    match family, arguments:
        case "sync", []:
            return Choice(name=name, family="sync", grouping="whole")
        case "bucketed", [] | [_]:
            size = _bytes(name, arguments[0]) if arguments else DEFAULT_BUCKET_BYTES
            return Choice(name=name, family="bucketed", grouping="bytes", nbytes=size)
        case "layerwise", [] | ["join"]:
            return Choice(name=name, family="layerwise", grouping="layer", join=bool(arguments))
        case "layerwise", ["tensor"]:
            return Choice(name=name, family="layerwise", grouping="tensor")
        case "layerwise", [size]:
            return Choice(name=name, family="layerwise", grouping="bytes", nbytes=_bytes(name, size))
        case "async", [delay, "all"]:
            return Choice(name=name, family="async", grouping="whole", delay=_delay(name, delay))
        case "async", [delay] | [delay, _]:
            size = _bytes(name, arguments[1]) if len(arguments) == 2 else DEFAULT_BUCKET_BYTES
            return Choice(name=name, family="async", grouping="bytes", nbytes=size, delay=_delay(name, delay))
        case "async_layerwise", ["auto"]:
            return Choice(name=name, family="async_layerwise", grouping="layer", delay=None)
        case "async_layerwise", [delay]:
            return Choice(name=name, family="async_layerwise", grouping="layer", delay=_delay(name, delay))
        case _:
            raise unknown("schedule", name, NAMES, "`simgd list schedules` shows all")


def build(
    choice: Choice, workload: Workload, *, wire: Wire = "float32", delays: Mapping[str, int] | None = None
) -> Schedule:
    """Return the schedule; *delays*, by bucket, are needed where the choice leaves them open."""
    buckets = buckets_of(choice, workload)
    if choice.family == "async" and choice.grouping == "whole":
        return delayed_whole(choice.name, workload, buckets[0], choice.delay or 0, wire)
    if delays is None:
        if choice.delay is None:
            raise ScheduleError(f"schedule {choice.name!r}: its delays depend on costs: plan it for a cluster")
        delays = dict.fromkeys([bucket.name for bucket in buckets], choice.delay)
    return compose(
        choice.name,
        workload,
        buckets,
        updates="together" if choice.family in ("sync", "bucketed") else "each",
        delays=delays,
        join=choice.join,
        wire=wire,
    )


def buckets_of(choice: Choice, workload: Workload) -> tuple[Bucket, ...]:
    """Return the buckets of communication, in the order of arrival."""
    match choice.grouping:
        case "whole":
            return grouping.whole(workload)
        case "layer":
            return grouping.by_layer(workload)
        case "tensor":
            return grouping.by_tensor(workload)
        case "bytes":
            first = None if choice.family == "layerwise" else grouping.FIRST_BUCKET_BYTES
            return grouping.by_bytes(workload, choice.nbytes, first=first)


def _bytes(name: str, text: str) -> int:
    try:
        size = units.nbytes(text)
    except UnitError as error:
        raise ScheduleError(f"schedule {name!r}: {error}") from None
    if size < 1:
        raise ScheduleError(f"schedule {name!r}: a message of {text!r} would be empty")
    return size


def _delay(name: str, text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) < 4 and 1 <= int(text) <= LARGEST_DELAY):
        raise ScheduleError(f"schedule {name!r}: delay {text!r} is not a whole number from 1 to {LARGEST_DELAY}")
    return int(text)
