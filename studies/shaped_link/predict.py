"""Predicts every case from the committed calibrations: a table for the README, and predicted.json.

python predict.py
"""

from cases import HERE, KINDS, LINKS, cases, machine

from simgd import files
from simgd.predict import predict

rows = []
for backend, compute in KINDS:
    for link in LINKS:
        predicting = machine(backend, compute, link)
        for case in cases():
            (found,) = predict(predicting, case.job, [2], [case.schedule], baseline="sync", seed=0)
            rows.append({"backend": backend, "compute": compute, "link": link, "prediction": found})
            what = f"{backend:4} {compute:8} {link:>7} {found.workload:>12} {found.schedule:24}"
            low, median, high = (1e3 * s for s in (found.iteration_low_s, found.median_s, found.iteration_high_s))
            print(f"{what} {median:8.2f} ms  [{low:.2f}, {high:.2f}]", flush=True)
files.write_bytes(HERE / "predicted.json", files.to_json({"predictions": rows}))
