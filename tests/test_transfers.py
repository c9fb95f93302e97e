"""Collectives flow by flow, beside the one cost that each has otherwise."""

import msgspec
import numpy as np
import pytest
from graphs import GPU, cluster, link
from hypothesis import given, settings
from hypothesis import strategies as st

from simgd import catalogue, transfers
from simgd.algorithms import all_reduce
from simgd.errors import ClusterError
from simgd.network import Call, Network
from simgd.profile import CollectiveKind, Profile
from simgd.transfers import Copy, Message, Transfer
from simgd.wiring import Place, Wiring

MIB = 2**20

#: Machines whose links are alike on the way of every ring and tree.
ALIKE = [
    ("dgx1-p100", 8),
    ("dgx1-p100", 4),
    ("dgx2-v100", 16),
    ("dgx-a100", 8),
    ("dgx-h100", 8),
    ("pcie-box", 4),
    ("xeon-edr", 2),
    ("xeon-edr", 7),
    ("xeon-edr", 16),
    ("xeon-25gbe", 5),
]


def networks(name: str) -> tuple[Network, Network]:
    """A machine without measured curves, looked at by collective and by flow."""
    profile = catalogue.profile(name.partition(":")[0])
    plain = msgspec.structs.replace(profile, curves=(), fits=())
    cluster = catalogue.cluster(name)
    return Network(cluster, plain), Network(cluster, plain, fidelity="flows")


NETWORKS = {name: networks(name) for name, _ in ALIKE}


@pytest.mark.parametrize(("name", "ranks"), ALIKE)
@pytest.mark.parametrize("kind", ["all_reduce", "reduce_scatter", "all_gather", "broadcast", "all_to_all", "exchange"])
def test_both_levels_of_detail_agree_where_all_links_of_the_way_are_alike(
    name: str, ranks: int, kind: CollectiveKind
) -> None:
    whole, flows = NETWORKS[name]
    for nbytes in (8, 65536, MIB, 256 * MIB):
        call = Call(kind, nbytes, ranks)
        assert flows.demand(call).algorithm == whole.demand(call).algorithm
        assert flows.demand(call).solo_s == pytest.approx(whole.demand(call).solo_s, rel=0.005)


@given(st.sampled_from(ALIKE), st.integers(1, 2**28))
@settings(deadline=None, max_examples=60)
def test_both_levels_of_detail_agree_on_all_reduces_of_any_size(machine: tuple[str, int], nbytes: int) -> None:
    name, ranks = machine
    whole, flows = NETWORKS[name]
    call = Call("all_reduce", nbytes, ranks)
    assert flows.demand(call).solo_s == pytest.approx(whole.demand(call).solo_s, rel=0.01)


@pytest.mark.parametrize(
    ("name", "ranks"), [("dgx1-v100", 8), ("dgx1-v100", 3), ("dgx-a100:2", 16), ("dgx1-p100:2", 16)]
)
def test_rings_of_unlike_width_and_over_nodes_agree_to_some_percent(name: str, ranks: int) -> None:
    # a ring over nodes crosses the network once more on the longest way through its steps than NCCL's formula counts
    whole, flows = networks(name)
    for kind in ("all_reduce", "reduce_scatter", "all_gather"):
        for nbytes, least in ((65536, 0.15), (MIB, 0.15), (256 * MIB, 0.08)):
            call = Call(kind, nbytes, ranks)
            assert flows.demand(call).solo_s == pytest.approx(whole.demand(call).solo_s, rel=least)


def test_they_part_where_a_slow_link_alone_sets_the_pace_of_a_ring() -> None:
    # Eight cards on two sockets: the hops between the sockets move 9.5 GB/s, the others 24. Seen as one cost, each of
    # the 14 steps pays 5.7 us and then its bytes at 9.5 GB/s; flow by flow the other hops' latencies pass meanwhile.
    whole, flows = networks("pcie-box")
    call = Call("all_reduce", MIB, 8)
    assert flows.demand(call).solo_s < 0.85 * whole.demand(call).solo_s
    # at least the slow link's bytes: each step's eighth, 14 times
    assert flows.demand(call).solo_s > 14 / 8 * MIB / 9.5e9
    long = Call("all_reduce", 256 * MIB, 8)
    assert flows.demand(long).solo_s == pytest.approx(whole.demand(long).solo_s, rel=0.03)


