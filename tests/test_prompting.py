"""Prompts, their examples, and scores: each likelihood against a plain loop with the transformers model."""

import itertools
import math
import random
from dataclasses import replace

import pytest
import torch
import transformers

from course_utils import generation, models, prompting
from course_utils.data import tasks
from course_utils.data.tasks import episodes
from course_utils.prompting import FORMATS, TEMPLATES, Example, Item, Strategy, Task, Template
from course_utils.recipes import decoder
from course_utils.recipes.tokenizer import PATH, tokenizer
from tests.test_data_hub import DIALOGUES, write

WORDS = ("pos", "positive", "negative", "not so very positive", "7 and 12")
SIZES = {"vocab_size": 4096, "initializer_range": 0.5}


@pytest.fixture(scope="module")
def course() -> models.Loaded:
    return models.load("course-decoder", profile="laptop")


@pytest.fixture(scope="module")
def instruct() -> models.Loaded:
    return models.load("course-instruct", profile="laptop")


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    monkeypatch.setattr(prompting, "_CACHE", {})


def bare():
    """A tokenizer that puts no mark before a text, as GPT-2's."""
    from tokenizers import Tokenizer

    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_file(str(PATH)), eos_token="<eos>", pad_token="<pad>", model_max_length=512
    )


def made(family: str) -> models.Loaded:
    """A model of a family with random weights, in float64 (but BLOOM: the library masks it in float32)."""
    torch.manual_seed(0)
    small = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 16}
    if family == "LLaMA":
        config = transformers.LlamaConfig(**SIZES, **small, intermediate_size=32, num_key_value_heads=1)
        model, marks = transformers.LlamaForCausalLM(config), tokenizer("decoder")
    elif family == "GPT-2":
        config = transformers.GPT2Config(**SIZES, n_layer=2, n_head=2, n_embd=16, n_positions=256)
        model, marks = transformers.GPT2LMHeadModel(config), bare()
    elif family == "BLOOM":
        config = transformers.BloomConfig(**SIZES, n_layer=2, n_head=2, hidden_size=16)
        model, marks = transformers.BloomForCausalLM(config), bare()
    elif family == "T5":
        config = transformers.T5Config(
            vocab_size=4096, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, initializer_factor=5.0,
            decoder_start_token_id=0, eos_token_id=2,
        )  # fmt: skip
        model, marks = transformers.T5ForConditionalGeneration(config), tokenizer("seq2seq")
    else:
        config = transformers.BartConfig(
            vocab_size=4096, d_model=16, encoder_layers=2, decoder_layers=2, encoder_attention_heads=2, init_std=0.5,
            decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32, max_position_embeddings=256,
        )  # fmt: skip
        model, marks = transformers.BartForConditionalGeneration(config), tokenizer("encoder")
    kind = "seq2seq" if family in ("T5", "BART") else "causal"
    dtype = torch.float32 if family == "BLOOM" else torch.float64
    return models.Loaded(model.to(dtype).eval(), marks, family, "folder", "", None, kind)


@torch.no_grad()
def plain(loaded: models.Loaded, prompt: str, text: str, end: bool) -> float:
    """Log-probability of the text after the prompt, one token after the other, no batch, no cache."""
    marks, model = loaded.tokenizer, loaded.model
    if loaded.kind == "seq2seq":
        source = torch.tensor([marks(prompt).input_ids])
        target, read = marks(text).input_ids, [model.config.decoder_start_token_id]
    else:
        begin = [] if marks.bos_token_id is None else [marks.bos_token_id]
        read = begin + marks(prompt, add_special_tokens=False).input_ids or [marks.eos_token_id]
        target = marks(text, add_special_tokens=False).input_ids + [marks.eos_token_id] * end
    total = 0.0
    for token in target:
        ids = torch.tensor([read])
        given = {"input_ids": source, "decoder_input_ids": ids} if loaded.kind == "seq2seq" else {"input_ids": ids}
        total += float(model(**given, use_cache=False).logits[0, -1].log_softmax(-1)[token])
        read = [*read, token]
    return total


PROMPTS = (
    "",
    "Input: dog Output:",
    " a much longer prompt of words,\n- one -> two\n- three ->",
    "\x00\x07\x1b",
    "ü 語 🙂",
)


