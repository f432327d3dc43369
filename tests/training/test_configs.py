"""Configurations: every one starts, and wrong ones are answered with what was meant."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medisseg.config import CONFIGS, TrainConfig, from_dict, load_config
from medisseg.errors import UserError
from medisseg.model.create import create_model
from medisseg.training.checks import check, unused_settings
from medisseg.training.run import objective, strategy

NAMES = sorted(path.stem for path in CONFIGS.glob("*.yaml"))
SMALL = "{encoder: r18, width: 8, heads: 2, decouple_width: 8, aux_widths: [8, 8, 8, 8, 8]}"
ZERO = "the weights of the dispersive loss are 0"
SMALL_EDGE = "{width: 8, heads: 2, decouple_width: 8, aux_widths: [8, 8, 8, 8]}"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten images with squares, and lists of every name that the configurations ask for."""
    root = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for folder in ("images", "masks"):
        (root / folder).mkdir()
    for index in range(10):
        mask = np.zeros((64, 64), np.uint8)
        mask[16:48, 4 * index : 4 * index + 24] = 255
        image = rng.integers(0, 99, (64, 64, 3)) + mask[:, :, None] // 2
        Image.fromarray(image.astype(np.uint8)).save(root / "images" / f"{index}.png")
        Image.fromarray(mask).save(root / "masks" / f"{index}.png")
    for name, part in (("train", range(6)), ("val", (6, 7)), ("test", (8, 9))):
        (root / f"{name}.txt").write_text("".join(f"{index}\n" for index in part))
    return root


@pytest.fixture(scope="module")
def volumes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("volumes")
    rng = np.random.default_rng(0)
    for case in range(3):
        label = np.kron(rng.integers(0, 9, (2, 4, 4)), np.ones((1, 16, 16)))
        np.savez(root / f"case{case}.npz", image=label / 9, label=label)
    (root / "train.txt").write_text("case0\ncase1\n")
    (root / "test.txt").write_text("case2\n")
    return root


@pytest.mark.parametrize("name", NAMES)
def test_every_configuration_starts(
    name: str, pictures: Path, volumes: Path, tmp_path: Path
) -> None:
    """One epoch, small in size and (from no checkpoint) width, with the configuration's recipe."""
    from medisseg.checkpoint import read_header
    from medisseg.training.run import train

    edge = load_config(name).preset.startswith("edge")
    whole = load_config(name).start_from is not None
    config = load_config(
        name,
        [
            f"data={volumes if name == 'synapse' else pictures}",
            f"negatives={[str(pictures / 'images')] if load_config(name).negatives else []}",
            f"out={tmp_path}",
            "epochs=1",
            "batch=2",
            "validate_every=1",
            "input.size=[32,32]",
            f"options={ {} if whole else SMALL_EDGE if edge else SMALL }",
            "encoder_weights=null",
            "split.official=",
            "hardware={threads: 1, progress: false}",
        ],
    )
    info = read_header(train(config))
    assert (info.architecture, info.classes) == (config.preset, config.classes)
    assert info.convention == config.input


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["stag2.lr=1"], "unknown key 'stag2'; did you mean 'stage2'"),
        (["stage2.learning_rate=1"], "unknown key 'stage2.learning_rate'"),
        (["stage2.lr=fast"], "stage2.lr is 'fast'; expected float"),
        (["stage1.augment.rotate_p=1.5"], r"stage1.augment.rotate_p is 1.5; expected within \[0"),
        (["loss.variant=l2"], "loss.variant is 'l2'; expected one of infonce_l2"),
        (["input.size=[250,250]"], "multiples of 16"),
        (["loss.dispersive=[1,2,3]"], "expected 2 values"),
        (["epochs"], "expected key=value"),
        (["stages=[2,1]"], "expected .1, 2."),
        (["stage2=5"], "stage2 is 5; expected a table"),
        (["hardware.precision=half"], "expected one of fp32"),
        (["loss.margin=0"], "margin is 0.0; expected > 0"),
        (["loss.normalize=std"], "expected one of unit, none"),
        (["loss.epsilon=1"], r"expected within \[0, 1\)"),
        (["loss.variant=published", "loss.placement=late"], "placement has no effect"),
        (["stage_one=edge-kvasir"], "stage_one is used only where stage 1 is not run"),
    ],
)
def test_wrong_settings_are_named(overrides: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_config("edge", overrides)


def test_wrong_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="did you mean kvasir-seg"):
        load_config("kvasir-sge")
    (tmp_path / "a.yaml").write_text("a: [")
    with pytest.raises(UserError, match="is not YAML"):
        load_config(tmp_path / "a.yaml")
    (tmp_path / "b.yaml").write_text("- 1")
    with pytest.raises(UserError, match="expected a table"):
        load_config(tmp_path / "b.yaml")


