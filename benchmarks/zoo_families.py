"""All networks of `benchmarks/zoo.py`: those of zoo_models.py, and of transformers,
segmentation_models_pytorch, MONAI and ultralytics.

The latter are made of configurations, small ones where there is a choice, with random weights;
nothing is downloaded. What a library that is not installed would make is left out.
"""

from __future__ import annotations

import importlib.util
import os
import tempfile
from typing import Any

import share_models
import torch
import zoo_models
from torch import nn

_LIBRARIES = {
    "transformers": "transformers",
    "smp": "segmentation_models_pytorch",
    "monai": "monai",
    "ultralytics": "ultralytics",
}
_CNNS = ("convnext", "convnextv2", "bit")  # of transformers

# Every architecture on one backbone, and one architecture on backbones of every kind.
_DECODERS = (
    *("unet", "unetplusplus", "manet", "linknet", "fpn", "pspnet", "pan", "deeplabv3"),
    *("deeplabv3plus", "upernet", "segformer"),
)
_ENCODERS = (
    *("vgg11_bn", "densenet121", "mobilenet_v2", "efficientnet-b0", "timm-regnetx_002", "dpn68"),
    *("se_resnet50", "timm-resnest14d", "timm-skresnet18", "timm-gernet_s", "xception", "mit_b0"),
    *("mobileone_s0", "tu-convnext_atto", "tu-mobilenetv3_small_050"),
)

_FLAT = {"spatial_dims": 2, "in_channels": 3, "out_channels": 4}
_SOLID = {"spatial_dims": 3, "in_channels": 1, "out_channels": 2}
_STEPS = {"channels": (8, 16, 32, 64), "strides": (2, 2, 2)}
_LAYERS = {"kernel_size": [3, 3, 3], "strides": [1, 2, 2], "upsample_kernel_size": [2, 2]}
_AROUND = {"in_shape": (1, 32, 32), "channels": (8, 16), "strides": (2, 2)}
# name -> (class, its options, shape of a batch); networks of volumes first
_MONAI: dict[str, tuple[str, dict[str, Any], tuple[int, ...]]] = {
    "unet-3d": ("UNet", {**_SOLID, **_STEPS, "num_res_units": 2}, (1, 1, 32, 32, 32)),
    "dynunet-3d": ("DynUNet", {**_SOLID, **_LAYERS}, (1, 1, 32, 32, 32)),
    "segresnet-3d": ("SegResNet", {**_SOLID, "init_filters": 16}, (1, 1, 32, 32, 32)),
    "vnet-3d": ("VNet", _SOLID, (1, 1, 32, 32, 32)),
    "highresnet-3d": ("HighResNet", _SOLID, (1, 1, 16, 16, 16)),
    "unetr-3d": (
        "UNETR",
        {"in_channels": 1, "out_channels": 2, "img_size": 32, "feature_size": 8, "hidden_size": 48,
         "mlp_dim": 96, "num_heads": 4},
        (1, 1, 32, 32, 32),
    ),
    "swinunetr-3d": (
        "SwinUNETR",
        {"in_channels": 1, "out_channels": 2, "feature_size": 12},
        (1, 1, 64, 64, 64),
    ),
    "densenet121-3d": ("DenseNet121", _SOLID, (1, 1, 32, 32, 32)),
    "resnet18-3d": (
        "resnet18",
        {"spatial_dims": 3, "n_input_channels": 1, "num_classes": 2},
        (1, 1, 32, 32, 32),
    ),
    "unet": ("UNet", {**_FLAT, **_STEPS, "num_res_units": 2}, (1, 3, 64, 64)),
    "unet-batch-norm": ("UNet", {**_FLAT, **_STEPS, "norm": "batch"}, (1, 3, 64, 64)),
    "attention-unet": ("AttentionUnet", {**_FLAT, **_STEPS}, (1, 3, 64, 64)),
    "basic-unet": ("BasicUNet", {**_FLAT, "features": (8, 8, 16, 32, 64, 8)}, (1, 3, 64, 64)),
    "basic-unet-plus-plus": (
        "BasicUNetPlusPlus",
        {**_FLAT, "features": (8, 8, 16, 32, 64, 8)},
        (1, 3, 64, 64),
    ),
    "dynunet": ("DynUNet", {**_FLAT, **_LAYERS, "res_block": True}, (1, 3, 64, 64)),
    "segresnet": ("SegResNet", {**_FLAT, "init_filters": 16}, (1, 3, 64, 64)),
    "segresnet-ds": ("SegResNetDS", {**_FLAT, "init_filters": 8, "norm": "batch"}, (1, 3, 64, 64)),
    "flexible-unet": (
        "FlexibleUNet",
        {"in_channels": 3, "out_channels": 4, "backbone": "efficientnet-b0"},
        (1, 3, 64, 64),
    ),
    "efficientnet": (
        "EfficientNetBN",
        {"model_name": "efficientnet-b0", "pretrained": False},
        (1, 3, 64, 64),
    ),
    "senet": (
        "SEResNet50",
        {"spatial_dims": 2, "in_channels": 3, "num_classes": 4},
        (1, 3, 64, 64),
    ),
    "autoencoder": ("AutoEncoder", {**_FLAT, "channels": (8, 16), "strides": (2, 2)}, (1, 3, 64, 64)),
    "classifier": ("Classifier", {**_AROUND, "classes": 4}, (1, 1, 32, 32)),
    "discriminator": ("Discriminator", _AROUND, (1, 1, 32, 32)),
    "vit": (
        "ViT",
        {"in_channels": 3, "img_size": 32, "patch_size": 8, "hidden_size": 32, "mlp_dim": 64,
         "num_layers": 2, "num_heads": 4, "classification": True, "spatial_dims": 2},
        (1, 3, 32, 32),
    ),
}  # fmt: skip