@pytest.mark.parametrize("family", ["LLaMA", "GPT-2", "BLOOM", "T5", "BART"])
@pytest.mark.parametrize("answer", [" {target}\n", " {target}", " <{target}> ;"])
def test_likelihoods_are_those_of_a_plain_loop_in_any_batch(family, answer):
    loaded = made(family)
    labels = [WORDS[:3], WORDS, WORDS[1:], ("a", "b"), WORDS[:1]]
    found = prompting.label_scores(loaded, PROMPTS, labels, answer)
    for prompt, own, scores in zip(PROMPTS, labels, found, strict=True):
        for label, score in zip(own, scores, strict=True):
            text = answer.replace("{target}", label)
            if loaded.kind == "seq2seq":
                text = text.rstrip()
            expected = plain(loaded, prompt, text, end=answer.endswith("{target}"))
            assert score == pytest.approx(expected, abs=1e-5, rel=1e-6), (prompt, label)
    prompting._CACHE.clear()
    alone = [
        prompting.label_scores(loaded, [one], [own], answer, rows=1)[0]
        for one, own in zip(PROMPTS, labels, strict=True)
    ]
    for one, other in zip(found, alone, strict=True):
        assert one == pytest.approx(other, abs=1e-5 if family == "BLOOM" else 1e-9)


def test_the_embedded_models_too(course, instruct):
    for loaded, answer in ((course, " {target}\n"), (instruct, " {target}")):
        prompts = ["- dog -> red\n- cat ->", "sentiment: the soup was not dull", "- a ->"]
        found = prompting.label_scores(loaded, prompts, [WORDS[:3]] * 3, answer)
        for prompt, scores in zip(prompts, found, strict=True):
            expected = [plain(loaded, prompt, answer.replace("{target}", label), False) for label in WORDS[:3]]
            assert scores == pytest.approx(expected, abs=1e-4)


def test_a_token_that_reaches_over_the_boundary_counts_in_full():
    loaded = made("LLaMA")
    prompt, labels, answer = "the mo", ["vie", "on", "dern art"], "{target}\n"
    marks = loaded.tokenizer

    def ids(text):
        return marks(text, add_special_tokens=False).input_ids

    assert any(ids(prompt + label)[: len(ids(prompt))] != ids(prompt) for label in labels)
    found = prompting.label_scores(loaded, [prompt], [labels], answer)[0]
    whole = [
        plain(loaded, "", f"{prompt}{label}\n", False) for label in labels
    ]  # the prompt's share is the same in all
    for one, other in itertools.combinations(range(3), 2):
        assert abs((found[one] - found[other]) - (whole[one] - whole[other])) < 1e-5


@pytest.mark.parametrize("shape", ["{}", "{} too"])
def test_a_label_that_begins_another_one_does_not_win_by_being_shorter(course, shape):
    words = ("dog", "cat", "pig", "oak")
    shots = "".join(f"- {word} -> {shape.format(word)}\n" for word in words)
    labels = ("cow", "cow too")
    scores = prompting.label_scores(course, [f"{shots}- cow ->"], [labels], " {target}\n")[0]
    assert labels[scores.index(max(scores))] == shape.format("cow")
    assert sum(map(math.exp, scores)) <= 1
    # without their end the longer one could never win, as it begins with the shorter one
    assert plain(course, f"{shots}- cow ->", " cow too", False) < plain(course, f"{shots}- cow ->", " cow", False)


@pytest.mark.parametrize("kind", ["labels", "pairs", "recall"])
def test_the_same_answers_as_the_evaluation_of_the_decoder(course, kind):
    chance = random.Random(0)
    drawn = [episodes.episode(kind, chance, chance.randint(1, 6), "held_out") for _ in range(40)]
    drawn = [one for one in drawn if len(set(one.candidates)) > 1]
    expected = decoder._right(course.model, course.tokenizer, drawn)
    for style in FORMATS:
        same = [place for place, one in enumerate(drawn) if one.style == style]
        items = [(drawn[place].prompt(), tuple(dict.fromkeys(drawn[place].candidates))) for place in same]
        scores = prompting.label_scores(
            course, [one for one, _ in items], [own for _, own in items], FORMATS[style].answer
        )
        for place, (_, own), values in zip(same, items, scores, strict=True):
            assert (own[values.index(max(values))] == drawn[place].answer) == expected[place]


def test_formats_are_those_of_the_episodes():
    one = episodes.episode("labels", random.Random(1), 4)
    for style, template in FORMATS.items():
        shown = [Example(text, answer) for text, answer in one.examples[:-1]]
        assert template.render(one.examples[-1][0], shown) == replace(one, style=style).prompt()


