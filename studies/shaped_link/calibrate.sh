#!/bin/sh
# Calibrates each backend (or those named) on the two links that predictions may use; needs root. Writes profiles/.
set -eu
cd "$(dirname "$0")"
export OMP_NUM_THREADS=1 MPIR_CVAR_NOLOCAL=1 UCX_TLS=tcp,self UCX_NET_DEVICES=e0 GLOO_SOCKET_IFNAME=e0
export MASTER_ADDR=10.77.0.1 MASTER_PORT=29555
work="--workload convolution.toml --workload attention.toml --workload perceptron.toml"
mkdir -p profiles
trap './shaped_link.sh down' EXIT

ranks() {
    if [ "$1" = mpi ]; then shift; mpiexec -n 2 ./shaped_link.sh run "$@"; return; fi
    shift
    WORLD_SIZE=2 RANK=0 LOCAL_RANK=0 ./shaped_link.sh run "$@" &
    first=$!
    WORLD_SIZE=2 RANK=1 LOCAL_RANK=1 ./shaped_link.sh run "$@" >/dev/null
    wait $first
}

./shaped_link.sh up 100mbit
for backend in ${*:-mpi gloo}; do
    for link in 100mbit 2gbit; do
        ./shaped_link.sh rate $link
        for compute in real emulated; do
            out="profiles/$backend-$compute-$link.json"
            # shellcheck disable=SC2086
            ranks $backend simgd calibrate --backend $backend --compute $compute $work --on link-$link.toml \
                --largest 2MiB --out "$out"
        done
    done
done
