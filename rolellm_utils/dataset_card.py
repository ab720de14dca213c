"""The card of a RoleBench folder: what `datasets.load_dataset` needs to read it, and what a person does."""

import yaml

from rolellm_utils.files import write_text
from rolellm_utils.rolebench import FILES, PARTS, SPLITS, folder_of

TEXTS = {"list": "string"}
FEATURES = [
    {"name": "role", "dtype": "string"},
    {"name": "question", "dtype": "string"},
    {"name": "generated", **TEXTS},
    {"name": "type", **TEXTS},
    {"name": "id", "dtype": "int64"},
    {"name": "file", "dtype": "string"},
    {"name": "lines", "list": "int64"},
]


def write(directory, language, table, source):
    """Write README.md into a RoleBench folder; the path. table: as `statistics.counts` gives it; source: a sentence.

    Its YAML head names a configuration a part and split, with typed columns, so that
    `datasets.load_dataset(directory, "instruction-generalization-general")` reads the files as they lie there.
    """
    configs = configurations(directory, language)
    head = {
        "language": [language],
        "task_categories": ["text-generation"],
        "configs": [{"config_name": name, "data_files": files} for name, files in configs.items()],
        "dataset_info": [{"config_name": name, "features": FEATURES} for name in configs],
    }
    columns = list(table[0]) if table else []
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(str(row[column]) for column in columns) + " |" for row in table]
    names = "\n".join(f"- `{name}`: {', '.join(entry['split'] for entry in files)}" for name, files in configs.items())
    return write_text(
        directory / "README.md",
        f"""---
{yaml.safe_dump(head, allow_unicode=True, sort_keys=False)}---

# RoleBench of this run ({language})

{source} Layout and columns are those of the published RoleBench (arXiv 2310.00746, section 4): `role`, `question`,
`generated` (the reference answers), in role-specific rows `type` (one a reference); ours also carry `id`, and the
script `file` and `lines` a row comes from. The rows of `rolegpt_baseline` are one model's answers, kept apart from the
references and not cleaned.

```python
from datasets import load_dataset
load_dataset("path/to/this/folder", "{next(iter(configs), "")}")
```

{names}

{chr(10).join(lines)}

Answers are written by a language model in the voice of a character: they are fiction, repeat that model's mistakes,
and say nothing about real people. Texts taken from scripts stay under the terms of those scripts.
""",
    )


def configurations(directory, language):
    """{configuration: [{"split", "path"}]} of the files that are there; a configuration is a split and a part."""
    found = {}
    for split in SPLITS:
        for part in PARTS:
            paths = [folder_of(directory, language, split) / part / f"{name}.jsonl" for name in FILES]
            files = [
                {"split": path.stem, "path": path.relative_to(directory).as_posix()} for path in paths if path.exists()
            ]
            if files:
                found[f"{split}-{part}"] = files
    return found