def test_scores_are_kept_until_the_weights_change(course, monkeypatch):
    loaded = made("GPT-2")
    seen = []
    score = prompting._score_decoder
    monkeypatch.setattr(
        prompting, "_score_decoder", lambda model, batch: seen.append(len(batch)) or score(model, batch)
    )

    def run():
        return prompting.label_scores(loaded, ["a b", "a b", "c"], [("x", "y")] * 3)

    first = run()
    assert sum(seen) == 2
    assert run() == first
    assert sum(seen) == 2
    with torch.no_grad():
        loaded.model.transformer.h[1].mlp.c_fc.weight[3, 3] += 9
    assert run() != first
    assert sum(seen) == 4
    hook = loaded.model.transformer.h[0].register_forward_hook(lambda module, args, output: None)
    run()
    assert sum(seen) == 6, "hooks may change what is computed: nothing is taken from the cache"
    hook.remove()


# --- the window


def test_a_prompt_over_the_window_is_refused_before_anything_runs(course, monkeypatch):
    monkeypatch.setattr(prompting, "_score_decoder", lambda *_: pytest.fail("it ran"))
    monkeypatch.setattr(generation, "complete", lambda *_, **__: pytest.fail("it ran"))
    items = tuple(Item(" dog" * size, "red", labels=("red", "blue")) for size in (3, 700, 600))
    task = Task("long", items, {})
    with pytest.raises(
        ValueError, match=r"70\d tokens and up to 2 of its answer \(0 examples\).*512.*2 of 3 prompts do not fit"
    ):
        prompting.compare(course, task, [Strategy(FORMATS["arrow"])], seeds=(0,), progress=False)
    free = replace(task, items=tuple(replace(one, labels=()) for one in items))
    with pytest.raises(ValueError, match="exceed the context window"):
        prompting.compare(course, free, [Strategy(FORMATS["arrow"])], progress=False)
    with pytest.raises(ValueError, match="exceed the context window"):
        prompting.label_scores(course, ["x " * 50_000], [("a", "b")])
    left = prompting.fitting(course, task, [Strategy(FORMATS["arrow"])])
    assert left.items == items[:1]
    assert left.name == "long (1 of 3 items, which fit 512 tokens)"
    with pytest.raises(ValueError, match="no item"):
        prompting.fitting(course, replace(task, items=items[1:]), [Strategy(FORMATS["arrow"])])


def test_what_fitting_keeps_can_be_compared(course):
    items = tuple(Item(" dog" * size, "red") for size in range(470, 512, 3))
    task = Task("edge", items, {"": (Example("x", "red blue"),)})
    for strategies in ([Strategy(FORMATS["arrow"])], [Strategy(FORMATS["arrow"], 1)]):
        for labels in ((), ("red", "blue")):
            own = replace(task, items=tuple(replace(one, labels=labels) for one in items))
            left = prompting.fitting(course, own, strategies, (0,))
            kept = len(left.items)
            assert 0 < kept < len(items)
            prompting.compare(course, left, strategies, seeds=(0,), progress=False)
            longer = replace(own, items=own.items[: kept + 1])
            with pytest.raises(ValueError, match="exceed the context window"):
                prompting.compare(course, longer, strategies, seeds=(0,), progress=False)


def test_a_prompt_fits_to_the_token(course, instruct):
    text = " dog" * 300
    tokens = prompting.count_tokens(course, text)
    assert tokens == 301  # and the mark
    assert prompting.fits(course, text, 512 - tokens)
    assert not prompting.fits(course, text, 513 - tokens)
    prompting.label_scores(course, [" dog" * 509], [("red", "blue")], " {target}\n")
    with pytest.raises(ValueError, match="exceed"):
        prompting.label_scores(course, [" dog" * 510], [("red", "blue")], " {target}\n")
    assert prompting.fits(instruct, text, 512), "the target stands in a window of its own"
    assert not prompting.fits(instruct, "y" * 100_000)


def test_weights_that_are_no_numbers_are_refused():
    loaded = made("GPT-2")
    with torch.no_grad():
        loaded.model.transformer.ln_f.weight[0] = math.nan
    with pytest.raises(ValueError, match="gives labels no probability"):
        prompting.label_scores(loaded, ["a"], [("b", "c")])


def test_control_characters_and_nothing_are_scored(course):
    prompts = ["", "\x00\x01\x02\x1b[31m\r\n\t", "\ud7ff\uffff\u202e", " " * 50]
    for scores in prompting.label_scores(course, prompts, [("red", "blue")] * 4, " {target}\n"):
        assert all(math.isfinite(one) and one < 0 for one in scores)
    task = Task("odd", tuple(Item(text, "red", labels=("red", "blue")) for text in prompts), {})
    found = prompting.compare(course, task, [Strategy(Template("{input}", " {target}\n"))], progress=False)
    assert found.outcomes[0].scores.shape == (5, 4)


