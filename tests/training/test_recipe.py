"""Recipes: what is shipped, what may be overridden, and what is refused before anything runs."""

from __future__ import annotations

import re

import pytest
import yaml

from netslim.errors import RecipeError
from netslim.training.recipe.files import read_yaml, recipe_text, shipped
from netslim.training.recipe.orders import wasted
from netslim.training.recipe.reading import load_recipe, parse_recipe
from netslim.training.recipe.schedule import factor
from netslim.training.recipe.schema import Baseline, Prune, Recipe, ScheduleOptions, Train
from shipped_recipes import recipe_of

LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the same YAML, a few times as fast
DUMPER = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
SMALL = """
name: small
title: A test
data: {name: digits}
model: {name: zoo:vgg, layers: [8], in_channels: 1}
stages:
  - {kind: train, name: sparse, epochs: 4, sparsity: {strength: 1e-4}}
  - {kind: prune, budget: {cut_channels: 0.5}}
  - {kind: finetune, epochs: 2}
  - {kind: measure}
"""


def small(**changes: object) -> dict[str, object]:
    return {**read_yaml(SMALL), **changes}


@pytest.fixture
def recipe_file(tmp_path):
    path = tmp_path / "small.yaml"
    path.write_text(SMALL)
    return str(path)


@pytest.mark.parametrize("name", shipped())
def test_a_shipped_recipe_is_complete_and_survives_a_round_trip(name):
    recipe = recipe_of(name)
    assert recipe.name == name
    assert not wasted(recipe)
    text = yaml.dump(recipe.to_dict(), Dumper=DUMPER)
    assert parse_recipe(yaml.load(text, Loader=LOADER)) == recipe


def test_the_papers_settings_for_vgg19():
    recipe = load_recipe("vgg19-cifar10")
    sparse, _, prune, tune, _ = recipe.stages
    assert isinstance(sparse, Train)
    assert isinstance(prune, Prune)
    assert isinstance(tune, Train)
    assert recipe.data.batch_size == 64
    for stage in (sparse, tune):
        assert (stage.epochs, stage.optimizer.lr, stage.optimizer.momentum) == (160, 0.1, 0.9)
        assert (stage.optimizer.weight_decay, stage.optimizer.nesterov) == (1e-4, True)
        assert (stage.schedule.name, stage.schedule.milestones, stage.schedule.factor) == (
            "multistep",
            [0.5, 0.75],
            0.1,
        )
    assert sparse.sparsity is not None
    assert (sparse.sparsity.strength, sparse.sparsity.gamma_init) == (1e-4, 0.5)
    assert tune.sparsity is None
    assert prune.budget.given() == {"cut_channels": 0.7}
    assert [row["error"] for row in recipe.published][:2] == [6.34, 6.20]


def test_the_papers_settings_for_mnist():
    recipe = load_recipe("mnist-mlp")
    sparse, baseline, prune, _, _ = recipe.stages
    assert isinstance(sparse, Train)
    assert isinstance(baseline, Baseline)
    assert isinstance(prune, Prune)
    assert (recipe.data.batch_size, sparse.epochs, prune.allocation) == (256, 30, "uniform")
    assert prune.budget.given() == {"cut_channels": 0.8}
    rates = [factor(sparse.schedule, epoch * 200, 30, 200) for epoch in (0, 9, 10, 19, 20, 29)]
    assert rates == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])


def test_numbers_in_scientific_notation_are_numbers():
    assert read_yaml("[1e-4, 1.5e-3, 2E5, 1e+3, -1e-2, .5e1, a1e-4, 1e]") == [
        1e-4, 1.5e-3, 2e5, 1e3, -1e-2, 5.0, "a1e-4", "1e",
    ]  # fmt: skip


