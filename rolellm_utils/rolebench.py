"""Stage 4, RoleBench (paper, section 4): load any copy of it, write one in the published layout."""

import re
import shutil
import unicodedata
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import ValidationError

from rolellm_utils import cleaning
from rolellm_utils.files import read_json, read_lines, resolve, shown, write_json, write_jsonl
from rolellm_utils.records import InputError, Sample
from rolellm_utils.stage import LANGUAGES, check_language

SPLITS = ("instruction-generalization", "role-generalization", "by-instruction")
PARTS = ("general", "role_specific")
FILES = ("train", "test", "rolegpt_baseline")
HUB = "ZenMoore/RoleBench"


@dataclass
class RoleBench:
    """A loaded RoleBench split: `general` and `role_specific` map train/test/rolegpt_baseline to Samples.

    targets: {general instruction: RAW reference}. descriptions: {role: published description}. missing: the files this
    copy does not have. drops: what `clean` took out, each with its reason. notes: oddities read over, by file and line.
    sources: the files that were read.
    """

    language: str
    split: str
    general: dict[str, list[Sample]]
    role_specific: dict[str, list[Sample]]
    targets: dict[str, str] = field(default_factory=dict)
    descriptions: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    drops: list[dict] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    sources: list[Path] = field(default_factory=list)

    def files(self):
        """(part, name, Samples) of every file that was loaded, in the order of the layout."""
        for part in PARTS:
            for name in FILES:
                if name in getattr(self, part):
                    yield part, name, getattr(self, part)[name]

    def roles(self):
        """Every role that is described or has a row, each once."""
        rows = (sample.role for _, _, samples in self.files() for sample in samples)
        return list(dict.fromkeys([*self.descriptions, *rows]))

    def datasets(self):
        """The same rows as one `datasets.DatasetDict`: {"general_train": Dataset, ...}, one schema for all files.

        Columns role, question (text), generated, type (lists of text).
        """
        from datasets import Dataset, DatasetDict, Features, List, Value

        features = Features(
            role=Value("string"), question=Value("string"), generated=List(Value("string")), type=List(Value("string"))
        )
        return DatasetDict(
            {
                f"{part}_{name}": Dataset.from_dict(
                    {column: [getattr(sample, column) for sample in samples] for column in features}, features=features
                )
                for part, name, samples in self.files()
            }
        )


def load(directory=None, language="en", split="instruction-generalization", clean=False, strip=True):
    """A split of the RoleBench in `directory` as a RoleBench record: typed rows, what is missing, what was odd.

    directory: a copy in the published layout, whole or partial, or a run folder of ours (a relative path is relative
    to the project root); None or "hub" downloads the files of this split from the hub. Text is stripped (strip=False:
    but for references and targets, whose blanks the protocol `paper` counts), `type` is a list, a role has one
    spelling. clean=True repairs train and test (`cleaning.repair`); `drops` says what went and why.
    Raises InputError, before anything is returned, when nothing is there or a line is broken (file and line named).
    """
    if split not in SPLITS:
        raise InputError(f"split is {split!r}; set it to one of {', '.join(SPLITS)}")
    check_language(language)
    directory = locate(directory, language, split)
    paths, bench, spellings = present(directory, language, split), RoleBench(language, split, {}, {}), {}
    for part in PARTS:
        for name in FILES:
            path = folder_of(directory, language, split) / part / f"{name}.jsonl"
            if path in paths:
                getattr(bench, part)[name] = read_samples(path, spellings, strip, bench.notes)
                bench.sources.append(path)
            else:
                bench.missing.append(path.relative_to(directory).as_posix())
    _read_targets(bench, directory, strip)
    _read_descriptions(bench, directory, spellings)
    if clean:
        for part, name, samples in list(bench.files()):
            # A baseline is scored as it is: what a model answered is not ours to mend.
            if name != "rolegpt_baseline":
                getattr(bench, part)[name], drops = cleaning.repair(samples, f"{part}/{name}.jsonl")
                bench.drops += drops
    return bench


def locate(directory, language, split):
    """The folder that holds rolebench-eng or -zh: of a copy, of a run of ours, or of the hub's download."""
    if directory in (None, "hub"):
        return download(language, split)
    directory = resolve(directory)
    inside = directory / "rolebench"
    return inside if inside.is_dir() else directory