# --- templates and examples


def test_a_template_prints_what_the_model_sees():
    shown = [Example("dog", "red"), Example("iron {x}", "blue")]
    assert TEMPLATES["input"].render("cat", shown) == (
        "Input: dog\nOutput: red\n\nInput: iron {x}\nOutput: blue\n\nInput: cat\nOutput:"
    )
    assert TEMPLATES["choice"].render("cat", instruction="Say it.", labels=("a", "b")) == (
        "Say it. Answer with one of: a, b.\n\nInput: cat\nOutput:"
    )
    assert TEMPLATES["prefix"].render("cat", prefix="category: ") == "category: cat"
    assert Template("{input}").render("") == ""
    thought = TEMPLATES["chain of thought"]
    steps = Example("2 + 3 + 4", "9", "2 + 3 is 5. 5 + 4 is 9.")
    assert thought.render("1 + 1 + 1", [steps]) == (
        "Q: 2 + 3 + 4\nA: Let's think step by step. 2 + 3 is 5. 5 + 4 is 9. The answer is 9.\n\n"
        "Q: 1 + 1 + 1\nA: Let's think step by step."
    )
    assert thought.read(" 1 + 1 is 2. The answer is 2? 2 + 1 is 3. The answer is 3.\n\nQ: no") == "3"
    assert thought.read(" I think\n3") == "3"
    assert TEMPLATES["input"].read(" red\n\nInput: x") == "red"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"question": "{input.__class__}"}, "nothing in braces but {input}"),
        ({"question": "{word}"}, "nothing in braces"),
        ({"question": "{input!r}"}, "nothing in braces"),
        ({"question": "{"}, "nothing in braces"),
        ({"head": "{input}"}, "nothing in braces"),
        ({"answer": " {input}\n"}, "nothing in braces"),
        ({"answer": "\n"}, "expected {target}"),
        ({"answer": "{target} {target}"}, "expected {target}"),
    ],
)
def test_a_template_with_unknown_names_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Template(**fields)


def test_what_a_template_needs_must_be_there():
    for name, message in (("instruction", "{instruction}"), ("choice", "{labels}"), ("prefix", "{prefix}")):
        with pytest.raises(ValueError, match=message):
            TEMPLATES[name].render("cat", instruction="Do." if name == "choice" else "")
    with pytest.raises(ValueError, match=r"{reasoning}"):
        TEMPLATES["chain of thought"].render("cat", [Example("dog", "red")])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"shots": -1}, "shots=-1"),
        ({"selection": "best"}, "selection='best'"),
        ({"shots": 3, "selection": (0, 1)}, "3 labels"),
        ({"shots": 3, "order": (0, 1, 1)}, "permutation of 0 to 2"),
        ({"wrong": 1.5}, "share from 0 to 1"),
        ({"calibrated": True, "template": TEMPLATES["chain of thought"]}, "calibrated=True"),
    ],
)
def test_a_strategy_checks_itself(fields, message):
    with pytest.raises(ValueError, match=message):
        Strategy(**fields)


def test_items_check_themselves():
    for labels in (("a", "a"), ("a", " "), ("b", "c")):
        with pytest.raises(ValueError, match="labels"):
            Item("x", "a", labels=labels)


POOL = tuple(Example(f"word {number}", ("a", "b")[number % 3 == 0]) for number in range(30))
SIMPLE = Task("simple", tuple(Item(f"item {number}", "a", labels=("a", "b")) for number in range(4)), {"": POOL})


def test_random_examples_are_the_seeds_and_few_are_the_first_of_many():
    item = SIMPLE.items[0]
    many = prompting.select(SIMPLE, item, Strategy(shots=8), 1)
    assert len(set(many)) == 8 and set(many) <= set(POOL)
    assert prompting.select(SIMPLE, item, Strategy(shots=3), 1) == many[:3]
    assert prompting.select(SIMPLE, SIMPLE.items[1], Strategy(shots=8), 1) == many
    assert prompting.select(SIMPLE, item, Strategy(shots=8), 2) != many
    assert prompting.select(SIMPLE, item, Strategy(shots=8, order=(7, 6, 5, 4, 3, 2, 1, 0)), 1) == many[::-1]
    assert prompting.select(SIMPLE, item, Strategy(), 1) == ()


