"""The networks of `benchmarks/zoo.py`: which they are, how each is built, and on what input it
runs.

All of torchvision's classification, segmentation, detection and video networks, taken from its
registry, and of timm one or two members of each convolutional and each hybrid family, small ones
where there is a choice. Weights are random; nothing is downloaded.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

# timm's modules and what is taken of each. First the convolutional families ...
CONVOLUTIONAL: dict[str, tuple[str, ...]] = {
    "byobnet": (
        "bat_resnext26ts",
        "eca_resnext26ts",
        "gcresnext26ts",
        "gernet_s",
        "mobileone_s0",
        "regnetz_b16",
        "regnetz_b16_evos",
        "repvgg_a0",
        "repvgg_d2se",
        "resnet51q",
        "seresnext26ts",
    ),
    "convmixer": ("convmixer_768_32",),
    "convnext": (
        "convnext_atto",
        "convnext_atto_ols",
        "convnext_atto_rms",
        "convnext_tiny_hnf",
        "convnextv2_atto",
    ),
    "cspnet": (
        "cs3darknet_s",
        "cs3darknet_focus_s",
        "cs3edgenet_x",
        "cs3sedarknet_l",
        "cs3sedarknet_xdw",
        "cspdarknet53",
        "cspresnet50",
        "cspresnext50",
        "darknet17",
        "darknetaa53",
        "sedarknet21",
    ),
    "cspnext": ("cspnext_tiny",),
    "densenet": ("densenet121", "densenet201", "densenetblur121d"),
    "dla": ("dla34", "dla46x_c", "dla60_res2net", "dla60_res2next"),
    "dpn": ("dpn48b", "dpn68", "dpn68b", "dpn92"),
    "efficientnet": (
        "efficientnet_b0",
        "efficientnet_b0_g16_evos",
        "efficientnet_b0_gn",
        "efficientnet_blur_b0",
        "efficientnet_cc_b0_4e",
        "efficientnet_es",
        "efficientnet_lite0",
        "efficientnet_x_b3",
        "efficientnetv2_rw_t",
        "fbnetc_100",
        "gc_efficientnetv2_rw_t",
        "mixnet_l",
        "mixnet_s",
        "mnasnet_small",
        "mobilenet_edgetpu_v2_xs",
        "mobilenetv1_100",
        "mobilenetv2_050",
        "semnasnet_050",
        "spnasnet_100",
        "tf_efficientnet_b0",
        "tf_mixnet_s",
        "tinynet_e",
    ),
    "fasternet": ("fasternet_t0",),
    "ghostnet": ("ghostnet_050", "ghostnetv2_100", "ghostnetv3_050"),
    "hardcorenas": ("hardcorenas_a",),
    "hgnet": ("hgnet_tiny", "hgnetv2_b0"),
    "hrnet": ("hrnet_w18_small", "hrnet_w18_ssld"),
    "inception_next": ("inception_next_atto", "inception_next_tiny"),
    "inception_resnet_v2": ("inception_resnet_v2",),
    "inception_v3": ("inception_v3",),
    "inception_v4": ("inception_v4",),
    "lcnetv2": ("lcnetv2_small",),
    "mambaout": ("mambaout_femto",),
    "metaformer": ("convformer_s18", "poolformer_s12", "poolformerv2_s12"),
    "mobilenetv3": (
        "fbnetv3_b",
        "lcnet_050",
        "mobilenetv3_large_100",
        "mobilenetv3_small_050",
        "mobilenetv4_conv_blur_medium",
        "mobilenetv4_conv_small",
        "tf_mobilenetv3_small_minimal_100",
    ),
    "nasnet": ("nasnetalarge",),
    "nfnet": (
        "dm_nfnet_f0",
        "eca_nfnet_l0",
        "nf_ecaresnet26",
        "nf_regnet_b0",
        "nf_resnet26",
        "nf_seresnet26",
        "nfnet_f0",
        "nfnet_l0",
    ),
    "pnasnet": ("pnasnet5large",),
    "rdnet": ("rdnet_tiny",),
    "regnet": ("regnetv_040", "regnetx_002", "regnety_002", "regnety_040_sgn", "regnetz_005"),
    "repghost": ("repghostnet_050",),
    "repvit": ("repvit_m0_9", "repvit_m1"),
    "res2net": ("res2net50_14w_8s", "res2net50_26w_4s", "res2net50d", "res2next50"),
    "resnest": ("resnest14d", "resnest26d", "resnest50d_4s2x40d"),
    "resnet": (
        "ecaresnet26t",
        "ecaresnetlight",
        "ecaresnext26t_32x4d",
        "resnet10t",
        "resnet152",
        "resnet18d",
        "resnet50_gn",
        "resnet50s",
        "resnetaa34d",
        "resnetblur18",
        "resnetrs50",
        "resnext50d_32x4d",
        "senet154",
        "seresnet18",
        "seresnext26d_32x4d",
    ),
    "resnetv2": (
        "resnetv2_18",
        "resnetv2_50d_evos",
        "resnetv2_50d_frn",
        "resnetv2_50d_gn",
        "resnetv2_50x1_bit",
    ),
    "rexnet": ("rexnet_100", "rexnetr_100"),
    "selecsls": ("selecsls42", "selecsls60b"),
    "senet": ("legacy_seresnet18", "legacy_seresnext26_32x4d"),
    "sknet": ("skresnet18", "skresnext50_32x4d"),
    "starnet": ("starnet_s1",),
    "tresnet": ("tresnet_m", "tresnet_v2_l"),
    "vgg": ("vgg11_bn",),
    "vovnet": (
        "eca_vovnet39b",
        "ese_vovnet19b_slim",
        "ese_vovnet19b_slim_dw",
        "ese_vovnet39b_evos",
        "vovnet39a",
    ),
    "xception": ("legacy_xception",),
    "xception_aligned": ("xception41", "xception41p"),
}

# ... then hybrids of convolution and attention, and some that are attention or MLPs alone.
HYBRID: dict[str, tuple[str, ...]] = {
    "byoanet": (
        "botnet26t_256",
        "eca_halonext26ts",
        "halonet26t",
        "lambda_resnet26rpt_256",
        "lambda_resnet26t",
        "sebotnet33ts_256",
    ),
    "cait": ("cait_xxs24_224",),
    "coat": ("coat_lite_tiny", "coat_tiny"),
    "convit": ("convit_tiny",),
    "cpubone": ("cpubone_b0_bfrobust", "cpubone_nano"),
    "crossvit": ("crossvit_9_dagger_240",),
    "csatv2": ("csatv2",),
    "davit": ("davit_tiny",),
    "deit": ("deit_tiny_distilled_patch16_224",),
    "edgenext": ("edgenext_small_rw", "edgenext_xx_small"),
    "efficientformer": ("efficientformer_l1",),
    "efficientformer_v2": ("efficientformerv2_s0",),
    "efficientvim": ("efficientvim_m1",),
    "efficientvit_mit": ("efficientvit_b0", "efficientvit_l1"),
    "efficientvit_msra": ("efficientvit_m0",),
    "fastvit": ("fastvit_mci0", "fastvit_sa12", "fastvit_t8"),
    "focalnet": ("focalnet_tiny_srf",),
    "gcvit": ("gcvit_xxtiny",),
    "hiera": ("hiera_tiny_224",),
    "iformer": ("iformer_t",),
    "levit": ("levit_128s", "levit_conv_128s"),
    "lowformer": ("lowformer_b0",),
    "maxxvit": (
        "coatnet_bn_0_rw_224",
        "coatnet_pico_rw_224",
        "coatnext_nano_rw_224",
        "maxvit_pico_rw_256",
    ),
    "metaformer": ("caformer_s18",),
    "mlp_mixer": ("gmlp_ti16_224", "mixer_s32_224", "resmlp_12_224"),
    "mobilenetv3": ("mobilenetv4_hybrid_medium",),
    "mobilenetv5": ("mobilenetv5_base",),
    "mobilevit": ("mobilevit_xxs", "mobilevitv2_050"),
    "mvitv2": ("mvitv2_tiny",),
    "nest": ("nest_tiny",),
    "nextvit": ("nextvit_small",),
    "pit": ("pit_xs_224",),
    "pvt_v2": ("pvt_v2_b0",),
    "sequencer": ("sequencer2d_s",),
    "shvit": ("shvit_s1",),
    "swiftformer": ("swiftformer_xs",),
    "swin_transformer": ("swin_tiny_patch4_window7_224",),
    "swin_transformer_v2": ("swinv2_tiny_window8_256",),
    "swin_transformer_v2_cr": ("swinv2_cr_tiny_ns_224",),
    "tiny_vit": ("tiny_vit_5m_224",),
    "tnt": ("tnt_s_patch16_224",),
    "twins": ("twins_pcpvt_small", "twins_svt_small"),
    "visformer": ("visformer_tiny",),
    "vision_transformer_hybrid": ("vit_small_r26_s32_224", "vit_tiny_r_s16_p8_224"),
    "vitamin": ("vitamin_small_224",),
    "volo": ("volo_d1_224",),
    "xcit": ("xcit_nano_12_p16_224",),
}

# Left out of torchvision's lists: above 200 million parameters, of families whose smaller members
# are there.
TOO_LARGE = frozenset({"regnet_y_128gf", "vit_h_14", "vit_l_16", "vit_l_32"})

_ATTENTION = ("vit_", "swin", "maxvit", "mvit")  # how torchvision's names begin
_SIZE = 64
_SIZES = {  # what is built for one size, or does not run on 64 x 64; timm says by itself which of its networks are
    "torchvision:inception_v3": 96,
    "torchvision:maxvit_t": 224,
    "torchvision:vit_b_16": 224,
    "torchvision:vit_b_32": 224,
    "torchvision:mvit_v1_b": 224,
    "torchvision:mvit_v2_s": 224,
    "torchvision:s3d": 224,
    "timm:bat_resnext26ts": 256,
    "timm:eca_halonext26ts": 256,
    "timm:halonet26t": 256,
    "timm:inception_resnet_v2": 96,
    "timm:inception_v3": 96,
    "timm:inception_v4": 96,
}
_RCNN = {
    "min_size": 128,
    "max_size": 160,
    "rpn_pre_nms_top_n_test": 60,
    "rpn_post_nms_top_n_test": 12,
    "box_score_thresh": 0.0,  # random weights are sure of nothing, and an empty output would prove nothing
    "box_detections_per_img": 8,
}
_ONE_STAGE = {"score_thresh": 0.0, "detections_per_img": 8}
_DETECTION: dict[str, dict[str, Any]] = {
    "fasterrcnn": _RCNN,
    "maskrcnn": _RCNN,
    "keypointrcnn": _RCNN,
    "retinanet": {"min_size": 128, "max_size": 160, "topk_candidates": 60, **_ONE_STAGE},
    "fcos": {"min_size": 128, "max_size": 160, "topk_candidates": 60, **_ONE_STAGE},
    "ssd300": {"topk_candidates": 60, **_ONE_STAGE},
    "ssdlite320": {"topk_candidates": 60, **_ONE_STAGE},
}


def timm_names() -> list[str]:
    """timm's architectures, convolutional ones first."""
    return [n for families in (CONVOLUTIONAL, HYBRID) for names in families.values() for n in names]


