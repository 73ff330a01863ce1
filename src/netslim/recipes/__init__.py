"""The shipped recipes: YAML files, read by `netslim.training.load_recipe`."""