def test_balanced_examples_and_asked_for_labels():
    item = SIMPLE.items[0]
    for seed in range(20):
        labels = [one.target for one in prompting.select(SIMPLE, item, Strategy(shots=8, selection="balanced"), seed)]
        assert labels.count("a") == 4
        places = (1, 1, 0, 1)
        strategy = Strategy(shots=4, selection=places, order=(0, 1, 2, 3))
        assert [one.target for one in prompting.select(SIMPLE, item, strategy, seed)] == ["b", "b", "a", "b"]
    orders = {
        tuple(one.target for one in prompting.select(SIMPLE, item, Strategy(shots=2, selection="balanced"), seed))
        for seed in range(20)
    }
    assert orders == {("a", "b"), ("b", "a")}


def test_wrong_answers_are_as_many_as_asked_for_and_the_same_in_every_order():
    item = SIMPLE.items[0]
    right = prompting.select(SIMPLE, item, Strategy(shots=8), 3)
    for share, count in ((0.25, 2), (0.5, 4), (1.0, 8)):
        wrong = prompting.select(SIMPLE, item, Strategy(shots=8, wrong=share), 3)
        assert [one.input for one in wrong] == [one.input for one in right]
        assert sum(one.target != other.target for one, other in zip(wrong, right, strict=True)) == count
        turned = prompting.select(SIMPLE, item, Strategy(shots=8, wrong=share, order=(7, 6, 5, 4, 3, 2, 1, 0)), 3)
        assert turned == wrong[::-1]


def test_the_nearest_examples_stand_last():
    texts = ("the price was awful", "the soup was cold", "a lovely soup", "trains are late", "the soup was hot")
    task = Task("near", (Item("The soup was cold!", "x"),), {"": tuple(Example(text, text) for text in texts)})
    found = prompting.select(task, task.items[0], Strategy(shots=3, selection="nearest"))
    assert [one.input for one in found] == ["a lovely soup", "the soup was hot", "the soup was cold"] or [
        one.input for one in found
    ][1:] == ["the soup was hot", "the soup was cold"]
    alike = prompting.similarities("The soup was  cold", texts)
    assert alike[1] == pytest.approx(1.0)
    assert alike == prompting.similarities("The soup was  cold", texts)
    assert all(0 <= one <= 1 + 1e-9 for one in alike)
    assert prompting.similarities("", ["", "abc"])[1] == 0
    assert prompting.similarities("xyz", ["abc"]) == [0]


def test_what_cannot_be_selected_is_refused():
    item = SIMPLE.items[0]
    for strategy, message in (
        (Strategy(shots=31), "shots=31"),
        (Strategy(shots=24, selection="balanced"), "too few examples of 'b'"),
        (Strategy(shots=1, selection=(2,)), "2 labels"),
    ):
        with pytest.raises(ValueError, match=message):
            prompting.select(SIMPLE, item, strategy)
    with pytest.raises(ValueError, match="no labels"):
        prompting.select(SIMPLE, replace(item, labels=()), Strategy(shots=2, selection="balanced"))
    same = replace(SIMPLE, pool={"": (Example("x", "a"),)})
    with pytest.raises(ValueError, match="no other answer"):
        prompting.select(same, replace(item, labels=()), Strategy(shots=1, wrong=1.0))


# --- tasks


@pytest.mark.parametrize("kind", prompting.UNSEEN)
def test_unseen_tasks_hold_what_no_model_was_trained_on(kind):
    task = prompting.unseen_task(kind, items=60, pool=20)
    assert task == prompting.unseen_task(kind, items=60, pool=20)
    assert task != prompting.unseen_task(kind, items=60, pool=20, seed=1)
    assert len(task.items) == len(task.pool) == 60
    assert task.name == f"unseen {decoder.NAMES[kind]}"
    for item in task.items:
        shown = task.pool[item.group]
        assert len(item.labels) != 1
        if kind == "recall":
            assert Example(item.input, item.target) in shown
        else:
            assert item.input not in {one.input for one in shown}
        if kind in ("labels", "recall"):
            assert {one.target for one in (item, *shown)} <= set(episodes.LABELS["held_out"])
        if kind == "pairs":
            pair = tuple(part.split("=")[0] for part in item.group.split(": ", 1)[1].split(", "))
            assert pair in episodes.PAIRS["held_out"]
    assert prompting.unseen_task(kind, items=3, split="train").name.startswith("seen ")