def test_overrides_reach_every_kind_of_place(recipe_file):
    recipe = load_recipe(
        recipe_file,
        {
            "seed": "3",
            "data.root": "/somewhere/1",
            "data.augment.pad": "2",
            "model.layers": "[4, M, 4]",
            "model.width": "0.5",
            "stages.sparse.epochs": "7",
            "stages.sparse.sparsity.strength": "5e-4",
            "stages.0.optimizer.lr": "0.2",
            "stages.prune.budget.cut_channels": "0.25",
            "stages.finetune.schedule.milestones": "[0.5, 1.5]",
            "trainer.device": "cpu",
        },
    )
    sparse, prune, tune, _ = recipe.stages
    assert (recipe.seed, recipe.data.root, recipe.trainer.device) == (3, "/somewhere/1", "cpu")
    assert recipe.data.augment is not None
    assert recipe.data.augment.pad == 2
    assert recipe.model.kwargs == {"layers": [4, "M", 4], "in_channels": 1, "width": 0.5}
    assert isinstance(sparse, Train)
    assert isinstance(prune, Prune)
    assert isinstance(tune, Train)
    assert (sparse.epochs, sparse.optimizer.lr) == (7, 0.2)
    assert sparse.sparsity is not None
    assert sparse.sparsity.strength == 5e-4
    assert prune.budget.cut_channels == 0.25
    assert tune.schedule.milestones == [0.5, 1.5]


def test_an_override_does_not_leak_through_a_yaml_alias(tmp_path):
    path = tmp_path / "alias.yaml"
    path.write_text(
        SMALL.replace("sparsity: {strength: 1e-4}", "optimizer: &sgd {lr: 0.3}").replace(
            "finetune, epochs: 2", "finetune, epochs: 2, optimizer: *sgd"
        )
    )
    first, _, second, _ = load_recipe(str(path), {"stages.sparse.optimizer.lr": "0.7"}).stages
    assert isinstance(first, Train)
    assert isinstance(second, Train)
    assert (first.optimizer.lr, second.optimizer.lr) == (0.7, 0.3)


def test_repeat_is_written_out_and_its_stages_can_be_addressed(tmp_path):
    path = tmp_path / "multi.yaml"
    path.write_text(
        """
name: multi
title: Three passes
data: {name: digits}
model: {name: zoo:mlp}
stages:
  - repeat:
      times: 3
      stages:
        - {kind: train, name: sparse, epochs: 1, sparsity: {strength: 1e-3}}
        - {kind: prune, budget: {cut_channels: 0.5}, max_cut: 0.5}
  - {kind: measure}
"""
    )
    recipe = load_recipe(str(path))
    assert [stage.name for stage in recipe.stages] == [
        "sparse-1", "prune-1", "sparse-2", "prune-2", "sparse-3", "prune-3", "measure",
    ]  # fmt: skip
    changed = load_recipe(str(path), {"stages.sparse.epochs": "4", "stages.repeat.times": "2"})
    assert [stage.epochs for stage in changed.stages if isinstance(stage, Train)] == [4, 4]
    assert parse_recipe(changed.to_dict()) == changed


