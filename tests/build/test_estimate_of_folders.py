"""What an export would write of encoders, encoder-decoders and pickles, beside what it writes."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from onnxport.build import build
from onnxport.build.estimate import check_room, estimate
from onnxport.build.estimate.folder import read
from onnxport.errors import CheckpointError, OutputError, UsageError
from support import causal_folders, encoder_folders, hf_folders
from support.commands import assert_refused, invoke

SIZES = {"vocab_size": 2000, "intermediate_size": 512, "num_hidden_layers": 1}


def bert(folder: Path, head: str, family: str = "bert", **options: object) -> Path:
    return encoder_folders.write(folder, encoder_folders.make(family, head, size=64, **SIZES), family, **options)


def assert_told(folder: Path, out: Path, *precisions: str, allow_pickle: bool = False) -> None:
    told = estimate(folder, precisions, allow_pickle=allow_pickle).files
    made = {name: file.bytes for name, file in build(str(folder), out, precision=precisions, allow_pickle=allow_pickle).files.items()}
    assert told.keys() <= made.keys()
    assert {name for name in made if name.endswith((".bin", ".npz")) or "/" not in name} - {"README.md"} <= told.keys()
    told = {name: size for name, size in told.items() if not name.startswith("fp16/") or name.endswith(".bin")}  # casts are not told
    assert told == pytest.approx({name: made[name] for name in told}, rel=0.2)


@pytest.mark.timeout(300)  # it exports
def test_files_of_an_encoder(tmp_path: Path) -> None:
    assert_told(bert(tmp_path / "bert", "bare"), tmp_path / "out", "fp32", "fp16", "int8")


@pytest.mark.timeout(300)  # it exports
def test_files_of_an_encoder_decoder(tmp_path: Path) -> None:
    sizes = {"vocab_size": 3000, "d_model": 128, "encoder_layers": 1, "decoder_layers": 1, "max_position_embeddings": 64}
    folder = hf_folders.marian(tmp_path / "marian", **sizes)
    assert_told(folder, tmp_path / "out", "fp32", "int8")


@pytest.mark.timeout(300)  # it exports
def test_files_of_a_pickle(tmp_path: Path) -> None:
    folder = bert(tmp_path / "bert", "masked")
    path = folder / "model.safetensors"
    state = load_file(path)
    torch.save(state | {"cls.predictions.decoder.weight": state["bert.embeddings.word_embeddings.weight"]}, folder / "pytorch_model.bin")
    saved = estimate(folder, ("fp32", "int8"))
    path.unlink()
    with pytest.raises(CheckpointError, match="only pickled weights .*--allow-pickle"):
        estimate(folder)
    assert estimate(folder, ("fp32", "int8"), allow_pickle=True).files == saved.files
    assert_refused(invoke("export", folder, "--out", tmp_path / "out", "--dry-run"), CheckpointError.exit_code, "--allow-pickle")
    result = invoke("export", folder, "--out", tmp_path / "out", "--precision", "fp32,int8", "--allow-pickle", "--dry-run", "--json")
    assert result.exit_code == 0 and json.loads(result.stdout)["files"] == saved.files
    assert_told(folder, tmp_path / "out", "fp32", allow_pickle=True)


def test_a_pickle_of_an_older_form_is_told_too(tmp_path: Path) -> None:
    folder = bert(tmp_path / "bert", "bare")
    saved = estimate(folder, ("fp32",))
    state = load_file(folder / "model.safetensors")
    torch.save({"state_dict": state}, folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    (folder / "model.safetensors").unlink()
    assert estimate(folder, ("fp32",), allow_pickle=True).files == saved.files
    (folder / "pytorch_model.bin").write_bytes(b"no pickle")
    with pytest.raises(CheckpointError, match="cannot be read as weights only"):
        estimate(folder, allow_pickle=True)


def test_weights_of_any_float_type_make_the_same_files(tmp_path: Path) -> None:
    folder = bert(tmp_path / "bert", "tokens")
    single, state = estimate(folder), load_file(folder / "model.safetensors")
    save_file({name: tensor.bfloat16() for name, tensor in state.items()}, folder / "model.safetensors")
    assert estimate(folder).files == single.files


@pytest.mark.parametrize(("head", "lost"), [("bare", True), ("tokens", True), ("single", False), ("choices", False)])
def test_a_pooler_that_the_class_does_not_read_is_left_out(head: str, lost: bool, tmp_path: Path) -> None:
    folder = bert(tmp_path / "bert", head)
    state = load_file(folder / "model.safetensors")
    width = 128
    name = "pooler.dense.weight" if head == "bare" else "bert.pooler.dense.weight"
    save_file(state | {name: torch.zeros(width, width)}, folder / "model.safetensors")
    assert (name not in {tensor.name for tensor in read(folder).tensors}) == lost


def test_a_head_is_left_out_where_hidden_states_are_asked_for(tmp_path: Path) -> None:
    folder = bert(tmp_path / "bert", "masked")
    kept = {tensor.name for tensor in read(folder).tensors}
    assert any(name.startswith("cls.predictions.transform") for name in kept)
    alone = {tensor.name for tensor in read(folder, task="embedding").tensors}
    assert alone == {name for name in kept if name.startswith("bert.")}
    (folder / "0_Transformer").mkdir()
    for path in [path for path in folder.iterdir() if path.is_file()]:
        path.rename(folder / "0_Transformer" / path.name)
    kinds = (("Transformer", "0_Transformer"), ("Pooling", "1_Pooling"))
    modules = [{"idx": i, "path": path, "type": f"sentence_transformers.models.{kind}"} for i, (kind, path) in enumerate(kinds)]
    (folder / "modules.json").write_text(json.dumps(modules))
    assert {tensor.name for tensor in read(folder).tensors} == alone


def test_a_tied_table_counts_once_and_one_of_its_own_by_itself(tmp_path: Path) -> None:
    folder = hf_folders.marian(tmp_path / "marian")
    state = load_file(folder / "model.safetensors")
    (table,) = (name for name in state if name.endswith(("shared.weight", "embed_tokens.weight", "lm_head.weight")))
    parameters = estimate(folder, ("fp32",)).parameters
    copies = ("model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight", "lm_head.weight")
    save_file({name: tensor for name, tensor in state.items() if name != table} | {"model.shared.weight": state[table]}
              | {name: state[table].clone() for name in copies}, folder / "model.safetensors")  # fmt: skip
    assert estimate(folder, ("fp32",)).parameters == parameters
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": False}))
    assert estimate(folder, ("fp32",)).parameters == parameters + state[table].numel()


def test_an_export_that_does_not_fit_the_disk_is_refused_before_it_begins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "place"
    place.mkdir()
    folders = [bert(tmp_path / "bert", "bare"), hf_folders.marian(tmp_path / "marian", vocab_size=3000, d_model=128)]
    for folder in folders:
        whole = 4 * read(folder).parameters
        free = 1.2 * whole  # of fp32
        monkeypatch.setattr("shutil.disk_usage", lambda path, free=free: SimpleNamespace(free=free))
        check_room(folder, place / "out", ("fp32",))
        result = invoke("export", folder, "--out", place / "out", "--precision", "fp32,fp16")
        assert_refused(result, OutputError.exit_code, "the weights of fp32, fp16 take")
        assert not list(place.iterdir())


def test_sources_that_are_no_folders_of_hugging_face_are_refused(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").touch()
    (tmp_path / "empty").mkdir()
    ours = tmp_path / "ours"
    ours.mkdir()
    (ours / "config.json").write_text(json.dumps({"architecture": "torch.nn.Transformer"}))
    save_file({"head.weight": torch.zeros(4, 4)}, ours / "model.safetensors")
    for source in (tmp_path / "model.onnx", tmp_path / "empty", ours, "mymodel:build", lambda: None):
        with pytest.raises(UsageError, match=r"--dry-run: .* is no folder.*: leave --dry-run out"):
            estimate(source)


def test_disk_counts_what_lies_beside_the_bundle(tmp_path: Path) -> None:
    folder = bert(tmp_path / "bert", "bare")
    single, half, rounded = (estimate(folder, (name,)) for name in ("fp32", "fp16", "int8"))
    whole = 4 * single.parameters
    assert single.disk == sum(single.files.values())
    assert half.disk == sum(size for name, size in half.files.items() if not name.endswith(".bin")) + 2 * whole
    assert rounded.disk > sum(rounded.files.values()) + whole


def test_weights_take_memory_where_they_are_not_mapped(tmp_path: Path) -> None:
    folder = causal_folders.write(tmp_path / "llama", "llama", vocab_size=4000)
    mapped = estimate(folder, ("fp32",))
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    for old in (False, True):
        torch.save(tensors, folder / "pytorch_model.bin", _use_new_zipfile_serialization=not old)
        found = estimate(folder, ("fp32",), allow_pickle=True)
        assert found.files == mapped.files and found.disk == mapped.disk
        assert found.memory == mapped.memory + (4 * mapped.parameters if old else 0)


def test_experts_that_are_joined_take_memory(tmp_path: Path) -> None:
    folder = causal_folders.write(tmp_path / "mixtral", "mixtral")
    apart = {name: tensor for name, tensor in load_file(folder / "model.safetensors").items() if ".experts.0." in name}
    assert apart and read(folder).held > sum(tensor.nbytes for tensor in apart.values())
