"""The stages of a run, the folder they leave, and the runner that goes from one to the next."""
