"""The published ROUGE-L tables (arXiv 2310.00746 v1), to print beside a run's own scores.

The figure is the recall of ROUGE-L as the package `rouge` computes it (protocol `paper`), as re-scoring the released
RoleGPT baseline shows; the paper itself does not say. `avg` is as printed: for LLaMA, Alpaca and Vicuna in the table
of role generalisation it is not the mean of its three cells.
"""

COLUMNS = ("CUS", "RAW", "SPE", "avg")


def _table(rows):
    return {model: dict(zip(COLUMNS, values, strict=True)) for model, values in rows.items()}


PUBLISHED = {
    ("en", "instruction-generalization"): _table({
        "RoleGPT": (0.5764, 0.5322, 0.3229, 0.4772),
        "LLaMA": (0.1291, 0.1232, 0.2553, 0.1692),
        "LLaMA-script": (0.0832, 0.0509, 0.1081, 0.0807),
        "Alpaca": (0.2423, 0.3529, 0.2695, 0.2882),
        "Vicuna": (0.2101, 0.2550, 0.2913, 0.2521),
        "RoleLLaMA": (0.3294, 0.3755, 0.3814, 0.3621),
    }),
    ("zh", "instruction-generalization"): _table({
        "RoleGPT": (0.5368, 0.5748, 0.2478, 0.4531),
        "ChatGLM2": (0.3938, 0.5060, 0.3099, 0.4032),
        "ChatGLM2-script": (0.1401, 0.3066, 0.0915, 0.1794),
        "RoleGLM": (0.5049, 0.5255, 0.3406, 0.4570),
    }),
    ("en", "role-generalization"): _table({
        "RoleGPT": (0.6020, 0.5322, 0.2985, 0.4776),
        "LLaMA": (0.1316, 0.1232, 0.2551, 0.2238),
        "Alpaca": (0.2315, 0.3529, 0.2587, 0.3015),
        "Vicuna": (0.2082, 0.2550, 0.2775, 0.2842),
        "RoleLLaMA": (0.4126, 0.4107, 0.2568, 0.3600),
    }),
}  # fmt: skip


def note():
    """What the published figures are, in one sentence to print below them."""
    return (
        "Published figures: ROUGE-L recall of the package rouge (protocol paper), as printed in arXiv 2310.00746 v1, "
        "for the paper's own roles, references and models, without intervals or answer lengths; recall rewards long "
        "answers."
    )
