"""What a network costs: counts, memory, time."""
