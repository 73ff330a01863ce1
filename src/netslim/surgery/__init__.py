"""How a network is cut, and how we know that the cut is right."""