REFUSED = [
    ({"data.nme": "x"}, r"data\.nme: there is no such option; did you mean 'name'"),
    ({"stages.sparse.teacher": "x"}, r"no such option; it belongs in distill: \{teacher: \.\.\.\}"),
    ({"stages.sparse.strength": "1"}, r"strength: .*; it belongs in sparsity: \{strength: "),
    ({"stages.prune.cut_macs": "0.5"}, r"cut_macs: .*; it belongs in budget: \{cut_macs: "),
    ({"image_size": "32"}, r"image_size: there is no such option; it belongs in data: "),
    ({"sed": "1"}, r"sed: there is no such option; did you mean 'seed'"),
    ({"extend": "digits"}, r"extend: there is no such option; did you mean 'extends'"),
    (
        {"stages.spars.epochs": "1"},
        r"--stages\.spars: the recipe has no stage 'spars'; did you mean 'sparse'\?",
    ),
    ({"stages.9.epochs": "1"}, r"no stage '9'"),
    (
        {"stages.sparse.epoch": "1"},
        r"stages\.sparse\.epoch: there is no such option; did you mean 'epochs'\?",
    ),
    ({"stages.sparse.sparsity.strenght": "1"}, r"did you mean 'strength'"),
    ({"stages.sparse": "1"}, r"--stages\.sparse: name the option of the stage too"),
    (
        {"stages.sparse.epochs": "many"},
        r"stages\.sparse\.epochs: expected a whole number, got 'many'",
    ),
    ({"stages.sparse.epochs": "1.5"}, r"expected a whole number, got 1\.5"),
    ({"stages.sparse.optimizer.lr": "fast"}, r"expected a number, got 'fast'"),
    ({"stages.sparse.optimizer.lr": ".nan"}, r"expected a finite number"),
    ({"stages.sparse.optimizer": "adam"}, r"expected a mapping of options, got 'adam'"),
    ({"stages.sparse.optimizer.name": "adam"}, r"expected one of sgd, adamw, got 'adam'"),
    ({"stages.sparse.schedule.milestones": "{a: 1}"}, r"expected a list"),
    ({"trainer.device": "tpu"}, r"expected one of auto, cpu, cuda, got 'tpu'"),
    ({"seed.x": "1"}, r"seed: expected a whole number, got \{'x': 1\}"),
    ({"name.x": "1"}, r"--name: this option is a single value \('small'\)"),
    (
        {"stages.prune.budget.cut_channels": "1"},
        r"budget\.cut_channels must be a number .* below 1, got 1\.0",
    ),
    (
        {"stages.prune.budget.cut_channels": "1.2"},
        r"cut_channels must be a number at least 0 and below 1",
    ),
    (
        {"stages.prune.budget.cut_channels": "-0.1"},
        r"cut_channels must be a number at least 0 .*, got -0\.1",
    ),
    (
        {"stages.prune.budget.max_macs": "0"},
        r"stages\.prune\.budget\.max_macs must be a whole number above 0, got 0",
    ),
    ({"stages.prune.budget.cut_channels": "null"}, r"budget: say how much to cut"),
    (
        {"stages.prune.max_cut": "1"},
        r"stages\.prune\.max_cut must be a number at least 0 and below 1, got 1\.0",
    ),
    ({"stages.prune.max_cut.a": "1.5"}, r"stages\.prune\.max_cut of 'a': give the share"),
    (
        {"stages.prune.min_channels": "0"},
        r"stages\.prune\.min_channels must be a whole number at least 1, got 0",
    ),
    (
        {"stages.prune.min_chanels": "2"},
        r"min_chanels: there is no such option; did you mean 'min_channels'",
    ),
    ({"stages.prune.per_group": "null"}, r"prune\.per_group: expected a mapping .*, got null"),
    ({"stages.prune.budget": "null"}, r"stages\.prune\.budget: expected a mapping of options"),
    ({"stages.prune.protect": "{a: 1}"}, r"protect: expected a list"),
    (
        {"stages.prune.recalibrate": "-1"},
        r"stages\.prune\.recalibrate must be a whole number at least 0, got -1",
    ),
    (
        {"stages.prune.allocation": "isomorfic"},
        r"no allocation 'isomorfic'; did you mean 'isomorphic'\?",
    ),
    (
        {"stages.prune.criterion": "bn_scales"},
        r"no criterion 'bn_scales'; did you mean 'bn_scale'",
    ),
    ({"stages.prune.criterion": "5"}, r"criterion: expected a text, got 5"),
    (
        {"stages.prune.per_group.a": "1.5"},
        r"per_group\.a: is 1\.5, must be a number of channels \(3\) or a share",
    ),
    ({"stages.sparse.epochs": "0"}, r"epochs: is 0, must be 1 or more"),
    ({"stages.sparse.optimizer.lr": "0"}, r"lr: is 0\.0, must be above 0"),
    (
        {"stages.sparse.optimizer.momentum": "0"},
        r"nesterov: is True, must be false when the momentum is 0",
    ),
    (
        {"stages.sparse.sparsity.strength": "-1"},
        r"sparsity\.strength must be a number at least 0 or 'auto', got -1\.0",
    ),
    ({"stages.sparse.sparsity.gamma_init": "0"}, r"gamma_init must be a number above 0, got 0\.0"),
    ({"stages.sparse.keep": "best", "data.validation": "0"}, r"'best' needs validation images"),
    ({"data.batch_size": "0"}, r"data\.batch_size: is 0"),
    ({"seed": "-1"}, r"seed: is -1"),
]


@pytest.mark.parametrize(
    ("overrides", "message"), REFUSED, ids=[" ".join(item[0]) for item in REFUSED]
)
def test_a_wrong_override_is_refused(recipe_file, overrides, message):
    with pytest.raises(RecipeError, match=message):
        load_recipe(recipe_file, overrides)


