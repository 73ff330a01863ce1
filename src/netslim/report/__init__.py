"""What came out: figures and pages, from results on disk alone."""