def test_generated_tasks_ask_held_out_items_and_show_training_items():
    task = prompting.generated_task("sentiment", items=50)
    assert [(one.input, one.target) for one in task.items] == tasks.TASKS["sentiment"].generate("held_out", 50, 0)
    assert not {one.input for one in task.items} & {one.input for one in task.pool[""]}
    assert task.items[0].labels == ("negative", "positive")
    assert task.prefix == "sentiment: "
    assert prompting.generated_task("summary", items=3).metric == "rouge"
    with pytest.raises(ValueError, match="sentimental"):
        prompting.generated_task("sentimental")
    with pytest.raises(ValueError, match="forms"):
        prompting.unseen_task("shapes")


def test_a_data_set_from_a_folder(tmp_path, instruct):
    from course_utils.data import hub

    rows = [
        {**DIALOGUES[number % 3], "summary": f"They greet, {number}.", "dialogue": f"#Person1#: Hi, {number}!"}
        for number in range(9)
    ]
    write(tmp_path / "dialogsum.train.jsonl", rows[:6])
    write(tmp_path / "dialogsum.dev.jsonl", rows[4:])
    found = hub("dialogsum", tmp_path)
    task = prompting.dataset_task("dialogsum", found["validation"], found["train"], items=3, prefix="summarize: ")
    assert len(task.items) == 3 and len(task.pool[""]) >= 4
    assert not {one.input for one in task.items} & {one.input for one in task.pool[""]}
    result = prompting.compare(
        instruct,
        task,
        [Strategy(TEMPLATES["prefix"]), Strategy(TEMPLATES["prefix"], 1, "nearest")],
        seeds=(0,),
        progress=False,
    )
    assert all(0 <= one.accuracy <= 1 and one.calibration_error is None for one in result.outcomes)
    with pytest.raises(ValueError, match="expected text in the fields text and target, found input"):
        prompting.dataset_task("dialogsum", found["validation"], input="text")
    with pytest.raises(ValueError, match="at least one item"):
        prompting.dataset_task("empty", [])


# --- comparisons


@pytest.fixture(scope="module")
def shots(course) -> prompting.Comparison:
    task = prompting.unseen_task("labels", items=120)
    arrow = FORMATS["arrow"]
    strategies = [Strategy(arrow), Strategy(arrow, 1), Strategy(arrow, 1, calibrated=True), Strategy(arrow, 8)]
    return prompting.compare(
        course, task, [*strategies, Strategy(arrow, 8, wrong=1.0)], seeds=(0, 1, 2), progress=False
    )


def test_examples_teach_and_wrong_ones_mislead(shots):
    zero, one, calibrated, few, wrong = (outcome.accuracy for outcome in shots.outcomes)
    assert 0.35 < zero < 0.65 and zero - 0.05 < one < 0.75
    assert few > 0.95 and calibrated > one + 0.1 and wrong < 0.1
    test = shots.paired("1 example", "8 examples")
    assert test.low > 0 and test.p < 0.01 and test.mcnemar < 0.001 and test.won > test.lost
    assert test.difference == pytest.approx(few - one)
    assert shots["8 examples"].calibration_error < 0.1 < shots["8 examples, 100% wrong"].calibration_error
    same = shots.paired("1 example", "1 example")
    assert (same.difference, same.low, same.high, same.p, same.mcnemar) == (0, 0, 0, 1, 1)


def test_a_comparison_holds_every_answer(shots):
    few = shots["8 examples"]
    assert few.scores.shape == (3, 120)
    for row, answers, chances in zip(few.scores, few.answers, few.probabilities, strict=True):
        for score, said, shares, item in zip(row, answers, chances, shots.items, strict=True):
            assert score == (said == item.target)
            assert sum(shares) == pytest.approx(1)
            assert item.labels[shares.index(max(shares))] == said
    zero = shots["0 examples"]
    assert zero.answers[0] == zero.answers[1], "no example, no seed"
    low, high = few.interval
    assert low <= few.accuracy <= high
    assert few.tokens > 3 * zero.tokens and few.seconds > 0
    with pytest.raises(ValueError, match="expected one of '0 examples'"):
        shots["9 examples"]


