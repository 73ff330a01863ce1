"""netslim: cut channels out of any PyTorch model, and prove the cut."""
