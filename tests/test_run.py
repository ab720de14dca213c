"""The command line: strict parameters, and bad input as one sentence and exit code 1 before anything is generated."""

import pytest

from rolellm_utils import embedded, run, scoring, stage
from rolellm_utils.files import outputs_dir, read_json
from rolellm_utils.records import InputError
from tests.published import rolebench_dir

QUICK = "params/quick.yaml"


@pytest.fixture
def outputs(tmp_path, monkeypatch):
    monkeypatch.setenv("ROLELLM_OUTPUTS", str(tmp_path / "outputs"))
    return tmp_path


def refused(capsys, *arguments):
    """The one sentence of a refused command; asserts exit code 1, one line, and that no notebook ran."""
    code = run.main([QUICK, *arguments])
    captured = capsys.readouterr()
    lines = captured.err.strip().splitlines()
    assert code == 1 and len(lines) == 1 and lines[0].startswith("error: "), captured.err
    assert "running" not in captured.out
    assert not list(outputs_dir().glob("*/*.ipynb"))
    return lines[0]


def test_scripts_that_cannot_be_read(outputs, capsys):
    files = {"empty.txt": b" \n", "binary.txt": b"\x00\x01\xff\xfe" * 99, "prose.txt": b"Once upon a time.\n" * 30}
    for name, data in files.items():
        (outputs / name).write_bytes(data)
    for name, message in (("none.txt", "no such script"), ("empty.txt", "is empty"), ("binary.txt", "UTF-8"),
                          ("prose.txt", "no speaker found")):  # fmt: skip
        sentence = refused(capsys, "-p", "scripts", f'["{outputs / name}"]')
        assert name in sentence and message in sentence


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-p", "roles", "[Oswin, Nobody]"], "role 'Nobody' speaks in none of the scripts"),
        (["-p", "least_pairs", "500"], "role 'Oswin' answers somebody only"),
        (["-p", "refrences", "3"], "parameter 'refrences' is declared by no notebook; did you mean 'references'?"),
        (["-p", "references", "two"], "parameter references is 'two', which is no int; write a whole number"),
        (["-p", "references", "0"], "parameter references is 0; it must be 1 or more"),
        (["-p", "test_share", "1.5"], "parameter test_share is 1.5; it must be above 0 and at most 1"),
        (["-p", "roles", "[Yes]"], "parameter roles is [True], which is no list; write a list of texts"),
        (["-p", "scripts", "a.txt"], "parameter scripts is 'a.txt', which is no list"),
        (["-p", "teacher_model", "gpt-4o-mini"], "'embedded', which serves SmolLM2-135M-Instruct only"),
        (["-p", "teacher_url", "http://me:secret@host/v1"], "teacher_url holds a name or password"),
        (["-p", "descriptions", "none.json"], "none.json does not exist"),
        (["-p", "run", "Reference"], "other than 'reference'"),
        (["-p", "learning_rate", "1e-4"], "YAML reads 1e-4 as text"),
        (["-p", "replay", "1"], "parameter replay is 1, which is no bool; write true or false"),
        (["-p", "epochs", "true"], "parameter epochs is True"),
        (["-p", "teacher_url", "http://127.0.0.1:9/v1"], "teacher_url http://127.0.0.1:9/v1 does not answer"),
        (["-p", "language", "zh"], "the embedded model knows English only"),
        (["-p", "language", "fr"], "language is 'fr'; set it to 'en' or 'zh'"),
        (["-p", "instructions", "nowhere.jsonl"], "nowhere.jsonl does not exist"),
        (["-p", "general_instructions", "999"], "999 are wanted"),
        (["-p", "strategy", "best"], "strategy is 'best'; set it to one of"),
        (["-p", "student", "no/such"], "student 'no/such' cannot be loaded"),
        (["-p", "run", "../x"], "give it a plain folder name"),
        (["--from", "03"], "03_rolegpt needs the files of 01_profiles, which run 'quick' does not have"),
        (["--only", "06"], "06_eval needs the files of 01_profiles"),
        (["--only", "09"], "no stage is numbered '09'"),
        (["--only", "0"], "no stage is numbered '0'"),
        (["--from", "three"], "no stage is numbered 'three'"),
    ],
)
def test_bad_parameters(outputs, capsys, arguments, message):
    assert message in refused(capsys, *arguments)


def test_a_bad_parameter_file(outputs, capsys):
    (outputs / "bad.yaml").write_text("run: quick\nscripts: [a\n")
    assert run.main([str(outputs / "bad.yaml")]) == 1
    assert "bad.yaml, line 3 is not valid YAML" in capsys.readouterr().err
    assert run.main([str(outputs / "none.yaml")]) == 1
    assert "none.yaml cannot be read" in capsys.readouterr().err