def test_probabilities_and_tokens_are_those_of_the_prompts(course, shots):
    task = prompting.unseen_task("labels", items=120)
    strategy = Strategy(FORMATS["arrow"], 1, calibrated=True)
    prompts = [prompting.prompt(task, item, strategy, 1) for item in task.items[:5]]
    empty = [one[: one.rindex("- ")] + "- N/A ->" for one in prompts]
    labels = [item.labels for item in task.items[:5]]
    with_, without = (prompting.label_scores(course, part, labels, " {target}\n") for part in (prompts, empty))
    for place in range(5):
        ratio = torch.tensor(with_[place]) - torch.tensor(without[place])
        assert shots["1 example, calibrated"].probabilities[1][place] == pytest.approx(
            ratio.softmax(0).tolist(), abs=1e-5
        )
    every = [
        prompting.prompt(task, item, Strategy(FORMATS["arrow"], 8), seed) for seed in range(3) for item in task.items
    ]
    assert shots["8 examples"].tokens == sum(prompting.count_tokens(course, one) for one in every)


def test_pooled_items_count_alike(course, shots):
    strategies = [one.strategy for one in shots.outcomes[:2]]
    other = prompting.compare(
        course, prompting.unseen_task("recall", items=40), strategies, seeds=(0, 1, 2), progress=False
    )
    both = prompting.pooled("both", [replace(shots, outcomes=shots.outcomes[:2]), other])
    for one, first, second in zip(both.outcomes, shots.outcomes, other.outcomes, strict=False):
        assert one.accuracy == pytest.approx((120 * first.accuracy + 40 * second.accuracy) / 160)
        assert one.answers[2] == first.answers[2] + second.answers[2]
        assert len(one.probabilities[0]) == len(both.items) == 160
        assert one.calibration_error >= 0
    written = prompting.compare(
        course, prompting.unseen_task("picks", items=5), strategies, seeds=(0, 1, 2), progress=False
    )
    assert prompting.pooled("all", [other, written]).outcomes[0].probabilities is None
    with pytest.raises(ValueError, match="got 2"):
        prompting.pooled("no", [shots, other])
    with pytest.raises(ValueError, match="got 0"):
        prompting.pooled("no", [])


def test_tables_and_pictures(shots, capsys):
    shots.table()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "unseen label words, 120 items x 3 seeds"
    assert lines[1].startswith("strategy | score | 95 % interval | calibration error")
    assert len(lines) == 7
    shots.tests()
    assert "8 examples, 100% wrong against 8 examples" in capsys.readouterr().out
    axes = shots.plot().axes[0]
    assert [one.get_text() for one in axes.get_yticklabels()][:2] == ["0 examples", "1 example"]
    chosen = replace(shots, outcomes=tuple(shots.outcomes[place] for place in (3, 0, 1)))
    line = prompting.plot_shots([chosen]).axes[0].lines[0]
    assert list(line.get_ydata()) == [shots.outcomes[place].accuracy for place in (0, 1, 3)]


def test_text_is_written_and_scored(course, instruct):
    task = prompting.unseen_task("forms", items=30)
    found = prompting.compare(course, task, [Strategy(FORMATS["arrow"], k) for k in (0, 4)], seeds=(0,), progress=False)
    assert found.outcomes[0].accuracy < 0.1 and found.outcomes[1].accuracy > 0.25
    expected = [
        generation.complete(
            course, prompting.prompt(task, item, Strategy(FORMATS["arrow"], 4)), generation.Decoding(stop=("\n",))
        )
        for item in task.items[:4]
    ]
    assert [one.text.strip() for one in expected] == list(found.outcomes[1].answers[0][:4])
    dates = prompting.generated_task("date_iso", items=20)
    assert (
        prompting.compare(instruct, dates, [Strategy(TEMPLATES["prefix"])], seeds=(0,), progress=False)
        .outcomes[0]
        .accuracy
        > 0.8
    )
    thought = Task("sum", (Item("1 + 1", "2", labels=("2", "3")),), {"": (Example("2 + 2", "4", "2 and 2 is 4."),)})
    shown = prompting.compare(course, thought, [Strategy(TEMPLATES["chain of thought"], 1)], seeds=(0,), progress=False)
    assert shown.outcomes[0].probabilities is None
    with pytest.raises(ValueError, match="calibrated"):
        prompting.compare(course, task, [Strategy(FORMATS["arrow"], calibrated=True)], progress=False)


def test_labels_of_an_instruct_model(instruct):
    found = prompting.compare(
        instruct,
        prompting.generated_task("topic", items=60),
        [Strategy(TEMPLATES["prefix"])],
        seeds=(0,),
        progress=False,
    )
    assert found.outcomes[0].accuracy > 0.9


