import json
import random
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from datasets import load_dataset

from rolellm_utils import dataset_card, rolebench, splits, statistics
from rolellm_utils.records import InputError, Sample
from tests.published import rolebench_dir
from tests.test_splits import answers

LEAF = "rolebench-eng/role-generalization/role_specific/test.jsonl"
GOOD = b'{"role": "A", "question": "Q?", "generated": ["a"], "type": "x"}\n'


def write(root, data, leaf=LEAF):
    path = root / leaf
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("language", ["en", "zh"])
def test_what_is_written_comes_back_from_our_loader_and_from_datasets(tmp_path, language):
    made, _, _ = splits.assemble(answers(("孙悟空", "B")), 0.4, 1, random.Random(3))
    root = tmp_path / "rolebench"
    written = [path for name, parts in made.items() for path in rolebench.save(parts, root, language, name)]
    for name, parts in made.items():
        bench = rolebench.load(root, language, name)
        assert bench.general == parts["general"] and bench.role_specific == parts["role_specific"]
        assert [path.rpartition("/")[2] for path in bench.missing] == ["instructions-general.jsonl", "desc.json"]
    before = [path.read_bytes() for path in written]
    again, _, _ = splits.assemble(answers(("孙悟空", "B")), 0.4, 1, random.Random(3))
    after = [path for name, parts in again.items() for path in rolebench.save(parts, root, language, name)]
    assert [path.read_bytes() for path in after] == before
    dataset_card.write(root, language, statistics.counts(bench), "A test.")
    for name, parts in made.items():
        for part, files in parts.items():
            plain = load_dataset(str(root), f"{name}-{part}", cache_dir=str(tmp_path / "cache"))
            assert {key: rows.num_rows for key, rows in plain.items()} == {k: len(rows) for k, rows in files.items()}
            assert plain["train"]["generated"][0] == files["train"][0].generated
    assert rolebench.load(tmp_path, language).general == made["instruction-generalization"]["general"], "a run's folder"


def test_a_file_without_rows_is_not_written_and_an_old_one_goes(tmp_path):
    stale = write(tmp_path, GOOD, "rolebench-zh/role_specific/test.jsonl")
    rows = [Sample(role="A", question="q", generated=["a"])]
    parts = {"general": {"train": rows, "test": []}, "role_specific": {"test": []}}
    written = rolebench.save(parts, tmp_path, "zh", "instruction-generalization")
    assert [path.name for path in written] == ["train.jsonl"] and not stale.exists()


def test_what_an_earlier_run_wrote_goes_and_what_stages_1_to_3_wrote_stays(tmp_path):
    leaves = ("rolebench-zh/general/train.jsonl", "profiles-zh/desc.json", "instructions-zh/instructions-general.jsonl")
    for given, left in ((False, leaves[1:]), (True, ())):
        for leaf in leaves:
            write(tmp_path, GOOD, leaf)
        rolebench.clear(tmp_path, given)
        assert [leaf for leaf in leaves if (tmp_path / leaf).exists()] == list(left)
    rolebench.clear(tmp_path / "nowhere", True)


