"""One stage of training, with Lightning: batches, losses, sparsity, epochs."""