def test_they_part_where_messages_are_too_small_to_fill_a_link() -> None:
    # Six workers push 1 KiB each to one server. As one cost the server's link is six times as busy as by one message;
    # but a message of 1 KiB takes 2.77 us of which the wire is 0.08: six of them hardly hinder each other.
    whole, flows = networks("xeon-edr")
    small, one = Call("push", 1024, 7), Call("push", 1024, 2)
    assert whole.demand(small).solo_s > 3 * whole.demand(one).solo_s
    assert flows.demand(small).solo_s == pytest.approx(flows.demand(one).solo_s, rel=0.3)


def pair(rate: float = 1e9) -> Wiring:
    """Two DGX-1 P100 GPUs that are linked directly, at *rate*."""
    return Wiring(catalogue.cluster("dgx1-p100"), [Place(0, 0), Place(0, 1)], {"nvlink": rate}, {})


def ring(wiring: Wiring, nbytes: float, latency_s: float, limit: float = float("inf")) -> Transfer:
    def message(size: float, far: bool, switches: int, adds: bool) -> Message:
        return Message(latency_s, limit)

    return Transfer(
        wiring=wiring,
        ranks=np.arange(2),
        parts=((all_reduce.ring(2), 1.0),),
        nbytes=nbytes,
        message=message,
        before_s=1.0,
        after_s=0.5,
    )


def test_a_ring_of_two_sends_half_of_the_buffer_twice() -> None:
    # 1 s before; 2 steps of 0.1 s and 1 GB at 1 GB/s, both directions at once; 0.5 s after
    assert transfers.seconds([ring(pair(), 2e9, 0.1)]) == pytest.approx([1 + 2 * 1.1 + 0.5])
    # with channels of half the rate each step moves for 2 s
    assert transfers.seconds([ring(pair(), 2e9, 0.1, limit=0.5e9)]) == pytest.approx([1 + 2 * 2.1 + 0.5])


def test_two_collectives_at_once_share_the_links() -> None:
    wiring = pair()
    # alone 2 x 1 s; together each step takes twice as long
    assert transfers.seconds([ring(wiring, 2e9, 0.0)] * 2) == pytest.approx([1 + 4 + 0.5] * 2)


def test_steps_one_after_another_are_the_same_where_all_ranks_are_alike() -> None:
    alone = ring(pair(), 2e9, 0.1)
    assert alone.stepwise_s() == pytest.approx(2 * 1.1)


def test_a_ring_of_a_thousand_ranks_is_taken_step_by_step() -> None:
    whole, _ = networks("xeon-edr")
    transfer = Transfer(
        wiring=whole.fabric(1024).wiring,
        ranks=np.arange(1024),
        parts=((all_reduce.ring(1024), 1.0),),
        nbytes=4e6,
        message=lambda size, far, switches, adds: Message(1e-6, float("inf")),
    )
    assert transfer.count() == 2 * 1023 * 1024 > transfers.MOST_FLOWS
    rate = whole.fabric(1024).ring_bytes_per_s
    (seconds,) = transfers.seconds([transfer])
    assert seconds == pytest.approx(2 * 1023 * (1e-6 + 4e6 / 1024 / rate))
    with pytest.raises(ClusterError, match="2 collectives at once are 4190208 flows; at most 50000 are simulated"):
        transfers.seconds([transfer, transfer])


