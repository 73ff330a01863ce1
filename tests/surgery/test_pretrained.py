"""Networks with a `save_pretrained`: the configuration follows the cut, or saving refuses."""

from __future__ import annotations

import json
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import netslim
from netslim.errors import CheckpointError


class Config:
    """Numbers in lists and in a configuration within, some of them no widths."""

    def __init__(self, **given: Any) -> None:
        self.stem, self.widths, self.classes, self.positions = 16, [16, 24], 3, 16
        self.labels = {"cat": 0, "last": 16}
        self.head = HeadConfig()
        vars(self).update(given)

    def to_dict(self) -> dict[str, Any]:
        return {**vars(self), "head": vars(self.head)}


class HeadConfig:
    def __init__(self, hidden: int = 20) -> None:
        self.hidden = hidden

    def to_dict(self) -> dict[str, Any]:
        return vars(self)


class Pretrained(nn.Module):
    """Saves and builds itself, as Hugging Face's networks do."""

    config: Any

    def save_pretrained(self, folder: Path) -> None:
        (folder / "config.json").write_text(json.dumps(self.config.to_dict()))
        torch.save(self.state_dict(), folder / "weights.pt")

    @classmethod
    def from_pretrained(cls, folder: Path) -> Pretrained:
        said = json.loads((folder / "config.json").read_text())
        model = cls(Config(**{**said, "head": HeadConfig(**said["head"])}))
        model.load_state_dict(torch.load(folder / "weights.pt"))
        return model.eval()


class Head(nn.Module):
    def __init__(self, inputs: int, config: HeadConfig, classes: int) -> None:
        super().__init__()
        self.config = config
        self.up, self.down = nn.Linear(inputs, config.hidden), nn.Linear(config.hidden, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.up(x).relu())


class Block(nn.Module):
    """A shortcut where the widths differ, so that two entries must change together."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.skip = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        return (self.conv(x) + self.skip(x)).relu()


class Network(Pretrained):
    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
        first, second = config.widths
        self.stem = nn.Conv2d(3, config.stem, 3, padding=1)
        self.blocks = nn.Sequential(Block(config.stem, first), Block(first, second))
        self.places = nn.Parameter(torch.randn(1, 1, config.positions, 1))
        self.head = Head(second, config.head, config.classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head((self.blocks(self.stem(x)) + self.places).mean((2, 3)))


class StreamConfig:
    def __init__(self, width: int = 16, eps: float = 1e-5, dropout: float = 1e-5) -> None:
        self.width, self.eps, self.dropout = width, eps, dropout

    def to_dict(self) -> dict[str, Any]:
        return vars(self)


class Stream(Pretrained):
    """Normalises as Llama does; a number that is the eps, and another that only looks like it."""

    def __init__(self, config: StreamConfig) -> None:
        super().__init__()
        self.config, width = config, config.width
        self.embed, self.norm = nn.Linear(8, width), nn.RMSNorm(width, eps=config.eps)
        self.drop, self.head = nn.Dropout(config.dropout), nn.Linear(width, 3)
        self.last = nn.RMSNorm(width, eps=config.eps)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        return self.head(self.last(self.drop(x + self.norm(x))))


IMAGES = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def network() -> Network:
    torch.manual_seed(1)
    return Network(Config()).eval()


def half(model: nn.Module, *protect: str) -> Any:
    """Half of each layer's channels, but of the protected ones."""
    graph = netslim.trace(model, IMAGES)
    halves = {
        group.name: 0.5 for group in graph.groups if not (group.frozen or group.name in protect)
    }
    plan = netslim.select(graph, netslim.score(graph, model, "l1"), per_group=halves)
    return netslim.prune(model, plan)


def test_the_configuration_follows(tmp_path: Path) -> None:
    model = network()
    small = half(model)
    said = small.config
    assert (said.stem, said.widths, said.head.hidden) == (8, [8, 12], 10)
    assert (said.positions, said.classes, said.labels) == (16, 3, {"cat": 0, "last": 16})
    assert small.head.config is said.head
    assert vars(model.config).keys() == vars(Config()).keys()
    assert (model.config.stem, model.config.widths, model.config.head.hidden) == (16, [16, 24], 20)
    small.save_pretrained(tmp_path)
    assert torch.equal(Network.from_pretrained(tmp_path)(IMAGES), small(IMAGES))


