"""A generator too large for one device, over several: planner, stages, schedule, transports, offload."""
