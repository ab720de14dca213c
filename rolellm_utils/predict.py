"""Answers of a student, with or without an adapter, to the questions of a test file; resumable."""

import hashlib
import json
import os
from pathlib import Path

from pydantic import BaseModel
from tqdm import tqdm

from rolellm_utils.files import read_json, read_jsonl, write_jsonl
from rolellm_utils.profiles import file_name
from rolellm_utils.records import Request
from rolellm_utils.retrieval import whole_sentences
from rolellm_utils.stage import REFERENCE
from rolellm_utils.student import load_model, load_tokenizer

# Part of every answer's key: how `predict` ends answers.
FINISH = "whole sentences, or all"


class Student(BaseModel):
    """A model to ask: the base model's name or folder, and an adapter folder or None."""

    student: str = "embedded"
    adapter: Path | None = None
    device: str = "auto"


class Decoding(BaseModel):
    """How answers are generated. Greedy at temperature 0; the paper's decoding for students is unknown."""

    max_tokens: int = 80
    temperature: float = 0.0
    top_p: float = 0.95
    repetition_penalty: float = 1.1
    batch_size: int = 16
    seed: int = 0


def predict(model, rows, decoding):
    """The answers to rows ({"system", "question"}), in their order, as an iterator: a string a row.

    model: a Student. An answer that runs into max_tokens ends at its last whole sentence, as RoleGPT's do; one that
    has none stays as it is, or an untuned student would be scored on nothing.
    Rows are generated in left-padded batches of `decoding.batch_size` in the order given: sort them by length.
    """
    import torch

    tokenizer = load_tokenizer(model.student)
    tokenizer.padding_side = "left"
    network = load_model(model.student, model.device)
    if model.adapter:
        from peft import PeftModel

        network = PeftModel.from_pretrained(network, str(model.adapter)).merge_and_unload()
    network.eval()
    torch.manual_seed(decoding.seed)
    sampling = {"do_sample": False}
    if decoding.temperature:
        sampling = {"do_sample": True, "temperature": decoding.temperature, "top_p": decoding.top_p}
    for start in range(0, len(rows), decoding.batch_size):
        batch = [prompt(row, tokenizer) for row in rows[start : start + decoding.batch_size]]
        inputs = tokenizer(batch, return_tensors="pt", padding=True, add_special_tokens=False).to(network.device)
        with torch.inference_mode():
            output = network.generate(
                **inputs,
                max_new_tokens=decoding.max_tokens,
                repetition_penalty=decoding.repetition_penalty,
                pad_token_id=tokenizer.eos_token_id,
                eos_token_id=tokenizer.eos_token_id,
                **sampling,
            )
        for answer in output[:, inputs["input_ids"].shape[1] :].tolist():
            text = tokenizer.decode(answer, skip_special_tokens=True).strip()
            yield text if tokenizer.eos_token_id in answer else whole_sentences(text) or text


def prompt(row, tokenizer):
    """The text a student continues: system text and question in the chat template."""
    messages = [{"role": "system", "content": row["system"]}, {"role": "user", "content": row["question"]}]
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)


def answer_key(model, row, decoding):
    """The SHA-256 of what decides an answer: student, how its adapter was trained, row, decoding."""
    trained = read_json(model.adapter / "training.json")["fingerprint"] if model.adapter else ""
    plain = decoding.model_dump(exclude={"batch_size"})
    return hashlib.sha256(
        json.dumps([FINISH, model.student, trained, row["system"], row["question"], plain], sort_keys=True).encode()
    ).hexdigest()


def recorded(name, replay):
    """The predictions file of that name in the reference run, or None when recordings are not to be used."""
    use = replay and os.environ.get("ROLELLM_REPLAY") != "off"
    return REFERENCE / "eval" / "predictions" / name if use else None


def to_file(model, rows, decoding, path, recorded=None):
    """Write the answers to rows ({"role", "question", "system"}) as RoleBench rows; how many were generated now.

    Answers already in the file, in its unfinished sibling (a killed run) or in `recorded` (another predictions file)
    are taken over when their key, hence model, row and decoding, is the same. The file appears when it is complete.
    """
    partial = path.with_name(f"{path.stem}.partial.jsonl")
    known = {}
    if partial.exists():
        _drop_cut_line(partial)
    for source in (recorded, path, partial):
        if source and source.exists():
            known |= {row["key"]: row["generated"][0] for row in read_jsonl(source, ("key", "generated"))}
    keys = [answer_key(model, row, decoding) for row in rows]
    # Long prompts together: a batch is as slow as its longest row.
    todo = [i for i in sorted(range(len(rows)), key=lambda i: -len(rows[i]["question"])) if keys[i] not in known]
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(partial, "a", encoding="utf-8") as file:
        answers = predict(model, [rows[i] for i in todo], decoding) if todo else []
        for i, answer in tqdm(
            zip(todo, answers, strict=True), total=len(todo), desc=path.stem, unit="row", leave=False
        ):
            known[keys[i]] = answer
            file.write(json.dumps(_row(rows[i], answer, keys[i]), ensure_ascii=False) + "\n")
            file.flush()
    write_jsonl(path, [_row(row, known[key], key) for row, key in zip(rows, keys, strict=True)])
    partial.unlink()
    return len(todo)


def requests(rows, decoding):
    """One request a test row ({"role", "question", "system"}) to a served model; no repetition penalty."""
    return [
        Request(
            messages=[{"role": "system", "content": row["system"]}, {"role": "user", "content": row["question"]}],
            temperature=decoding.temperature,
            top_p=decoding.top_p,
            max_tokens=decoding.max_tokens,
            seed=decoding.seed,
            role=row["role"],
        )
        for row in rows
    ]


def write_served(replies, rows, folder, model):
    """Write a served model's answers to rows as RoleBench rows, cut-off ones ended as `predict` ends them; the file."""
    answers = []
    for row, reply in zip(rows, replies, strict=True):
        cut = reply.statuses[0] == "cut_off"
        text = (whole_sentences(reply.text) or reply.text) if cut else reply.text
        answers.append(_row(row, text.strip(), reply.key))
    return write_jsonl(folder / f"{file_name(model)}.jsonl", answers)


def _row(row, answer, key):
    return {"role": row["role"], "question": row["question"], "generated": [answer], "key": key}


def _drop_cut_line(path):
    # A kill may have cut the last line off, in the middle of a character even; its answer is generated again.
    data = path.read_bytes()
    if data and not data.endswith(b"\n"):
        path.write_bytes(data[: data.rfind(b"\n") + 1])