def download(language, split):
    """The folder of the hub's RoleBench with the files of one split in it, fetched where the cache lacks them.

    Only what `load` reads: the rows of the split (for `by-instruction` the split it is made from), the RAW targets and
    the role descriptions. Raises InputError when the hub cannot be reached.
    """
    from huggingface_hub import snapshot_download

    code = LANGUAGES[language]
    source = SPLITS[0] if split == "by-instruction" else split
    rows = folder_of(Path(), language, source).as_posix()
    patterns = [f"{rows}/{part}/*.jsonl" for part in PARTS]
    patterns += [f"instructions-{code}/instructions-general.jsonl", f"profiles-{code}/desc.json"]
    try:
        return Path(snapshot_download(HUB, repo_type="dataset", allow_patterns=patterns))
    except Exception as error:
        raise InputError(
            f"RoleBench could not be fetched from the hub ({HUB}: {type(error).__name__}); connect to the network "
            "once, or set rolebench_dir to a local copy"
        ) from None


def source_split(directory, language, split):
    """The split to load for the one wanted: itself, or, for a `by-instruction` yet to be made, one that is there."""
    if split != "by-instruction":
        return split
    root = locate(directory, language, split)
    order = ("by-instruction", *SPLITS[:2])
    there = [name for name in order if any((folder_of(root, language, name) / part).is_dir() for part in PARTS)]
    return there[0] if there else split


def folder_of(directory, language, split):
    """The folder of a split in the published layout; the Chinese one has its published split at the top."""
    root = directory / f"rolebench-{LANGUAGES[language]}"
    return root if language == "zh" and split == SPLITS[0] else root / split


def present(directory, language, split):
    """The row files of a split that are in a folder; InputError with a way out when there is none."""
    folder = folder_of(directory, language, split)
    paths = [folder / part / f"{name}.jsonl" for part in PARTS for name in FILES]
    there = [path for path in paths if path.exists()]
    if not there:
        splits = [name for name in SPLITS if any((folder_of(directory, language, name) / p).is_dir() for p in PARTS)]
        way_out = f"there is the split {splits[0]!r}: set split to that" if splits else "give the folder that holds it"
        raise InputError(f"{shown(folder)} holds no RoleBench files; {way_out}")
    return there


def read_samples(path, spellings, strip=True, notes=None):
    """The Samples of one RoleBench file. spellings {key: role} is added to, and gives each role its one spelling.

    Raises InputError, file and line named, for an empty file and for a row that is no Sample.
    """
    samples = []
    for number, row in read_lines(path, ("role", "question", "generated"), notes):
        sample = checked(row, path, number)
        samples.append(normal(sample, spellings, strip))
    if not samples:
        raise InputError(f"{shown(path)}, line 1: the file is empty; get it again, or delete it if it has no rows")
    return samples


def checked(row, path, number):
    """The Sample of a row as published, `type` a list; InputError names file, line, key and value of what is wrong."""
    kind = [] if row.get("type") is None else row["type"]
    try:
        sample = Sample.model_validate(row | {"type": [kind] if isinstance(kind, str) else kind})
    except ValidationError as error:
        wrong = error.errors()[0]
        key = ".".join(map(str, wrong["loc"]))
        raise InputError(
            f"{shown(path)}, line {number}: {key!r} is {wrong['input']!r:.60}, {wrong['msg'].lower()}; mend that line"
        ) from None
    lacking = [key for key in ("role", "question", "generated") if not getattr(sample, key)]
    if lacking:
        raise InputError(f"{shown(path)}, line {number}: {lacking[0]!r} is empty; fill it in or delete that line")
    try:
        "".join([sample.role, sample.question, *sample.generated]).encode()
    except UnicodeEncodeError as error:
        half = error.object[error.start]
        raise InputError(f"{shown(path)}, line {number}: {half!r} is half a character; mend that line") from None
    return sample


