"""Draws one node of a machine: devices, switches, sockets and NICs as boxes, links between them by kind and count.

Model
    Every device and NIC has a column of its own; a PCIe switch and a socket are as wide as what hangs below them in
    the tree of PCIe and socket links, so links of the tree are straight and upright. NVSwitches stand in a row above
    the devices. Where NVLinks join devices directly, the devices of a socket stand at different heights (for four of
    them a tilted square), so that links among them, and level links to the next socket's, pass no other device.

Known not to hold
    The network between nodes is not drawn: a line of text states its rate.
"""
