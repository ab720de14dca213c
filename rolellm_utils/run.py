"""`python -m rolellm_utils.run PARAMS`: the six notebooks in order by papermill, strict, resumable, with manifests."""

import argparse
import os
import random
import sys
import time
from difflib import get_close_matches
from pathlib import Path

import yaml

from rolellm_utils import embedded, estimate, profiles, rolebench, rolegpt
from rolellm_utils.files import outputs_dir, resolve, shown
from rolellm_utils.records import InputError
from rolellm_utils.stage import (
    NOTEBOOKS,
    STAGES,
    Stage,
    check_language,
    check_made,
    check_run_name,
    check_type,
    is_current,
    needs,
)
from rolellm_utils.store import Store
from rolellm_utils.teacher import Teacher


def declared(name):
    """The parameters a notebook declares: {key: (type name, default)}, from its parameters cell."""
    import papermill

    found = papermill.inspect_notebook(str(NOTEBOOKS / f"{name}.ipynb"))
    return {key: (entry["inferred_type_name"], yaml.safe_load(entry["default"])) for key, entry in found.items()}


def read_params(path, pairs=()):
    """The parameters of a YAML file and of `-p key value` pairs (read as YAML too), the latter winning."""
    path = Path(path) if Path(path).exists() else resolve(path)
    try:
        text = path.read_text(encoding="utf-8")
        values = yaml.safe_load(text) or {}
    except OSError:
        raise InputError(f"parameter file {shown(path)} cannot be read; give one such as params/quick.yaml") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        where = f", line {error.problem_mark.line + 1}" if hasattr(error, "problem_mark") else ""
        raise InputError(f"parameter file {shown(path)}{where} is not valid YAML; mend it") from None
    if not isinstance(values, dict):
        raise InputError(f"parameter file {shown(path)} holds no `key: value` lines; see params/quick.yaml")
    odd = [key for key in values if not isinstance(key, str)]
    if odd:
        raise InputError(f"parameter file {shown(path)} has the key {odd[0]!r}, which is no text; quote it")
    for key, value in pairs:
        try:
            values[key] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise InputError(f"-p {key} {value!r} is not valid YAML; quote it") from None
    return values


def resolve_parameters(values):
    """Each stage's full parameters: {stage: {key: value}}; InputError for a key none declares and for a wrong type."""
    table = {name: declared(name) for name in STAGES}
    known = {key: kind for entries in table.values() for key, (kind, _) in entries.items()}
    for key, value in values.items():
        if key not in known:
            near = get_close_matches(key, known, n=1)
            way = f"did you mean {near[0]!r}?" if near else f"the parameters are {', '.join(sorted(known))}"
            raise InputError(f"parameter {key!r} is declared by no notebook; {way}")
        check_type(key, value, known[key])
    return {
        name: {key: values.get(key, default) for key, (_, default) in entries.items()}
        for name, entries in table.items()
    }


def preflight(parameters, wanted):
    """Check what the wanted stages will read before any of them spends time: scripts, roles, teacher, student."""
    everything = {key: value for entries in parameters.values() for key, value in entries.items()}
    check_run_name(everything["run"])
    check_language(everything["language"])
    run_dir = outputs_dir() / everything["run"]
    for name in wanted:
        for needed in needs(name, parameters[name]):
            if needed not in wanted:
                check_made(run_dir, needed, name, parameters[name])
    if "01_profiles" in wanted:
        profiles.read_scripts(everything["scripts"], everything["roles"], everything["least_pairs"])
    if set(wanted) & {"01_profiles", "04_rolebench"}:
        profiles.own_descriptions(everything["descriptions"])
    if "03_rolegpt" in wanted:
        rolegpt.check_strategy(everything["strategy"])
        path = rolegpt.instructions_path(everything["instructions"], everything["language"])
        rolegpt.read_instructions(path, everything["general_instructions"], random.Random(0))
    if "04_rolebench" in wanted:
        check_rolebench(everything, run_dir, train="05_rocit" in wanted)
    if set(wanted) & {"05_rocit", "06_eval"}:
        check_student(everything["student"])
    asking = [name for name in wanted if name in estimate.STAGES and name != "06_eval"]
    for name in asking[:1]:
        teacher = teacher_of(name, parameters[name], run_dir)
        teacher.check()
        teacher.close()
    if "06_eval" in wanted and everything["answer_model"]:
        served = teacher_of("06_eval", parameters["06_eval"], run_dir)
        served.check()
        served.close()