def test_jobs_on_different_sockets_do_not_hinder_each_other_and_those_across_share_the_way() -> None:
    _, flows = networks("pcie-box")

    def at_once(*jobs: tuple[int, ...]) -> tuple[float, ...]:
        return flows.together([Call("all_reduce", 64 * MIB, len(job), job) for job in jobs])

    (alone,) = at_once((0, 1, 2, 3))
    assert at_once((0, 1, 2, 3), (4, 5, 6, 7)) == pytest.approx((alone, alone))
    (crossing,) = at_once((0, 1, 4, 5))
    # two rings over one link between the sockets; latencies and the last chunk's copy are not shared
    assert at_once((0, 1, 4, 5), (2, 3, 6, 7))[0] == pytest.approx(2 * crossing, rel=0.02)


def test_copies_from_the_host_slow_collectives_that_cross_pcie_and_no_others() -> None:
    _, pcie = networks("pcie-box")
    call = Call("all_reduce", 64 * MIB, 4)
    copies = [Copy(device, 10 * 64 * MIB) for device in range(4)]
    (alone,), (beside,) = pcie.together([call]), pcie.together([call], copies)
    # the four copies share the switch's link to the socket, a quarter of its rate each; into each card the ring has the
    # other three quarters
    assert beside == pytest.approx(alone * 4 / 3, rel=0.02)
    _, nvlink = networks("dgx1-p100")
    eight = Call("all_reduce", 64 * MIB, 8)
    assert nvlink.together([eight], copies) == pytest.approx(nvlink.together([eight]))


def test_a_measured_curve_scales_flows_as_it_scales_the_one_cost() -> None:
    profile = catalogue.profile("dgx-a100")
    cluster = catalogue.cluster("dgx-a100")
    flows = Network(cluster, profile, fidelity="flows")
    for size, seconds in profile.curves[0].points[::4]:
        assert flows.demand(Call("all_reduce", int(size), 8)).solo_s == pytest.approx(seconds, rel=0.01)


def test_a_copy_needs_a_host() -> None:
    cluster = catalogue.cluster("xeon-edr")
    with pytest.raises(ClusterError, match="cpu reaches no socket, and so no host's memory"):
        transfers.copied(Wiring(cluster, [Place(0, 0)], {}, {}), 0, Copy(0, 1.0))


@pytest.mark.parametrize("nodes", [7, 8, 16])
def test_a_ring_over_nodes_costs_the_same_whether_flow_by_flow_or_step_by_step(nodes: int) -> None:
    # 7 nodes of 8 GPUs are 49,280 flows with 8 channels, and simulated one by one; more are taken step by step
    whole, flows = (
        Network(network.cluster, network.profile, fidelity=network.fidelity, algorithm="ring/LL")
        for network in networks(f"dgx-h100:{nodes}")
    )
    call = Call("all_reduce", 8, 8 * nodes)
    assert flows.demand(call).solo_s == pytest.approx(whole.demand(call).solo_s, rel=0.05)


def test_a_step_of_too_many_flows_is_refused_in_one_line() -> None:
    _, flows = networks("dgx-h100:128")
    with pytest.raises(ClusterError, match="1047552 flows at once; at most 300000 are simulated; one cost by steps"):
        flows.demand(Call("all_to_all", MIB, 1024))


@pytest.mark.parametrize(("duplex", "times"), [("full", 1), ("half", 2)])
def test_without_a_known_library_a_shared_cable_is_counted_once(duplex: str, times: int) -> None:
    # 1 GiB over a cable of 1 GB/s, of which 0.8 are taken: one way at a time, or both at once
    cpu = msgspec.structs.replace(GPU, kind="cpu")
    hosts = cluster(link("Ag0-Bg0", 1e9, duplex=duplex), device=cpu)
    for fidelity in ("collectives", "flows"):
        network = Network(hosts, Profile(name="none", cluster=hosts), fidelity=fidelity)
        assert network.seconds("push", 2**30, 2) == pytest.approx(2**30 / 0.8e9, rel=0.01)
        assert network.seconds("exchange", 2**30, 2) == pytest.approx(times * 2**30 / 0.8e9, rel=0.01)