BROKEN = [
    ({"stages": []}, "needs a list of stages"),
    (
        {"stages": [{"kind": "trian", "epochs": 1}]},
        r"stages\.0: no stage is of kind 'trian'; did you mean 'train'",
    ),
    ({"stages": ["train"]}, r"stages\.0: a stage is a mapping"),
    (
        {"stages": [{"kind": "train", "epochs": 1}]},
        "the last stage, and no other, must be of kind measure",
    ),
    ({"stages": [{"kind": "measure"}, {"kind": "measure", "name": "again"}]}, "and no other"),
    (
        {"stages": [{"kind": "train", "epochs": 1}] * 2 + [{"kind": "measure"}]},
        "two stages are called 'train'",
    ),
    (
        {"stages": [{"kind": "train"}, {"kind": "measure"}]},
        r"stages\.train\.epochs: this option is missing",
    ),
    ({"stages": [{"repeat": {"times": 0, "stages": []}}]}, r"stages\.0\.repeat: needs 'times'"),
    (
        {"stages": [{"kind": "baseline"}, {"kind": "measure"}]},
        r"stages\.baseline\.like: no training stage",
    ),
    ({"name": "../up"}, "name: is '../up'"),
    ({"name": None}, "name: this option is missing"),
    ({"data": None}, "data: this option is missing"),
    ({"published": [{"label": "VGG (Table 1", "error)": None}]}, r"published: expected a list"),
    ({"model": {"width": 1}}, r"model\.name: this option is missing"),
]


@pytest.mark.parametrize(("changes", "message"), BROKEN, ids=[item[1] for item in BROKEN])
def test_a_broken_recipe_is_refused(changes, message):
    with pytest.raises(RecipeError, match=message):
        parse_recipe(small(**changes))


def test_a_baseline_may_only_imitate_what_trains():
    stages = [
        {"kind": "train", "name": "sparse", "epochs": 1},
        {"kind": "baseline", "like": "spars"},
        {"kind": "measure"},
    ]
    with pytest.raises(
        RecipeError, match=r"no training stage is called 'spars'; did you mean 'sparse'\?"
    ):
        parse_recipe(small(stages=stages))


def test_an_unknown_recipe_offers_the_nearest():
    with pytest.raises(
        RecipeError,
        match=r"recipe is called 'digit'; did you mean 'digits' or 'digits-int8' or 'digits-gradual'\?",
    ):
        load_recipe("digit")


def test_a_missing_or_unreadable_file_is_named(tmp_path):
    with pytest.raises(RecipeError, match=r"nowhere\.yaml cannot be read: No such file"):
        load_recipe(str(tmp_path / "nowhere.yaml"))
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecipeError, match=r"binary\.yaml is no text, and so no recipe"):
        load_recipe(str(tmp_path / "binary.yaml"))


@pytest.mark.parametrize("text", ["", "- a\n- b\n", "just words"])
def test_a_file_that_is_no_mapping_is_refused(tmp_path, text):
    (tmp_path / "odd.yaml").write_text(text)
    with pytest.raises(RecipeError, match="is empty or not a mapping"):
        load_recipe(str(tmp_path / "odd.yaml"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: a\nstages:\n  - epochs: 3\n    kind: train\n    epochs: 4\n",
         r"odd\.yaml is not valid YAML: the key 'epochs' is given twice .*, in lines 3 and 5"),
        ("name: a\n'name': b\n", "the key 'name' is given twice in one mapping, in lines 1 and 2"),
        ("name: {a: 1, a: 1}\n", "the key 'a' is given twice in one mapping, in lines 1 and 1"),
    ],
)  # fmt: skip
def test_a_key_that_is_given_twice_is_refused(text, message, tmp_path):
    (tmp_path / "odd.yaml").write_text(text)
    with pytest.raises(RecipeError, match=message):
        load_recipe(str(tmp_path / "odd.yaml"))


def test_a_key_may_stand_in_several_mappings_and_be_a_value():
    text = "a: &x {b: b, c: [b, b, {b: c}]}\nb: {<<: *x, b: 2}\nc: *x"
    inner = {"b": "b", "c": ["b", "b", {"b": "c"}]}
    assert read_yaml(text) == {"a": inner, "b": {**inner, "b": 2}, "c": inner}