def test_a_damaged_model_file(outputs, capsys, monkeypatch):
    monkeypatch.setenv("ROLELLM_CACHE", str(outputs / "cache"))
    (outputs / "cache").mkdir()
    (outputs / "cache" / embedded.FILE).write_bytes(b"damaged")
    assert "it is damaged; delete it" in refused(capsys)


def test_values_win_in_order_default_file_command_line():
    values = run.read_params(QUICK, [("references", "4")])
    parameters = run.resolve_parameters(values)
    assert parameters["03_rolegpt"]["references"] == 4
    assert parameters["03_rolegpt"]["replay"] is False and parameters["06_eval"]["replay"] is False
    assert parameters["05_rocit"]["rank"] == 8 and "references" not in parameters["05_rocit"]


def test_an_int_is_a_valid_float_and_a_bool_is_no_int():
    stage.check_type("x", 1, "float")
    for value, kind in ((True, "int"), (1.0, "int"), ("a", "list"), ([1], "list"), (None, "str")):
        with pytest.raises(InputError, match=f"which is no {kind}"):
            stage.check_type("x", value, kind)


def namespace(**values):
    types = {"run": str, "language": str, "seed": int}
    return {"__annotations__": types, "run": "default", "language": "en", "seed": 0} | values


def test_a_default_run_takes_missing_inputs_from_the_reference_and_others_do_not(outputs):
    begun = stage.start("04_rolebench", namespace())
    assert (begun.dir / "rolegpt/answers.jsonl").read_bytes() == (
        stage.REFERENCE / "rolegpt/answers.jsonl"
    ).read_bytes()
    with pytest.raises(InputError, match="04_rolebench needs the files of 01_profiles, which run 'mine' does not have"):
        stage.start("04_rolebench", namespace(run="mine"))


def test_a_default_run_that_went_its_own_way_is_not_mixed_with_the_reference(outputs):
    begun = stage.start("02_context_instruct", namespace())
    path = begun.dir / "rolebench/profiles-eng/desc.json"
    path.write_text(path.read_text() + " ")
    own = stage.Stage("01_profiles", begun.dir, {"language": "en"})
    stage.finish(own, [begun.dir / name for name in stage.manifest(begun.dir, "01_profiles")["outputs"]])
    with pytest.raises(InputError, match="since this run's 01_profiles differs; run 02_context_instruct first"):
        stage.start("03_rolegpt", namespace())


@pytest.mark.parametrize("name", stage.STAGES)
def test_each_notebook_alone_finds_all_it_reads(outputs, name):
    stage.start(name, namespace())
    begun = stage.start(name, namespace())
    if name == "06_eval":
        begun.parameters |= {"student": "embedded", "rolebench_dir": ""}
        assert "Self-distillation" in scoring.run_label(begun)
    assert all(stage.manifest(begun.dir, needed) for needed in stage.NEEDS[name])


def given(**values):
    return namespace(rolebench_dir="x", student="none") | {
        "__annotations__": {"run": str, "language": str, "seed": int, "rolebench_dir": str, "student": str}
    } | values  # fmt: skip


def test_a_given_rolebench_needs_no_stage_before_04_and_no_student_needs_no_training(outputs):
    parameters = {name: {"rolebench_dir": "x", "student": "embedded"} for name in stage.STAGES}
    assert run.from_stage("01_profiles", parameters) == ["04_rolebench", "05_rocit", "06_eval"]
    assert run.from_stage("06_eval", parameters) == ["06_eval"]
    parameters = {name: {"rolebench_dir": "x", "student": "none"} for name in stage.STAGES}
    assert run.from_stage("01_profiles", parameters) == ["04_rolebench", "06_eval"]
    assert run.from_stage("01_profiles", {name: {} for name in stage.STAGES}) == list(stage.STAGES)
    begun = stage.start("04_rolebench", given())
    assert not begun.dir.exists(), "nothing of the reference run is mixed with a given RoleBench"
    with pytest.raises(InputError, match="06_eval needs the files of 04_rolebench, which run 'default' does not have"):
        stage.start("06_eval", given())
    stage.start("02_context_instruct", namespace(run="default"))
    with pytest.raises(InputError, match="run 'default' holds roles of your own scripts; give another run name"):
        stage.start("04_rolebench", given())


