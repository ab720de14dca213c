"""Stage 5, RoCIT (paper, section 3.5): role-conditioned instruction tuning of a student with LoRA.

The paper published no training settings. Ours are parameters; the role stands in the system text, the loss is on the
response and the token that ends it, and nowhere else.
"""

import hashlib
import html
import json
import random
import shutil
import time
from itertools import groupby
from pathlib import Path

from pydantic import BaseModel, ConfigDict
from tqdm import tqdm

from rolellm_utils.files import read_json, read_jsonl, sha256, shown, write_json, write_jsonl, write_text
from rolellm_utils.prompts import render
from rolellm_utils.records import InputError
from rolellm_utils.rolebench import PARTS, folder_of, load, locate
from rolellm_utils.student import load_model, load_tokenizer, pick_device, student_name

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]


class Settings(BaseModel):
    """All that shapes an adapter. student: "embedded", a folder or a hub name; steps 0 means whole epochs.

    row_limit, answers_per_row: train rows, and references of each, to draw by seed; 0 takes all.
    """

    model_config = ConfigDict(extra="forbid")

    rolebench_dir: Path
    out: Path
    language: str = "en"
    split: str = "instruction-generalization"
    student: str = "embedded"
    row_limit: int = 0
    answers_per_row: int = 0
    rank: int = 8
    alpha: int = 16
    dropout: float = 0.0
    targets: str = "attention"
    learning_rate: float = 1e-3
    epochs: int = 1
    steps: int = 0
    batch_size: int = 4
    max_length: int = 768
    device: str = "auto"
    seed: int = 0


def system_texts(bench):
    """The system text of every role of a RoleBench: {role: text}; the name alone where it has no description."""
    return {
        role: render(bench.language, "system", role=role, description=bench.descriptions.get(role, ""))
        for role in bench.roles()
    }


def train_rows(settings):
    """The Samples to train on: `row_limit` of both parts' train rows and `answers_per_row` of each, drawn by seed."""
    bench = load(settings.rolebench_dir, settings.language, settings.split)
    samples = [*bench.general.get("train", []), *bench.role_specific.get("train", [])]
    if not samples:
        raise InputError(
            f"{shown(settings.rolebench_dir)} has no train rows for the split {settings.split!r}; set split to "
            "'by-instruction', lower test_share, or set student to 'none' to score the baseline alone"
        )
    generator = random.Random(settings.seed)
    if 0 < settings.row_limit < len(samples):
        samples = generator.sample(samples, settings.row_limit)
    if settings.answers_per_row:
        samples = [
            sample.model_copy(update={"generated": generator.sample(sample.generated, settings.answers_per_row)})
            if len(sample.generated) > settings.answers_per_row
            else sample
            for sample in samples
        ]
    return samples, system_texts(bench)


def conversations(samples, systems):
    """One conversation a reference: [{"role": system|user|assistant, "content"}] for each Sample and answer."""
    return [
        [
            {"role": "system", "content": systems[sample.role]},
            {"role": "user", "content": sample.question},
            {"role": "assistant", "content": text},
        ]
        for sample in samples
        for text in sample.generated
    ]


def tokenise(conversation, tokenizer):
    """{"input_ids", "labels"} of one conversation: labels are -100 before the response and count its end token.

    What the template puts behind the end token (a line feed in ChatML) is left out: nothing is generated after it.
    """
    prompt = tokenizer.apply_chat_template(conversation[:-1], tokenize=False, add_generation_prompt=True)
    whole = tokenizer.apply_chat_template(conversation, tokenize=False)
    response, end, _ = whole[len(prompt) :].rpartition(tokenizer.eos_token)
    if not whole.startswith(prompt) or not end:
        raise InputError(
            "the student's chat template does not close an answer with its end token "
            f"{tokenizer.eos_token!r}; choose a student whose template does"
        )
    prompt_ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    response_ids = tokenizer(response + end, add_special_tokens=False)["input_ids"]
    return {"input_ids": prompt_ids + response_ids, "labels": [-100] * len(prompt_ids) + response_ids}