def test_a_recipe_without_a_title_goes_by_its_name():
    tree = {**small(), "name": "mine"}
    del tree["title"]
    assert parse_recipe(tree).title == "mine"
    assert parse_recipe({**tree, "title": None}).title == "mine"


@pytest.mark.parametrize(
    ("file", "name"), [("flowers.yaml", "flowers"), ("my flowers (2).yml", "my-flowers-2")]
)
def test_a_recipe_without_a_name_goes_by_its_file(tmp_path, file, name):
    path = tmp_path / file
    path.write_text(SMALL.replace("name: small\ntitle: A test\n", "small: {seed: 1}\n"))
    recipe = load_recipe(str(path))
    assert (recipe.name, recipe.title) == (name, name)
    twin = load_recipe(str(path.with_stem(f"{path.stem}-small")))
    assert (twin.name, twin.title, twin.seed) == (f"{name}-small", f"{name}-small", 1)
    (tmp_path / "more.yaml").write_text(f"extends: '{path}'\nseed: 2")
    more = load_recipe(str(tmp_path / "more.yaml"))
    assert (more.name, more.title, more.seed) == ("more", "more", 2)


def test_numbers_are_texts_and_yes_or_true_is_not():
    recipe = parse_recipe(small(name=2024, title=3.5))
    assert (recipe.name, recipe.title) == ("2024", "3.5")
    with pytest.raises(RecipeError, match=r"title: expected a text, got True; .*in quotes"):
        parse_recipe(small(title=True))


@pytest.mark.parametrize("name", [5, 0, 3.5, True, ["zoo:vgg"]])
def test_a_network_is_not_named_by_a_number(name):
    with pytest.raises(RecipeError, match=r"model\.name: expected a text, got "):
        parse_recipe(small(model={"name": name}))


def test_invalid_yaml_says_where(tmp_path):
    (tmp_path / "odd.yaml").write_text("name: [1, 2\ntitle: x")
    with pytest.raises(RecipeError, match=r"is not valid YAML.*line 2"):
        load_recipe(str(tmp_path / "odd.yaml"))


def test_the_text_of_a_shipped_recipe_is_its_file():
    assert re.search(r"^name: digits$", recipe_text("digits"), flags=re.MULTILINE)


def test_a_recipe_is_data():
    recipe = load_recipe("digits")
    assert isinstance(recipe, Recipe)
    assert recipe == load_recipe("digits")


# ---------------------------------------------------------------- schedules: 10 epochs of 4 steps


def rates(steps, **options):
    return [factor(ScheduleOptions(**options), step, 10, 4) for step in steps]


def test_constant_and_warmup():
    assert rates([0, 39], name="constant") == [1, 1]
    assert rates([0, 1, 2, 3, 4, 5], name="constant", warmup=1.0) == pytest.approx(
        [0.2, 0.4, 0.6, 0.8, 1, 1]
    )


def test_multistep_takes_shares_and_epochs():
    assert rates([19, 20, 29, 30], name="multistep", milestones=[0.5, 0.75]) == pytest.approx(
        [1, 0.1, 0.1, 0.01]
    )
    assert rates([7, 8], name="multistep", milestones=[2.0], factor=0.5) == [1, 0.5]


def test_a_share_that_is_not_a_whole_epoch_still_acts():
    assert [
        factor(ScheduleOptions(name="multistep", milestones=[0.5]), step, 5, 4) for step in (9, 10)
    ] == [1, 0.1]


def test_cosine_and_onecycle_end_points():
    assert rates([0, 20], name="cosine") == pytest.approx([1, 0.5])
    assert rates([0, 10, 25], name="onecycle", rise=0.25, start=0.1) == pytest.approx(
        [0.1, 1.0, 0.5]
    )


