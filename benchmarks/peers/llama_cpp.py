"""llama.cpp (https://github.com/ggml-org/llama.cpp) through llama-cpp-python's bindings, built for this processor; Llama, Qwen2, Gemma 3.

A batch is one sequence a row in one context, decoded a token at a time from Python; the arg-max is NumPy's over the row's logits. Weights
are converted here with the gguf package, every matrix in the precision named: F32, Q8_0, Q4_0. Keys and values are float32 in F32, else
float16 as llama.cpp has them by default.
"""

import json
import sys
from pathlib import Path
from typing import Any

PRECISIONS = ("f32", "q8_0", "q4_0")
NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
GEMMA = NAMES | {
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
}
ARCHITECTURES = {"llama": ("llama", NAMES), "qwen2": ("qwen2", NAMES), "gemma3_text": ("gemma3", GEMMA)}  # model_type → llama.cpp's names
WHOLE = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight", "lm_head.weight": "output.weight"}
ROOM = 512  # tokens that a row's sequence may hold at first


def convert(source: Path, out: Path) -> None:
    """A GGUF file a precision; without a tokenizer, since answers are asked for by ids."""
    out.mkdir(parents=True)
    for precision in PRECISIONS:
        write(source, out / f"{precision}.gguf", precision.upper())


def write(source: Path, out: Path, kind: str, tokenizer: bool = False) -> None:
    """A GGUF file, every matrix in one type. source: a folder with its weights in one file. tokenizer: with its byte-level BPE."""
    import gguf

    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    if config["model_type"] not in ARCHITECTURES:
        raise SystemExit(f"{source} is {config['model_type']}, expected {' or '.join(ARCHITECTURES)}")
    architecture, names = ARCHITECTURES[config["model_type"]]
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    size = config.get("head_dim") or config["hidden_size"] // heads
    rope = config.get("rope_parameters") or config
    writer = gguf.GGUFWriter(out, architecture)
    writer.add_vocab_size(config["vocab_size"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_key_length(size)
    writer.add_value_length(size)
    writer.add_rope_dimension_count(size)
    writer.add_rope_freq_base(float(rope.get("full_attention", rope)["rope_theta"]))  # it knows Gemma's for windows, and their layers
    if architecture == "gemma3":
        writer.add_sliding_window(config["sliding_window"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    if tokenizer:
        _add_tokenizer(writer, source)
    else:
        writer.add_tokenizer_model("none")
    to = gguf.GGMLQuantizationType[kind]
    writer.add_file_type(gguf.LlamaFileType[{"F32": "ALL_F32"}.get(kind, f"MOSTLY_{kind}")])
    for name, array in _weights(source / "model.safetensors"):
        if name in WHOLE:
            place = WHOLE[name]
        else:
            _, _, layer, rest = name.split(".", 3)
            module, part = rest.rsplit(".", 1)
            place = f"blk.{layer}.{names[module]}.{part}"
            if architecture == "llama" and module in ("self_attn.q_proj", "self_attn.k_proj"):  # it turns neighbours, not halves
                parts = heads if "q_proj" in rest else kv_heads
                array = array.reshape(parts, 2, -1, array.shape[1]).swapaxes(1, 2).reshape(array.shape)
        if architecture == "gemma3" and name.endswith("norm.weight"):  # its norms multiply by 1 more
            array = array + 1
        matrix = array.ndim == 2
        writer.add_tensor(place, gguf.quants.quantize(array, to) if matrix else array, raw_dtype=to if matrix else None)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_tokenizer(writer: Any, source: Path) -> None:
    """The byte-level BPE of a tokenizer.json, split as GPT-2 splits text."""
    from gguf import TokenType

    read = json.loads((source / "tokenizer.json").read_text(encoding="utf-8"))
    special = {entry["id"]: entry["content"] for entry in read["added_tokens"]}
    names = {number: name for name, number in read["model"]["vocab"].items()} | special
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([names[number] for number in range(len(names))])
    writer.add_token_types([TokenType.CONTROL if number in special else TokenType.NORMAL for number in range(len(names))])
    writer.add_token_merges([one if isinstance(one, str) else " ".join(one) for one in read["model"]["merges"]])
    writer.add_bos_token_id(config["bos_token_id"])
    writer.add_eos_token_id(config["eos_token_id"])
    writer.add_add_bos_token(False)


def _weights(path: Path) -> Any:
    """Names and float32 arrays of a safetensors file; NumPy has no bfloat16."""
    import numpy

    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    for name, entry in json.loads(data[8 : 8 + size]).items():
        if name == "__metadata__":
            continue
        begin, end = (8 + size + offset for offset in entry["data_offsets"])
        if entry["dtype"] == "BF16":
            array = (numpy.frombuffer(data[begin:end], numpy.uint16).astype(numpy.uint32) << 16).view(numpy.float32)
        else:
            array = numpy.frombuffer(data[begin:end], {"F32": "<f4", "F16": "<f2"}[entry["dtype"]]).astype(numpy.float32)
        yield name, array.reshape(entry["shape"])


class Peer:
    """One file of weights; a `worker.Side`."""

    imports = ("numpy", "llama_cpp")

    def __init__(self, folder: str, precision: str, threads: int) -> None:
        self.path, self.precision, self.threads = Path(folder) / f"{precision}.gguf", precision, threads
        self.rows = self.length = 0

    def load(self) -> None:
        """Opens the file; a context for one row, a larger one comes with the first larger batch."""
        import ctypes

        import llama_cpp
        import numpy

        self.library, self.numpy = llama_cpp, numpy
        self._log = llama_cpp.llama_log_callback(lambda level, text, data: None)  # kept, or it would be freed
        llama_cpp.llama_log_set(self._log, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        self.model = llama_cpp.llama_model_load_from_file(str(self.path).encode(), llama_cpp.llama_model_default_params())
        if not self.model:
            raise RuntimeError(f"llama.cpp cannot load {self.path}")
        self.vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))
        self._room(1, ROOM)

    def about(self) -> dict[str, Any]:
        """Version of the bindings, and what the build uses of the processor."""
        found = self.library.llama_print_system_info().decode()
        return {"versions": {"llama-cpp-python": self.library.__version__}, "build": found}

    def _room(self, rows: int, length: int) -> None:
        """A context for so many rows of up to so many tokens."""
        if rows == self.rows and length <= self.length:
            return
        library = self.library
        if self.rows:
            library.llama_free(self.context)
            library.llama_batch_free(self.batch)
        options = library.llama_context_default_params()
        options.n_ctx, options.n_seq_max = length * rows, rows
        options.n_threads = options.n_threads_batch = self.threads
        options.n_batch = options.n_ubatch = max(512, 32 * rows)
        if self.precision == "f32":
            options.type_k = options.type_v = library.GGML_TYPE_F32
            options.flash_attn_type = library.LLAMA_FLASH_ATTN_TYPE_DISABLED  # it rounds to float16 inside: logits 1.6e-3 off
        self.context = library.llama_init_from_model(self.model, options)
        if not self.context:
            raise RuntimeError("llama.cpp cannot make a context")
        self.batch = library.llama_batch_init(options.n_batch, 0, 1)
        self.rows, self.length, self.most = rows, length, options.n_batch

    def _decode(self, tokens: list[tuple[int, int, int, bool]]) -> Any:
        """(token, position, row, wanted) each; the ids with the highest logits of those wanted, in order."""
        return [one for begin in range(0, len(tokens), self.most) for one in self._decode_part(tokens[begin : begin + self.most])]

    def _decode_part(self, tokens: list[tuple[int, int, int, bool]]) -> Any:
        library, batch = self.library, self.batch
        batch.n_tokens = len(tokens)
        for i, (token, position, row, wanted) in enumerate(tokens):
            batch.token[i], batch.pos[i], batch.logits[i] = token, position, wanted
            batch.n_seq_id[i] = 1
            batch.seq_id[i][0] = row
        if library.llama_decode(self.context, batch):
            raise RuntimeError("llama_decode failed")
        places = [i for i, one in enumerate(tokens) if one[3]]
        if not places:
            return []
        # One block for all rows wanted, in the order of the batch.
        logits = self.numpy.ctypeslib.as_array(library.llama_get_logits(self.context), (len(places), self.vocabulary))
        return logits.argmax(1).tolist()

    def generate(self, inputs: list[list[int]], max_new_tokens: int, min_new_tokens: int = 0, beam: int = 1) -> list[dict[str, Any]]:
        """Exactly max_new_tokens of every row: min_new_tokens must be as many."""
        if beam != 1 or min_new_tokens != max_new_tokens:
            raise ValueError("this side decodes greedily and a fixed number of tokens")
        self._room(len(inputs), max(ROOM, max(map(len, inputs)) + max_new_tokens))
        self.library.llama_memory_clear(self.library.llama_get_memory(self.context), False)
        prompts = [(token, i, row, i == len(ids) - 1) for row, ids in enumerate(inputs) for i, token in enumerate(ids)]
        steps = [self._decode(prompts)]
        for step in range(max_new_tokens - 1):
            steps.append(self._decode([(token, len(inputs[row]) + step, row, True) for row, token in enumerate(steps[-1])]))
        return [{"text": None, "tokens": list(row)} for row in zip(*steps, strict=True)]


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]))
