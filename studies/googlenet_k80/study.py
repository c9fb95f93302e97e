"""Predict the schedules of the GoogLeNet K80 table; run `python studies/googlenet_k80/study.py` to write results.json.

Everything follows from layers.csv. The forward pass, which the table lacks, is a share of the backward pass; several
shares are tried, since that assumption carries the result.
"""

import csv
import sys
from dataclasses import replace
from pathlib import Path

import msgspec

from calibration.tables import read_table
from simgd import files, units
from simgd.job import job
from simgd.predict import Machine, predict
from simgd.profile import Split
from simgd.schedule import Communicate
from simgd.simulator import steady

HERE = Path(__file__).parent
SCHEDULES = (
    "sync",
    "bucketed:25MiB",
    "layerwise",
    "layerwise:tensor",
    "async:1",
    "async:1:all",
    "async_layerwise:auto",
)

#: Backward times over forward times: products alone make 2; MXNet on P100 showed 2.8 with the update.
RATIOS = (1.5, 2.0, 2.8)


def results() -> dict[str, object]:
    """Return the predictions for each assumed ratio of backward to forward."""
    workload, profile = read_table(HERE / "layers.csv", name="googlenet-k80")
    rows = []
    for ratio in RATIOS:
        split = Split(origin="assumed", source="this study", uncertainty=0.25, backward_plus_update=ratio)
        machine = Machine(profile.cluster, msgspec.structs.replace(profile, split=split))
        for found in predict(machine, job(workload), (2, 4), SCHEDULES):
            rows.append(
                {
                    "backward_over_forward": ratio,
                    "ranks": found.ranks,
                    "schedule": found.schedule,
                    "iteration_ms": round(found.iteration_s * 1e3, 2),
                    "compute_ms": round(found.compute_s * 1e3, 2),
                    "messages_ms": round(found.communication_s * 1e3, 2),
                    "exposed_ms": round(found.exposed_communication_s * 1e3, 2),
                    "speedup_over_sync": round(found.speedup_over_sync, 3),
                    "staleness": found.staleness,
                    "extrapolated": found.extrapolated,
                }
            )
    return {"command": "python studies/googlenet_k80/study.py", "rows": rows, "replayed": replayed()}


def replayed() -> list[dict[str, object]]:
    """Return the same for one message a tensor with its own measured time, outliers and all, instead of the curve's."""
    workload, profile = read_table(HERE / "layers.csv", name="googlenet-k80")
    machine = Machine(profile.cluster, profile)
    rows = []
    for ranks in (2, 4):
        sync = machine.study("sync", job(workload), ranks)
        for name in ("layerwise:tensor", "layerwise"):
            study = machine.study(name, job(workload), ranks)
            measured_s = _measured_s(ranks, by_tensor=name.endswith("tensor"))
            times = {
                op.name: replace(study.priced.timing.ops[op.name], run_ps=units.picoseconds(measured_s[op.work.bucket]))
                for op in study.schedule.ops
                if isinstance(op.work, Communicate)
            }
            timing = replace(study.priced.timing, ops={**study.priced.timing.ops, **times})
            period_s = float(steady(study.schedule, study.derived, timing).period_ps) / units.PS_PER_S
            rows.append(
                {
                    "ranks": ranks,
                    "schedule": name,
                    "messages_ms": round(sum(measured_s.values()) * 1e3, 2),
                    "iteration_ms": round(period_s * 1e3, 2),
                    "speedup_over_sync": round(sync.period_s / period_s, 3),
                }
            )
    return rows


def _measured_s(ranks: int, *, by_tensor: bool) -> dict[str, float]:
    """Return the measured seconds of each message: of a tensor, or of a layer's weight and bias one after the other."""
    found: dict[str, float] = {}
    with (HERE / "layers.csv").open() as file:
        for row in csv.DictReader(line for line in file if not line.startswith("#")):
            for tensor in ("weight", "bias"):
                name = f"layer{row['layer']}" + (f".{tensor}" if by_tensor else "")
                found[name] = found.get(name, 0.0) + float(row[f"allreduce_{ranks}_{tensor}_us"]) * 1e-6
    return found


if __name__ == "__main__":
    files.write_bytes(HERE / "results.json", files.to_json(results()))
    sys.stdout.write(f"{HERE.name}/results.json written\n")