def test_overrides_reach_one_stage_or_both() -> None:
    config = load_config("edge", ["epochs=5", "stage2.epochs=7", "stage1.augment.rotate=3"])
    assert (config.stage1.epochs, config.stage2.epochs) == (5, 7)
    # The file shares one table of augmentation between the stages; an override must not.
    assert (config.stage1.augment.rotate, config.stage2.augment.rotate) == (3, 45)
    assert load_config("edge", ["stage2.lr=1e-5"]).stage2.lr == 1e-5


def test_a_base_is_changed_key_by_key(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("base: kvasir-seg\nname: mine\nstage2: {lr: 0.5}\n")
    mine, base = load_config(tmp_path / "mine.yaml"), load_config("kvasir-seg")
    assert (mine.stage2.lr, mine.stage2.encoder_lr) == (0.5, base.stage2.encoder_lr)
    assert (mine.name, mine.out, mine.data_name) == ("mine", "runs/mine", "Kvasir-SEG")


def test_a_configuration_survives_its_own_file(tmp_path: Path) -> None:
    from medisseg.config import save_config

    config = load_config("demo", ["options={activation: relu}"])
    save_config(config, tmp_path / "config.yaml")
    assert load_config(tmp_path / "config.yaml") == config
    assert from_dict(TrainConfig().to_dict()) == TrainConfig()


def test_the_paper_recipe_is_the_papers() -> None:
    config = load_config("kvasir-seg")
    assert (config.preset, config.input.size, config.dispersive_weights()) == (
        "medisseg-r50", (256, 256), (0.2, 0.6),
    )  # fmt: skip
    assert config.encoder_weights == "imagenet"
    for stage in (config.stage1, config.stage2):
        found = (stage.optimizer, stage.lr, stage.batch, stage.epochs, stage.patience)
        assert found == ("adam", 1e-4, 4, 300, 100)
    assert config.stage2.lr * config.stage2.encoder_lr == pytest.approx(1e-5)


def test_every_paper_configuration_starts_from_imagenet_or_says_how_to(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from medisseg.training.run import train

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "none"))
    ours = [name for name in NAMES if load_config(name).preset.endswith("r50") and name != "short"]
    assert len(ours) == 7
    for name in ours:
        with pytest.raises(
            UserError, match="no ImageNet weights of r50 .*load_state_dict_from_url"
        ):
            train(load_config(name, [f"data={pictures}", f"out={tmp_path / name}"]))
        assert not (tmp_path / name).exists()


def test_condseg_and_baselines_are_not_dispersed() -> None:
    for preset in ("condseg-r50", "unet"):
        assert load_config("paper", [f"preset={preset}"]).dispersive_weights() == (0, 0)
    asked = load_config("paper", ["preset=condseg-r50", "loss.dispersive=[0.1,0]"])
    assert asked.dispersive_weights() == (0.1, 0)


def test_settings_that_a_baseline_does_not_use_are_said() -> None:
    small = ["preset=unet", "stages=[2]", "encoder_weights=", "options={width: 4}"]
    assert check(load_config("paper", small)) == []
    (warning,) = check(load_config("paper", [*small, "loss.tau=0.5", "loss.dispersive=[0,1]"]))
    assert warning == "unet has the mask loss alone; not used: loss.dispersive, loss.tau"


def test_a_baseline_uses_the_loss_of_the_masks() -> None:
    small = ["preset=unet", "stages=[2]", "encoder_weights=", "options={width: 4}"]
    masks = [
        "loss.boundary=0.5",
        "loss.mask=focal_dice",
        "loss.gamma=3",
        "loss.class_weights=[1,3]",
        "loss.dice_of_empty=false",
    ]
    assert check(load_config("paper", [*small, *masks])) == []
    assert check(load_config("paper", [*small, "loss.mask=tversky", "loss.tversky=[1,2]"])) == []
    (warning,) = check(load_config("paper", [*small, "loss.gamma=3"]))
    assert warning == "loss.mask is cross_entropy_dice; not used: loss.gamma"
    (warning,) = check(load_config("paper", [*small, "loss.area_weight=1"]))
    assert warning == "unet has the mask loss alone; not used: loss.area_weight"


