"""What a checkpoint's folder says of how its vectors are made: `PoolingConfig`.

Reads sentence-transformers' modules.json and what it names, and the heads of classifiers. Owns no
weights; every refusal is a ConfigError or a CheckpointError that names file, key and value.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from ..config import PoolerConfig
from ..errors import CheckpointError, ConfigError
from ..vectors import Kind, PoolingConfig, Scores, Stage
from .values import ConfigValues, read_json

MODULES = "modules.json"
MODES: tuple[tuple[str, Kind], ...] = (
    ("pooling_mode_cls_token", "cls"),
    ("pooling_mode_max_tokens", "max"),
    ("pooling_mode_mean_tokens", "mean"),
    ("pooling_mode_mean_sqrt_len_tokens", "mean_sqrt_len"),
    ("pooling_mode_weightedmean_tokens", "weighted_mean"),
    ("pooling_mode_lasttoken", "last"),
)
"""In the order in which several stand behind each other."""
NEW_MODES: dict[str, Kind] = {
    "cls": "cls",
    "max": "max",
    "mean": "mean",
    "mean_sqrt_len_tokens": "mean_sqrt_len",
    "weightedmean": "weighted_mean",
    "lasttoken": "last",
}
SETTINGS = "config_sentence_transformers.json"
PASSING = ("Dropout",)
"""Modules that change nothing outside training."""


def embedding_config(
    path: Path, values: ConfigValues, hidden: int, wish: PoolerConfig | None, kind: Kind
) -> PoolingConfig:
    """Read how a checkpoint embeds. kind: where it does not say; wish: what the options say."""
    config = PoolingConfig(kinds=(kind,), width=hidden, dimensions=_matryoshka(values))
    if (path / MODULES).exists():
        config = with_prompts(path, _apply_modules(path, config))
    limits = path / "sentence_bert_config.json"
    if limits.exists():
        found = ConfigValues(read_json(limits), str(limits))
        if found.get("max_seq_length") is not None:
            longest = found.integer("max_seq_length")
            config = msgspec.structs.replace(config, max_tokens=longest)
    return apply_wish(config, wish)


def apply_wish(config: PoolingConfig, wish: PoolerConfig | None) -> PoolingConfig:
    """Change what the option pooler_config says."""
    if wish is None:
        return config
    changes: dict[str, Any] = {}
    name = wish.default_prompt_name
    if name is not None:
        if name and name not in config.prompts:
            raise ConfigError(
                f"pooler_config: default_prompt_name is {name!r}: it must be empty or one of "
                f"{sorted(config.prompts)}."
            )
        changes["default_prompt_name"] = name or None
    if wish.pooling_type is not None:
        if len(config.kinds) > 1:
            raise ConfigError("pooler_config: the checkpoint pools in several ways at once.")
        changes["kinds"] = (wish.pooling_type.lower(),)
    if wish.normalize is not None:
        changes["normalize"] = wish.normalize
    return msgspec.structs.replace(config, **changes)


def classifier_config(
    values: ConfigValues, kind: Kind, stages: tuple[Stage, ...], wish: PoolerConfig | None
) -> PoolingConfig:
    """Read what a classifier's numbers mean."""
    labels = read_labels(values)
    config = PoolingConfig(
        kinds=(kind,),
        stages=stages,
        normalize=False,
        width=len(labels),
        labels=labels,
        scores=_scores(values, len(labels)),
    )
    return apply_wish(config, wish)


def read_labels(values: ConfigValues) -> tuple[str, ...]:
    """Return the labels of a classifier, one for each of its numbers."""
    named = values.get("id2label")
    if named is None:
        return tuple(f"LABEL_{i}" for i in range(values.integer("num_labels", 2)))
    count = len(named) if isinstance(named, dict) else 0
    labels = [named.get(str(i)) for i in range(count)] if count else []
    if not labels or not all(isinstance(label, str) for label in labels):
        raise values.wrong("id2label", "an object of the labels by their numbers from 0")
    return tuple(labels)


def _scores(values: ConfigValues, num_labels: int) -> Scores:
    """Find what turns numbers into scores, as sentence-transformers and transformers do."""
    own = values.section("sentence_transformers")
    name = None if own is None else own.get("activation_fn")
    name = name or values.get("sbert_ce_default_activation_function")
    if name is not None:
        return named_activation(str(name), values.source)
    match values.get("problem_type"):
        case "regression":
            return "identity"
        case "multi_label_classification":
            return "sigmoid"
    return "sigmoid" if num_labels == 1 else "softmax"


