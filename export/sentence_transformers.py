"""What sentence-transformers' files in a folder say of texts: pooling and what follows it, prompts, the longest text, activations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from onnxport.errors import CheckpointError
from onnxport.export.config_checks import read_json
from onnxport.runtime.bundle.manifest import SIMILARITIES, EncodingConfig, PooledLayer

MODULES = "modules.json"
LABELLED = ("classification", "token-classification")  # tasks whose outputs have names
POOLINGS = {  # modes of a pooling, in the order in which its vectors are joined where older files name several
    "cls": "cls",
    "max": "max",
    "mean": "mean",
    "mean_sqrt_len_tokens": "mean_sqrt_len",
    "weightedmean": "weightedmean",
    "lasttoken": "last",
}
FLAGS = {  # of older files
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
ACTIVATED = ("Tanh", "ReLU", "GELU", "Sigmoid", "SiLU", "Identity")  # of torch.nn, behind a Dense module
KINDS = ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
SETTINGS = tuple(f"sentence_{kind}_config.json" for kind in KINDS)  # the first that is there counts
PROBLEMS = {"single_label_classification": "single", "multi_label_classification": "multi", "regression": "regression"}
NEWER, OLDER = "sentence_transformers", "sbert_ce_default_activation_function"  # keys of config.json
# what a cross-encoder does to its logits → `problem` of one label, of several
ACTIVATIONS = {
    "Identity": ("regression", "single"),  # of several labels classify gives the softmax, as `predict(apply_softmax=True)`
    "Sigmoid": ("multi", "multi"),
    "Softmax": (None, "single"),
}


@dataclass(frozen=True)
class TextSettings:
    """How texts of a folder become answers. pooling: None where nothing says; max_length: None for what the model can.

    token_types: the tokenizer gives them. lower: texts are lowered first. mask_id, unknown_id: of the tokenizer, None without such a token.
    layers: what follows the pooling, and `folders` where the weights of each are. prompts: by name, what stands before texts, and the name
    of the one that does by default. include_prompt: pooling counts its tokens. truncate_dim: numbers of a vector that are kept.
    similarity: how two vectors are compared. arrays: of each layer, see `pooled_layers`.
    """

    pooling: str | None = None
    normalize: bool = False
    max_length: int | None = None
    token_types: bool = True
    lower: bool = False
    mask_id: int | None = None
    unknown_id: int | None = None
    layers: tuple[PooledLayer, ...] = ()
    folders: tuple[Path, ...] = ()
    prompts: Mapping[str, str] = field(default_factory=dict)
    default_prompt: str | None = None
    include_prompt: bool = True
    truncate_dim: int | None = None
    similarity: str | None = None
    arrays: tuple[Mapping[str, Any], ...] = ()

    def encoding(self, task: str | None) -> EncodingConfig:
        """The bundle's settings, but for labels and sizes; task None: hidden states."""
        config = EncodingConfig(token_types=self.token_types, lower=self.lower)
        if task == "fill-mask":
            return replace(config, mask_id=self.mask_id)
        if task == "token-classification":
            return replace(config, unknown_id=self.unknown_id)
        if task not in (None, "embedding"):
            return config
        return replace(
            config,
            pooling=self.pooling or "mean",
            normalize=self.normalize,
            layers=self.layers,
            prompts={name: self.prompts[name] for name in sorted(self.prompts)},
            default_prompt=self.default_prompt,
            include_prompt=self.include_prompt,
            truncate_dim=self.truncate_dim,
            similarity=self.similarity,
        )


def transformer_folder(folder: Path) -> Path:
    """Where the Transformer of a folder is: in older layouts below it, such as in 0_Transformer. CheckpointError."""
    path = folder / MODULES
    modules = read_json(path, list) if path.is_file() else []
    place = next((str(module.get("path", "")) for module in modules if _kind(module) == "Transformer"), "")
    if place and not (folder / place).resolve().is_relative_to(folder.resolve()):
        raise CheckpointError(f"{path} has its Transformer in {place!r:.60}, expected a folder below it; copy the whole folder")
    return folder / place if place and (folder / place / "config.json").is_file() else folder