def highlighted(example, tokenizer):
    """HTML of one example in which the tokens that the loss counts are marked."""
    spans = []
    for counted, group in groupby(zip(*example.values(), strict=True), key=lambda pair: pair[1] != -100):
        text = html.escape(tokenizer.decode([token for token, _ in group])).replace("\n", "<br>")
        spans.append(f'<mark style="background:#ffe08a">{text}</mark>' if counted else text)
    return f'<div style="font-family:monospace;line-height:1.5">{"".join(spans)}</div>'


def examples(settings, tokenizer):
    """The tokenised train rows, seeded order, and the overlong ones left out: ([example], [conversation]).

    Nothing is truncated: an example longer than max_length is left out whole and counted in training.json.
    """
    fitting, overlong = [], []
    for conversation in conversations(*train_rows(settings)):
        example = tokenise(conversation, tokenizer)
        if len(example["input_ids"]) <= settings.max_length:
            fitting.append(example)
        else:
            overlong.append(conversation)
    if not fitting:
        raise InputError(f"every train row is longer than max_length = {settings.max_length} tokens; raise max_length")
    random.Random(settings.seed).shuffle(fitting)
    return fitting, overlong


def collate(rows, pad):
    """Right-padded tensors of a list of examples: input_ids, attention_mask, labels, each (rows, longest)."""
    import torch

    longest = max(len(row["input_ids"]) for row in rows)
    batch = {"input_ids": [], "attention_mask": [], "labels": []}
    for row in rows:
        rest = longest - len(row["input_ids"])
        batch["input_ids"].append(row["input_ids"] + [pad] * rest)
        batch["attention_mask"].append([1] * len(row["input_ids"]) + [0] * rest)
        batch["labels"].append(row["labels"] + [-100] * rest)
    return {key: torch.tensor(value) for key, value in batch.items()}


def response_loss(model, inputs):
    """The mean cross-entropy of the response tokens; logits are computed at those positions alone.

    The logits of a whole padded batch over a 49,152-word vocabulary are what fills memory.
    """
    import torch

    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    hidden = base.get_decoder()(
        input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], use_cache=False
    ).last_hidden_state
    targets = inputs["labels"][:, 1:]
    counted = targets != -100
    logits = base.get_output_embeddings()(hidden[:, :-1][counted])
    return torch.nn.functional.cross_entropy(logits.float(), targets[counted])


def mean_loss(model, rows, batch_size, pad):
    """The response loss of rows without training on them, the mean over their batches."""
    import torch

    model.eval()
    with torch.inference_mode():
        batches = [collate(rows[i : i + batch_size], pad) for i in range(0, len(rows), batch_size)]
        losses = [
            response_loss(model, {key: value.to(model.device) for key, value in batch.items()}).item()
            for batch in batches
        ]
    return sum(losses) / len(losses)


def fingerprint(settings):
    """The SHA-256 of what decides an adapter: settings, train files and system texts (not the machine)."""
    root = locate(settings.rolebench_dir, settings.language, settings.split)
    folder = folder_of(root, settings.language, settings.split)
    digests = [sha256(path) for part in PARTS if (path := folder / part / "train.jsonl").exists()]
    systems = system_texts(load(settings.rolebench_dir, settings.language, settings.split))
    plain = settings.model_dump(mode="json", exclude={"rolebench_dir", "out", "device"})
    return hashlib.sha256(json.dumps([plain, digests, systems], sort_keys=True).encode()).hexdigest()


def arguments(settings, folder):
    """The trainer's arguments: cosine schedule, every step logged, nothing saved on the way, one device."""
    from transformers import TrainingArguments

    made = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=settings.batch_size,
        num_train_epochs=settings.epochs,
        max_steps=settings.steps or -1,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=2,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        seed=settings.seed,
        data_seed=settings.seed,
        use_cpu=pick_device(settings.device).type == "cpu",
        remove_unused_columns=False,
        disable_tqdm=True,
    )
    if made.n_gpu > 1:
        made._n_gpu = 1  # the trainer would wrap the model in DataParallel, which hides what response_loss needs
    return made


