#!/bin/sh
# Two (or N) network namespaces joined by links of a chosen rate: a full-duplex NIC for each rank on a switch that never
# blocks. Needs root and iproute2.
#
#   shaped_link.sh up RATE [RANKS]    RATE as tc writes it (100mbit, 2gbit); replaces links that are there
#   shaped_link.sh rate RATE          change the rate of links that are up
#   shaped_link.sh run COMMAND...     run COMMAND in the namespace of this rank (PMI_RANK, else RANK), on a core of its own,
#                                     where no thread preempts another when it wakes (SCHED_BATCH; the README says why)
#   shaped_link.sh down               remove everything
#
# A token bucket shapes what each rank sends: what is shorter than BURST passes at memory speed, so that an idle link
# has BURST bytes for nothing. Smaller buckets than 128 KiB lose rate at 2 Gb/s.
set -eu

BURST=131072
SWITCH=simgd-sw

ranks_up() { ip netns list | sed -n 's/^simgd-r\([0-9]*\).*/\1/p'; }

shape() {
    tc -n "simgd-r$1" qdisc replace dev e0 root tbf rate "$2" burst "$BURST" latency 20ms
}

down() {
    for rank in $(ranks_up); do ip netns delete "simgd-r$rank"; done
    ip netns delete "$SWITCH" 2>/dev/null || true
}

case "${1:-}" in
up)
    rate=$2
    ranks=${3:-2}
    down
    trap 'status=$?; [ $status = 0 ] || down; exit $status' EXIT
    ip netns add "$SWITCH"
    ip -n "$SWITCH" link add br0 type bridge
    ip -n "$SWITCH" link set br0 up
    rank=0
    while [ "$rank" -lt "$ranks" ]; do
        space="simgd-r$rank"
        ip netns add "$space"
        ip -n "$space" link set lo up
        ip link add e0 netns "$space" type veth peer name "p$rank" netns "$SWITCH"
        ip -n "$SWITCH" link set "p$rank" master br0 up
        ip -n "$space" addr add "10.77.0.$((rank + 1))/24" dev e0
        ip -n "$space" link set e0 up
        shape "$rank" "$rate"
        rank=$((rank + 1))
    done
    ;;
rate)
    for rank in $(ranks_up); do shape "$rank" "$2"; done
    ;;
run)
    shift
    rank=${PMI_RANK:-${RANK:-0}}
    # nproc would say what OMP_NUM_THREADS says
    cores=$(getconf _NPROCESSORS_ONLN)
    exec ip netns exec "simgd-r$rank" taskset -c "$((rank % cores))" chrt --batch 0 "$@"
    ;;
down) down ;;
*)
    sed -n '2,10p' "$0" >&2
    exit 2
    ;;
esac
