"""Which channels go: criteria, budgets, limits, and the options of a cut, each declared once."""