def teacher_of(name, parameters, run_dir):
    """The Teacher of a stage; of 06 the model that answers the test rows. None where none is asked."""
    stage = Stage(name, run_dir, parameters)
    if name != "06_eval":
        return Teacher.of(stage)
    return (
        Teacher.of(stage, parameters["answer_model"], parameters["answer_url"]) if parameters["answer_model"] else None
    )


def check_rolebench(parameters, run_dir, train):
    """None when stage 4 can make the wanted split, with train rows if need be; InputError when not.

    Of a given RoleBench on disk every line is read: a broken one is named before a model is fetched.
    """
    given, language, split = (parameters[key] for key in ("rolebench_dir", "language", "split"))
    possible = rolebench.SPLITS if given else rolebench.SPLITS[: 2 if parameters["held_out"] else 1]
    if split not in possible:
        raise InputError(f"split is {split!r}; set it to one of {', '.join(possible)}")
    if not given or given == "hub":
        return
    if rolebench.locate(given, language, split).resolve().is_relative_to(run_dir.resolve()):
        raise InputError(f"rolebench_dir is the run's own folder {shown(run_dir)}; give the run another name")
    bench = rolebench.load(given, language, rolebench.source_split(given, language, split))
    if train and split != "by-instruction" and not any(name == "train" for _, name, _ in bench.files()):
        raise InputError(
            f"{shown(rolebench.folder_of(rolebench.locate(given, language, split), language, split))} has no train "
            "files; set split to 'by-instruction' to split what is there anew, or student to 'none' to score the "
            "baseline alone"
        )


def check_student(student):
    """None when the student can be loaded; InputError when not. One of the kit costs no import of transformers."""
    name = embedded.NAME if student == "embedded" else student
    if name in embedded.MODELS:
        embedded.fetch(name)
    elif student != "none":
        from rolellm_utils.student import load_tokenizer

        load_tokenizer(student)


def run_stage(name, parameters, run_dir):
    """Execute one notebook; the executed copy appears in the run folder when it is complete.

    A failure of the user's making comes out as InputError with the notebook's own sentence.
    """
    import papermill
    from nbclient.exceptions import DeadKernelError
    from papermill.exceptions import PapermillExecutionError

    run_dir.mkdir(parents=True, exist_ok=True)
    partial = run_dir / f".{name}.partial.ipynb"
    (run_dir / "manifests" / f"{name}.json").unlink(missing_ok=True)
    try:
        papermill.execute_notebook(
            str(NOTEBOOKS / f"{name}.ipynb"),
            str(partial),
            parameters=parameters,
            cwd=str(NOTEBOOKS),
            progress_bar=False,
            stderr_file=sys.stderr,
            # The kernel's own notices (it speaks over loopback) are no news to a reader.
            extra_arguments=["--log-level=ERROR"],
        )
    except PapermillExecutionError as error:
        if error.ename == "InputError":
            raise InputError(error.evalue) from None
        raise InputError(
            f"{name} failed with {error.ename}: {error.evalue}; the notebook up to there is {shown(partial)}"
        ) from None
    except DeadKernelError:
        raise InputError(
            f"the kernel of {name} was killed, most likely for memory; free some or lower in_flight, batch_size or "
            "prediction_batch, and run again: nothing is lost"
        ) from None
    os.replace(partial, run_dir / f"{name}.ipynb")


def plan(params, first="01", only=None, pairs=()):
    """(parameters of every stage, names of the wanted stages, run folder) of a command line."""
    parameters = resolve_parameters(read_params(params, pairs))
    wanted = [stage_named(only)] if only else from_stage(stage_named(first), parameters)
    return parameters, wanted, outputs_dir() / parameters["01_profiles"]["run"]


