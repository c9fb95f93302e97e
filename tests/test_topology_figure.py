"""The drawing of a machine shows every box and link of its graph once, apart from the others, and the network above."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex

from simgd import catalogue, figures
from simgd.figures import layout
from simgd.figures.layout import GAP, folded, levels, places
from simgd.figures.topology import BOXES, LOADED, shortened, summary
from simgd.figures.topology import pen as pen_of
from simgd.topology import Cluster, Device, Interconnect, Link

CARD = Device(name="card", kind="gpu", memory=1e9, memory_rate=1e9, fp32=1e12)

SHIPPED = catalogue.names("cluster")
WHOLE = [name for name in SHIPPED if name != "gb200-nvl72"]


def hosts(count, *, gpus=2, nvswitch=False):
    """Return so many hosts of one socket and one NIC, three hosts to a leaf switch, all leaves under one spine."""
    vertices, links = {}, []
    for h in range(count):
        vertices |= {f"h{h}g{k}": "device" for k in range(gpus)}
        vertices |= {f"h{h}cpu": "socket", f"h{h}nic": "nic", f"leaf{h // 3}": "switch"}
        links += [Link(ends=(f"h{h}g{k}", f"h{h}cpu"), kind="pcie", bandwidth=1e9) for k in range(gpus)]
        links += [Link(ends=(f"h{h}nic", f"h{h}cpu"), kind="pcie", bandwidth=1e9)]
        links += [Link(ends=(f"h{h}nic", f"leaf{h // 3}"), kind="infiniband", bandwidth=1e9)]
        if nvswitch:
            vertices[f"h{h}nvs"] = "nvswitch"
            links += [Link(ends=(f"h{h}g{k}", f"h{h}nvs"), kind="nvlink", bandwidth=1e9) for k in range(gpus)]
    vertices["spine"] = "switch"
    links += [
        Link(ends=(f"leaf{k}", "spine"), kind="infiniband", bandwidth=1e9, count=2) for k in range((count + 2) // 3)
    ]
    return Cluster(name="lab", device=CARD, vertices=vertices, links=tuple(links))


def boxes_of(figure):
    return {patch.get_gid(): patch for patch in figure.axes[0].patches if patch.get_gid()}


def lines_of(figure):
    found = {}
    for line in figure.axes[0].lines:
        assert line.get_label() not in found
        found[line.get_label()] = line
    return found


def texts_of(figure):
    return [text.get_text() for holder in (figure, *figure.axes) for text in holder.texts]


def assert_apart(found):
    boxes = list(found.items())
    for index, (name, a) in enumerate(boxes):
        for other, b in boxes[index + 1 :]:
            assert abs(a.y - b.y) >= 0.5 or a.right <= b.left or b.right <= a.left, (name, other)


# --- a node ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", WHOLE)
def test_every_vertex_has_a_box_and_no_two_boxes_overlap(name):
    cluster = catalogue.cluster(name)
    assert set(boxes_of(figures.topology_figure(cluster))) == set(cluster.vertices)
    assert_apart(places(cluster))


@pytest.mark.parametrize("name", WHOLE)
def test_every_link_and_every_nic_s_cable_is_a_line_as_wide_as_it_has_cables(name):
    cluster = catalogue.cluster(name)
    lines = lines_of(figures.topology_figure(cluster))
    for link in cluster.links:
        assert lines["-".join(link.ends)].get_linewidth() == pen_of(link, cluster)
    assert len(lines) == len(cluster.links) + len(cluster.nics)
    assert all(f"{nic}-network" in lines for nic in cluster.nics)


def test_two_nvlinks_are_drawn_wider_than_one_and_named_in_the_legend():
    cluster = catalogue.cluster("dgx1-v100")
    widths = {link.count: pen_of(link, cluster) for link in cluster.links if link.kind == "nvlink"}
    assert widths[2] > 1.5 * widths[1]
    (legend,) = figures.topology_figure(cluster).legends
    assert [text.get_text() for text in legend.get_texts()] == [
        "NVLink, 25 GB/s",
        "NVLink, 2 \u00d7 25 GB/s",
        "PCIe, 15.8 GB/s",
        "between sockets, 38.4 GB/s",
        "InfiniBand, 12.5 GB/s",
    ]


def test_the_quads_of_a_dgx_1_are_tilted_squares_with_level_links_between_them():
    found = places(catalogue.cluster("dgx1-v100"))
    for k in range(4):
        assert found[f"gpu{k}"].y == found[f"gpu{k + 4}"].y
    assert len({found[f"gpu{k}"].y for k in range(4)}) == 4
    assert max(found[f"gpu{k}"].right for k in range(4)) < min(found[f"gpu{k}"].left for k in range(4, 8))


def test_kinds_stand_above_each_other_and_have_their_own_colours():
    cluster = catalogue.cluster("dgx-h100")
    found = places(cluster)
    heights = [
        {found[name].y for name, its in cluster.vertices.items() if its == kind}
        for kind in ("nvswitch", "device", "pcie_switch", "socket")
    ]
    assert all(len(each) == 1 for each in heights)
    assert [max(each) for each in heights] == sorted((max(each) for each in heights), reverse=True)
    boxes = boxes_of(figures.topology_figure(cluster))
    for name, kind in cluster.vertices.items():
        assert to_hex(boxes[name].get_facecolor()) == BOXES[kind].lower()
    assert len(set(BOXES.values())) == len(BOXES)


@pytest.mark.parametrize("name", ["dgx1-v100", "dgx2-v100", "dgx-a100", "dgx-h100", "dgx-b200", "pcie-box", "xeon-edr"])
def test_nothing_stands_above_a_nic_where_its_cable_leaves_the_node(name):
    cluster = catalogue.cluster(name)
    found = places(cluster)
    for nic in cluster.nics:
        for other, place in found.items():
            assert place.y <= found[nic].y or not place.left < found[nic].x < place.right, (nic, other)


def test_a_machine_of_a_users_file_is_drawn_whatever_its_shape():
    vertices = {f"accelerator-number-{k}": "device" for k in range(5)} | {"nic": "nic", "hub": "switch"}
    ring = [(f"accelerator-number-{k}", f"accelerator-number-{(k + 1) % 5}") for k in range(5)]
    links = [Link(ends=ends, kind="nvlink", bandwidth=1e9) for ends in ring]
    links += [Link(ends=("hub", "nic"), kind="ethernet", bandwidth=1e9)]
    links += [Link(ends=("hub", "accelerator-number-0"), kind="ethernet", bandwidth=2e9)]
    cluster = Cluster(name="lab", device=CARD, vertices=vertices, links=tuple(links))
    figure = figures.topology_figure(cluster)
    assert set(boxes_of(figure)) == set(vertices)
    names = [text.get_text() for text in figure.axes[0].texts]
    assert len(set(names)) == len(vertices)


def test_a_shortened_name_keeps_its_whole_number():
    assert shortened("nvswitch17", 5) == "nv…17"
    assert shortened("nvswitch7", 5) == "nvs…7"


# --- large machines ----------------------------------------------------------------------------------------------


def test_of_eighteen_trays_the_first_two_and_the_last_are_drawn_and_the_rest_is_counted():
    cluster = catalogue.cluster("gb200-nvl72")
    figure = figures.topology_figure(cluster)
    boxes = boxes_of(figure)
    drawn = [*range(8), *range(68, 72)]
    assert [name for name in boxes if name.startswith("gpu")] == [f"gpu{k}" for k in drawn]
    assert sum(name.startswith("nvswitch") for name in boxes) == 18
    assert "15 more\nlike these" in texts_of(figure)
    # 12 GPUs with 18 NVLinks each
    nvlinks = [name for name in lines_of(figure) if "nvswitch" in name]
    assert len(nvlinks) == 12 * 18
    part = folded(cluster)
    found = places(part.cluster, gap_before=part.after)
    assert_apart(found)
    assert min(found[name].left for name in part.after) - found["nic7"].right == pytest.approx(GAP)


def test_a_machine_of_a_hundred_vertices_is_drawn_whole_and_a_larger_one_only_where_parts_are_alike():
    assert folded(hosts(20)).count == 0
    # 40 hosts of 4 vertices under 14 leaves and a spine are more than 120
    assert folded(hosts(40)).count == 37


# --- several hosts and loads -------------------------------------------------------------------------------------


def test_each_host_has_a_frame_and_switches_stand_above_in_their_levels():
    cluster = hosts(6, nvswitch=True)
    found = places(cluster)
    assert_apart(found)
    assert levels(cluster) == {"leaf0": 1, "leaf1": 1, "spine": 2}
    assert found["leaf0"].y == found["leaf1"].y < found["spine"].y
    assert found["leaf0"].y > max(place.y for name, place in found.items() if cluster.vertices[name] != "switch")
    # each leaf stands above its own hosts
    assert found["h0cpu"].left < found["leaf0"].x < found["h2cpu"].right
    assert found["h3cpu"].left < found["leaf1"].x < found["h5cpu"].right
    texts = texts_of(figures.topology_figure(cluster))
    assert [text for text in texts if text.startswith("host ")] == [f"host {h}" for h in range(6)]
    assert "6 hosts under 3 switches: 12 \u00d7 card" in texts


def test_nvswitches_stand_over_the_devices_of_their_own_host():
    found = places(hosts(3, nvswitch=True))
    for h in range(3):
        assert found[f"h{h}g0"].left < found[f"h{h}nvs"].x < found[f"h{h}g1"].right


def test_half_a_link_has_the_colour_of_what_leaves_the_vertex_next_to_it():
    cluster = hosts(2)
    loads = {("h0nic", "leaf0"): 0.9, ("leaf0", "h0nic"): 0.1}
    figure = figures.topology_figure(cluster, loads=loads, title="one message")
    lines = lines_of(figure)
    assert len(lines) == 2 * len(cluster.links)
    assert to_hex(lines["h0nic-leaf0"].get_color()) == to_hex(LOADED(0.9))
    assert to_hex(lines["leaf0-h0nic"].get_color()) == to_hex(LOADED(0.1))
    found = places(cluster)
    start, back = lines["h0nic-leaf0"].get_xydata()[0], lines["leaf0-h0nic"].get_xydata()[0]
    assert abs(start[1] - found["h0nic"].y) < 0.5 < abs(start[1] - found["leaf0"].y)
    assert abs(back[1] - found["leaf0"].y) < 0.5
    # the halves meet
    assert tuple(lines["h0nic-leaf0"].get_xydata()[-1]) == tuple(lines["leaf0-h0nic"].get_xydata()[-1])
    assert "one message" in texts_of(figure)
    _, bar = figure.axes
    assert bar.get_xlabel().startswith("load of a link, % of its rate")
    assert figure.legends == []


def test_loads_of_what_is_not_drawn_are_stated_and_a_load_beyond_its_bounds_is_drawn_as_the_bound():
    cluster = catalogue.cluster("gb200-nvl72")
    loads = {("gpu30", "nvswitch0"): 0.65, ("gpu0", "nvswitch0"): 1.2, ("nic0", "network"): -0.1}
    figure = figures.topology_figure(cluster, loads=loads)
    assert "15 more\nlike these,\nup to 65%" in texts_of(figure)
    lines = lines_of(figure)
    assert to_hex(lines["gpu0-nvswitch0"].get_color()) == to_hex(LOADED(1.0))
    assert to_hex(lines["nic0-network"].get_color()) == to_hex(LOADED(0.0))


# --- the network above equal nodes -------------------------------------------------------------------------------


def test_few_nodes_hang_on_one_switch():
    # 4 nodes of 8 NICs are 32, a switch has 64 ports
    texts = texts_of(figures.topology_figure(catalogue.cluster("dgx-h100:4")))
    assert "one switch of 64 ports joins 4 nodes" in texts
    assert "node 0" in texts


def test_many_nodes_hang_on_levels_of_switches_rail_by_rail():
    # 200 nodes of 8 NICs, 20 of each rail to a switch of 40 ports: 8 x 10 lowest switches in 4 pods of 20
    texts = texts_of(figures.topology_figure(catalogue.cluster("dgx-a100:200")))
    assert [text for text in texts if text.startswith("rail ")] == [f"rail {k}" for k in range(8)]
    (second,) = [text for text in texts if "upper switches" in text]
    assert second == "80 upper switches in 4 pods; 80 lowest switches of 40 ports: 20 cables down, 20 up each"
    # each pod's 20 upper switches have 20 cables up each
    assert "core: 400 cables from each of 4 pods" in texts


def test_oversubscription_and_the_plan_for_more_nodes_are_written():
    texts = texts_of(figures.topology_figure(catalogue.cluster("xeon-25gbe")))
    assert "to other nodes: fat tree of switches with 80 ports, 1.5 times as much down as up" in texts
    texts = texts_of(figures.topology_figure(catalogue.cluster("xeon-25gbe:96")))
    # 1.5 : 1 of 80 ports are 48 : 32
    assert "2 lowest switches of 80 ports: 48 cables down, 32 up each" in texts


def test_a_dragonfly_says_how_its_groups_are_joined():
    cluster = catalogue.cluster("xeon-edr:64")
    fields = {name: getattr(cluster, name) for name in cluster.__struct_fields__}
    net = Interconnect(kind="infiniband", bandwidth=1e9, latency=1e-7, ports=8, topology="dragonfly", group=16)
    # 64 NICs in groups of 16; 4 lowest switches with 4 ports up to 4 switches, which have 4 ports left: 16 for 3 groups
    texts = texts_of(figures.topology_figure(Cluster(**fields | {"interconnect": net})))
    assert "4 groups of such: 5 cables between every two" in texts


def test_ranks_that_share_memory_have_no_network_above():
    net = Interconnect(kind="memory", bandwidth=1e9, latency=1e-7)
    link = Link(ends=("cpu", "nic"), kind="memory", bandwidth=1e9)
    cluster = Cluster(
        name="here", device=CARD, vertices={"cpu": "device", "nic": "nic"}, links=(link,), interconnect=net
    )
    assert len(lines_of(figures.topology_figure(cluster))) == 1
    assert summary(cluster) == "a node: card; ranks share memory of 1 GB/s"


# --- what can be read --------------------------------------------------------------------------------------------

DRAWN = [*SHIPPED, "dgx1-p100:4", "dgx2-v100:40", "dgx-a100:200", "xeon-25gbe:96"]


@pytest.mark.parametrize("name", DRAWN)
def test_no_text_overlaps_another_or_leaves_the_page(name):
    assert collisions(figures.topology_figure(catalogue.cluster(name))) == []


@pytest.mark.parametrize("count", [1, 3, 9])
def test_no_text_overlaps_another_where_hosts_and_loads_are_drawn(count):
    cluster = hosts(count, gpus=4, nvswitch=True)
    loads = {link.ends: 0.5 for link in cluster.links}
    assert collisions(figures.topology_figure(cluster, loads=loads)) == []


def collisions(figure):
    figure.set_dpi(200)
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw(renderer)
    page = figure.bbox
    texts = list(figure.texts) + [text for legend in figure.legends for text in legend.get_texts()]
    for axes in figure.axes:
        texts += [*axes.texts, axes.xaxis.label]
    boxes = [(text.get_text(), text.get_window_extent(renderer)) for text in texts if text.get_text().strip()]
    found = [name for name, box in boxes if box.x0 < 0 or box.y0 < 0 or box.x1 > page.x1 or box.y1 > page.y1]
    for index, (name, box) in enumerate(boxes):
        # a pixel of margin: extents are rounded up
        found += [(name, other) for other, its in boxes[index + 1 :] if box.padded(-1.5).overlaps(its.padded(-1.5))]
    return found


# --- laws --------------------------------------------------------------------------------------------------------


@settings(max_examples=60)
@given(st.integers(1, 14), st.integers(1, 5), st.booleans())
def test_boxes_are_apart_and_places_the_same_whenever_they_are_asked_for(count, gpus, nvswitch):
    cluster = hosts(count, gpus=gpus, nvswitch=nvswitch)
    part = layout.folded(cluster)
    found = places(part.cluster, gap_before=part.after)
    assert_apart(found)
    assert set(found) == set(part.cluster.vertices)
    assert found == places(part.cluster, gap_before=part.after)