def test_what_cannot_be_compared_is_refused(course):
    one = Strategy(FORMATS["arrow"])
    for strategies, n, seeds, message in (
        ([], None, (0,), "expected one or more"),
        ([one, one], None, (0,), "different names"),
        ([one], None, (), "expected one or more"),
        ([one], 5, (0,), "n=5"),
        ([one], 0, (0,), "n=0"),
    ):
        with pytest.raises(ValueError, match=message):
            prompting.compare(course, SIMPLE, strategies, n, seeds)
    mixed = replace(SIMPLE, items=(*SIMPLE.items, Item("x", "y")))
    with pytest.raises(ValueError, match="some items have labels"):
        prompting.compare(course, mixed, [one])
    with pytest.raises(ValueError, match="at least one label"):
        prompting.label_scores(course, ["a"], [()])
    with pytest.raises(ValueError, match="rows=0"):
        prompting.label_scores(course, ["a"], [("b",)], rows=0)
    with pytest.raises(ValueError, match="of kind 'masked' writes no text"):
        prompting.label_scores(replace(course, kind="masked"), ["a"], [("b",)])
    assert prompting.label_scores(course, [], []) == []


# --- studies


def test_an_order_study_shows_the_same_examples_in_every_order(course):
    task = prompting.unseen_task("labels", items=20)
    study = prompting.order_study(course, task, Strategy(FORMATS["arrow"], 3), progress=False)
    assert len(study.outcomes) == 6
    shown = [prompting.select(task, task.items[0], one.strategy) for one in study.outcomes]
    assert len(set(shown)) == 6 and len({frozenset(one) for one in shown}) == 1
    answers = [one.answers[0] for one in study.outcomes]
    assert prompting.unchanged(study) == sum(len(set(said)) == 1 for said in zip(*answers, strict=True)) / 20
    assert len(prompting.order_study(course, task, Strategy(FORMATS["arrow"], 7), 5, 2, progress=False).outcomes) == 5
    with pytest.raises(ValueError, match="2 or more"):
        prompting.order_study(course, task, Strategy(FORMATS["arrow"], 1))


def test_label_bias_in_a_format_that_was_never_trained(course):
    task = prompting.unseen_task("labels", items=60)
    bias = prompting.label_bias(course, task, Strategy(TEMPLATES["question"], 2), progress=False)
    assert [one.strategy.name for one in bias.comparison.outcomes] == ["1 1", "1 2", "2 1", "2 2"]
    shares = {one.strategy.name: one.first_label for one in bias.comparison.outcomes}
    assert bias.majority == {0: shares["2 2"], 1: (shares["1 2"] + shares["2 1"]) / 2, 2: shares["1 1"]}
    assert bias.recency == {1: shares["2 1"], 2: shares["1 2"]}
    assert bias.majority[2] > 0.7 > 0.3 > bias.majority[0], "two examples of one label draw the answers to it"
    assert bias.truth == sum(one.target == one.labels[0] for one in task.items) / 60
    assert len(bias.plot().axes[0].patches) == 4
    with pytest.raises(ValueError, match="two labels"):
        prompting.label_bias(course, prompting.generated_task("topic", items=5), Strategy(shots=2))
    with pytest.raises(ValueError, match="1 to 6"):
        prompting.label_bias(course, task, Strategy(shots=7))


# --- statistics


def test_mcnemar_is_the_binomial_test():
    assert prompting.mcnemar(0, 0) == 1
    assert prompting.mcnemar(5, 5) == 1
    assert prompting.mcnemar(0, 5) == prompting.mcnemar(5, 0) == 2 / 32
    assert prompting.mcnemar(2, 8) == pytest.approx(0.109375)
    with pytest.raises(ValueError, match="-1"):
        prompting.mcnemar(-1, 3)


def test_calibration_error_by_hand():
    assert prompting.calibration_error([0.95] * 4, [1.0, 1.0, 1.0, 0.0]) == pytest.approx(0.2)
    assert prompting.calibration_error([1.0, 0.55], [1.0, 0.0]) == pytest.approx(0.275)
    with pytest.raises(ValueError, match="2 confidences"):
        prompting.calibration_error([0.5, 0.5], [1.0])


def test_intervals_hold_the_truth_as_often_as_they_say():
    draw = torch.Generator().manual_seed(0)
    held = 0
    for _ in range(100):
        ease = torch.rand(60, generator=draw, dtype=torch.float64)  # of an item, whose mean is 0.5
        scores = (torch.rand(5, 60, generator=draw, dtype=torch.float64) < ease).double()
        low, high = prompting._interval(prompting._resampled(scores))
        held += low <= 0.5 <= high
    assert held >= 90


def test_half_of_a_character_is_refused(course):
    with pytest.raises(ValueError, match="half of a character"):
        prompting.count_tokens(course, "ab \udc80")
