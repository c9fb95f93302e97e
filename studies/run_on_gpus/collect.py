"""Collects the figures of runs into results.json: what the study's table needs, without traces."""

import json
import sys
from pathlib import Path

from simgd import files
from simgd.run import Run

KEPT = (
    "ranks",
    "batch_per_rank",
    "compute_s",
    "communication_s",
    "exposed_communication_s",
    "overlap",
    "samples_per_s",
    "weights_digest",
)


def main(folder: Path) -> None:
    runs = [files.read(path, Run) for path in sorted(folder.glob("*.json.gz"))]
    cases = [
        {"workload": made.workload.name, "schedule": made.schedule.name}
        | {name: getattr(made, name) for name in KEPT}
        | {"iteration": files.plain(made.iteration), "tracing": files.plain(made.tracing)}
        | {"peak_memory_bytes": max(made.peak_memory_bytes)}
        for made in runs
    ]
    found = {"environment": files.plain(runs[0].environment), "cases": cases}
    (folder / "results.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
