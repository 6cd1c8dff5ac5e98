"""Load FBGEMM's quantized-embedding inference ops (fbgemm-gpu 1.6.0, sm_90 only) from this folder.

    from load_fbgemm import load
    op = load()   # torch.ops.fbgemm.int_nbit_split_embedding_codegen_lookup_function

Python 3.12, torch 2.11.0+cu130. The libraries are decompressed to a temporary folder, which is
removed once they are loaded (a mapped file outlives its name). FBGEMM_KIT_DIR names a folder to
keep them in instead: later processes then skip the 2 or 3 seconds of decompression.
"""

import lzma
import os
import shutil
import tempfile

import torch

HERE = os.path.dirname(os.path.abspath(__file__))
ORDER = (  # dependencies first
    "asmjit",
    "fbgemm",
    "fbgemm_gpu_config",
    "fbgemm_gpu_tbe_cache",
    "fbgemm_gpu_tbe_inference",
)
NAME = "int_nbit_split_embedding_codegen_lookup_function"
BLOCK = 1 << 20


def _decompress(source, target):
    """Zeros, most of the file, become holes: 230 MB of libraries take 100 MB of disk or tmpfs."""
    part = f"{target}.{os.getpid()}"
    zeros = bytes(BLOCK)
    with lzma.open(source) as packed, open(part, "wb") as file:
        size = 0
        while block := packed.read(BLOCK):
            if block == zeros[: len(block)]:
                file.seek(len(block), os.SEEK_CUR)
            else:
                file.write(block)
            size += len(block)
        file.truncate(size)
    os.replace(part, target)


def load(folder=None):
    """The op; raises OSError where the libraries do not load."""
    if f"fbgemm::{NAME}" in torch._C._dispatch_get_all_op_names():
        return getattr(torch.ops.fbgemm, NAME)
    keep = folder or os.environ.get("FBGEMM_KIT_DIR")
    folder = keep or tempfile.mkdtemp(prefix="fbgemm_kit_")
    try:
        os.makedirs(folder, exist_ok=True)
        for name in ORDER:
            path = os.path.join(folder, f"{name}.so")
            if not os.path.exists(path):
                _decompress(os.path.join(HERE, f"{name}.so.xz"), path)
        for name in ORDER:
            torch.ops.load_library(os.path.join(folder, f"{name}.so"))
    finally:
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)
    return getattr(torch.ops.fbgemm, NAME)


if __name__ == "__main__":
    op = load()
    for key in ("CPU", "CUDA"):
        print(key, torch._C._dispatch_has_kernel_for_dispatch_key(f"fbgemm::{NAME}", key))
    print(op.default._schema)
