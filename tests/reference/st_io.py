"""A small deterministic safetensors writer, and the GPT-2 shape as Hugging Face writes it.

Why not `safetensors.save_file`: its metadata passes through a hash map, so the bytes of two identical runs may
differ; it needs all tensors in memory; and it writes files that only their owner can read. Here a tensor is a
producer that is called when its turn comes, so a file costs one tensor of memory.
"""

import json
import struct

import numpy as np

# safetensors name -> numpy type in which the bytes are laid out. BF16 is the upper half of an F32.
DTYPES = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": np.uint16,
          "I64": np.int64, "U8": np.uint8, "BOOL": np.bool_}
_NAME_OF = {np.dtype(v): k for k, v in DTYPES.items() if k != "BF16"}


def to_bf16(a):
    """f32 -> bf16 bits, round to nearest even (finite input)."""
    u = np.ascontiguousarray(a, np.float32).view(np.uint32)
    return ((u + 0x7FFF + ((u >> 16) & 1)) >> 16).astype(np.uint16)


def nbytes(dtype, shape):
    return int(np.prod(shape, dtype=np.int64)) * np.dtype(DTYPES[dtype]).itemsize


def write(path, entries, metadata=None):
    """entries: (name, dtype, shape, producer). Laid out widest dtype first, then by name, without holes."""
    entries = sorted(entries, key=lambda e: (-np.dtype(DTYPES[e[1]]).itemsize, e[0]))
    header, at = {}, 0
    if metadata:
        header["__metadata__"] = {k: str(metadata[k]) for k in sorted(metadata)}
    for name, dtype, shape, _ in entries:
        assert name not in header, name
        end = at + nbytes(dtype, shape)
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, end]}
        at = end
    head = json.dumps(header, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(head)))
        f.write(head)
        for name, dtype, shape, produce in entries:
            a = np.ascontiguousarray(produce())
            assert a.dtype == DTYPES[dtype] and a.nbytes == nbytes(dtype, shape), name
            f.write(a.tobytes())
    return 8 + len(head) + at


def write_arrays(path, arrays, metadata=None):
    """arrays: name -> numpy array, dtype taken from the array."""
    entries = [(n, _NAME_OF[a.dtype], a.shape, lambda a=a: a) for n, a in arrays.items()]
    return write(path, entries, metadata)


def read(path):
    """-> (name -> numpy array, metadata), through the real library, so that the writer above is tested by use."""
    from safetensors import safe_open
    with safe_open(path, "np") as f:
        return {n: f.get_tensor(n) for n in f.keys()}, f.metadata() or {}


def hf_config(vocab, n_positions, n_embd, n_head, n_layer, dropout=0.0, **extra):
    """config.json of a GPT-2 as the Hub has it; <|endoftext|> is named only if the vocabulary reaches it."""
    end = 50256 if vocab > 50256 else None
    return {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "vocab_size": vocab,
            "n_positions": n_positions, "n_ctx": n_positions, "n_embd": n_embd, "n_head": n_head,
            "n_layer": n_layer, "n_inner": None, "activation_function": "gelu_new",
            "layer_norm_epsilon": 1e-5, "initializer_range": 0.02, "resid_pdrop": dropout,
            "embd_pdrop": dropout, "attn_pdrop": dropout, "tie_word_embeddings": True,
            "bos_token_id": end, "eos_token_id": end, **extra}


def parameter_shapes(c):
    """HF name (no `transformer.`) -> shape, from a config dict. Conv1D weights are [in, out]. lm_head is tied."""
    d = c["n_embd"]
    out = {"wte.weight": (c["vocab_size"], d), "wpe.weight": (c["n_positions"], d)}
    for i in range(c["n_layer"]):
        for name, shape in {
            "ln_1.weight": (d,), "ln_1.bias": (d,),
            "attn.c_attn.weight": (d, 3 * d), "attn.c_attn.bias": (3 * d,),
            "attn.c_proj.weight": (d, d), "attn.c_proj.bias": (d,),
            "ln_2.weight": (d,), "ln_2.bias": (d,),
            "mlp.c_fc.weight": (d, 4 * d), "mlp.c_fc.bias": (4 * d,),
            "mlp.c_proj.weight": (4 * d, d), "mlp.c_proj.bias": (d,),
        }.items():
            out[f"h.{i}.{name}"] = shape
    return {**out, "ln_f.weight": (d,), "ln_f.bias": (d,)}
