"""Following channels while a model runs: labels, sizes, storages, and what records them."""