def test_an_eps_that_was_scaled_is_in_the_configuration(tmp_path: Path) -> None:
    """Wherever the stream is normalised it is the same one: its widths are."""
    torch.manual_seed(1)
    model = Stream(StreamConfig()).eval()
    graph = netslim.trace(model, torch.randn(2, 8))
    plan = netslim.select(graph, netslim.score(graph, model, "l1"), per_group={"embed": 0.5})
    small = netslim.prune(model, plan)
    assert (small.config.width, small.config.eps, small.config.dropout) == (8, 2e-5, 1e-5)
    small.save_pretrained(tmp_path)
    again = Stream(StreamConfig(**json.loads((tmp_path / "config.json").read_text())))
    again.load_state_dict(torch.load(tmp_path / "weights.pt"))
    assert torch.equal(again.eval()(torch.ones(1, 8)), small(torch.ones(1, 8)))


class HeadsConfig:
    """Refuses to be read back with a prime number of heads, as a library's validation may."""

    def __init__(self, width: int = 16, heads: int = 4, keys: int = 2, inner: int = 20) -> None:
        self.width, self.heads, self.keys, self.inner, self.each = width, heads, keys, inner, 4

    def to_dict(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "each"}

    @classmethod
    def from_dict(cls, said: dict[str, Any]) -> HeadsConfig:
        if said["heads"] == 3:
            raise ValueError("no prime number of heads")
        return cls(**said)


class Grouped(nn.Module):
    """Attention with grouped queries, which knows of them by their ratio alone, as Llama's."""

    def __init__(self, config: HeadsConfig) -> None:
        super().__init__()
        self.each, self.groups = config.each, config.heads // config.keys
        self.q = nn.Linear(config.width, config.heads * self.each)
        self.k = nn.Linear(config.width, config.keys * self.each)
        self.v = nn.Linear(config.width, config.keys * self.each)
        self.o = nn.Linear(config.heads * self.each, config.width)

    def forward(self, x: Tensor) -> Tensor:
        n, length, _ = x.shape
        q, k, v = (f(x).view(n, length, -1, self.each).mT for f in (self.q, self.k, self.v))
        q, k, v = (y.permute(0, 3, 1, 2) for y in (q, k, v))
        k, v = (y.repeat_interleave(self.groups, 1) for y in (k, v))
        y = (q @ k.mT / 2).softmax(-1) @ v
        return self.o(y.transpose(1, 2).reshape(n, length, -1))


class Decoder(Pretrained):
    """With integers that no forward reads; 16 may also be the width of all heads."""

    def __init__(self, config: HeadsConfig) -> None:
        super().__init__()
        self.config, self.width = config, config.width
        self.embed = nn.Linear(8, config.width)
        self.attention, self.mlp = Grouped(config), MLP(config)
        self.head = nn.Linear(config.width, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        x = x + self.attention(x)
        return self.head(x + self.mlp(x))

    @classmethod
    def from_pretrained(cls, folder: Path) -> Pretrained:
        model = cls(HeadsConfig.from_dict(json.loads((folder / "config.json").read_text())))
        model.load_state_dict(torch.load(folder / "weights.pt"))
        return model.eval()


class MLP(nn.Module):
    def __init__(self, config: HeadsConfig) -> None:
        super().__init__()
        self.width, self.inner = config.width, config.inner
        self.up, self.down = nn.Linear(self.width, self.inner), nn.Linear(self.inner, self.width)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.up(x).relu())


TOKENS = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))


def cut_decoder(model: nn.Module, **counts: float) -> Any:
    graph = netslim.trace(model, TOKENS)
    names = {group.name: group.name for group in graph.prunable}
    wanted = {names[name.replace("_", ".")]: count for name, count in counts.items()}
    plan = netslim.select(graph, netslim.score(graph, model, "l1"), per_group=wanted)
    small = netslim.prune(model, plan)
    netslim.verify(model, small, plan, TOKENS)
    return small


def decoder(kind: type[Decoder] = Decoder, **given: int) -> Decoder:
    torch.manual_seed(1)
    return kind(HeadsConfig(**given)).eval()


@pytest.mark.parametrize(
    ("cut", "said"),
    [
        ({"mlp_up": 8}, {"inner": 12}),
        ({"embed": 4}, {"width": 12}),
        ({"attention_q": 1}, {"heads": 2, "keys": 1}),
        ({"embed": 4, "attention_q": 1, "mlp_up": 5}, {"width": 12, "heads": 2, "keys": 1, "inner": 15}),
    ],
)  # fmt: skip
def test_integers_that_nobody_reads_and_numbers_of_heads(
    tmp_path: Path, cut: dict[str, float], said: dict[str, int]
) -> None:
    small = cut_decoder(decoder(), **cut)
    assert small.config.to_dict() == {**HeadsConfig().to_dict(), **said}
    small.save_pretrained(tmp_path)
    assert torch.equal(Decoder.from_pretrained(tmp_path)(TOKENS), small(TOKENS))


