"""lbd: wires store, netlink, planner and data path of one node together."""
