"""Methods that make channels sparse while training, which hook any `torch.optim.Optimizer`;
and what is done with a network as a whole: made smaller, searched for, brought to eight bits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from netslim._support.rooms import imported_later

_HOMES = {
    "CentripetalSGD": "centripetal",
    "Distillation": "distillation",
    "GradualPruning": "gradual",
    "Mask": "masking",
    "NetworkSlimming": "slimming",
    "Quantization": "quantization",
    "Quantized": "quantizing",
    "SearchResult": "search",
    "Sensitivity": "sensitivity_result",
    "SoftFilterPruning": "soft_filter",
    "add_slimming_gradient": "slimming",
    "cifar_resnet_cut": "soft_filter",
    "parameter_groups": "decay",
    "plan_of_zeros": "soft_filter",
    "slimming_penalty": "slimming",
    "soft_threshold_": "slimming",
    "softened": "distillation",
    "zeroed": "soft_filter",
}

__all__ = [
    "CentripetalSGD",
    "Distillation",
    "GradualPruning",
    "Mask",
    "NetworkSlimming",
    "Quantization",
    "Quantized",
    "SearchResult",
    "Sensitivity",
    "SoftFilterPruning",
    "add_slimming_gradient",
    "cifar_resnet_cut",
    "parameter_groups",
    "plan_of_zeros",
    "slimming_penalty",
    "soft_threshold_",
    "softened",
    "zeroed",
]

if TYPE_CHECKING:
    from netslim.methods.centripetal import CentripetalSGD as CentripetalSGD
    from netslim.methods.decay import parameter_groups as parameter_groups
    from netslim.methods.distillation import Distillation as Distillation
    from netslim.methods.distillation import softened as softened
    from netslim.methods.gradual import GradualPruning as GradualPruning
    from netslim.methods.masking import Mask as Mask
    from netslim.methods.quantization import Quantization as Quantization
    from netslim.methods.quantizing import Quantized as Quantized
    from netslim.methods.search import SearchResult as SearchResult
    from netslim.methods.sensitivity_result import Sensitivity as Sensitivity
    from netslim.methods.slimming import NetworkSlimming as NetworkSlimming
    from netslim.methods.slimming import add_slimming_gradient as add_slimming_gradient
    from netslim.methods.slimming import slimming_penalty as slimming_penalty
    from netslim.methods.slimming import soft_threshold_ as soft_threshold_
    from netslim.methods.soft_filter import SoftFilterPruning as SoftFilterPruning
    from netslim.methods.soft_filter import cifar_resnet_cut as cifar_resnet_cut
    from netslim.methods.soft_filter import plan_of_zeros as plan_of_zeros
    from netslim.methods.soft_filter import zeroed as zeroed
else:
    __getattr__ = imported_later(__name__, _HOMES)
