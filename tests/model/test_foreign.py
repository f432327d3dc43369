"""Classes of the user's own code, trained, stored and loaded under our protocol."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from medisseg.checkpoint import save_checkpoint
from medisseg.config import from_dict
from medisseg.errors import UserError
from medisseg.losses.mask import mask_loss
from medisseg.losses.objective import StageTwoObjective
from medisseg.model import foreign
from medisseg.model.create import create_model
from medisseg.model.inference import for_inference
from medisseg.model.loading import load_checkpoint
from medisseg.training.checks import check
from medisseg.training.modules import SegmentationModule

CODE = """
import torch
from torch import nn


class Side(nn.Module):  # PraNet's interface: four maps, coarse to fine, the last is the mask's
    def __init__(self, width=4):
        super().__init__()
        self.encoder = nn.Conv2d(3, width, 3, padding=1)
        self.heads = nn.ModuleList(nn.Conv2d(width, 1, 1) for _ in range(4))

    def forward(self, x):
        x = self.encoder(x)
        sides = (8, 4, 2, 1)
        return [h(nn.functional.avg_pool2d(x, s)) for h, s in zip(self.heads, sides)]


class Stated(Side):  # probabilities in a table, as some releases answer
    def forward(self, x):
        return {"mask": super().forward(x)[-1].sigmoid(), "text": "polyp"}


class Wide(nn.Module):
    def forward(self, x):
        return x


class Loads(nn.Module):  # as PraNet, from a path of its authors' machine
    def __init__(self):
        super().__init__()
        open("/media/nobody/res2net50.pth")


class Fixed(nn.Module):  # as Swin-Unet, for one size of input
    def forward(self, x):
        return x.reshape(len(x), 3, 224, 224)[:, :1]


class Trains(nn.Module):  # answers of another kind in training
    def forward(self, x):
        return [x[:, :1], x] if self.training else x[:, :1]


class NoNetwork:
    pass
"""


@pytest.fixture(autouse=True)
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An official clone on the Python path; its module has a name of its own in every test."""
    name = f"clone_{tmp_path.name}".replace("-", "_")
    (tmp_path / f"{name}.py").write_text(CODE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(foreign, "_allowed", set())
    monkeypatch.delenv(foreign.VARIABLE, raising=False)
    torch.manual_seed(0)
    return name


def test_several_outputs_are_deep_supervision_of_the_chosen_mask(clone: str) -> None:
    model = create_model(f"module:{clone}.Side", maps=-1, width=6).train()
    x, target = torch.randn(2, 3, 50, 70), torch.randint(0, 2, (2, 50, 70))
    output = model(x)
    assert output.logits.shape == (2, 1, 50, 70) and len(output.others) == 3
    total, parts = StageTwoObjective()(output, target)
    torch.testing.assert_close(parts["mask"], mask_loss(output.logits, target).detach())
    deep = torch.stack([mask_loss(part, target) for part in output.others]).sum()
    torch.testing.assert_close(total, parts["mask"] + deep)
    total.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    logits = for_inference(model)(x)
    padded = torch.nn.functional.pad(x, (0, 26, 0, 14), mode="replicate")
    expected = model.network(padded)[-1][..., :50, :70]
    torch.testing.assert_close(logits, expected)


def test_probabilities_become_logits(clone: str) -> None:
    model = create_model(f"{clone}:Stated", probabilities=True).eval()
    x = torch.randn(1, 3, 32, 32)
    torch.testing.assert_close(model(x).sigmoid(), model.network(x)["mask"], atol=1e-6, rtol=1e-5)


def test_encoder_weights_go_where_the_options_say(clone: str, tmp_path: Path) -> None:
    state = {"weight": torch.ones(4, 3, 3, 3), "bias": torch.ones(4), "fc": torch.ones(2)}
    torch.save(state, tmp_path / "w.pth")
    model = create_model(f"{clone}:Side", encoder_weights=tmp_path / "w.pth", encoder="encoder")
    assert (model.network.get_submodule("encoder").weight == 1).all()
    torch.save({"weight": torch.ones(1)}, tmp_path / "w.pth")
    with pytest.raises(UserError, match="2 of 2 entries are missing or of another shape"):
        create_model(f"{clone}:Side", encoder_weights=tmp_path / "w.pth", encoder="encoder")


def test_a_checkpoint_runs_no_module_without_the_users_word(
    clone: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = create_model(f"module:{clone}.Side", maps=-1).eval()
    path = save_checkpoint(tmp_path / "side.safetensors", model, model.info)
    with pytest.raises(UserError, match=f"loading it runs that module's code .*{clone}:Side"):
        load_checkpoint(path)
    monkeypatch.setenv(foreign.VARIABLE, f"other:Net, module:{clone}.Side")
    x = torch.randn(1, 3, 32, 32)
    # Stored in float16.
    torch.testing.assert_close(load_checkpoint(path)(x), model(x), atol=2e-3, rtol=1e-2)


def test_a_configuration_that_names_a_class_is_the_users_word(clone: str) -> None:
    settings = {"preset": f"module:{clone}.Side", "stages": [2], "input": {"size": [32, 32]}}
    assert check(from_dict(settings)) == []
    foreign.check_allowed(f"{clone}:Side", "checkpoint")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("module:Side", {}, "expected module:package.file.Class"),
        ("no_such_clone:Side", {}, "No module named 'no_such_clone'; put the folder .* PYTHONPATH"),
        (
            "CLONE:Sid",
            {},
            "no network class Sid; its nn.Module classes are: Side, Stated, Wide, Loads",
        ),
        ("CLONE:NoNetwork", {}, "no network class NoNetwork"),
        ("CLONE:Side", {"depth": 3}, "cannot be made with options .*depth"),
        ("CLONE:Loads", {}, "FileNotFoundError: .*res2net50.pth'; a class that opens files"),
        ("CLONE:Fixed", {}, "fails on images of 32 x 32: RuntimeError: shape .* is invalid"),
        ("CLONE:Trains", {}, r"a map of shape \[2, 3, 32, 32\] .*expected \[2, 1, H, W\]"),
        ("CLONE:Side", {"encoder": "body"}, "has no part 'body'; its parts are: encoder, heads"),
        ("CLONE:Side", {"maps": 7}, "answers 4 maps; options.maps=7 is none of them"),
        ("CLONE:Side", {"maps": "last"}, "expected the index of a map"),
        ("CLONE:Wide", {}, r"a map of shape \[1, 3, 32, 32\] .*expected \[1, 1, H, W\]"),
    ],
)
def test_wrong_classes_are_one_line(clone: str, name: str, options: dict, message: str) -> None:
    name = name.replace("CLONE", clone)
    settings = {"preset": name, "options": options, "stages": [2], "input": {"size": [32, 32]}}
    with pytest.raises(UserError, match=message):
        check(from_dict(settings))


