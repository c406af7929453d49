import json
from dataclasses import FrozenInstanceError, asdict, fields
from typing import Any

import pytest

from pipeline.config import (
    Config,
    DataConfig,
    EvaluateConfig,
    ModelConfig,
    PromoteConfig,
    TrainConfig,
    configure,
    settings_of,
)
from pipeline.presets import PRESETS
from serving.errors import UsageRefused

SECTIONS = (DataConfig, ModelConfig, TrainConfig, EvaluateConfig, PromoteConfig)


def settings(config: Config) -> dict[str, Any]:
    """Every setting by its own name."""
    return {name.rpartition(".")[2]: value for name, value in config.flat().items()}


def test_without_arguments_every_setting_has_its_default() -> None:
    assert configure() == Config()
    defaults = {name: value for part in SECTIONS[:4] for name, _, _, value in settings_of(part)}
    assert settings(configure()) == {"preset": "default", **defaults}


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_changes_its_own_settings_and_no_others(preset: str) -> None:
    expected = {**settings(Config()), **PRESETS[preset], "preset": preset}
    assert settings(configure(preset)) == expected


def test_the_seed_preset_is_the_seed_s_model() -> None:
    config = configure("seed")
    assert config.model == ModelConfig(
        hidden_dims=(128, 64), latent_dim=20, activation="relu", fit_sizes=False
    )
    assert config.train == TrainConfig(batch_size=128, learning_rate=1e-3, schedule="constant")


def test_the_example_preset_is_the_vae_of_pytorch_examples() -> None:
    config = configure("example")
    assert config.model == ModelConfig(
        hidden_dims=(400,), latent_dim=20, activation="relu", fit_sizes=False
    )
    assert config.train == TrainConfig(
        batch_size=128, learning_rate=1e-3, schedule="constant", epochs=10
    )
    assert config.data == DataConfig(valid_fraction=0.0)


@pytest.mark.parametrize("preset", PRESETS)
def test_given_settings_win_over_the_preset_s(preset: str) -> None:
    given = {"data": "x.npy", "latent_dim": 7, "epochs": 3, "min_steps": 5, "nll_samples": 9}
    given["fit_sizes"] = False
    assert settings(configure(preset, **given)) == {**settings(configure(preset)), **given}


@pytest.mark.parametrize("size", [{"latent_dim": 7}, {"hidden_dims": (9,)}])
def test_given_sizes_are_obeyed_whatever_the_width_of_a_table(size: dict[str, Any]) -> None:
    assert configure().model.fit_sizes
    assert not configure(**size).model.fit_sizes
    assert configure(**size, fit_sizes=True).model.fit_sizes


@pytest.mark.parametrize("preset", PRESETS)
def test_given_epochs_are_obeyed_whatever_the_least_number_of_steps(preset: str) -> None:
    assert configure(preset).train.min_steps == TrainConfig().min_steps > 0
    assert configure(preset, epochs=3).train.min_steps == 0


def test_a_training_from_before_the_least_number_of_steps_had_none() -> None:
    content = configure().to_json()
    del content["train"]["min_steps"]
    assert Config.from_json(content).train.min_steps == 0


def test_an_unknown_preset_lists_the_valid_ones() -> None:
    with pytest.raises(UsageRefused) as caught:
        configure("exmaple")
    assert str(caught.value) == f"preset must be one of {', '.join(PRESETS)}, got 'exmaple'"
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("unknown", ["latent_dims", "preset.name", "margin"])
def test_an_unknown_setting_is_named(unknown: str) -> None:
    with pytest.raises(UsageRefused) as caught:
        configure("seed", latent_dim=3, **{unknown: 1})
    assert str(caught.value) == f"no such setting: {unknown}"


@pytest.mark.parametrize(
    ("preset", "given", "source"),
    [("resnet", {}, " from preset resnet"), ("default", {"free_bits": 0.1}, "")],
    ids=["the preset's", "given"],
)
def test_iwae_takes_no_free_bits(preset: str, given: dict[str, Any], source: str) -> None:
    with pytest.raises(UsageRefused) as caught:
        configure(preset, objective="iwae", **given)
    assert str(caught.value) == (
        f"objective iwae takes no free bits, got 0.1{source}: use --free-bits 0 or --objective elbo"
    )
    assert configure(preset, objective="iwae", free_bits=0.0).train.free_bits == 0


def test_no_two_sections_share_a_name() -> None:
    names = [item.name for section in SECTIONS for item in fields(section)]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("preset", PRESETS)
def test_a_config_comes_back_from_json(preset: str) -> None:
    config = configure(preset, latent_dim=3, likelihood="gaussian", seed=2**62, hidden_dims=(8, 4))
    back = Config.from_json(json.loads(json.dumps(config.to_json())))
    assert back == config
    assert hash(back) == hash(config)


def test_json_has_a_section_for_each_part() -> None:
    content = configure("seed").to_json()
    assert content["preset"] == "seed"
    assert content["data"] == asdict(DataConfig())
    assert content["evaluate"] == {"nll_samples": 100}
    assert list(content) == ["preset", "data", "model", "train", "evaluate"]


def test_flat_names_settings_by_section() -> None:
    flat = configure("seed", data="x.npy", seed=5).flat()
    assert flat["preset"] == "seed"
    assert flat["data.data"] == "x.npy"
    assert flat["model.hidden_dims"] == (128, 64)
    assert flat["train.seed"] == 5
    assert flat["evaluate.nll_samples"] == 100
    assert len(flat) == 1 + sum(len(fields(section)) for section in SECTIONS[:4])


@pytest.mark.parametrize("section", SECTIONS)
def test_every_setting_has_help_and_a_default_within_its_limits(section: type) -> None:
    for name, _, option, default in settings_of(section):
        assert option.help, name
        values = default if isinstance(default, tuple) else (default,)
        for value in (value for value in values if value is not None):
            if option.min is not None:
                assert value > option.min or (value == option.min and not option.open_min), name
            if option.max is not None:
                assert value <= option.max, name


def test_presets_stay_within_the_limits() -> None:
    limits = {name: option for part in SECTIONS for name, _, option, _ in settings_of(part)}
    for preset in PRESETS.values():
        for name, value in preset.items():
            option = limits[name]
            for number in value if isinstance(value, tuple) else (value,):
                assert option.min is None or number >= option.min, name
                assert option.max is None or number <= option.max, name


@pytest.mark.parametrize("section", [Config, *SECTIONS])
def test_settings_cannot_be_changed(section: type) -> None:
    config = section()
    with pytest.raises(FrozenInstanceError):
        setattr(config, fields(section)[0].name, "other")


def test_columns_come_back_from_json() -> None:
    config = configure(columns=("a", "b"), label="c", binarize="static")
    assert Config.from_json(json.loads(json.dumps(config.to_json()))) == config


def test_a_setting_that_an_older_bundle_lacks_has_its_default() -> None:
    content = configure().to_json()
    for name in ("columns", "label", "binarize"):
        del content["data"][name]
    assert Config.from_json(content) == configure()
