"""Calibrates ranks whose buffers lie on the host: local work, messages alone, and both beside each other.

Model
    Steps: local work of each workload (`local`), what an idle link saves up, operations by size (`messages`) and
    their fits (`fits`), both beside each other (`beside`).

What it leaves out
    Several collectives in flight; numbers of ranks other than the ones that run: a profile of each may be given to a
    prediction, later ones adding to the earlier.
"""

from collections.abc import Sequence
from statistics import median
from typing import Any, Literal

from msgspec.structs import replace

from calibration import beside, fits, local, machine, messages
from calibration.messages import Key, Messages, Tick
from calibration.wanted import Wanted
from executor import environment, processes
from executor.assembling import About
from executor.backends.protocol import Backend
from executor.lanes import Note
from executor.plan import execution_of
from simgd.profile import CommunicationWork, Jitter, Library, Profile, Progress, Sharing
from simgd.provenance import Environment
from simgd.topology import Cluster
from simgd.units import MIB, Bytes
from simgd.workload import Workload

#: Seconds that are granted to the local work of one workload.
LOCAL_S = 40.0


class OnHost:
    """One calibration on one rank whose buffers lie on the host."""

    def __init__(self, wanted: Wanted, backend: Backend, note: Note, tick: Tick, about: About) -> None:
        self.wanted = wanted
        self.backend = backend
        self.note = note
        self.about = about
        self.tick = tick
        self.messages = Messages(backend, note, divides=not wanted.asleep)

    def profile(self) -> Profile | None:
        """Measure everything; return the profile on rank 0, None on the others."""
        wanted, backend = self.wanted, self.backend
        found = [self._local(*each) for each in wanted.workloads]
        burst_s = self.messages.burst_s()
        rate = self._rate()
        empty = round(2 * burst_s * rate)
        times = messages.measure(
            self.messages,
            wanted.keys(backend.ranks),
            empty=empty,
            seed=wanted.seed,
            tick=self.tick,
        )
        alone = {
            nbytes: median(messages.slowest(backend, self.messages.visit(Key("all_reduce", nbytes), 3, empty)))
            for nbytes in beside.SIZES
        }
        neighbours = beside.Neighbours(backend, self.note, self.messages, wanted.progress, asleep=wanted.asleep)
        together = neighbours.measure(alone, empty, self.tick)
        if wanted.asleep:
            call_s, s_per_byte = self.messages.rested()
            together = together._replace(call_s=call_s, s_per_byte=s_per_byte)
        largest = beside.SIZES[-1]
        hidden = {mode: neighbours.hidden(mode, largest, alone[largest], empty) for mode in self._modes()}
        ranks = backend.exchange((processes.boot(), environment.host()))
        if backend.rank:
            return None
        where = environment.described(
            ranks,
            library=backend.library,
            launcher=self.about.launcher,
            command=self.about.command,
        )
        cluster = self._cluster(times, len(where.hosts), burst_s)
        profile = self._put_together(cluster, where, found, times, together)
        about: dict[str, Any] = {"origin": "measured", "source": profile.description}
        return replace(
            profile,
            progress=tuple(
                Progress(**about, mode=mode, nbytes=largest, hidden=share) for mode, share in hidden.items()
            ),
            sharing=tuple(
                Sharing(**about, workload=workload.name, ranks=backend.ranks, factor=each.sharing)
                for (workload, _, _), each in zip(wanted.workloads, found, strict=True)
                if not wanted.asleep
            ),
        )

    def _modes(self) -> tuple[beside.Mode, ...]:
        """Return the ways of progress that the library allows here."""
        own_thread = self.wanted.backend != "mpi"
        return ("none", "poll", "thread") if own_thread or self.wanted.progress.thread else ("none", "poll")

    # --- steps -------------------------------------------------------------------------------------------------

    def _local(self, workload: Workload, batch: int, tokens: int) -> local.Local:
        source = f"{workload.name} of {batch} a rank on {self.backend.ranks} ranks at once, without communication"
        plans = self.wanted.plans(workload, batch, tokens)
        return local.measure(plans, self.backend, self.note, granted_s=LOCAL_S, source=source, tick=self.tick)

    def _rate(self) -> float:
        """Return the bytes a second of large all-reduces, as their size over their time."""
        key = Key("all_reduce", MIB)
        return MIB / median(messages.slowest(self.backend, self.messages.visit(key, 3, 0)))

    # --- the profile -------------------------------------------------------------------------------------------

    def _cluster(self, times: dict[Key, list[float]], hosts: int, burst_s: float) -> Cluster:
        cluster = self.wanted.cluster
        if cluster is None:
            points = sorted((key.nbytes, median(s)) for key, s in times.items() if key.kind == "point_to_point")
            (small, first), (large, last) = points[0], points[-1]
            cluster = machine.cluster(
                self.wanted.name,
                machine.cpu(environment.host()),
                bytes_per_s=(large - small) / (last - first),
                latency_s=first / 2,
                kind="ethernet" if hosts > 1 else "memory",
            )
        joint = cluster.interconnect
        if joint is not None:
            burst = Bytes(round(burst_s * float(joint.bandwidth)))
            cluster = replace(cluster, interconnect=replace(joint, burst=burst))
        return cluster

    def _put_together(
        self,
        cluster: Cluster,
        where: Environment,
        found: Sequence[local.Local],
        times: dict[Key, list[float]],
        together: beside.Beside,
    ) -> Profile:
        wanted, ranks, joint = self.wanted, self.backend.ranks, cluster.interconnect
        progress = str(wanted.progress) if wanted.backend == "mpi" else "the library's own thread"
        computing = "asleep" if wanted.asleep else "computing"
        source = f"all-reduces beside ranks that are {computing}, progress: {progress}"
        about: dict[str, Any] = {"origin": "measured", "source": source}
        execution = execution_of(wanted.backend, None)
        execution = replace(
            execution,
            **about,
            looks=together.looks,
            look_s=together.look_s,
            progress=max(together.share, 0.01),
        )
        factors = [factor for each in found for factor in each.factors]
        spread = messages.spread_s(times)
        jitter = Jitter(
            origin="measured",
            source=f"{len(factors)} iterations without communication, {len(spread)} messages",
            iteration=fits.quantiles(factors),
            communication_s=fits.quantiles(spread),
        )
        update = local.update_time([row for each in found for row in each.updates], wanted.optimizer, ranks)
        largest = max(found, key=lambda each: each.host.iteration, default=None)
        work = CommunicationWork(
            **about, call_s=together.call_s, s_per_byte=together.s_per_byte, shares_core=not wanted.asleep
        )
        return Profile(
            name=wanted.name,
            cluster=cluster,
            description=f"{cluster.device.name}, {ranks} ranks, {wanted.backend}",
            backend=wanted.backend,
            environment=where,
            layers=tuple(entry for each in found for entry in each.layers),
            updates=(update,) if update is not None else (),
            memory=local.memory_rate([row for each in found for row in each.copies], ranks),
            host=replace(largest.host, collective=together.post_s, cold=together.cold_s)
            if largest is not None
            else None,
            fits=messages.fitted(
                times,
                ranks=ranks,
                nodes=ranks,
                link_bytes_per_s=float(joint.bandwidth) if joint is not None else 0.0,
                source=f"{wanted.backend}, back to back on {ranks} ranks",
            ),
            point_to_point=messages.point_to_point(times),
            library=Library(
                origin="assumed", source="the executor's backend", name="mpi", choice=_choice(self.backend.library)
            ),
            communication_work=work,
            execution=execution,
            jitter=jitter,
        )


def _choice(library: str) -> Literal["fastest", "mpich", "openmpi"]:
    """Return whose rules choose algorithms, by what a library calls itself.

    >>> _choice("MPICH 5.0.2 (libmpi.so.12)"), _choice("Open MPI v4.1.6"), _choice("gloo of torch 2.13.0")
    ('mpich', 'openmpi', 'fastest')
    """
    known: dict[str, Literal["mpich", "openmpi"]] = {"MPICH": "mpich", "Open MPI": "openmpi"}
    return next((choice for name, choice in known.items() if library.startswith(name)), "fastest")
