"""Predicts every case from the calibrations in a folder, into predicted.json there.

python studies/gpu_steps/predict.py FOLDER
"""

import sys
import time
from pathlib import Path

from cases import PATHS, cases

from simgd import catalogue, files
from simgd.errors import SimgdError
from simgd.predict import Machine, predict

folder = Path(sys.argv[1])
rows = []
for path in PATHS:
    try:
        profile = catalogue.profile(str(folder / f"{path}.json"))
    except SimgdError as error:
        print(error)
        continue
    machine = Machine(profile.cluster, profile)
    known = {entry.workload for entry in profile.layers}
    for case in cases():
        if case.job.workload.name not in known:
            continue
        (found,) = predict(machine, case.job, [2], [case.schedule], baseline="sync", seed=None)
        rows.append({"path": path, "prediction": found})
        print(f"{path:>10} {found.workload:>10} {found.schedule:18} {1e3 * found.median_s:8.2f} ms", flush=True)
written = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
files.write_bytes(folder / "predicted.json", files.to_json({"written": written, "predictions": rows}))
