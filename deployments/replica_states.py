"""Serve's states of a replica, as both packages count them (`ray.serve` has them as an enum)."""

AT_WORK = frozenset({"RUNNING", "PENDING_MIGRATION"})
"""It is given requests. In the second one it is to leave its node, and does once its successor
has loaded, which takes minutes."""

COMING = frozenset({"STARTING", "UPDATING", "RECOVERING"})
"""It will be, and is not given any yet."""