class Scaling(Decoder):
    """Reads the width of its MLP, which is no width there."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        return self.head(x + self.mlp(x) * (1 + self.mlp.width % 2))


class Multiplied(Decoder):
    """Has a constant that its files do not hold."""

    def __init__(self, config: HeadsConfig) -> None:
        super().__init__(config)
        self.register_buffer("root", torch.tensor(config.width**0.5), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x) * self.root
        return self.head(x + self.mlp(x))


@pytest.mark.parametrize(
    ("model", "cut"),
    [
        (decoder(Scaling), {"embed": 4}),
        (decoder(Multiplied), {"embed": 4}),
        (decoder(keys=4), {"attention_q": 1}),
    ],
)  # fmt: skip
def test_what_would_be_built_otherwise_is_refused(
    tmp_path: Path, model: Decoder, cut: dict[str, float]
) -> None:
    """By a number that is read, by a constant, and where the configuration is not a valid one."""
    small = cut_decoder(model, **cut)
    assert small.config.to_dict() == model.config.to_dict()
    with pytest.raises(CheckpointError, match="configuration cannot say"):
        small.save_pretrained(tmp_path)


def test_a_constant_that_stays_is_written(tmp_path: Path) -> None:
    small = cut_decoder(decoder(Multiplied), mlp_up=8)
    assert small.config.inner == 12
    small.save_pretrained(tmp_path)
    assert torch.equal(Multiplied.from_pretrained(tmp_path)(TOKENS), small(TOKENS))


def test_a_cut_in_place_and_a_second_one(tmp_path: Path) -> None:
    model = network()
    for widths in ([8, 12], [4, 6]):
        graph = netslim.trace(model, IMAGES)
        scores, budget = netslim.score(graph, model, "l1"), netslim.Budget(cut_channels=0.5)
        netslim.prune_(model, netslim.select(graph, scores, budget, allocation="uniform"))
        assert model.config.widths == widths
    model.save_pretrained(tmp_path)
    assert torch.equal(Network.from_pretrained(tmp_path)(IMAGES), model(IMAGES))


class Twice(Network):
    """Two layers of one entry, cut apart."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.more = Head(config.classes, config.head, config.classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.more(super().forward(x))


def test_saving_refuses_what_the_configuration_cannot_say(tmp_path: Path) -> None:
    torch.manual_seed(1)
    model = Twice(Config()).eval()
    small = half(model, "more.up")
    assert (small.more.up.out_features, small.head.up.out_features) == (20, 10)
    assert small.config.to_dict() == model.config.to_dict()
    with pytest.raises(CheckpointError, match=r"Twice was cut to widths .* netslim.load\(Twice"):
        small.save_pretrained(tmp_path)
    assert not list(tmp_path.iterdir())
    with pytest.raises(CheckpointError):
        nn.Sequential(small)[0].save_pretrained(tmp_path)
    file = netslim.save(small, tmp_path / "small.safetensors")
    again = netslim.load(Twice(Config()), file).eval()
    assert torch.equal(again(IMAGES), small(IMAGES))
    with pytest.raises(CheckpointError):
        again.save_pretrained(tmp_path)
    model.save_pretrained(tmp_path)  # what was not cut goes on to save itself


def test_a_network_without_a_configuration_is_refused(tmp_path: Path) -> None:
    small = half(network())
    del small.config
    graph = netslim.trace(small, IMAGES)
    scores, budget = netslim.score(graph, small, "l1"), netslim.Budget(cut_channels=0.5)
    smaller = netslim.prune(small, netslim.select(graph, scores, budget))
    with pytest.raises(CheckpointError, match="configuration cannot say"):
        smaller.save_pretrained(tmp_path)


def test_within_another_network(tmp_path: Path) -> None:
    whole = nn.Sequential(network(), nn.Linear(3, 2)).eval()
    small = half(whole)
    assert small[0].config.stem < 16
    small[0].save_pretrained(tmp_path)
    assert torch.equal(Network.from_pretrained(tmp_path)(IMAGES), small[0](IMAGES))


def test_random_numbers_are_not_drawn() -> None:
    model = network()
    graph = netslim.trace(model, IMAGES)
    plan = netslim.select(
        graph, netslim.score(graph, model, "l1"), netslim.Budget(cut_channels=0.5)
    )
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    netslim.prune(model, plan)
    assert torch.equal(torch.rand(1), expected)


