"""Stage 5 and the students' answers, with the real embedded weights: needs the model that `make setup` fetches."""

import copy
import json
import random

import pytest
import torch
from safetensors.torch import load_file

from rolellm_utils import embedded, predict, rocit, rolebench, splits, student
from rolellm_utils.files import write_json
from rolellm_utils.records import InputError
from tests.test_splits import answers

CONVERSATION = [
    {"role": "system", "content": "You are 孙悟空. Be brief."},
    {"role": "user", "content": "Who are you?"},
    {"role": "assistant", "content": "俺老孙 am I! 🐒"},
]


@pytest.fixture(scope="module")
def tokenizer():
    return student.load_tokenizer("embedded")


def small_run(folder, roles=("A", "B")):
    made, _, _ = splits.assemble(answers(roles, 6, 2), 0.4, 0, random.Random(0))
    rolebench.save(made["instruction-generalization"], folder / "rolebench", "en", "instruction-generalization")
    write_json(folder / "rolebench/profiles-eng/desc.json", {role: f"You are {role}, a keeper." for role in roles})
    return rocit.Settings(rolebench_dir=folder / "rolebench", out=folder / "rocit" / "x", batch_size=4, steps=4)


def test_the_loss_counts_the_response_and_its_end_token_exactly(tokenizer):
    example = rocit.tokenise(CONVERSATION, tokenizer)
    counted = [label for label in example["labels"] if label != -100]
    assert tokenizer.decode(counted) == "俺老孙 am I! 🐒" + tokenizer.eos_token
    assert example["labels"][-1] == tokenizer.eos_token_id == example["input_ids"][-1]
    prompt = tokenizer.decode(example["input_ids"][: -len(counted)])
    assert prompt.endswith("<|im_start|>assistant\n") and "孙悟空" in prompt
    # The same tokens as the whole conversation has when the template writes it at once.
    whole = tokenizer.apply_chat_template(CONVERSATION, tokenize=False).rstrip("\n")
    assert example["input_ids"] == tokenizer(whole, add_special_tokens=False)["input_ids"]


def test_highlighted_marks_the_response_and_escapes(tokenizer):
    conversation = [*CONVERSATION[:2], {"role": "assistant", "content": "<b>x</b>"}]
    page = rocit.highlighted(rocit.tokenise(conversation, tokenizer), tokenizer)
    assert page.count("<mark") == 1 and "&lt;b&gt;x" in page.split("<mark")[1] and "<b>" not in page


def test_response_loss_is_the_models_own_loss(tokenizer):
    """Oracle: transformers' loss over full logits with the same labels; also that padding changes nothing."""
    rows = [rocit.tokenise([*CONVERSATION[:2], {"role": "assistant", "content": text}], tokenizer)
            for text in ("Aye.", "The sea keeps her own books, lass.")]  # fmt: skip
    model = student.load_model("embedded", "cpu").float()
    batch = rocit.collate(rows, tokenizer.eos_token_id)
    with torch.inference_mode():
        ours = rocit.response_loss(model, batch).item()
        theirs = model(**batch).loss.item()
        singles = [rocit.response_loss(model, rocit.collate([row], 0)).item() for row in rows]
    assert ours == pytest.approx(theirs, rel=1e-5)
    counts = [sum(label != -100 for label in row["labels"]) for row in rows]
    assert ours == pytest.approx(sum(n * x for n, x in zip(counts, singles, strict=True)) / sum(counts), rel=1e-4)


def test_overlong_rows_are_left_out_whole(tmp_path, tokenizer):
    settings = small_run(tmp_path)
    rows, overlong = rocit.examples(settings.model_copy(update={"max_length": 512}), tokenizer)
    longest = max(len(row["input_ids"]) for row in rows)
    fewer, left = rocit.examples(settings.model_copy(update={"max_length": longest - 1}), tokenizer)
    assert not overlong and left and len(fewer) + len(left) == len(rows)
    with pytest.raises(InputError, match="max_length = 5 "):
        rocit.examples(settings.model_copy(update={"max_length": 5}), tokenizer)


def test_training_learns_is_saved_and_answers(tmp_path):
    settings = small_run(tmp_path)
    folder = rocit.train(settings)
    result = json.loads((folder / "training.json").read_text())
    assert result["loss_after"] < result["loss_before"] - 0.2 and result["steps"] == 4
    weights = load_file(folder / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}
    assert any(tensor.abs().sum() > 0 for name, tensor in weights.items() if "lora_B" in name)
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == embedded.NAME
    text = "".join(path.read_text() for path in folder.iterdir() if path.suffix in (".json", ".md", ".jsonl"))
    assert str(tmp_path) not in text and str(embedded.cache_dir()) not in text
    assert not [path for path in folder.parent.iterdir() if path.name.startswith(".")]
    rows = [{"role": "A", "question": f"general {i}?", "system": "You are A. You are A, a keeper."} for i in range(3)]
    decoding = predict.Decoding(max_tokens=12, batch_size=2)
    tuned = list(predict.predict(predict.Student(adapter=folder, device="cpu"), rows, decoding))
    untuned = list(predict.predict(predict.Student(device="cpu"), rows, decoding))
    assert len(tuned) == len(untuned) == 3 and tuned != untuned