def test_the_masks_loss_reaches_both_objectives() -> None:
    config = load_config("edge", ["loss.dice_of_empty=false", "loss.area_weight=1"])
    for number in (1, 2):
        assert objective(config, number).mask.dice_of_empty is False
    assert vars(objective(config, 2))["max_area_weight"] == 1


def test_losses_without_a_dice_part_refuse_settings_of_it() -> None:
    with pytest.raises(UserError, match="dice_of_empty has no effect with mask=tversky"):
        load_config("edge", ["loss.mask=tversky", "loss.dice_of_empty=false"])
    with pytest.raises(UserError, match=r"area_weight is 0\.5; expected >= 1"):
        load_config("edge", ["loss.area_weight=0.5"])


@pytest.mark.parametrize(
    ("given", "warning"),
    [
        (["loss.dispersive=[0,0]", "loss.tau=0.5", "loss.placement=late", "loss.variant=hinge"],
         f"{ZERO}; not used: loss.variant, loss.placement, loss.tau"),
        (["loss.dispersive=[0.2,0]", "stages=[2]", "loss.tau=0.5"],
         f"{ZERO}; not used: loss.tau"),
        (["loss.margin=1"], "loss.variant is infonce_l2; not used: loss.margin"),
        (["loss.variant=hinge", "loss.tau=0.5", "loss.epsilon=0", "loss.margin=1"],
         "loss.variant is hinge; not used: loss.tau, loss.epsilon"),
        (["loss.variant=covariance", "loss.tau=0.5"],
         "loss.variant is covariance; not used: loss.tau"),
    ],
)  # fmt: skip
def test_settings_of_the_loss_that_have_no_effect_are_said(given: list[str], warning: str) -> None:
    assert check(load_config("edge", given)) == [warning]


def test_every_configuration_uses_what_it_sets() -> None:
    for path in CONFIGS.glob("*.yaml"):
        config = load_config(path.stem, ["encoder_weights="])
        assert unused_settings(config, create_model("edge", width=8)) == [], path.stem


def test_unused_parameters_of_a_baseline_are_found_by_data_parallel_training() -> None:
    assert strategy(create_model("unetpp", width=4)) == "ddp_find_unused_parameters_true"
    assert strategy(create_model("edge", width=8)) == "ddp"


def test_a_checkpoint_of_other_inputs_is_not_trained_on() -> None:
    go_on = ["stages=[2]", "start_from=edge-kvasir"]
    assert check(load_config("edge", go_on)) == []
    assert check(load_config("edge", [*go_on, "input.size=[320,320]"])) == []
    with pytest.raises(
        UserError, match=r"edge-kvasir was trained with input.color RGB, .* BGR; set"
    ):
        check(load_config("edge", [*go_on, "input.color=BGR"]))
    with pytest.raises(UserError, match=r"input.mean \[0.485, 0.456, 0.406\]"):
        check(load_config("edge", ["stages=[2]", "stage_one=edge-kvasir", "input.mean=[0,0,0]"]))


def test_the_channels_of_synapse_are_not_mixed_nor_its_sides_exchanged() -> None:
    config = load_config("synapse")
    assert config.second_view.jitter[2:] == (0, 0) and config.second_view.gray_p == 0
    for stage in (config.stage1, config.stage2):
        assert (stage.augment.flip_horizontal_p, stage.augment.flip_vertical_p) == (0, 0)
        assert stage.augment.color.jitter == (0, 0, 0, 0) and stage.augment.color.gray_p == 0


def test_paths_are_texts_and_may_begin_with_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    config = load_config("edge", ["data=007", "out=~/runs/1", "negatives=~/free"])
    assert config.data[0].path == "007" and config.out == "/home/me/runs/1"
    assert config.negatives[0].path == "/home/me/free"
    assert load_config("edge", ["start_from=null"]).start_from is None
