"""Runs schedules on real ranks, and holds the networks that simgd ships."""

# The command line reads this at start: another distribution is called `executor` too.
DISTRIBUTION = "simgd"