def normal(sample, spellings=None, strip=True):
    """The Sample with its texts stripped, in place (strip=False: but for its references), its role in one spelling."""
    role = " ".join(sample.role.split())
    sample.role = role if spellings is None else spellings.setdefault(role_key(role), role)
    sample.question = sample.question.strip()
    if strip:
        sample.generated = [text.strip() for text in sample.generated]
    return sample


def role_key(role):
    """What is the same in all spellings of a role: `Dr. Frank-N-Furter` and `Dr. Frank N Furter` are one."""
    return re.sub(r"[\W_]", "", unicodedata.normalize("NFKC", role).casefold())


def _read_targets(bench, directory, strip):
    path = directory / f"instructions-{LANGUAGES[bench.language]}" / "instructions-general.jsonl"
    if not path.exists():
        bench.missing.append(path.relative_to(directory).as_posix())
        return
    for number, row in read_lines(path, ("instruction", "target"), bench.notes):
        instruction, target = row["instruction"], row["target"]
        if not isinstance(instruction, str) or not isinstance(target, str | None):
            raise InputError(f"{shown(path)}, line {number}: instruction and target must be text; mend that line")
        if target and target.strip():
            bench.targets[instruction.strip()] = target.strip() if strip else target
    bench.sources.append(path)


def _read_descriptions(bench, directory, spellings):
    path = directory / f"profiles-{LANGUAGES[bench.language]}" / "desc.json"
    if not path.exists():
        bench.missing.append(path.relative_to(directory).as_posix())
        return
    texts = described(path)
    bench.sources.append(path)
    bench.descriptions = {spellings.get(role_key(role), role.strip()): text.strip() for role, text in texts.items()}


def described(path):
    """The descriptions of a desc.json, {role: text}; InputError when it holds anything else."""
    texts = read_json(path)
    if not isinstance(texts, dict) or not all(isinstance(text, str) for text in texts.values()):
        raise InputError(f'{shown(path)} must be one JSON object of texts, {{"role": "You are ..."}}; mend it')
    return texts


def gaps(bench):
    """What cannot be computed with this copy, a sentence each; [] when it is whole."""
    names = set(bench.missing)
    reasons = {
        "general/train.jsonl": "no general rows to train on",
        "role_specific/train.jsonl": "no role-specific rows to train on",
        "general/test.jsonl": "CUS and RAW cannot be computed",
        "role_specific/test.jsonl": "SPE cannot be computed",
        "general/rolegpt_baseline.jsonl": "the published RoleGPT cells CUS and RAW cannot be re-scored",
        "role_specific/rolegpt_baseline.jsonl": "the published RoleGPT cell SPE cannot be re-scored",
        "instructions-general.jsonl": "RAW cannot be computed (no plain targets)",
        "desc.json": "roles have no description: system texts give their names alone",
    }
    return [
        f"{name} is missing: {reason}."
        for name in sorted(names)
        for ending, reason in reasons.items()
        if name.endswith(ending)
    ]


def save(parts, directory, language, split):
    """Write {part: {file: [Sample]}} in the published layout; the files written. A file without rows is not written."""
    folder = folder_of(directory, language, split)
    written = []
    for part, files in parts.items():
        for name, samples in files.items():
            path = folder / part / f"{name}.jsonl"
            if samples:
                written.append(write_jsonl(path, (sample.model_dump(exclude_defaults=True) for sample in samples)))
            else:
                path.unlink(missing_ok=True)
    return written


def clear(directory, given):
    """Remove what an earlier run of stage 4 wrote; of a given RoleBench (not stages 1 to 3 of our own) all of it."""
    for path in sorted(directory.iterdir()) if directory.is_dir() else ():
        if path.is_dir() and (given or path.name.startswith("rolebench-")):
            shutil.rmtree(path)


def save_beside(bench, directory):
    """Write a RoleBench's RAW targets and role descriptions where the published layout has them; the files written."""
    code = LANGUAGES[bench.language]
    written = []
    if bench.targets:
        rows = ({"instruction": instruction, "target": target} for instruction, target in bench.targets.items())
        written.append(write_jsonl(directory / f"instructions-{code}" / "instructions-general.jsonl", rows))
    if bench.descriptions:
        written.append(write_json(directory / f"profiles-{code}" / "desc.json", bench.descriptions))
    return written