def test_what_a_class_has_not(clone: str) -> None:
    with pytest.raises(UserError, match="one stage"):
        create_model(f"{clone}:Side", stage=1)
    with pytest.raises(UserError, match="need options.encoder=NAME"):
        create_model(f"{clone}:Side", encoder_weights="w.pth")


def test_encoder_weights_are_looked_at_before_any_image(clone: str, tmp_path: Path) -> None:
    base = {"stages": [2], "input": {"size": [32, 32]}, "encoder_weights": str(tmp_path / "w.pth")}
    foreign_one = {"preset": f"{clone}:Side", "options": {"encoder": "encoder"}}
    for settings, message in (
        (foreign_one, "w.pth are no file"),
        ({"preset": f"{clone}:Side"}, "need options.encoder=NAME"),
        ({"preset": "unet-r50"}, "w.pth are no file"),
        ({"preset": "unet"}, "unet starts from random weights"),
    ):
        with pytest.raises(UserError, match=message):
            check(from_dict(base | settings))
    torch.save({"weight": torch.ones(1)}, tmp_path / "w.pth")
    with pytest.raises(UserError, match="2 of 2 entries are missing"):
        check(from_dict(base | foreign_one))


def rates(network: torch.nn.Module, weights: list[torch.nn.Parameter]) -> set[float]:
    """The peak rates of some of a network's weights, at lr 1e-3 and encoder_lr 0.1."""
    data = type("Data", (), {})()
    config = from_dict({"stages": [2], "stage2": {"lr": 1e-3, "encoder_lr": 0.1}})
    module = SegmentationModule(network, StageTwoObjective(), config, 2, data)
    chosen = set(map(id, weights))
    return {
        group["peak"]
        for group in module.configure_optimizers().param_groups
        for parameter in group["params"]
        if id(parameter) in chosen
    }


def test_the_encoder_has_a_rate_of_its_own_wherever_it_is(clone: str) -> None:
    for network, encoder in (
        (create_model(f"{clone}:Side", encoder="encoder"), "network.encoder."),
        (create_model("unet-r50"), "network.encoder."),
        (create_model("edge"), "encoder."),
    ):
        inside = [p for name, p in network.named_parameters() if name.startswith(encoder)]
        outside = [p for name, p in network.named_parameters() if not name.startswith(encoder)]
        assert list(rates(network, inside)) == [pytest.approx(1e-4)]
        assert rates(network, outside) == {1e-3}
    network = create_model(f"{clone}:Side")
    assert rates(network, list(network.parameters())) == {1e-3}
    told = from_dict({"preset": f"{clone}:Side", "stages": [2], "input": {"size": [32, 32]},
                      "stage2": {"encoder_lr": 0.1}})  # fmt: skip
    assert check(told) == [
        f"{clone}:Side names no encoder (options.encoder=NAME); not used: stage2.encoder_lr"
    ]
