"""What a run will ask of its teacher, and what that costs, before anything is sent; and what it has cost afterwards."""

import random

import numpy as np

from rolellm_utils import context_instruct, pricing, profiles, rolegpt
from rolellm_utils.files import read_jsonl
from rolellm_utils.pricing import Estimate
from rolellm_utils.prompts import templates
from rolellm_utils.records import Profile
from rolellm_utils.stage import LANGUAGES, manifest
from rolellm_utils.store import Store

STAGES = ("01_profiles", "02_context_instruct", "03_rolegpt", "06_eval")  # those that ask a served model


def cost(teacher, requests):
    """The Estimate for requests to a teacher: what is still to be asked of them, in calls, tokens and money.

    Calls are exact, re-asks apart; prompt tokens are counted with OpenAI's vocabulary, and corrected by the model's own
    usage once the store holds 20 of its replies; completions range from one token a sample to `max_tokens`.
    """
    model, price, store = teacher.model, teacher.live.price, teacher.store
    vocabulary = price.tokenizer if price else pricing.VOCABULARY
    factor = pricing.calibration(store.recent(model), vocabulary)
    found, prompt, most, seen = Estimate(model=model, date=pricing.price_list()["date"]), 0.0, 0, set()
    for request in requests:
        key = teacher.key(request)
        groups = [] if key in seen else teacher.missing(key, request.n)[1]
        samples = sum(len(group) for *_, group in groups)
        seen.add(key)
        calls = samples if "n" in teacher.live.server.lacks else len(groups)
        found.requests += 1
        found.known += not samples
        found.calls += calls
        found.samples += samples
        most += samples * request.max_tokens
        prompt += calls * pricing.prompt_tokens(request.messages, vocabulary) if calls else 0.0
    found.prompt_tokens, found.completion_tokens = round(factor * prompt), (found.samples, most)
    past = store.recent(model, teacher.stage)
    if (answers := sum(row["samples"] for row in past)) >= pricing.CALIBRATED:
        found.likely = min(most, round(found.samples * sum(row["completion_tokens"] for row in past) / answers))
    if price:
        share = pricing.price_list()["batch"] if teacher.batch else 1.0
        found.usd = tuple(share * price.usd(found.prompt_tokens, tokens) for tokens in found.completion_tokens)
    return found


def stage_requests(name, parameters, run_dir):
    """(requests, remark) of a teacher's stage before it runs; the remark says what of it is not known yet.

    What an earlier stage has not made yet stands in by its likeness: the worked examples of the prompts.
    """
    if name == "06_eval":
        return _evaluation_requests(parameters, run_dir)
    language = parameters["language"]
    tokens = {"01_profiles": "profile_tokens", "02_context_instruct": "triplet_tokens", "03_rolegpt": "answer_tokens"}
    sampling = {key: parameters[key] for key in ("temperature", "top_p", "seed")}
    sampling["max_tokens"] = parameters[tokens[name]]
    if name == "01_profiles":
        parsed, roles = profiles.read_scripts(parameters["scripts"], parameters["roles"], parameters["least_pairs"])
        lines = parameters["profile_lines"]
        return [profiles.request(parsed, role, language, lines, **sampling) for role in roles], ""
    roles, remark = _profiles(parameters, run_dir)
    if name == "02_context_instruct":
        shape = [parameters[key] for key in ("script_based", "script_agnostic", "triplets_per_call", "segment_words")]
        asked = [pair for role in roles for pair in context_instruct.requests(role, language, *shape, **sampling)]
        return [request for request, _ in asked], remark
    return _rolegpt_requests(parameters, run_dir, roles, sampling, remark)


def _profiles(parameters, run_dir):
    language = parameters["language"]
    if manifest(run_dir, "01_profiles"):
        return profiles.load(run_dir, language), ""
    parsed, names = profiles.read_scripts(parameters["scripts"], parameters["roles"], parameters["least_pairs"])
    text = templates(language)["script_agnostic_example"]["description"]
    roles = [Profile(role=name, description=text, pairs=profiles.pairs(parsed, name)) for name in names]
    return roles, "descriptions are not written yet: a likely length is taken"


