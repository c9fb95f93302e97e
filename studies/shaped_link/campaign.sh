#!/bin/sh
# Measures every case on every link, three starts of each, the links in turn; needs root, and calibrate.sh before.
#
#   campaign.sh BACKEND COMPUTE      such as: campaign.sh mpi emulated
set -eu
cd "$(dirname "$0")"
backend=$1
compute=$2
export OMP_NUM_THREADS=1 MPIR_CVAR_NOLOCAL=1 UCX_TLS=tcp,self UCX_NET_DEVICES=e0 GLOO_SOCKET_IFNAME=e0
export MASTER_ADDR=10.77.0.1 MASTER_PORT=29556
trap './shaped_link.sh down' EXIT
./shaped_link.sh up 100mbit
for start in 0 1 2; do
    for link in 100mbit 500mbit 2gbit; do
        ./shaped_link.sh rate $link
        set -- ./shaped_link.sh run python measure.py --backend "$backend" --compute "$compute" --link $link --start $start
        if [ "$backend" = mpi ]; then
            mpiexec -n 2 "$@"
        else
            WORLD_SIZE=2 RANK=0 LOCAL_RANK=0 "$@" &
            first=$!
            WORLD_SIZE=2 RANK=1 LOCAL_RANK=1 "$@" >/dev/null
            wait $first
        fi
    done
done