def print_estimate(params, first="01", only=None, pairs=()):
    """Print what the wanted stages would ask of the teacher, and what it costs; nothing is sent to it."""
    parameters, wanted, run_dir = plan(params, first, only, pairs)
    everything = {key: value for entries in parameters.values() for key, value in entries.items()}
    least = most = 0.0
    for name in [name for name in wanted if name in estimate.STAGES]:
        teacher = teacher_of(name, parameters[name], run_dir)
        if not teacher:
            continue
        requests, remark = estimate.stage_requests(name, everything, run_dir)
        found = estimate.cost(teacher, requests)
        teacher.close()
        print(f"{name}: {found}{f' ({remark})' if remark else ''}")
        least, most = (total + part for total, part in zip((least, most), found.usd or (0.0, 0.0), strict=True))
    print(f"in all {least:.4f} to {most:.4f} USD for models with a known price; nothing was sent")


def run(params, first="01", only=None, pairs=()):
    """Run the wanted stages that are not current; the run folder. Prints a line a stage and a summary."""
    parameters, wanted, run_dir = plan(params, first, only, pairs)
    rows, checked = [], False
    for name in wanted:
        started = time.perf_counter()
        if is_current(run_dir, name, parameters[name]):
            print(f"{name}: up to date")
            continue
        if not checked:
            preflight(parameters, [later for later in wanted if later >= name])
            checked = True
        print(f"{name}: running ...", flush=True)
        run_stage(name, parameters[name], run_dir)
        rows.append((name, time.perf_counter() - started))
        print(f"{name}: done in {rows[-1][1]:.0f} s", flush=True)
    print(summary(run_dir, rows))
    return run_dir


def from_stage(first, parameters):
    """The stages to run from `first` on: those that 06 builds on, directly or not."""
    wanted = {STAGES[-1]}
    for name in reversed(STAGES):
        if name in wanted:
            wanted.update(needs(name, parameters[name]))
    return [name for name in STAGES if name in wanted and name >= first]


def stage_named(number):
    """The stage of a number (03) or full name (03_rolegpt); InputError for any other text."""
    found = [name for name in STAGES if number in (name, name[:2])]
    if not found:
        raise InputError(f"no stage is numbered {number!r}; use 01 to 06")
    return found[0]


def summary(run_dir, rows):
    """What a run ends with: a line a stage with time and teacher tokens, and where the report is."""
    lines = [""]
    store = Store()
    asked = {row["stage"]: row for row in store.ledger(run_dir.name)}
    store.close()
    if rows:
        lines.append(f"{'stage':22} {'seconds':>8} {'answers':>8} {'tokens in':>10} {'tokens out':>11} {'USD':>9}")
    for name, seconds in rows:
        row = asked.get(name, {})
        answers, prompt, answer = (row.get(key, 0) for key in ("samples", "prompt_tokens", "completion_tokens"))
        usd = row.get("usd") or 0.0
        lines.append(f"{name:22} {seconds:8.0f} {answers:8} {prompt:10} {answer:11} {usd:9.4f}")
    if rows:
        lines.append("(answers, tokens, USD: all that this run has asked of the teacher so far)")
    if lost := sum(row["usd_lost"] for row in asked.values()):
        lines.append(f"({lost:.4f} USD of it for requests that broke off: perhaps billed, counted to be safe)")
    report = run_dir / "eval" / "report.html"
    if report.exists():
        lines.append(f"report: {shown(report)}")
    lines.append(f"notebooks and files: {shown(run_dir)}")
    return "\n".join(lines)


def main(arguments=None):
    """The command line; 0, or 1 after one sentence on stderr."""
    parser = argparse.ArgumentParser(prog="python -m rolellm_utils.run", description=__doc__)
    parser.add_argument("params", help="a YAML file such as params/quick.yaml")
    parser.add_argument("--from", dest="first", default="01", metavar="NN", help="start at this stage (01 to 06)")
    parser.add_argument("--only", metavar="NN", help="run this stage alone")
    parser.add_argument("--estimate", action="store_true",
                        help="say what the stages would ask and what it costs; send nothing")  # fmt: skip
    parser.add_argument("-p", dest="pairs", nargs=2, action="append", default=[], metavar=("KEY", "VALUE"),
                        help="set a parameter (the value is read as YAML); wins over the file")  # fmt: skip
    options = parser.parse_args(arguments)
    try:
        act = print_estimate if options.estimate else run
        act(options.params, options.first, options.only, options.pairs)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; run the same command again to go on from here", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