def test_the_fingerprint_follows_data_prompts_and_settings_not_the_machine(tmp_path, monkeypatch):
    settings = small_run(tmp_path)
    first = rocit.fingerprint(settings)
    assert rocit.fingerprint(settings.model_copy(update={"device": "cpu"})) == first
    assert rocit.fingerprint(settings.model_copy(update={"rank": 4})) != first
    monkeypatch.setattr(rocit, "render", lambda *_, **values: f"other {values['role']}")
    assert rocit.fingerprint(settings) != first
    monkeypatch.undo()
    train = tmp_path / "rolebench/rolebench-eng/instruction-generalization/general/train.jsonl"
    train.write_text(train.read_text().replace("says", "said"))
    assert rocit.fingerprint(settings) != first


def test_rows_and_references_are_drawn_by_seed_and_a_role_without_description_is_its_name(tmp_path):
    settings = small_run(tmp_path)
    write_json(tmp_path / "rolebench/profiles-eng/desc.json", {"A": "You are A, a keeper."})
    samples, systems = rocit.train_rows(settings)
    assert len(samples) == 10 and systems["A"].startswith("You are A. You are A, a keeper.")
    assert systems["B"].startswith("You are B.") and "keeper" not in systems["B"]
    fewer = settings.model_copy(update={"row_limit": 7, "answers_per_row": 1})
    drawn, _ = rocit.train_rows(fewer)
    assert len(drawn) == 7 and all(len(sample.generated) == 1 for sample in drawn)
    assert rocit.train_rows(fewer)[0] == drawn
    assert rocit.train_rows(fewer.model_copy(update={"seed": 1}))[0] != drawn
    whole = {(sample.role, sample.question): sample.generated for sample in samples}
    assert all(sample.generated[0] in whole[sample.role, sample.question] for sample in drawn)
    assert len(rocit.train_rows(settings)[0][0].generated) == 2, "drawing leaves the rows as they are"


def test_a_base_model_gets_the_papers_blocks_and_learns_to_stop(tokenizer):
    base = copy.deepcopy(tokenizer)
    base.chat_template = student.BASE_TEMPLATE
    example = rocit.tokenise(CONVERSATION, base)
    text = base.decode(example["input_ids"])
    assert text == (
        f"{base.bos_token}### Instruction:\nYou are 孙悟空. Be brief.\n\n### Input:\nWho are you?\n\n### Response:\n"
        f"俺老孙 am I! 🐒{base.eos_token}"
    )
    counted = [label for label in example["labels"] if label != -100]
    assert base.decode(counted) == f"俺老孙 am I! 🐒{base.eos_token}" and counted[-1] == base.eos_token_id


def test_bad_input_is_refused_before_the_first_step(tmp_path):
    settings = small_run(tmp_path)
    with pytest.raises(InputError, match="holds no RoleBench files"):
        rocit.train(settings.model_copy(update={"split": "by-instruction"}))
    with pytest.raises(InputError, match="student 'no/such' cannot be loaded"):
        rocit.train(settings.model_copy(update={"student": "no/such"}))


def test_predictions_resume_and_are_taken_over_only_for_the_same_question(tmp_path, monkeypatch):
    rows = [{"role": "A", "question": f"问 {i}?", "system": "s"} for i in range(5)]
    asked, stopped = [], []

    def scripted(model, todo, decoding):
        for row in todo:
            asked.append(row["question"])
            if len(asked) == 3 and not stopped:
                stopped.append(True)
                raise KeyboardInterrupt
            yield f"answer to {row['question']}"

    monkeypatch.setattr(predict, "predict", scripted)
    path, student, decoding = tmp_path / "p.jsonl", predict.Student(), predict.Decoding()
    with pytest.raises(KeyboardInterrupt):
        predict.to_file(student, rows, decoding, path)
    assert not path.exists()
    partial = tmp_path / "p.partial.jsonl"
    partial.write_bytes(partial.read_bytes() + '{"role": "A", "question": "问'.encode()[:-1])
    assert predict.to_file(student, rows, decoding, path) == 3
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["question"] for line in lines] == [row["question"] for row in rows] and not partial.exists()
    assert predict.to_file(student, rows, decoding, path) == 0, "a finished file is not answered again"
    asked[:] = []
    changed = rows[:4] + [rows[4] | {"system": "other"}]
    assert predict.to_file(student, changed, decoding, tmp_path / "q.jsonl", recorded=path) == 1
    assert (
        predict.to_file(student, rows, decoding.model_copy(update={"max_tokens": 9}), tmp_path / "r.jsonl", path) == 5
    )


def test_the_model_file_is_verified(tmp_path, monkeypatch):
    monkeypatch.setenv("ROLELLM_CACHE", str(tmp_path))
    (tmp_path / embedded.FILE).write_bytes(b"not the model")
    with pytest.raises(InputError, match="has SHA-256 .* it is damaged; delete it"):
        embedded.fetch()
