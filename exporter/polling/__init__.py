"""Reading the platforms: what to read when (planner), how fast (budget), and the loop that does it (poller)."""
