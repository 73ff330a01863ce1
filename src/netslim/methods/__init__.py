"""Methods that make channels sparse while training; each hooks any `torch.optim.Optimizer`."""

from netslim.methods.centripetal import CentripetalSGD
from netslim.methods.decay import parameter_groups
from netslim.methods.gradual import GradualPruning
from netslim.methods.masking import Mask
from netslim.methods.search import SearchResult
from netslim.methods.sensitivity_result import Sensitivity
from netslim.methods.slimming import (
    NetworkSlimming,
    add_slimming_gradient,
    slimming_penalty,
    soft_threshold_,
)
from netslim.methods.soft_filter import SoftFilterPruning, cifar_resnet_cut, plan_of_zeros, zeroed

__all__ = [
    "CentripetalSGD",
    "GradualPruning",
    "Mask",
    "NetworkSlimming",
    "SearchResult",
    "Sensitivity",
    "SoftFilterPruning",
    "add_slimming_gradient",
    "cifar_resnet_cut",
    "parameter_groups",
    "plan_of_zeros",
    "slimming_penalty",
    "soft_threshold_",
    "zeroed",
]