def torchvision_names(task: str | None = None) -> list[str]:
    """All of torchvision's classification networks, or those of `segmentation`, `detection` or
    `video`.
    """
    from torchvision import models

    listed = models.list_models(models if task is None else getattr(models, task))
    return [n for n in listed if n not in TOO_LARGE]


def names() -> list[str]:
    """Every network as ``library:architecture``."""
    tasks: tuple[str | None, ...] = (None, "segmentation", "detection", "video")
    vision = [f"torchvision:{n}" for task in tasks for n in torchvision_names(task)]
    return vision + [f"timm:{n}" for n in timm_names()]


def convolutional(name: str) -> bool:
    """Whether the network is a CNN, not a hybrid with attention or token mixing."""
    library, _, architecture = name.partition(":")
    if library == "torchvision":
        return not architecture.startswith(_ATTENTION)
    return any(architecture in members for members in CONVOLUTIONAL.values())


def build(name: str) -> tuple[nn.Module, Any]:
    """The network in evaluation mode with random weights and a batch of one for it, both from a
    fixed seed.

    The batch is a tensor, or for detection a tuple that holds the list of images.
    """
    torch.manual_seed(0)
    library, _, architecture = name.partition(":")
    make = _torchvision if library == "torchvision" else _timm
    model, inputs = make(architecture)
    return model.eval(), inputs


def _timm(name: str) -> tuple[nn.Module, Any]:
    import timm

    model = timm.create_model(name, pretrained=False)
    config: Any = model.pretrained_cfg
    fixed = config.get("fixed_input_size", False)
    size = config["input_size"][-1] if fixed else _SIZES.get(f"timm:{name}", _SIZE)
    return model, torch.randn(1, 3, size, size)


def _torchvision(name: str) -> tuple[nn.Module, Any]:
    from torchvision import models

    module = models.get_model_builder(name).__module__
    options: dict[str, Any] = {"weights": None}
    if ".detection" in module or ".segmentation" in module:
        options["weights_backbone"] = None
    if ".detection" in module:
        options |= next(kwargs for prefix, kwargs in _DETECTION.items() if name.startswith(prefix))
    if name in ("googlenet", "inception_v3"):
        options["init_weights"] = False
    model = models.get_model(name, **options)
    size = _SIZES.get(f"torchvision:{name}", _SIZE)
    if ".detection" in module:
        return model, ([torch.rand(3, 128, 128)],)
    frames = (16 if name.startswith(("mvit", "s3d")) else 8,) if ".video" in module else ()
    return model, torch.randn(1, 3, *frames, size, size)