def _rolegpt_requests(parameters, run_dir, roles, sampling, remark):
    language = parameters["language"]
    path = rolegpt.instructions_path(parameters["instructions"], language)
    count, seed = parameters["general_instructions"], parameters["seed"]
    general = rolegpt.read_instructions(path, count, random.Random(seed))
    texts = [row["instruction"] for row in general]
    shape = [parameters[key] for key in ("strategy", "examples", "example_words")]
    if manifest(run_dir, "02_context_instruct"):
        known = rolegpt.role_questions(run_dir, language, roles)
        questions = {role: [row["instruction"] for row in rows] for role, rows in known.items()}
    else:
        # Each with a number, as no two questions are the same.
        likeness, kept = context_instruct.example_questions(language)[0], parameters["triplets_per_role"] or 200
        questions = {role.role: [f"{likeness} {number}" for number in range(kept)] for role in roles}
        remark = f"role-specific questions are not written yet: {kept} a role are taken, the most that are kept"
    asked = []
    for role in roles:
        asked += rolegpt.requests(role, texts, language, parameters["references"] + 1, *shape, **sampling)
    for role in roles:
        asked += rolegpt.requests(role, questions[role.role], language, 1, *shape, **sampling)
    asked += rolegpt.raw_requests(
        [row["instruction"] for row in general if not row.get("target")], language, **sampling
    )
    for way in rolegpt.STRATEGIES:
        for role in roles:
            asked += rolegpt.requests(role, [parameters["question"]], language, 1, way, *shape[1:], **sampling)
    return asked, remark


def _evaluation_requests(parameters, run_dir):
    if not manifest(run_dir, "04_rolebench"):
        return [], "test rows are not made yet: ask again after stage 4"
    from rolellm_utils import predict, rocit, rolebench, scoring

    whole = rolebench.load(run_dir / "rolebench", parameters["language"], parameters["split"])
    bench = scoring.sampled(whole, parameters["row_limit"], np.random.default_rng(parameters["seed"]))
    decoding = predict.Decoding(
        max_tokens=parameters["prediction_tokens"], temperature=parameters["prediction_temperature"],
        seed=parameters["seed"],
    )  # fmt: skip
    return predict.requests(scoring.test_rows(bench, rocit.system_texts(bench)), decoding), ""


def kept_samples(run_dir, language):
    """How many samples each stage of a run has kept, by role: {stage: {role: number}}, as far as it has run.

    A profile, a role-specific question with its answer, an answer of RoleGPT (general or baseline).
    """
    kept, folder = {}, run_dir / "rolebench" / f"instructions-{LANGUAGES[language]}"
    if manifest(run_dir, "01_profiles"):
        kept["01_profiles"] = {profile.role: 1 for profile in profiles.load(run_dir, language)}
    if manifest(run_dir, "02_context_instruct"):
        kept["02_context_instruct"] = {
            row["role"]: row["num"] for row in read_jsonl(folder / "nums.jsonl", ("role", "num"))
        }
    if manifest(run_dir, "03_rolegpt"):
        answers = kept.setdefault("03_rolegpt", {})
        for row in read_jsonl(run_dir / "rolegpt" / "answers.jsonl", ("role", "kind", "generated", "baseline")):
            new = bool(row["baseline"]) + (len(row["generated"]) if row["kind"] == "general" else 0)
            answers[row["role"]] = answers.get(row["role"], 0) + new
    return kept


def costs(run_dir, language):
    """The ledger of a run by stage, role and model, with `kept` samples and `usd_per_kept` beside: a list of dicts.

    `role` is empty for questions of no role. Both are None where the stage has kept nothing of that role.
    """
    store = Store()
    rows = store.ledger(run_dir.name, ("stage", "role", "model"))
    store.close()
    kept = kept_samples(run_dir, language)
    for row in rows:
        row["kept"] = kept.get(row["stage"], {}).get(row["role"])
        row["usd_per_kept"] = (row["usd"] or 0.0) / row["kept"] if row["kept"] else None
    return rows