def read_modules(folder: Path, token_types: bool = True, longest: int | None = None) -> TextSettings:
    """The settings of a folder, whose Transformer is in `transformer_folder(folder)`. CheckpointError: what a bundle cannot do.

    token_types, longest: of the tokenizer, whose longest text counts where sentence-transformers' own files have none.
    A folder without modules.json has no pooling: sentence-transformers then takes the mean of all tokens, not normalized.
    """
    path = folder / MODULES
    if not path.is_file():
        return TextSettings(token_types=token_types)
    settings = TextSettings(token_types=token_types)
    for module in read_json(path, list):
        settings = _module(module, path, settings)
    settings = _with_prompts(settings, folder / "config_sentence_transformers.json")
    found = next((file for name in SETTINGS if (file := transformer_folder(folder) / name).is_file()), None)
    return replace(settings, max_length=longest) if found is None else _own_settings(found, settings, longest)


def has_modules(folder: Path) -> bool:
    """Whether a folder is sentence-transformers' own, with a pooling."""
    path = folder / MODULES
    return path.is_file() and any(_kind(module) == "Pooling" for module in read_json(path, list))


def _kind(module: Any) -> str:
    return str(module.get("type", "")).rpartition(".")[2] if isinstance(module, dict) else ""


def _module(module: Any, path: Path, settings: TextSettings) -> TextSettings:
    """The settings with those of one module in modules.json."""
    if not isinstance(module, dict):
        raise CheckpointError(f"{path} holds {module!r:.40}, expected objects with type and path; copy it again")
    kind, folder = _kind(module), path.parent / str(module.get("path", ""))
    if kind in ("Transformer", "Dropout"):  # nothing is dropped in an answer
        return settings
    if kind == "Pooling":
        config = read_json(folder / "config.json")
        return replace(settings, pooling=_pooling(config, folder), include_prompt=config.get("include_prompt", True) is not False)
    if settings.pooling is None or kind not in ("Normalize", "Dense", "LayerNorm"):
        known = "a Transformer, Pooling, and Dense, LayerNorm and Normalize behind it"
        raise CheckpointError(f"{path} has a {kind} module in this place, expected {known}; export its Transformer alone")
    if settings.normalize:  # what came last until now comes in between
        layers = (*settings.layers, PooledLayer("normalize"))
        settings = replace(settings, normalize=False, layers=layers, folders=(*settings.folders, folder))
    if kind == "Normalize":
        return replace(settings, normalize=True)
    layer = PooledLayer("norm") if kind == "LayerNorm" else _dense(read_json(folder / "config.json"), folder)
    return replace(settings, layers=(*settings.layers, layer), folders=(*settings.folders, folder))


def _pooling(config: Mapping[str, Any], folder: Path) -> str:
    """The bundle's name of a pooling's modes. CheckpointError: one that is not known."""
    stated = config.get("pooling_mode")  # newer files name it, and then the flags do not count
    if stated is None:
        stated = [mode for flag, mode in FLAGS.items() if config.get(flag) is True] or ["mean"]
    modes = [stated] if isinstance(stated, str) else stated
    if not isinstance(modes, list) or not modes or any(mode not in POOLINGS for mode in modes):
        raise CheckpointError(f"{folder / 'config.json'} pools by {stated!r:.60}, expected some of {', '.join(POOLINGS)}")
    return "+".join(POOLINGS[mode] for mode in modes)


def _dense(config: Mapping[str, Any], folder: Path) -> PooledLayer:
    """A Dense module. CheckpointError: it reads something else, or its activation is not known."""
    path = folder / "config.json"
    for key in ("module_input_name", "module_output_name"):
        if config.get(key) not in (None, "sentence_embedding"):
            raise CheckpointError(f"{path}: {key} is {config[key]!r:.60}, expected sentence_embedding; export its Transformer alone")
    stated = str(config.get("activation_function", "torch.nn.Tanh"))
    place, _, name = stated.rpartition(".")
    if not place.startswith("torch.nn") or name not in ACTIVATED:
        raise CheckpointError(f"{path}: activation_function is {stated!r:.60}, expected {', '.join(ACTIVATED)} of torch.nn")
    return PooledLayer("dense", name.lower(), config.get("use_residual") is True)


def _own_settings(path: Path, settings: TextSettings, longest: int | None) -> TextSettings:
    """The settings with max_seq_length and do_lower_case."""
    config = read_json(path)
    stated = config.get("max_seq_length")
    if stated is not None and (type(stated) is not int or stated < 1):
        raise CheckpointError(f"{path}: max_seq_length is {stated!r:.40}, expected a number of tokens from 1")
    return replace(settings, max_length=longest if stated is None else stated, lower=config.get("do_lower_case") is True)


