#!/usr/bin/env bash
# Calibrates two GPUs over NVLink and over host memory, predicts, and measures every case: all into the folder given.
# usage: measure.sh FOLDER [STARTS]      about 9 minutes with 2 starts
set -uo pipefail
out=$1
starts=${2:-2}
here=$(dirname "$0")
workloads="--workload vgg16 --workload resnet50 --workload googlenet --workload gpt2"
calibrate() {
  # shellcheck disable=SC2086
  timeout 200 python3 -m simgd calibrate --backend nccl --ranks 2 $workloads --timeout 100 --out "$out/$1.json" 2>&1 |
    tail -n 1
}
calibrate nvlink
NCCL_P2P_DISABLE=1 calibrate hostmemory
python3 "$here/predict.py" "$out" >"$out/predicted.txt"
for start in $(seq 0 $((starts - 1))); do
  for path in nvlink hostmemory; do
    torchrun --nproc-per-node 2 "$here/measure.py" "$path" "$start" "$out" 2>"$out/measure.log" || tail -3 "$out/measure.log"
  done
done
rm -rf "$out"/*.parts "$out/measure.log"
