"""The networks of `benchmarks/shares.py`: those that normalise over channels or attend by heads.

They are members of the zoo (zoo_models.py), transformers that the library of this name makes of
small configurations, networks of diffusion, and some of our own. Weights are random, nothing is
downloaded; what a library that is not installed would make is left out.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
import zoo_models
from torch import Tensor, nn

Made = tuple[nn.Module, Any]  # a network, and what it is called with

TORCHVISION = ("convnext_tiny", "swin_t", "swin_v2_t", "maxvit_t")
# Of the zoo's convolutional families; of its hybrid ones all.
NORMALISED = (
    *("convnext_atto", "convnext_atto_ols", "convnext_atto_rms", "convnextv2_atto"),
    *("mambaout_femto", "convformer_s18", "poolformer_s12", "poolformerv2_s12", "rdnet_tiny"),
    *("efficientnet_b0_gn", "efficientnet_b0_g16_evos", "regnetz_b16_evos", "regnety_040_sgn"),
    *("resnet50_gn", "resnetv2_50d_gn", "resnetv2_50d_frn", "resnetv2_50d_evos"),
    *("resnetv2_50x1_bit", "gcresnext26ts", "eca_resnext26ts", "ecaresnet26t", "bat_resnext26ts"),
    *("dm_nfnet_f0", "eca_nfnet_l0", "nf_ecaresnet26", "nf_regnet_b0", "nf_resnet26", "nfnet_l0"),
)
PLAIN = (
    "vit_tiny_patch16_224",
    "deit_tiny_patch16_224",
    "beit_base_patch16_224",
    "eva02_tiny_patch14_224",
)

_IDS = torch.arange(5, 15).reshape(1, 10)
_SMALL: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48
}  # fmt: skip
_TEXT: dict[str, Any] = {**_SMALL, "vocab_size": 64}
_DECODER: dict[str, Any] = {**_TEXT, "pad_token_id": 0, "use_cache": False}
_PATCHES: dict[str, Any] = {**_SMALL, "image_size": 32, "patch_size": 8, "num_labels": 5}
_TWO: dict[str, Any] = {
    "num_encoder_blocks": 2, "depths": [1, 1], "sr_ratios": [4, 2], "patch_sizes": [7, 3], "strides": [4, 2],
    "hidden_sizes": [16, 32], "num_attention_heads": [2, 4], "mlp_ratios": [2, 2], "num_labels": 5,
}  # fmt: skip
_HEARD: dict[str, Any] = {
    "vocab_size": 64, "num_mel_bins": 8, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2,
    "encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48,
    "max_source_positions": 10, "max_target_positions": 10, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2, "decoder_start_token_id": 1, "use_cache": False,
}  # fmt: skip
_GPT: dict[str, Any] = {
    "n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 64, "pad_token_id": 0, "use_cache": False
}  # fmt: skip
_T5: dict[str, Any] = {
    "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "vocab_size": 64, "use_cache": False
}  # fmt: skip

# name -> (class, configuration, its settings, inputs)
_WORDS = {"input_ids": _IDS}
_PICTURE = {"pixel_values": torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))}
_PAIR = {**_WORDS, "decoder_input_ids": _IDS[:, :5]}
_SOUND = {
    "input_features": torch.linspace(-2, 2, 160).reshape(1, 8, 20),
    "decoder_input_ids": _IDS[:, :5],
}
_WAVE = {"input_values": torch.linspace(-9, 9, 256).sin().reshape(1, 256)}
TRANSFORMERS: dict[str, tuple[str, str, dict[str, Any], dict[str, Tensor]]] = {
    "bert": ("BertForSequenceClassification", "BertConfig", _TEXT, _WORDS),
    "distilbert": ("DistilBertForSequenceClassification", "DistilBertConfig", {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48, "vocab_size": 64}, _WORDS),
    "deberta-v2": ("DebertaV2ForSequenceClassification", "DebertaV2Config", {**_TEXT, "relative_attention": True, "pos_att_type": ["c2p", "p2c"], "max_relative_positions": 8}, _WORDS),
    "gpt2": ("GPT2LMHeadModel", "GPT2Config", _GPT, _WORDS),
    "gpt-neox": ("GPTNeoXForCausalLM", "GPTNeoXConfig", _DECODER, _WORDS),
    "opt": ("OPTForCausalLM", "OPTConfig", {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "ffn_dim": 48, "vocab_size": 64, "word_embed_proj_dim": 32, "pad_token_id": 0, "use_cache": False}, _WORDS),
    "bloom": ("BloomForCausalLM", "BloomConfig", {"hidden_size": 32, "n_layer": 2, "n_head": 4, "vocab_size": 64, "pad_token_id": 0, "use_cache": False}, _WORDS),
    "falcon": ("FalconForCausalLM", "FalconConfig", {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 64, "pad_token_id": 0, "use_cache": False}, _WORDS),
    "llama": ("LlamaForCausalLM", "LlamaConfig", {**_DECODER, "num_key_value_heads": 2}, _WORDS),
    "qwen2": ("Qwen2ForCausalLM", "Qwen2Config", {**_DECODER, "num_key_value_heads": 2}, _WORDS),
    "qwen3": ("Qwen3ForCausalLM", "Qwen3Config", {**_DECODER, "num_key_value_heads": 2, "head_dim": 8}, _WORDS),
    "gemma": ("GemmaForCausalLM", "GemmaConfig", {**_DECODER, "num_key_value_heads": 2, "head_dim": 8}, _WORDS),
    "gemma2": ("Gemma2ForCausalLM", "Gemma2Config", {**_DECODER, "num_key_value_heads": 2, "head_dim": 8, "sliding_window": 4}, _WORDS),
    "gemma3": ("Gemma3ForCausalLM", "Gemma3TextConfig", {**_DECODER, "num_key_value_heads": 2, "head_dim": 8, "sliding_window": 4}, _WORDS),
    "t5": ("T5ForConditionalGeneration", "T5Config", _T5, _PAIR),
    "whisper": ("WhisperForConditionalGeneration", "WhisperConfig", _HEARD, _SOUND),
    "wav2vec2": ("Wav2Vec2ForSequenceClassification", "Wav2Vec2Config", {**_SMALL, "conv_dim": [16, 16], "conv_kernel": [4, 4], "conv_stride": [2, 2], "num_feat_extract_layers": 2, "num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2, "num_labels": 5, "classifier_proj_size": 16}, _WAVE),
    "mamba": ("MambaForCausalLM", "MambaConfig", {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 8, "use_cache": False}, _WORDS),
    "mamba2": ("Mamba2ForCausalLM", "Mamba2Config", {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 8, "num_heads": 8, "head_dim": 8, "n_groups": 2, "chunk_size": 4, "use_cache": False, "pad_token_id": 0}, _WORDS),
    "vit": ("ViTForImageClassification", "ViTConfig", _PATCHES, _PICTURE),
    "deit": ("DeiTForImageClassification", "DeiTConfig", _PATCHES, _PICTURE),
    "dinov2": ("Dinov2ForImageClassification", "Dinov2Config", _PATCHES, _PICTURE),
    "beit": ("BeitForImageClassification", "BeitConfig", {**_PATCHES, "use_relative_position_bias": True}, _PICTURE),
    "clip": ("CLIPVisionModelWithProjection", "CLIPVisionConfig", {**_SMALL, "image_size": 32, "patch_size": 8, "projection_dim": 12}, _PICTURE),
    "siglip": ("SiglipVisionModel", "SiglipVisionConfig", {**_SMALL, "image_size": 32, "patch_size": 8}, _PICTURE),
    "sam": ("SamVisionModel", "SamVisionConfig", {**_SMALL, "image_size": 32, "patch_size": 8, "output_channels": 16, "mlp_dim": 48, "window_size": 2, "global_attn_indexes": [1]}, _PICTURE),
    "swin": ("SwinForImageClassification", "SwinConfig", {"image_size": 32, "patch_size": 4, "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4, "num_labels": 5}, _PICTURE),
    "swinv2": ("Swinv2ForImageClassification", "Swinv2Config", {"image_size": 32, "patch_size": 4, "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4, "num_labels": 5}, _PICTURE),
    "convnext": ("ConvNextForImageClassification", "ConvNextConfig", {"hidden_sizes": [16, 32], "depths": [1, 1], "num_stages": 2, "num_labels": 5}, _PICTURE),
    "convnextv2": ("ConvNextV2ForImageClassification", "ConvNextV2Config", {"hidden_sizes": [16, 32], "depths": [1, 1], "num_stages": 2, "num_labels": 5}, _PICTURE),
    "bit": ("BitForImageClassification", "BitConfig", {"embedding_size": 16, "hidden_sizes": [64, 64], "depths": [1, 1], "num_groups": 8, "num_labels": 5}, _PICTURE),
    "poolformer": ("PoolFormerForImageClassification", "PoolFormerConfig", {"depths": [1, 1, 1, 1], "hidden_sizes": [16, 32, 40, 64], "num_labels": 5}, _PICTURE),
    "segformer": ("SegformerForSemanticSegmentation", "SegformerConfig", {**_TWO, "decoder_hidden_size": 32}, _PICTURE),
    "pvt-v2": ("PvtV2ForImageClassification", "PvtV2Config", {**_TWO, "image_size": 32}, _PICTURE),
    "levit": ("LevitForImageClassification", "LevitConfig", {"image_size": 64, "hidden_sizes": [64, 96, 128], "num_attention_heads": [2, 3, 4], "depths": [1, 1, 1], "key_dim": [16, 16, 16], "num_labels": 5}, {"pixel_values": torch.linspace(-3, 3, 12288).cos().reshape(1, 3, 64, 64)}),
    "mobilevit": ("MobileViTForImageClassification", "MobileViTConfig", {"image_size": 64, "hidden_sizes": [48, 64, 80], "neck_hidden_sizes": [16, 32, 64, 96, 128, 160, 640], "num_labels": 5}, {"pixel_values": torch.linspace(-3, 3, 12288).cos().reshape(1, 3, 64, 64)}),
    "detr": ("DetrForObjectDetection", "DetrConfig", {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "num_queries": 6, "num_labels": 5}, {"pixel_values": torch.linspace(-3, 3, 12288).cos().reshape(1, 3, 64, 64)}),
}  # fmt: skip


# --- diffusion ------------------------------------------------------------------------------------


def _unet() -> Made:
    from diffusers import UNet2DModel

    model = UNet2DModel(
        sample_size=16,
        block_out_channels=(16, 32),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=8,
        attention_head_dim=8,
        layers_per_block=1,
    )
    return model, (torch.randn(1, 3, 16, 16), torch.tensor([5]))


def _conditional_unet() -> Made:
    from diffusers import UNet2DConditionModel

    model = UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(16, 32),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=8,
        attention_head_dim=4,
        layers_per_block=1,
        cross_attention_dim=24,
    )
    return model, (torch.randn(1, 4, 16, 16), torch.tensor([5]), torch.randn(1, 6, 24))


def _autoencoder() -> Made:
    from diffusers import AutoencoderKL

    model = AutoencoderKL(
        block_out_channels=(16, 32),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=8,
        latent_channels=4,
    )
    return model, torch.randn(1, 3, 16, 16)


def _dit() -> Made:
    from diffusers import DiTTransformer2DModel

    model = DiTTransformer2DModel(
        num_attention_heads=4,
        attention_head_dim=8,
        in_channels=4,
        num_layers=2,
        sample_size=8,
        num_embeds_ada_norm=10,
        norm_num_groups=8,
    )
    inputs = {
        "hidden_states": torch.randn(1, 4, 8, 8),
        "timestep": torch.tensor([3]),
        "class_labels": torch.tensor([1]),
    }
    return model, inputs


DIFFUSERS: dict[str, Callable[[], Made]] = {
    "unet": _unet,
    "unet-conditional": _conditional_unet,
    "autoencoder": _autoencoder,
    "dit": _dit,
}


# --- written out ----------------------------------------------------------------------------------


class _Residual(nn.Module):
    """Of a U-Net, told of the time where ``t`` says how wide it is."""

    def __init__(self, i: int, o: int, t: int = 0) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.GroupNorm(8, i), nn.GroupNorm(8, o)])
        self.convs = nn.ModuleList([nn.Conv2d(i, o, 3, padding=1), nn.Conv2d(o, o, 3, padding=1)])
        self.time = nn.Linear(t, o) if t else None
        self.short = nn.Conv2d(i, o, 1) if i != o else nn.Identity()

    def forward(self, x: Tensor, t: Tensor | None = None) -> Tensor:
        h = self.convs[0](F.silu(self.norms[0](x)))
        if self.time is not None and t is not None:
            h = h + self.time(F.silu(t))[:, :, None, None]
        return self.short(x) + self.convs[1](F.silu(self.norms[1](h)))


class _UNet(nn.Module):
    def __init__(self, w: int = 16, t: int = 32) -> None:
        super().__init__()
        self.time = nn.Sequential(nn.Linear(16, t), nn.SiLU(), nn.Linear(t, t))
        self.first, self.down = nn.Conv2d(3, w, 3, padding=1), nn.Conv2d(w, w, 3, 2, 1)
        self.left, self.low = _Residual(w, w, t), _Residual(w, 2 * w, t)
        self.middle, self.up = _Residual(2 * w, 2 * w, t), _Residual(4 * w, 2 * w, t)
        self.right = _Residual(3 * w, w, t)
        self.last = nn.Sequential(nn.GroupNorm(8, w), nn.SiLU(), nn.Conv2d(w, 3, 3, padding=1))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        t = self.time(t)
        high = self.left(self.first(x), t)
        low = self.low(self.down(high), t)
        x = self.up(torch.cat([self.middle(low, t), low], 1), t)
        return self.last(self.right(torch.cat([F.interpolate(x, scale_factor=2), high], 1), t))


class _Attention(nn.Module):
    """Over places, as in the middle of an autoencoder."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(8, c)
        self.q, self.k, self.v, self.o = (nn.Conv2d(c, c, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        b, c, *places = h.shape
        q, k, v = (part(h).flatten(2).mT[:, None] for part in (self.q, self.k, self.v))
        return x + self.o(F.scaled_dot_product_attention(q, k, v)[:, 0].mT.reshape(b, c, *places))


def _own_unet() -> Made:
    return _UNet(), (torch.randn(1, 3, 16, 16), torch.randn(1, 16))


def _own_autoencoder() -> Made:
    encoder = [
        nn.Conv2d(3, 16, 3, padding=1),
        _Residual(16, 16),
        nn.Conv2d(16, 32, 3, 2, 1),
        _Residual(32, 32),
    ]
    middle = [
        _Attention(32),
        nn.GroupNorm(8, 32),
        nn.SiLU(),
        nn.Conv2d(32, 4, 1),
        nn.Conv2d(4, 32, 1),
    ]
    decoder = [_Residual(32, 32), _Attention(32), _Residual(32, 16), nn.Upsample(scale_factor=2)]
    last = [nn.GroupNorm(8, 16), nn.SiLU(), nn.Conv2d(16, 3, 3, padding=1)]
    return nn.Sequential(*encoder, *middle, *decoder, *last), torch.randn(1, 3, 16, 16)


class _CBAM(nn.Module):
    """Woo et al. 2018, with its pooling over channels in the same forward."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(c, c // 4), nn.ReLU(), nn.Linear(c // 4, c))
        self.conv = nn.Conv2d(2, 1, 7, padding=3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        seen = self.mlp(x.mean((2, 3))) + self.mlp(x.amax((2, 3)))
        x = x * seen.sigmoid()[:, :, None, None]
        places = torch.cat([x.mean(1, keepdim=True), x.max(1, keepdim=True)[0]], 1)
        return x * self.conv(places).sigmoid()


def _cbam() -> Made:
    layers: list[nn.Module] = []
    for i, o in ((3, 16), (16, 32), (32, 64)):
        layers += [nn.Conv2d(i, o, 3, 2, 1), nn.BatchNorm2d(o), nn.ReLU(), _CBAM(o)]
    return nn.Sequential(
        *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)
    ), torch.randn(1, 3, 32, 32)


def _timm_cbam() -> Made:
    import timm

    return timm.create_model("resnet18", block_args={"attn_layer": "cbam"}), torch.randn(
        1, 3, 64, 64
    )


class _Pyramid(nn.Module):
    """Zhao et al. 2017."""

    def __init__(self, c: int, o: int) -> None:
        super().__init__()
        self.parts = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(b), nn.Conv2d(c, o, 1), nn.BatchNorm2d(o), nn.ReLU())
            for b in (1, 2, 3, 6)
        )

    def forward(self, x: Tensor) -> Tensor:
        size = x.shape[2:]
        return torch.cat(
            [x, *(F.interpolate(part(x), size, mode="bilinear") for part in self.parts)], 1
        )


def _pspnet() -> Made:
    from torchvision.models import resnet18

    body = list(resnet18().children())[:-2]
    head = [nn.Conv2d(1024, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), nn.Conv2d(64, 5, 1)]
    return nn.Sequential(*body, _Pyramid(512, 128), *head), torch.randn(1, 3, 64, 64)


def _sngan() -> Made:
    from torch.nn.utils.parametrizations import spectral_norm

    layers: list[nn.Module] = []
    for i, o in ((3, 16), (16, 32), (32, 64)):
        layers += [spectral_norm(nn.Conv2d(i, o, 4, 2, 1)), nn.LeakyReLU(0.1)]
    return nn.Sequential(*layers, nn.Flatten(), spectral_norm(nn.Linear(1024, 1))), torch.randn(
        1, 3, 32, 32
    )


def _torchvision_vit() -> Made:
    from torchvision.models import VisionTransformer

    return VisionTransformer(32, 8, 2, 4, 32, 64, num_classes=5), torch.randn(1, 3, 32, 32)


def _pytorch_transformer() -> Made:
    model = nn.Transformer(32, 4, 2, 2, 64, batch_first=True)
    return _Embedded(model), (torch.randn(1, 6, 7), torch.randn(1, 4, 5))


def _encodec(norm: str) -> Callable[[], Made]:
    def make() -> Made:
        from transformers import EncodecConfig, EncodecModel

        settings = {
            "num_filters": 8,
            "hidden_size": 32,
            "codebook_dim": 32,
            "upsampling_ratios": [4, 2],
            "norm_type": norm,
        }
        whole = EncodecModel(EncodecConfig(**settings))
        return nn.Sequential(whole.encoder, whole.decoder), torch.randn(1, 1, 256)

    return make


OWN: dict[str, Callable[[], Made]] = {
    "unet": _own_unet,
    "autoencoder": _own_autoencoder,
    "cbam": _cbam,
    "cbam-of-timm": _timm_cbam,
    "pspnet": _pspnet,
    "sngan": _sngan,
    "vit-of-torchvision": _torchvision_vit,
    "transformer-of-pytorch": _pytorch_transformer,
}
_ENCODEC = {"encodec": _encodec("weight_norm"), "encodec-group-norm": _encodec("time_group_norm")}
_LARGE = {
    "timm:beit_base_patch16_224": {"depth": 2, "img_size": 64, "embed_dim": 192, "num_heads": 4}
}


def names() -> list[str]:
    """Every network that the installed libraries can make, as ``library:name``."""
    hybrid = [name for members in zoo_models.HYBRID.values() for name in members]
    listed = [f"torchvision:{name}" for name in TORCHVISION]
    listed += [f"timm:{name}" for name in (*NORMALISED, *hybrid, *PLAIN)]
    if importlib.util.find_spec("transformers"):
        listed += [f"transformers:{name}" for name in (*TRANSFORMERS, *_ENCODEC)]
    if importlib.util.find_spec("diffusers"):
        listed += [f"diffusers:{name}" for name in DIFFUSERS]
    return listed + [f"own:{name}" for name in OWN]


class _First(nn.Module):
    """Of what a model hands out the first alone: hidden states beside it would have to stay."""

    def __init__(self, model: nn.Module, name: str) -> None:
        super().__init__()
        self.model, self.name = model, name

    def forward(self, **inputs: Tensor) -> Tensor:
        return getattr(self.model(**inputs), self.name)


_FIRST = {"clip": "image_embeds", "siglip": "pooler_output", "t5": "logits", "whisper": "logits"}


class _Embedded(nn.Module):
    """A transformer of PyTorch's behind layers that make what it reads."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.source, self.target, self.model = nn.Linear(7, 32), nn.Linear(5, 32), model
        self.head = nn.Linear(32, 3)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        return self.head(self.model(self.source(source), self.target(target)))


def build(name: str) -> Made:
    """The network in evaluation mode with the weights that it begins with, and what it takes."""
    torch.manual_seed(0)
    library, _, rest = name.partition(":")
    makers = {**DIFFUSERS} if library == "diffusers" else {**OWN, **_ENCODEC}
    if library in ("torchvision", "timm"):
        return _of_the_zoo(name, rest)
    if library == "transformers" and rest in TRANSFORMERS:
        model, inputs = _of_a_configuration(rest)
    else:
        model, inputs = makers[rest]()
    return model.eval(), inputs


def _of_the_zoo(name: str, architecture: str) -> Made:
    if architecture not in PLAIN:
        return zoo_models.build(name)
    import timm

    settings = _LARGE.get(name, {"depth": 3, "img_size": 64})
    if "patch14" in architecture:
        settings = {**settings, "img_size": 56}
    return timm.create_model(architecture, num_classes=10, **settings).eval(), torch.randn(
        1, 3, settings["img_size"], settings["img_size"]
    )


def _of_a_configuration(name: str) -> Made:
    import transformers

    transformers.logging.set_verbosity_error()
    model, config, settings, inputs = TRANSFORMERS[name]
    made = getattr(transformers, config)(**settings)
    if name == "detr":
        narrow = {
            "embedding_size": 16,
            "hidden_sizes": [16, 32],
            "depths": [1, 1],
            "out_features": ["stage2"],
        }
        made.backbone_config = transformers.ResNetConfig(layer_type="basic", **narrow)
    network = getattr(transformers, model)(made)
    if name in _FIRST:
        network = _First(network, _FIRST[name])
    return network, dict(inputs)
