"""The papers' networks, unadapted: plain PyTorch modules that know nothing of netslim.

Every function takes `num_classes` (10; for ImageNet's networks 1000), `width=1.0` (a factor on
every hidden width) and, for images, `in_channels=3`, and returns a freshly initialised module:
convolutions He normal over fan-out, linear layers normal(0, 0.01), BN scales 1 (torchvision's
ResNets are initialised as torchvision does). Starting the scales at 0.5, as Network Slimming does,
belongs to the method (`NetworkSlimming(model, gamma_init=0.5)`).
"""

from netslim.models.zoo._densenet import densenet, densenet40
from netslim.models.zoo._mlp import mlp
from netslim.models.zoo._preresnet import preresnet, preresnet164
from netslim.models.zoo._resnet import resnet, resnet20, resnet32, resnet44, resnet56, resnet110
from netslim.models.zoo._vgg import vgg, vgg11, vgg13, vgg16, vgg16_bn_4096, vgg16_fc512, vgg19
from netslim.models.zoo.imagenet import resnet18, resnet34, resnet50, resnet101, vgg_a

__all__ = [
    "densenet",
    "densenet40",
    "mlp",
    "preresnet",
    "preresnet164",
    "resnet",
    "resnet18",
    "resnet20",
    "resnet32",
    "resnet34",
    "resnet44",
    "resnet50",
    "resnet56",
    "resnet101",
    "resnet110",
    "vgg",
    "vgg11",
    "vgg13",
    "vgg16",
    "vgg16_bn_4096",
    "vgg16_fc512",
    "vgg19",
    "vgg_a",
]
