"""One step of the way by itself: what the plain commands do."""
