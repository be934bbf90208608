"""Says before a run whether it will go well on this machine: memory, disk, time, and the health of its data."""
