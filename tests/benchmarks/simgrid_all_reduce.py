"""How long SimGrid takes to simulate one all-reduce: run `python tests/benchmarks/simgrid_all_reduce.py`.

It compiles an MPI program of one MPI_Allreduce with SimGrid's own compiler and simulates it on a star, with the plain
model that `tests/simgrid/judge.py` uses. It needs `smpicc` and `smpirun` (Debian 12: `apt-get install libsimgrid-dev`).
The wall time is that of `smpirun` from start to end, without compilation, and includes the start of the ranks; run it
beside whatever it is compared with, since a shared machine is noisy.

On two cores of a virtual machine shared with other work, 1,024 ranks took 21 to 26 s of processor time in a ring (2.1
million messages; 13 to 64 s of wall time) and 6 s of wall time by recursive doubling. A resident size of some 8 GB is
that of buffers shared between ranks, counted once for each rank.

Ranks do not compute: buffers are shared between ranks, the reduction is skipped, and only messages take time.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "simgrid"))

from judge import PLAIN

# The algorithms' names are SimGrid's: lr is a ring of 2(n-1) steps of nbytes/n, rdb recursive doubling.
ALGORITHMS = ("lr", "rdb")

PROGRAM = """
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>

/* Sums nothing: the answer is the time. */
static void nothing(void *in, void *out, int *count, MPI_Datatype *type) {}

int main(int argc, char **argv) {
  MPI_Init(&argc, &argv);
  int count = atoi(argv[1]) / sizeof(float), rank;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  float *in = SMPI_SHARED_MALLOC(count * sizeof(float)), *out = SMPI_SHARED_MALLOC(count * sizeof(float));
  MPI_Op op;
  MPI_Op_create(nothing, 1, &op);
  MPI_Barrier(MPI_COMM_WORLD);
  double start_s = MPI_Wtime();
  MPI_Allreduce(in, out, count, MPI_FLOAT, op, MPI_COMM_WORLD);
  double mine_s = MPI_Wtime() - start_s, last_s;
  MPI_Reduce(&mine_s, &last_s, 1, MPI_DOUBLE, MPI_MAX, 0, MPI_COMM_WORLD);
  if (rank == 0) printf("%.9f\\n", last_s);
  SMPI_SHARED_FREE(in);
  SMPI_SHARED_FREE(out);
  MPI_Finalize();
  return 0;
}
"""

STAR = """<?xml version="1.0"?>
<!DOCTYPE platform SYSTEM "https://simgrid.org/simgrid.dtd">
<platform version="4.1">
  <cluster id="star" prefix="host" suffix="" radical="0-{last}" speed="1Gf" bw="{bytes_per_s:.0f}Bps"
           lat="{latency_s}s" sharing_policy="SPLITDUPLEX"/>
</platform>
"""

OPTIONS = (
    *PLAIN,
    "smpi/simulate-computation:no",
    # no copies of short messages: 17 % less wall time in a ring of 256 ranks, and 0.04 % from 2(n-1) steps by hand
    "smpi/send-is-detached-thresh:0",
)


def simulate(
    algorithm: str = "lr",
    ranks: int = 1024,
    nbytes: int = 4_000_000,
    bytes_per_s: float = 12.5e9,
    latency_s: float = 1e-6,
) -> tuple[float, float]:
    """Return (wall time of SimGrid, simulated time of the all-reduce), both in seconds.

    *bytes_per_s* and *latency_s* are those of each link between a host and the switch.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "program.c").write_text(PROGRAM)
        (folder / "star.xml").write_text(STAR.format(last=ranks - 1, bytes_per_s=bytes_per_s, latency_s=latency_s))
        (folder / "hosts").write_text("".join(f"host{rank}\n" for rank in range(ranks)))
        subprocess.run(["smpicc", "-O2", "program.c", "-o", "program"], cwd=folder, check=True)
        line = ["smpirun", "-np", str(ranks), "-platform", "star.xml", "-hostfile", "hosts"]
        line += [f"--cfg={option}" for option in (*OPTIONS, f"smpi/allreduce:{algorithm}")]
        line += ["--log=root.thres:warning", "./program", str(nbytes)]
        start = time.perf_counter()
        ran = subprocess.run(line, cwd=folder, check=True, stdout=subprocess.PIPE, text=True)
        return time.perf_counter() - start, float(ran.stdout.splitlines()[-1])


def main() -> None:
    """Print one line for each algorithm asked for."""
    parser = argparse.ArgumentParser(description="Time SimGrid on one all-reduce.")
    parser.add_argument("--algorithm", choices=ALGORITHMS, default="lr")
    parser.add_argument("--ranks", type=int, default=1024)
    parser.add_argument("--nbytes", type=int, default=4_000_000)
    options = parser.parse_args()
    wall_s, simulated_s = simulate(options.algorithm, options.ranks, options.nbytes)
    print(f"{options.algorithm}: {options.ranks} ranks, {options.nbytes} bytes: {wall_s:.2f} s of wall time")
    print(f"simulated {simulated_s * 1e3:.6f} ms")


if __name__ == "__main__":
    main()