def test_one_schema_whatever_the_rows_say(tmp_path):
    write(
        tmp_path,
        b'{"role": " Dr. Frank N Furter", "question": " Q?", "generated": [" a "], "type": "x"}\n'
        b'{"role": "Dr. Frank-N-Furter", "question": "R?", "generated": ["b", "c"], "type": ["y", "y"]}\n'
        b'{"role": "A", "question": "S?", "generated": ["d"]}\n',
    )
    folder = tmp_path / "profiles-eng"
    folder.mkdir()
    (folder / "desc.json").write_text('{"Dr Frank-N-Furter": " You are. ", "B": "b"}', encoding="utf-8")
    bench = rolebench.load(tmp_path, "en", "role-generalization")
    assert bench.role_specific["test"] == [
        Sample(role="Dr. Frank N Furter", question="Q?", generated=["a"], type=["x"]),
        Sample(role="Dr. Frank N Furter", question="R?", generated=["b", "c"], type=["y", "y"]),
        Sample(role="A", question="S?", generated=["d"], type=[]),
    ]
    assert bench.descriptions == {"Dr. Frank N Furter": "You are.", "B": "b"}
    assert bench.roles() == ["Dr. Frank N Furter", "B", "A"]
    assert len(bench.missing) == 6 and len(rolebench.gaps(bench)) == 6
    kept = rolebench.load(tmp_path, "en", "role-generalization", strip=False)
    assert kept.role_specific["test"][0].generated == [" a "] and kept.role_specific["test"][0].question == "Q?"
    datasets = bench.datasets()
    assert list(datasets) == ["role_specific_test"] and datasets["role_specific_test"]["type"] == [
        ["x"],
        ["y", "y"],
        [],
    ]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (GOOD + GOOD[:40], "line 2: not valid JSON .*; the file breaks off here"),
        (GOOD + b'{"role": "A", "question": "Q?"}\n', "line 2: no 'generated' in it"),
        (GOOD + b'{"role": "A", "question": 5, "generated": ["a"]}\n', "line 2: 'question' is 5, .*string"),
        (GOOD + b'{"role": "A", "question": "Q", "generated": "a"}\n', "line 2: 'generated' is 'a', .*list"),
        (GOOD + b'{"role": "A", "question": "Q", "generated": ["a", null]}\n', "line 2: 'generated.1' is None"),
        (GOOD + b'{"role": "A", "question": "Q", "generated": []}\n', "line 2: 'generated' is empty"),
        (GOOD + b'{"role": "A", "question": "Q", "generated": ["a"], "type": 3}\n', "line 2: 'type' is 3"),
        (GOOD + b'{"role": "A", "question": "Q", "generated": ["a"], "type": false}\n', "line 2: 'type' is False"),
        (GOOD + b'{"role": "", "question": "Q", "generated": ["a"]}\n', "line 2: 'role' is empty"),
        (GOOD + b'{"role": "A", "question": "Q", "generated": ["a\\ud83d"]}\n', "line 2: .* is half a character"),
        (GOOD + b'["A", "Q"]\n', "line 2: holds .*, no JSON object"),
        (GOOD + b'{"role": "A", "question": "' + b"x" * 10_000_000 + b'"}\n', "line 2: longer than 2,000,000 bytes"),
        (GOOD + b"[" * 100_000 + b"\n", "line 2: not valid JSON"),
        (GOOD + GOOD.replace(b"Q?", "悟空".encode("gbk")), "line 2: not UTF-8"),
        (b"", "line 1: the file is empty"),
        (b"\n\r\n", "line 1: the file is empty"),
    ],
)
def test_damage_is_named_by_file_and_line_and_nothing_is_half_loaded(tmp_path, data, message):
    write(tmp_path, GOOD, LEAF.replace("test", "rolegpt_baseline"))
    write(tmp_path, data)
    with pytest.raises(InputError, match=rf"role_specific/test\.jsonl, {message}") as caught:
        rolebench.load(tmp_path, "en", "role-generalization")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_damaged_targets_and_descriptions_are_named(tmp_path):
    write(tmp_path, GOOD)
    targets = write(tmp_path, b'{"instruction": "i", "target": 4}\n', "instructions-eng/instructions-general.jsonl")
    with pytest.raises(InputError, match="instructions-general.jsonl, line 1"):
        rolebench.load(tmp_path, "en", "role-generalization")
    targets.write_bytes(b'{"instruction": " i ", "target": " t "}\n{"instruction": "j", "target": null}\n')
    assert rolebench.load(tmp_path, "en", "role-generalization").targets == {"i": "t"}
    write(tmp_path, b'["A"]', "profiles-eng/desc.json")
    with pytest.raises(InputError, match="desc.json must be one JSON object"):
        rolebench.load(tmp_path, "en", "role-generalization")


def test_marks_and_line_ends_are_read_over_and_named(tmp_path):
    write(tmp_path, b"\xef\xbb\xbf" + GOOD + GOOD.replace(b"\n", b"\r\n") * 2)
    bench = rolebench.load(tmp_path, "en", "role-generalization")
    assert [(sample.role, sample.generated) for sample in bench.role_specific["test"]] == [("A", ["a"])] * 3
    assert [note.rpartition("test.jsonl, ")[2] for note in bench.notes] == [
        "line 1: byte-order mark, read over", "line 2: CR LF, read over"
    ]  # fmt: skip


def test_a_line_separator_inside_a_text_ends_no_row(tmp_path):
    write(tmp_path, '{"role": "A", "question": "a\u2028b", "generated": ["c\x85d"]}\n'.encode())
    assert rolebench.load(tmp_path, "en", "role-generalization").role_specific["test"][0].question == "a\u2028b"