def save_adapter(model, folder, name):
    """Write the adapter in bfloat16 with its config, which names the base model instead of this machine's cache."""
    import torch

    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(torch.bfloat16)
    model.save_pretrained(str(folder), save_embedding_layers=False)
    config = read_json(folder / "adapter_config.json")
    write_json(folder / "adapter_config.json", config | {"base_model_name_or_path": name})


def train(settings):
    """Train a LoRA adapter; the path of its folder (safetensors, config, log.jsonl, training.json, README.md).

    The folder appears when training is over, so a killed run leaves none. Raises InputError for a student that cannot
    be trained and for train rows that cannot be used, before the first step.
    """
    from peft import LoraConfig, get_peft_model
    from transformers import PrinterCallback, Trainer, TrainerCallback, set_seed

    started = time.perf_counter()
    tokenizer = load_tokenizer(settings.student)
    rows, overlong = examples(settings, tokenizer)
    set_seed(settings.seed)
    targets = ATTENTION if settings.targets == "attention" else settings.targets
    config = LoraConfig(
        r=settings.rank, lora_alpha=settings.alpha, lora_dropout=settings.dropout, target_modules=targets,
        task_type="CAUSAL_LM",
    )  # fmt: skip
    model = get_peft_model(load_model(settings.student, settings.device), config)

    class ResponseTrainer(Trainer):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            loss = response_loss(model, inputs)
            return (loss, {}) if return_outputs else loss

    class Bar(TrainerCallback):
        def on_train_begin(self, args, state, control, **_):
            self.bar = tqdm(total=state.max_steps, desc="RoCIT", unit="step", leave=False)

        def on_step_end(self, args, state, control, **_):
            self.bar.update()

        def on_train_end(self, args, state, control, **_):
            self.bar.close()

    temporary = settings.out.with_name(f".{settings.out.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    pad = tokenizer.eos_token_id
    trainer = ResponseTrainer(
        model=model, args=arguments(settings, temporary), train_dataset=rows,
        data_collator=lambda batch: collate(batch, pad),
        callbacks=[Bar],
    )  # fmt: skip
    trainer.remove_callback(PrinterCallback)
    before = mean_loss(model, rows[:32], settings.batch_size, pad)
    trainer.train()
    after = mean_loss(model, rows[:32], settings.batch_size, pad)
    log = [{"step": row["step"], "loss": row["loss"]} for row in trainer.state.log_history if "loss" in row]
    save_adapter(model, temporary, student_name(settings.student))
    write_jsonl(temporary / "log.jsonl", log)
    write_json(
        temporary / "training.json",
        {
            "fingerprint": fingerprint(settings),
            "settings": settings.model_dump(mode="json", exclude={"rolebench_dir", "out"}),
            "examples": len(rows),
            "overlong": len(overlong),
            "response_tokens": sum(label != -100 for row in rows for label in row["labels"]),
            "steps": len(log),
            "loss_before": before,
            "loss_after": after,
            "seconds": round(time.perf_counter() - started, 1),
        },
    )
    write_text(temporary / "README.md", model_card(settings, len(rows), len(log), before, after))
    shutil.rmtree(settings.out, ignore_errors=True)
    temporary.rename(settings.out)
    return settings.out


def read_log(adapter):
    """The training log of an adapter: [{"step", "loss"}]."""
    return read_jsonl(adapter / "log.jsonl", ("step", "loss"))


def model_card(settings, rows, steps, before, after):
    """The Markdown card of an adapter: what it is, what it was trained on and with, what it cannot do."""
    return f"""# LoRA adapter for {student_name(settings.student)}: RoCIT, {settings.language}

Role-conditioned instruction tuning (RoleLLM, arXiv 2310.00746): {rows} examples, one model for all roles, the role in
the system text, loss on the response only.

| setting | value |
|---|---|
| rank / alpha / targets | {settings.rank} / {settings.alpha} / {settings.targets} |
| learning rate, schedule | {settings.learning_rate}, cosine, 2 warm-up steps |
| batch size, epochs, steps | {settings.batch_size}, {settings.epochs}, {steps} |
| seed | {settings.seed} |
| loss on the first 32 train rows, before and after | {before:.3f} -> {after:.3f} |

It imitates the answers of the teacher that wrote its RoleBench, with their mistakes. Licence: that of the base model.
"""
