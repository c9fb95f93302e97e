#!/usr/bin/env bash
# Measures the cases of this study on the two GPUs of this machine; writes results.json into the folder given.
# usage: measure.sh FOLDER ["WORKLOAD:BATCH ..." ["SCHEDULE ..."]]
set -euo pipefail
out=$1
cases=${2:-vgg16:32 googlenet:64 resnet50:64 gpt2:4}
schedules=${3:-sync bucketed:25MiB layerwise layerwise:tensor async:1 async_layerwise:1}
for case in $cases; do
  for schedule in $schedules; do
    python3 -m simgd run "$schedule" --workload "${case%:*}" --batch "${case#*:}" --backend nccl --ranks 2 --steps 40 \
      --out "$out/${case%:*}.$schedule.json.gz" --json >/dev/null || echo "$case $schedule failed"
  done
done
python3 studies/run_on_gpus/collect.py "$out"