# --- Hugging Face's own ---------------------------------------------------------------------------


def transformers_resnet() -> Any:
    transformers = pytest.importorskip("transformers")
    config = transformers.ResNetConfig(
        embedding_size=16, hidden_sizes=[16, 32], depths=[1, 1], layer_type="basic", num_labels=5
    )
    torch.manual_seed(0)
    return transformers.ResNetForImageClassification(config).eval()


def test_transformers_configuration_follows(tmp_path: Path) -> None:
    small = half(transformers_resnet())
    assert (small.config.embedding_size, small.config.hidden_sizes) == (8, [8, 16])
    small.save_pretrained(tmp_path)
    again = type(small).from_pretrained(tmp_path).eval()
    torch.testing.assert_close(again(IMAGES).logits, small(IMAGES).logits)


def cut_words(kind: Any, config: Any, cut: dict[str, float]) -> tuple[Any, dict[str, Tensor]]:
    """A small network for words and what it takes, cut in the groups whose names match."""
    torch.manual_seed(0)
    model, words = kind(config).eval(), {"input_ids": torch.ones(1, 4).int()}
    graph = netslim.trace(model, words)
    names = [group.name for group in graph.prunable]
    wanted = {n: count for pattern, count in cut.items() for n in names if fnmatch(n, pattern)}
    plan = netslim.select(graph, netslim.score(graph, model, "l1"), per_group=wanted)
    return netslim.prune(model, plan), words


@pytest.mark.parametrize(
    "cut",
    [{"*mlp*": 0.5}, {"model.embed_tokens": 0.5}, {"*q_proj": 1}, {"*q_proj": 1, "*mlp*": 0.25}],
)  # fmt: skip
def test_llama_s_configuration_follows(tmp_path: Path, cut: dict[str, float]) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=48, vocab_size=64, pad_token_id=0, use_cache=False,
    )  # fmt: skip
    small, words = cut_words(transformers.LlamaForCausalLM, config, cut)
    small.save_pretrained(tmp_path)
    again = type(small).from_pretrained(tmp_path).eval()
    torch.testing.assert_close(again(**words).logits, small(**words).logits)


@pytest.mark.parametrize(
    ("cut", "right"),
    [({"*mlp*": 0.5}, True), ({"*q_proj": 1}, True), ({"model.embed_tokens": 0.5}, False)],
)
def test_gemma_s_configuration_follows_where_its_constant_stays(
    tmp_path: Path, cut: dict[str, float], right: bool
) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.GemmaConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=8,
        intermediate_size=48, vocab_size=64, pad_token_id=0, use_cache=False,
    )  # fmt: skip
    small, words = cut_words(transformers.GemmaForCausalLM, config, cut)
    if not right:
        with pytest.raises(CheckpointError, match="configuration cannot say"):
            small.save_pretrained(tmp_path)
        return
    small.save_pretrained(tmp_path)
    again = type(small).from_pretrained(tmp_path).eval()
    torch.testing.assert_close(again(**words).logits, small(**words).logits)


def test_transformers_refuses(tmp_path: Path) -> None:
    model = transformers_resnet()
    small = half(model, "resnet.embedder.embedder.convolution")
    with pytest.raises(CheckpointError, match="ResNetForImageClassification was cut to widths"):
        small.save_pretrained(tmp_path)
    file = netslim.save(small, tmp_path / "small.safetensors")
    again = netslim.load(type(model)(model.config), file).eval()
    torch.testing.assert_close(again(IMAGES).logits, small(IMAGES).logits)
    model.save_pretrained(tmp_path)


class Rebuilt(nn.Sequential):
    """Keeps the layout that a trainer would build it from, as the networks of ultralytics do."""

    def __init__(self) -> None:
        super().__init__(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
        self.yaml = {"nc": 2, "backbone": [[-1, 1, "Conv", [8]]], "head": [[-1, 1, "Conv", [4]]]}


def test_a_layout_of_the_widths_before_cannot_be_built_unseen():
    model = Rebuilt().eval()
    before = json.dumps(model.yaml)
    x, third = torch.rand(1, 3, 8, 8), netslim.Budget(cut_channels=0.3)
    small = netslim.slim(netslim.slim(model, x, budget=third), x, budget=third)
    assert json.dumps(model.yaml) == before
    first, *others = small.yaml["backbone"]
    assert "cut by netslim" in first[2]
    assert "trainer_of" in first[2]
    assert {**small.yaml, "backbone": others} == model.yaml