_YOLOS = (
    *("yolov3-tiny", "yolov5n", "yolov5n6", "yolov6n", "yolov8n", "yolov8n-p2", "yolov8n-ghost"),
    *("yolov9t", "yolov10n", "yolo11n", "yolo12n", "yolo26n", "rtdetr-resnet50"),
    *(f"{name}-{task}" for name in ("yolov8n", "yolo11n", "yolo26n")
      for task in ("seg", "pose", "cls", "obb")),
)  # fmt: skip
_ATTENDING = ("monai:unetr-3d", "monai:swinunetr-3d", "monai:vit", "smp:unet-mit_b0")


def names() -> list[str]:
    """Every network that the installed libraries can make, as ``library:name``."""
    all_of_them = [
        *(f"transformers:{name}" for name in share_models.TRANSFORMERS),
        *(f"smp:{decoder}-resnet18" for decoder in _DECODERS),
        *(f"smp:unet-{encoder}" for encoder in _ENCODERS),
        *(f"monai:{name}" for name in _MONAI),
        *(f"ultralytics:{name}" for name in _YOLOS),
    ]
    there = {name for name, module in _LIBRARIES.items() if importlib.util.find_spec(module)}
    further = [name for name in all_of_them if name.partition(":")[0] in there]
    return [*zoo_models.names(), *further]


def convolutional(name: str) -> bool:
    """Whether the network is a CNN, not one with attention."""
    library, _, rest = name.partition(":")
    if library not in _LIBRARIES:
        return zoo_models.convolutional(name)
    if library == "transformers":
        return rest in _CNNS
    if library == "ultralytics":
        return not rest.startswith(("yolov10", "yolo1", "yolo26", "rtdetr"))
    return name not in _ATTENDING


def build(name: str) -> tuple[nn.Module, Any]:
    """The network in evaluation mode with random weights, and a batch of one for it, both from a
    fixed seed.
    """
    torch.manual_seed(0)
    library, _, rest = name.partition(":")
    if library not in _LIBRARIES:
        return zoo_models.build(name)
    make = {"smp": _smp, "monai": _monai, "ultralytics": _ultralytics}.get(library)
    model, inputs = make(rest) if make else share_models.build(name)
    return model.eval(), inputs


def _smp(name: str) -> tuple[nn.Module, Any]:
    import segmentation_models_pytorch as smp

    decoder, _, encoder = name.partition("-")
    made = smp.create_model(decoder, encoder_name=encoder, encoder_weights=None, classes=3)
    size = 128 if decoder == "pan" else 64
    return made, torch.randn(1, 3, size, size)


def _monai(name: str) -> tuple[nn.Module, Any]:
    from monai.networks import nets

    kind, options, shape = _MONAI[name]
    return getattr(nets, kind)(**options), torch.randn(shape)


def _ultralytics(name: str) -> tuple[nn.Module, Any]:
    os.environ |= {"YOLO_OFFLINE": "true", "YOLO_AUTOINSTALL": "false", "YOLO_VERBOSE": "false"}
    os.environ.setdefault("YOLO_CONFIG_DIR", tempfile.mkdtemp())
    from ultralytics import RTDETR, YOLO

    opened = (RTDETR if "rtdetr" in name else YOLO)(f"{name}.yaml")
    return opened.model, torch.randn(1, 3, 64, 64)
