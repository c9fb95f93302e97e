"""Times NCCL's collectives by size with each algorithm and protocol forced: ``python3 measure.py OUT.json [RANKS]``.

Each setting has its own processes, since NCCL reads some of its variables once. "graph" times are those of one
operation in a captured graph of several on different buffers; "loop" times those of nccl-tests: a loop of 20 calls on
one buffer.
"""

import json
import os
import statistics
import sys
import time

SIZES = [8, 1024, *(2**power for power in range(12, 31))]
KINDS = ("all_reduce", "all_gather", "reduce_scatter", "broadcast")
SETTINGS = [
    {},
    *(
        {"NCCL_ALGO": algorithm, "NCCL_PROTO": protocol}
        for algorithm in ("Ring", "Tree")
        for protocol in ("LL", "LL128", "Simple")
    ),
    {"NCCL_ALGO": "NVLS"},
    *(
        {"NCCL_ALGO": "Ring", "NCCL_PROTO": protocol, "NCCL_MAX_NCHANNELS": str(most), "NCCL_MIN_NCHANNELS": "1"}
        for protocol in ("LL", "LL128", "Simple")
        for most in (1, 2, 4, 8)
    ),
    *(
        {"NCCL_ALGO": "Tree", "NCCL_PROTO": protocol, "NCCL_MAX_NCHANNELS": "1", "NCCL_MIN_NCHANNELS": "1"}
        for protocol in ("LL", "LL128", "Simple")
    ),
]


def times(kind, nbytes, ranks):
    """Return medians of seconds of one operation: in a graph, and in a loop."""
    import torch
    import torch.distributed as dist

    whole = max(1, nbytes // 4)
    part = max(1, whole // ranks)
    copies = max(1, min(16, 2**30 // (4 * whole)))
    if kind in ("all_gather", "reduce_scatter"):
        whole = part * ranks
    buffers = [torch.zeros(whole, device="cuda") for _ in range(copies)]
    parts = [torch.zeros(part, device="cuda") for _ in range(copies)]

    def one(at):
        match kind:
            case "all_reduce":
                dist.all_reduce(buffers[at])
            case "all_gather":
                dist.all_gather_into_tensor(buffers[at], parts[at])
            case "reduce_scatter":
                dist.reduce_scatter_tensor(parts[at], buffers[at])
            case "broadcast":
                dist.broadcast(buffers[at], 0)

    def timed(run, count):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        dist.barrier()
        torch.cuda.synchronize()
        begin.record()
        run()
        end.record()
        torch.cuda.synchronize()
        return 1e-3 * begin.elapsed_time(end) / count

    for at in range(copies):
        one(at)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for at in range(copies):
            one(at)
    again = 1 if nbytes > 2**24 else 4

    def replay():
        for _ in range(again):
            graph.replay()

    replay()
    graphed = [timed(replay, copies * again) for _ in range(7)]
    calls = 20 if nbytes <= 2**24 else 5
    looped = [timed(lambda: [one(0) for _ in range(calls)], calls) for _ in range(5)]
    return statistics.median(graphed), statistics.median(looped)


def work(rank, ranks, setting, sizes, kinds, port, queue):
    os.environ.update(setting, MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), WORLD_SIZE=str(ranks))
    import torch
    import torch.distributed as dist

    torch.cuda.set_device(rank)
    dist.init_process_group("nccl", device_id=torch.device("cuda", rank))
    rows = []
    for kind in kinds:
        for nbytes in sizes:
            graphed, looped = times(kind, nbytes, ranks)
            rows.append({"kind": kind, "bytes": nbytes, "graph_s": graphed, "loop_s": looped})
    if rank == 0:
        version = ".".join(map(str, torch.cuda.nccl.version()))
        queue.put({"rows": rows, "device": torch.cuda.get_device_name(), "nccl": version, "torch": torch.__version__})
    dist.barrier()
    torch.cuda.synchronize()
    sys.stdout.flush()
    os._exit(0)


def main():
    out, ranks = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 2
    import torch  # noqa: F401  here, so that forked processes have it
    import torch.multiprocessing as processes

    fork = processes.get_context("fork")
    found, began = [], time.time()
    for number, setting in enumerate(SETTINGS):
        if time.time() - began > 480:
            break
        queue = fork.SimpleQueue()
        kinds = KINDS if number == 0 else ("all_reduce",)
        sizes = SIZES if "NCCL_MAX_NCHANNELS" not in setting else [size for size in SIZES if size <= 2**26]
        started = [
            fork.Process(target=work, args=(rank, ranks, setting, sizes, kinds, 29600 + number, queue))
            for rank in range(ranks)
        ]
        for process in started:
            process.start()
        answer = None
        until = time.time() + 60
        while time.time() < until and any(process.is_alive() for process in started):
            if not queue.empty():
                answer = queue.get()
            time.sleep(0.05)
        if answer is None and not queue.empty():
            answer = queue.get()
        for process in started:
            process.join(5)
            if process.is_alive():
                process.kill()
        print(setting, "failed" if answer is None else f"{time.time() - began:.0f} s", flush=True)
        if answer is not None:
            found.append({"setting": setting, "ranks": ranks, **answer})
            with open(out, "w") as file:
                json.dump(found, file)


if __name__ == "__main__":
    main()
