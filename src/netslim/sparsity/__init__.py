"""Methods that make channels sparse while training; each hooks any `torch.optim.Optimizer`."""

from netslim.sparsity.slimming import NetworkSlimming, add_slimming_gradient, slimming_penalty

__all__ = ["NetworkSlimming", "add_slimming_gradient", "slimming_penalty"]