def _with_prompts(settings: TextSettings, path: Path) -> TextSettings:
    """The settings with the folder's prompts. CheckpointError: they are none, or the default is not among them."""
    config = read_json(path) if path.is_file() else {}
    stated, default = config.get("prompts") or {}, config.get("default_prompt_name")
    if not isinstance(stated, dict) or not all(text is None or isinstance(text, str) for text in stated.values()):
        raise CheckpointError(f"{path}: prompts is {stated!r:.60}, expected texts by name; correct it")
    prompts = {str(name): text or "" for name, text in stated.items()}
    if default is not None and default not in prompts:
        known = ", ".join(prompts) or "none"
        raise CheckpointError(f"{path}: default_prompt_name is {default!r:.40}, expected one of its prompts, {known}; correct it")
    size = config.get("truncate_dim")
    if size is not None and (type(size) is not int or size < 1):
        raise CheckpointError(f"{path}: truncate_dim is {size!r:.40}, expected a whole number from 1; correct it")
    similarity = config.get("similarity_fn_name")
    kept = similarity if similarity in SIMILARITIES else None  # sentence-transformers passes over others too
    return replace(settings, prompts=prompts, default_prompt=default, truncate_dim=size, similarity=kept)


def activation(config: Mapping[str, Any]) -> str | None:
    """The name of what a cross-encoder's config.json does to its logits, without torch's module; None where it says nothing."""
    newer = config.get(NEWER)
    stated = newer.get("activation_fn") if isinstance(newer, Mapping) else None
    stated = config.get(OLDER) if stated is None else stated
    return None if stated is None else str(stated).removeprefix("torch.nn.modules.").rpartition(".")[2]


def activation_problems(config: Mapping[str, Any]) -> list[str]:
    """What is stated of an activation and cannot be done."""
    stated = activation(config)
    if stated is None or stated in ACTIVATIONS:
        return []
    key = OLDER if config.get(OLDER) is not None else f"{NEWER}.activation_fn"
    return [f"{key} is {stated!r:.60}, expected {', '.join(ACTIVATIONS)} of torch.nn"]


def score_notes(config: Mapping[str, Any], labels: int | None) -> list[str]:
    """What is assumed of a classifier's scores."""
    stated, kind = activation(config), config.get("problem_type")
    if labels == 1 and stated is None and kind not in PROBLEMS:
        return ["config.json does not say what its single logit means: the score is its sigmoid, as in CrossEncoder"]
    if labels != 1 and stated == "Identity":
        return ["its activation is Identity and it has several labels: scores are the softmax of the logits, not the logits"]
    return []


def problem(config: Mapping[str, Any], labels: int | None) -> str:
    """EncodingConfig's name of what logits mean. CheckpointError: a stated activation that a bundle does not have.

    A stated activation counts, then `problem_type`. A single label of which nothing is said is a score between 0 and 1, by the sigmoid: so
    do sentence-transformers' CrossEncoder and transformers' pipeline.
    """
    stated = activation(config)
    if problems := activation_problems(config):
        raise CheckpointError("config.json: " + "; ".join(problems))
    if stated is not None:
        found = ACTIVATIONS[stated][0 if labels == 1 else 1]
        if found is None:
            raise CheckpointError(f"config.json: the activation {stated} of a single label is always 1, expected Sigmoid or Identity")
        multi = stated == "Identity" and config.get("problem_type") == "multi_label_classification" and labels != 1
        return "multi" if multi else found
    return PROBLEMS.get(str(config.get("problem_type"))) or ("multi" if labels == 1 else "single")


def classifying(found: EncodingConfig, names: Sequence[str], config: Mapping[str, Any], labels: int) -> EncodingConfig:
    """A classifier's settings, with what its logits mean. names: of its labels, none where nothing says; labels: how many. CheckpointError.

    CrossEncoder does not read `problem_type`: where nothing is stated it takes the sigmoid of a single label, and several as they are.
    """
    known = replace(found, labels=tuple(names), problem=problem(config, labels))
    theirs = (activation(config) or ("Sigmoid" if labels == 1 else "Identity")).lower()
    return known if theirs == known.score_activation else replace(known, activation=theirs)