def test_a_file_of_one_s_own_has_a_twin(tmp_path):
    """By the name of the file with -small before its ending, unless such a file is there."""
    text = recipe_text("digits").replace("name: digits", "name: flowers")
    changes = "\nsmall:\n  stages: {sparse: {epochs: 2}}\n"
    (tmp_path / "flowers.yaml").write_text(text + changes, encoding="utf-8")
    twin = load_recipe(str(tmp_path / "flowers-small.yaml"))
    assert twin.name == "flowers-small"
    assert twin.stages[0].epochs == 2
    assert load_recipe(str(tmp_path / "flowers.yaml")).stages[0].epochs > 2
    assert "epochs: 2" in recipe_text(str(tmp_path / "flowers-small.yaml"))
    with pytest.raises(RecipeError, match=r"plants-small\.yaml cannot be read: No such file"):
        load_recipe(str(tmp_path / "plants-small.yaml"))
    (tmp_path / "bare.yaml").write_text("name: bare\n", encoding="utf-8")
    with pytest.raises(RecipeError, match="section 'small'"):
        load_recipe(str(tmp_path / "bare-small.yaml"))
    (tmp_path / "flowers-small.yaml").write_text(text, encoding="utf-8")
    assert load_recipe(str(tmp_path / "flowers-small.yaml")).name == "flowers"


@pytest.mark.parametrize("word", ["none", "null", "~"])
def test_none_and_null_are_one_word(word):
    """In recipes and behind dotted names; the command line's flags: tests/cli/test_usage.py."""
    keys = ("fold", "normalize", "max_cut")
    recipe = load_recipe("digits", {f"stages.prune.{key}": word for key in keys})
    (stage,) = (item for item in recipe.stages if isinstance(item, Prune))
    assert stage.compensation.fold is None
    assert stage.scoring.normalize is None
    assert stage.limits.max_cut is None
    changes = {"stages.sparse.sparsity": word, "stages.sparse.clip": word}
    assert load_recipe("digits", changes).stages[0].sparsity is None


def test_a_text_that_may_be_a_name_stays_one():
    assert load_recipe("digits", {"data.root": "none"}).data.root == "none"


def test_one_item_is_a_list_of_one():
    keys = {"stages.prune.protect": "features.0", "stages.sparse.schedule.milestones": "0.5"}
    recipe = load_recipe("digits", keys)
    (stage,) = (item for item in recipe.stages if isinstance(item, Prune))
    assert list(stage.limits.protect) == ["features.0"]
    assert recipe.stages[0].schedule.milestones == [0.5]
    assert recipe.to_dict()["stages"][1]["protect"] == ["features.0"]


def test_a_count_by_name_stays_a_count():
    """As the message promises: 3 channels are not the share 3.0."""
    text = "{features.0: 3, features.4: 0.25, features.8: 0}"
    recipe = load_recipe("digits", {"stages.prune.max_cut": text})
    cap = parse_recipe(recipe.to_dict()).stages[1].limits.max_cut
    assert cap == {"features.0": 3, "features.4": 0.25, "features.8": 0}
    assert [type(value) for value in cap.values()] == [int, float, int]


@pytest.mark.parametrize(
    ("model", "first"),
    [
        ({"name": "zoo:vgg16"}, 0.5),
        ({"name": "timm:resnet18", "pretrained": False}, 0.5),
        ({"name": "timm:resnet18", "pretrained": True}, None),
        ({"name": "torchvision:resnet18", "weights": "IMAGENET1K_V1"}, None),
        ({"name": "zoo:vgg16", "weights_file": "mine.pth"}, None),
        ({"name": "a.safetensors"}, None),
    ],
)
def test_scales_that_were_trained_are_not_set_to_one_half(model, first):
    sparse = {"kind": "train", "epochs": 1, "sparsity": {"strength": 1e-3}}
    again = {**sparse, "name": "again"}
    asked = {**sparse, "name": "asked", "sparsity": {"strength": 1e-3, "gamma_init": 0.25}}
    tree = {"name": "a", "title": "a", "data": {"name": "digits"}, "model": model}
    cut = {"kind": "prune", "budget": {"cut_channels": 0.5}}
    recipe = parse_recipe({**tree, "stages": [sparse, cut, again, asked, {"kind": "measure"}]})
    scales = [stage.sparsity.gamma_init for stage in recipe.stages if isinstance(stage, Train)]
    assert scales == [first, None, 0.25]
    assert parse_recipe(recipe.to_dict()) == recipe
