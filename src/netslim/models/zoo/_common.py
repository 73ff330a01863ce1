"""Width scaling and the initialisation the Network Slimming port uses for all its networks."""

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


def scaled(channels: int, width: float) -> int:
    """`channels` times `width`, rounded, at least 1."""
    if not (isinstance(channels, int) and channels > 0):
        raise ValueError(f"a layer needs a positive whole number of channels, not {channels!r}")
    if not width > 0:
        raise ValueError(f"width must be above 0, not {width}")
    return max(1, round(channels * width))


def initialise(model: nn.Module) -> None:
    """Convolutions He normal over fan-out, linear layers normal(0, 0.01), shifts 0, scales 1."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, 0.0, 0.01)
        elif isinstance(module, _BatchNorm):
            nn.init.ones_(module.weight)
        bias = getattr(module, "bias", None)
        if bias is not None:
            nn.init.zeros_(bias)
