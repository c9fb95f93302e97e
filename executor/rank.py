"""One rank: a schedule with its buffers, its local work and the lanes of its device, ready to run."""

from statistics import median
from typing import TYPE_CHECKING

from executor.backends.protocol import Backend
from executor.comm import CommLane
from executor.emulated import Emulated
from executor.interpreter import Interpreter
from executor.lanes import HostLanes, Lanes, Note
from executor.layout import Layout, check_issue_order
from executor.plan import Plan
from executor.recording import Recorder
from simgd.errors import RunError, ScheduleError
from simgd.instances import Instances
from simgd.schedule import Communicate, placed
from simgd.soundness import derive

if TYPE_CHECKING:
    from executor.training import Training

#: Iterations without communication, before and after a run, and how many more come before them as warm-up.
LOCAL_STEPS, LOCAL_WARM_UP = 5, 2


class Rank:
    """The schedule of a plan, ready to run on one rank."""

    def __init__(self, plan: Plan, backend: Backend, note: Note) -> None:
        self.plan = plan
        self.backend = backend
        self._note = note
        schedule, workload = plan.schedule, plan.workload
        self.instances = Instances(schedule, derive(schedule, workload))
        check_issue_order(schedule, self.instances)
        _check_wire(plan, backend)
        self.layout = Layout(schedule, backend.ranks)
        execution = plan.execution
        self.lane_of_op = [
            placed(op.lane, merged=execution.merged, update_on_compute=execution.update_on_compute)
            for op in schedule.ops
        ]
        self.training = self._training() if plan.compute == "real" else None
        if self.training is not None:
            self.local: Training | Emulated = self.training
        else:
            seconds = plan.op_seconds or {}
            busy = plan.compute == "emulated:busy"
            self.local = Emulated(
                schedule,
                self.layout,
                [seconds.get(op.name, 0.0) for op in schedule.ops],
                busy=busy,
                naps=plan.progress.every > 0,
            )

    def _training(self) -> "Training":
        import torch

        from executor.networks.case import load
        from executor.optimizers import optimizer
        from executor.training import Training

        plan = self.plan
        if plan.workload.source is None:
            raise RunError(
                f"workload {plan.workload.name!r}: names no network to run, only layers; take --compute emulated with "
                "a --profile of its times"
            )
        torch.manual_seed(plan.seed)
        case = load(plan.workload.source.function, plan.workload.source.arguments)
        device = torch.device(self.backend.device)
        return Training(
            case,
            plan.workload,
            plan.schedule,
            self.instances,
            self.layout,
            optimizer(plan.optimizer),
            rank=self.backend.rank,
            batch=plan.batch,
            tokens=plan.tokens,
            seed=plan.seed,
            device=device,
        )

    def lanes(self, recorder: Recorder, *, traced: int, communicating: bool = True) -> Lanes:
        """Return the lanes of this rank's device."""
        execution = self.plan.execution
        if self.backend.device == "cuda":
            from executor.streams import StreamLanes

            return StreamLanes(
                self.instances,
                recorder,
                self._note,
                run_ahead=execution.run_ahead,
                traced=traced,
                communicating=communicating,
            )
        comm = None
        if communicating and self.backend.ranks > 1:
            comm = CommLane(self.instances, recorder, in_flight=execution.in_flight, progress=self.plan.progress)
        return HostLanes(self.instances, recorder, self._note, comm)

    def recorder(self, kept: int) -> Recorder:
        """Return a recorder for the ops of the schedule."""
        return Recorder(self.lane_of_op, kept)

    def interpreter(self, lanes: Lanes) -> Interpreter:
        """Return an interpreter that runs on *lanes*."""
        plan = self.plan
        return Interpreter(
            plan.schedule,
            self.instances,
            self.layout,
            plan.workload,
            local=self.local,
            lanes=lanes,
            backend=self.backend,
        )

    def local_s(self) -> float:
        """Return the seconds of an iteration with communication left out; weights change."""
        steps = LOCAL_WARM_UP + min(LOCAL_STEPS, self.plan.steps)
        lanes = self.lanes(self.recorder(1), traced=0, communicating=False)
        self.interpreter(lanes).run(steps, lambda iteration: None)
        if self.training is not None:
            self.training.losses()
        return median(lanes.iterations_s()[LOCAL_WARM_UP:])


def _check_wire(plan: Plan, backend: Backend) -> None:
    """Raise ScheduleError where nobody could sum what the schedule sends, before anything is sent."""
    for op in plan.schedule.ops:
        if isinstance(op.work, Communicate) and op.work.wire != "float32":
            if backend.name == "mpi":
                why = "MPI has no sum of it"
            elif plan.compute != "real":
                why = "emulated compute has no such type"
            else:
                continue
            raise ScheduleError(
                f"schedule {plan.schedule.name!r}: op {op.name!r} sends {op.work.wire}, but {why}; send float32"
            )