@pytest.mark.parametrize(
    ("leaves", "arguments", "message"),
    [
        ([], [], "holds no RoleBench files; give the folder"),
        (["rolebench-eng/role-generalization/general/test.jsonl"], [], "there is the split 'role-generalization'"),
        (["rolebench-eng/role-generalization/general/test.jsonl"], ["-p", "split", "role-generalization"],
         "has no train files; set split to 'by-instruction'"),
        ([], ["-p", "split", "random"], "split is 'random'; set it to one of"),
    ],
)  # fmt: skip
def test_a_given_rolebench_that_will_not_do(outputs, capsys, leaves, arguments, message):
    for leaf in leaves:
        path = outputs / "given" / leaf
        path.parent.mkdir(parents=True)
        path.write_text('{"role": "A", "question": "q", "generated": ["a"]}\n')
    (outputs / "given").mkdir(exist_ok=True)
    assert message in refused(capsys, "-p", "rolebench_dir", str(outputs / "given"), *arguments)


def test_the_split_is_checked_before_stages_are_paid_for(outputs, capsys):
    assert "split is 'by-instruction'; set it to one of" in refused(capsys, "-p", "split", "by-instruction")
    held_out = ["-p", "split", "role-generalization", "-p", "held_out", "0"]
    assert "set it to one of instruction-generalization" in refused(capsys, *held_out)


def test_a_damaged_line_of_a_given_rolebench_is_named_before_anything_runs(outputs, capsys):
    path = outputs / "given/rolebench-eng/instruction-generalization/general/train.jsonl"
    path.parent.mkdir(parents=True)
    path.write_text('{"role": "A", "question": "q", "generated": ["a"]}\n{"role": "A", "quest')
    sentence = refused(capsys, "-p", "rolebench_dir", str(outputs / "given"))
    assert "train.jsonl, line 2: not valid JSON" in sentence and "the file breaks off here" in sentence


@pytest.mark.parametrize(
    ("language", "best_f", "maximum"), [("zh", ("0.5478", "0.2477"), ("0.5707", "0.2478")), ("en", "0.2981", "0.2982")]
)
def test_the_params_files_print_the_published_baseline(outputs, language, best_f, maximum):
    where = [("rolebench_dir", str(rolebench_dir().resolve()))]
    folder = run.run(f"params/rescore_{language}.yaml", pairs=where)
    rows = [row for row in read_json(folder / "eval/scores.json")["rescored"] if row["best_f"] is not None]
    for key, expected in (("best_f", best_f), ("max", maximum)):
        assert [f"{row[key]:.4f}" for row in rows] == ([expected] if language == "en" else list(expected))
    executed = (folder / "06_eval.ipynb").read_text(encoding="utf-8")
    assert f"best F {rows[-1]['best_f']:.4f}, maximum {rows[-1]['max']:.4f}, printed" in executed
    assert read_json(folder / "audit/findings.json") and (folder / "rolebench/README.md").exists()
    again = run.run(f"params/rescore_{language}.yaml", pairs=where)
    assert again == folder


def test_a_stage_made_from_files_that_have_changed_is_not_used(outputs):
    begun = stage.start("04_rolebench", namespace())
    path = begun.dir / "rolebench/profiles-eng/desc.json"
    path.write_text(path.read_text() + " ")
    with pytest.raises(InputError, match="02_context_instruct, which were made before .*desc.json changed; run 02"):
        stage.start("04_rolebench", namespace())
    (begun.dir / "rolebench/instructions-eng/nums.jsonl").write_text("")
    with pytest.raises(InputError, match="run 0"):
        stage.start("04_rolebench", namespace())


def test_a_stage_is_current_until_anything_it_depends_on_changes(outputs):
    begun = stage.start("04_rolebench", namespace())
    made = begun.dir / "made.txt"
    made.write_text("x")
    extra = outputs / "input.txt"
    extra.write_text("1")
    begun.reads(extra)
    stage.finish(begun, [made])
    parameters = begun.parameters
    assert stage.is_current(begun.dir, "04_rolebench", parameters)
    assert not stage.is_current(begun.dir, "04_rolebench", parameters | {"seed": 1})
    for path in (made, extra, begun.dir / "rolegpt/answers.jsonl"):
        kept = path.read_bytes()
        path.write_bytes(kept + b" ")
        assert not stage.is_current(begun.dir, "04_rolebench", parameters), path
        path.write_bytes(kept)
    assert stage.is_current(begun.dir, "04_rolebench", parameters)
    made.unlink()
    assert not stage.is_current(begun.dir, "04_rolebench", parameters)


def test_a_manifest_says_what_went_in_and_holds_no_absolute_path_and_no_key(outputs, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret-of-the-test")
    begun = stage.start("02_context_instruct", namespace())
    text = stage.finish(begun, []).read_text()
    assert "outputs/default/rolebench/profiles-eng/desc.json" in text and '"seed": 0' in text
    assert str(outputs) not in text and "sk-secret" not in text