def named_activation(name: str, source: str) -> Scores:
    """Return what a class of torch.nn makes of scores. ConfigError names the source."""
    match name.rpartition(".")[2]:
        case "Identity":
            return "identity"
        case "Sigmoid":
            return "sigmoid"
    raise ConfigError(
        f"{source}: the activation of scores is {name!r}: it must be torch.nn's Identity or "
        "Sigmoid."
    )


def _matryoshka(values: ConfigValues) -> tuple[int, ...] | None:
    given = values.get("matryoshka_dimensions")
    if given is None:
        return None
    if not isinstance(given, list) or not all(type(size) is int and size > 0 for size in given):
        raise values.wrong("matryoshka_dimensions", "a list of numbers above 0")
    return tuple(given)


def read_modules(path: Path) -> list[tuple[str, Path]]:
    """Return the modules behind the transformer, by name, and the folders of their settings."""
    file = path / MODULES
    if not file.exists():
        return []
    try:
        modules = msgspec.json.decode(file.read_bytes(), type=list[dict[str, Any]])
    except (OSError, msgspec.DecodeError) as error:
        raise CheckpointError(f"{file} is not a list of modules: {error}") from error
    found = []
    for module in modules[1:]:
        name, place = str(module.get("type")).rpartition(".")[2], str(module.get("path"))
        if Path(place).name != place:
            raise CheckpointError(f"{file}: the path {place!r} must be a folder beside it.")
        found.append((name, path / place))
    return found


def _apply_modules(path: Path, config: PoolingConfig) -> PoolingConfig:
    """Go through the modules behind the transformer."""
    replace = msgspec.structs.replace
    config = replace(config, normalize=False)
    for name, folder in read_modules(path):
        match name:
            case "Pooling":
                config = _apply_pooling(folder / "config.json", config)
            case "Dense":
                stage = _read_dense(folder, config.width)
                config = replace(config, stages=(*config.stages, stage), width=stage.shape[0])
            case "Normalize":
                config = replace(config, normalize=True)
            case _ if name not in PASSING:
                raise ConfigError(
                    f"{path / MODULES}: a module is {name!r}: after the transformer it must be "
                    f"Pooling, Dense, Normalize or {' or '.join(PASSING)}."
                )
    return config


def _apply_pooling(file: Path, config: PoolingConfig) -> PoolingConfig:
    """Read which states make the vector."""
    values = ConfigValues(read_json(file), str(file))
    given = values.get("pooling_mode")
    if given is None:
        kinds = tuple(kind for key, kind in MODES if values.flag(key)) or ("mean",)
    else:
        names = given if isinstance(given, list) and given else [given]
        if not all(isinstance(name, str) and name in NEW_MODES for name in names):
            allowed = f"one of {', '.join(NEW_MODES)}, or a list of them"
            raise values.wrong("pooling_mode", allowed)
        kinds = tuple(NEW_MODES[name] for name in names)
    return msgspec.structs.replace(
        config,
        kinds=kinds,
        width=config.width * len(kinds),
        includes_prompt=values.flag("include_prompt", True),
    )


def with_prompts(path: Path, config: PoolingConfig) -> PoolingConfig:
    """Read what sentence-transformers writes before texts."""
    file = path / SETTINGS
    values = ConfigValues(read_json(file) if file.exists() else {}, str(file))
    prompts, default = values.get("prompts") or {}, values.get("default_prompt_name")
    if not isinstance(prompts, dict) or not all(isinstance(one, str) for one in prompts.values()):
        raise values.wrong("prompts", "an object of texts by their names")
    if default is not None and default not in prompts:
        raise values.wrong("default_prompt_name", f"one of {sorted(prompts)}")
    return msgspec.structs.replace(config, prompts=prompts, default_prompt_name=default)


def _read_dense(folder: Path, width: int) -> Stage:
    file = folder / "config.json"
    values = ConfigValues(read_json(file), str(file))
    if values.integer("in_features") != width:
        raise values.wrong("in_features", f"{width}, as wide as what comes before")
    activation = str(values.get("activation_function") or "Tanh").rpartition(".")[2].lower()
    if activation not in ("identity", "tanh"):
        raise values.wrong("activation_function", "torch.nn's Identity or Tanh")
    return Stage(
        module="linear",
        shape=(values.integer("out_features"), width),
        biased=values.flag("bias", True),
        activation="identity" if activation == "identity" else "tanh",
        folder=folder,
    )