def test_a_folder_without_rolebench_is_refused_with_a_way_out(tmp_path):
    with pytest.raises(InputError, match="holds no RoleBench files; give the folder"):
        rolebench.load(tmp_path)
    with pytest.raises(InputError, match="split is 'x'"):
        rolebench.load(tmp_path, split="x")
    with pytest.raises(InputError, match="language is 'eng'"):
        rolebench.load(tmp_path, "eng")
    write(tmp_path, GOOD)
    with pytest.raises(InputError, match="there is the split 'role-generalization': set split to that"):
        rolebench.load(tmp_path)
    assert rolebench.source_split(tmp_path, "en", "by-instruction") == "role-generalization"
    assert rolebench.source_split(tmp_path, "en", "role-generalization") == "role-generalization"


def test_clean_repairs_train_and_test_but_not_the_baseline(tmp_path):
    write(tmp_path, GOOD * 2)
    write(tmp_path, GOOD * 2, LEAF.replace("test", "rolegpt_baseline"))
    bench = rolebench.load(tmp_path, "en", "role-generalization", clean=True)
    assert len(bench.role_specific["test"]) == 1 and len(bench.role_specific["rolegpt_baseline"]) == 2
    assert [drop["reason"] for drop in bench.drops] == ["duplicate row, merged", "duplicate reference"]
    assert rolebench.load(tmp_path, "en", "role-generalization").drops == []


def test_the_published_copy_loads_and_repairs():
    zh = rolebench.load(rolebench_dir(), "zh")
    rows = {f"{part}/{name}": len(samples) for part, name, samples in zh.files()}
    assert rows == {
        "general/train": 5933, "general/test": 1451, "general/rolegpt_baseline": 7395, "role_specific/train": 1535,
        "role_specific/test": 239, "role_specific/rolegpt_baseline": 239,
    }  # fmt: skip
    en = rolebench.load(rolebench_dir(), "en", "role-generalization", clean=True)
    assert len(en.role_specific["test"]) == 2321 and len(en.general["test"]) > 4900
    assert sum(drop["reason"] == "duplicate row, merged" for drop in en.drops) == 213
    assert all(sample.type for sample in en.role_specific["test"])


class Hub(BaseHTTPRequestHandler):
    """As much of the hub as a download needs: the listing of one revision and its files; `asked` keeps the files."""

    commit, files, asked = "a" * 40, {}, []

    def do_HEAD(self):
        self.answer()

    def do_GET(self):
        self.answer()

    def answer(self):
        body, headers = b"", {"X-Repo-Commit": self.commit}
        name = self.path.partition("/resolve/")[2].partition("/")[2]
        if self.path.startswith("/api/datasets/ZenMoore/RoleBench/tree/"):
            rows = [
                {"type": "file", "path": path, "size": len(data), "oid": "0" * 40} for path, data in self.files.items()
            ]
            body, headers = json.dumps(rows).encode(), headers | {"Content-Type": "application/json"}
        elif self.path.startswith("/api/datasets/ZenMoore/RoleBench"):
            siblings = [{"rfilename": path} for path in self.files]
            body = json.dumps({"id": "ZenMoore/RoleBench", "sha": self.commit, "siblings": siblings}).encode()
            headers |= {"Content-Type": "application/json"}
        elif name in self.files:
            body, headers = self.files[name], headers | {"ETag": f'"{hash(name)}"'}
            self.asked.append(name)
        self.send_response(200 if body else 404)
        for key, value in (headers | {"Content-Length": str(len(body))}).items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_):
        pass


def test_the_hub_is_asked_for_the_files_of_one_split_only(tmp_path, monkeypatch):
    from huggingface_hub import constants

    leaves = [f"rolebench-zh/{part}/{name}.jsonl" for part in rolebench.PARTS for name in rolebench.FILES]
    Hub.files = dict.fromkeys(leaves, GOOD) | {
        LEAF: GOOD,
        "profiles-zh/desc.json": '{"A": "你是甲。"}'.encode(),
        "profiles-zh/profiles-zh-A.jsonl": GOOD,
        "instructions-zh/instructions-general.jsonl": b'{"instruction": "Q?", "target": "t"}\n',
    }
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    try:
        bench = rolebench.load(None, "zh")
    finally:
        server.shutdown()
    assert bench.missing == [] and bench.targets == {"Q?": "t"} and bench.descriptions == {"A": "你是甲。"}
    asked = {*leaves, "profiles-zh/desc.json", "instructions-zh/instructions-general.jsonl"}
    assert set(Hub.asked) == asked


def test_a_hub_out_of_reach_is_one_sentence(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", "/nowhere")
    with pytest.raises(InputError, match="could not be fetched from the hub .*set rolebench_dir to a local copy"):
        rolebench.load("hub", "zh")
