"""The student: its weights, tokenizer and chat template; from the kit, a folder or the hub, never with remote code."""

import warnings
from pathlib import Path

from rolellm_utils import embedded
from rolellm_utils.files import resolve
from rolellm_utils.records import InputError

# For base models, which have no template of their own: the paper's three blocks, of which only the response is closed
# by the end token, since a base model takes an end token in its prompt for the end of the document.
BASE_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'system' %}### Instruction:\n{{ message['content'] }}\n\n"
    "{% elif message['role'] == 'user' %}### Input:\n{{ message['content'] }}\n\n"
    "{% else %}### Response:\n{{ message['content'] }}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}### Response:\n{% endif %}"
)


def student_path(student):
    """What `transformers` loads for a student: a folder, or a hub name as it stands."""
    if student_name(student) in embedded.MODELS:
        return embedded.unpack(student_name(student))
    path = resolve(student)
    return path if path.exists() else student


def student_name(student):
    """The student's name in paths and tables."""
    return embedded.NAME if student == "embedded" else Path(student).name


def load_tokenizer(student):
    """The student's tokenizer, with BASE_TEMPLATE where it has none; InputError when it cannot be used."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(student_path(student), trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise InputError(
            f"student {student!r} cannot be loaded ({str(error).splitlines()[0]}); give 'embedded', a model folder "
            "or a hub name that needs no remote code"
        ) from None
    if tokenizer.eos_token is None:
        raise InputError(f"student {student!r} has no end token, so it could never stop; choose another")
    if not tokenizer.chat_template:
        tokenizer.chat_template = BASE_TEMPLATE
    return tokenizer


def load_model(student, device):
    """The student's weights on the device, in the precision that it is fast at."""
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    # peft 0.21 asks transformers 5.23 for a property it renames: nothing a reader of our notebooks can act on.
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
    device = pick_device(device)
    return AutoModelForCausalLM.from_pretrained(
        student_path(student), dtype=pick_dtype(device), trust_remote_code=False
    ).to(device)


def pick_device(device):
    """The torch device for "auto" (CUDA, then MPS, then CPU) or the one named."""
    import torch

    if device != "auto":
        return torch.device(device)
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def pick_dtype(device):
    """bfloat16 where the device computes in it, else float32: a CPU that has to emulate it is seven times slower."""
    import torch

    if device.type != "cpu":
        return torch.bfloat16
    able = torch.cpu.get_capabilities()
    return torch.bfloat16 if any(able.get(name) for name in ("amx_bf16", "avx512_bf16", "bf16")) else torch.float32
