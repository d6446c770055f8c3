"""Fine-tuning: examples and their labels, one loop against the library's, interruption, memory, measures, files."""

import copy
import errno
import json
import math
import os
import random
import signal

import pytest
import torch
from torch import nn

from course_utils import checkpoints, finetuning, lora, models
from course_utils.data import tasks
from course_utils.finetuning import (
    OutOfMemory,
    finetune,
    forgetting,
    gain_share,
    loss,
    measure,
    prepare,
    scores_table,
    tuning,
    with_head,
    with_trainer,
)
from course_utils.finetuning.measures import score_texts
from course_utils.models import Loaded
from course_utils.recipes.seq2seq import rouge_l
from course_utils.recipes.tokenizer import tokenizer as tokenizer_of
from course_utils.training import IGNORED

WIDTH = 16


def t5(dropout=0.0):
    from transformers import T5Config, T5ForConditionalGeneration

    ids = dict(decoder_start_token_id=0, pad_token_id=0, eos_token_id=2)
    sizes = dict(d_model=WIDTH, d_kv=8, d_ff=24, num_layers=1, num_heads=2, feed_forward_proj="gated-gelu")
    return T5ForConditionalGeneration(T5Config(vocab_size=4096, dropout_rate=dropout, **sizes, **ids))


def gpt2(dropout=0.0):
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes = dict(n_positions=128, n_embd=WIDTH, n_layer=1, n_head=2, bos_token_id=1, eos_token_id=2)
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=4096, resid_pdrop=dropout, embd_pdrop=dropout, attn_pdrop=dropout, **sizes)
    )


def bert(dropout=0.0):
    from transformers import BertConfig, BertForMaskedLM

    sizes = dict(hidden_size=WIDTH, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2)
    quiet = dict(hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout)
    return BertForMaskedLM(BertConfig(vocab_size=4096, max_position_embeddings=128, pad_token_id=0, **sizes, **quiet))


FORMS = {"seq2seq": (t5, "seq2seq"), "causal": (gpt2, "decoder"), "masked": (bert, "encoder")}
JOBS = {"seq2seq": "firms", "causal": "number_digits", "classes": "sentiment", "tags": "entities"}
QUICK = dict(batch_size=8, learning_rate=3e-3, progress=False)


def tiny(kind, dropout=0.0, seed=0):
    """A random model of a kind, as ``models.load`` gives one."""
    torch.manual_seed(seed)
    make, processor = FORMS.get(kind, FORMS["masked"])
    name = kind if kind in FORMS else "masked"
    return Loaded(make(dropout).eval(), tokenizer_of(processor), f"tiny {name}", "folder", "", None, name)


def job(kind, items=40, **changes):
    loaded = tiny(kind, **changes)
    return loaded, prepare(loaded, JOBS[kind], items=items)


def weights(model):
    return {name: one.clone() for name, one in model.state_dict().items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# --- examples


def test_a_decoder_learns_the_answer_alone():
    loaded, prepared = job("causal")
    text, target = tasks.TASKS["number_digits"].generate("train", 1, 0)[0]
    row, tokenizer = prepared.examples[0], loaded.tokenizer
    assert prepared.prompts[0] == f"{tasks.TASKS['number_digits'].prefix}{text}\nOutput:"
    learned = [token for token, label in zip(row["input_ids"], row["labels"], strict=True) if label != IGNORED]
    assert [label for label in row["labels"] if label != IGNORED] == learned
    assert tokenizer.decode(learned) == f" {target}{tokenizer.eos_token}"
    before = len(row["labels"]) - len(learned)
    assert row["labels"][:before] == [IGNORED] * before
    assert tokenizer.decode(row["input_ids"][:before], skip_special_tokens=True) == prepared.prompts[0]


def test_padding_counts_in_no_loss():
    for kind in JOBS:
        loaded, prepared = job(kind, items=12)
        model = with_head(loaded, prepared).model
        rows = prepared.examples
        together = loss(model, prepared.collate(rows))
        alone = [loss(model, prepared.collate([row])) for row in rows]
        assert len({len(row["input_ids"]) for row in rows}) > 1
        assert int(together[1]) == sum(int(count) for _, count in alone) > 0, kind
        assert torch.allclose(together[0], sum(value for value, _ in alone), rtol=1e-5), kind
        batch = prepared.collate(rows)
        assert ((batch["attention_mask"] == 0) == (batch["input_ids"] == 0)).all()


@pytest.mark.parametrize("kind", JOBS)
def test_loss_is_the_librarys(kind):
    loaded, prepared = job(kind, items=6)
    model = with_head(loaded, prepared).model
    batch = prepared.collate(prepared.examples)
    value, count = loss(model, batch)
    theirs = model(**{name: one for name, one in batch.items() if name != "decoder_input_ids"}).loss
    assert torch.allclose(value / count, theirs, rtol=1e-5)
    head = model.get_output_embeddings() if kind in ("causal", "seq2seq") else None
    assert head is None or not head._forward_pre_hooks  # nothing stays on the model


def test_an_encoder_gets_labels():
    loaded, prepared = job("classes")
    assert prepared.labels == ("negative", "positive")
    assert {row["labels"] for row in prepared.examples} == {0, 1}
    headed = with_head(loaded, prepared)
    assert headed.model.config.id2label == {0: "negative", 1: "positive"}
    ours, theirs = headed.model.bert.encoder.state_dict(), loaded.model.bert.encoder.state_dict()
    assert same(ours, theirs)
    assert same(weights(headed.model), weights(with_head(loaded, prepared).model))  # the seed decides
    assert with_head(headed, prepared) is headed
    _, tagged = job("tags")
    assert tagged.labels == ("outside", "person", "place", "firm")
    assert all(one in tagged.labels for row in tagged.targets for one in row)
    with pytest.raises(ValueError, match="no output layer for classes yet"):
        measure(loaded, "sentiment", items=3)


def test_words_and_tags():
    from datasets import ClassLabel, Dataset, Features, Sequence, Value

    features = Features({"tokens": Sequence(Value("string")), "ner_tags": Sequence(ClassLabel(names=["O", "PER"]))})
    columns = {"tokens": [["Annabella", "lives"], ["they", "met", "Bob"]], "ner_tags": [[1, 0], [0, 0, 1]]}
    data = Dataset.from_dict(columns, features=features)
    prepared = prepare(tiny("tags"), data)
    assert (prepared.kind, prepared.labels) == ("tags", ("O", "PER"))
    assert prepared.targets == (("PER", "O"), ("O", "O", "PER"))  # the first token of each word, and no other
    named = prepare(tiny("tags"), {"words": [["Ann", "lives"]], "tags": [["B-PER", "O"]]})
    assert (named.labels, named.targets) == (("B-PER", "O"), (("B-PER", "O"),))


def test_data_of_many_forms(tmp_path):
    from datasets import Dataset

    loaded = tiny("seq2seq")
    pairs = [(f"talk {number}", f"sum {number}") for number in range(6)]
    for split, part in (("train", pairs[:4]), ("dev", pairs[4:])):
        lines = [json.dumps({"dialogue": text, "summary": target, "id": 1}) for text, target in part]
        (tmp_path / f"my.{split}.jsonl").write_text("\n".join(lines))
    data = Dataset.from_dict({"text": [text for text, _ in pairs[:4]], "target": [one for _, one in pairs[:4]]})
    for given in (str(tmp_path), tmp_path, data, pairs[:4]):
        assert prepare(loaded, given).targets == tuple(target for _, target in pairs[:4])
    held_out = prepare(loaded, tmp_path, split="held_out", prefix="summarize: ")
    assert held_out.prompts == ("summarize: talk 4", "summarize: talk 5")
    assert len(prepare(loaded, pairs, items=2)) == 2
    assert prepare(loaded, pairs, items=2, seed=1).targets != prepare(loaded, pairs, items=2, seed=3).targets
    labelled = Dataset.from_dict({"sentence": ["good", "bad", "fine"], "label": ["pos", "neg", "pos"]})
    assert prepare(tiny("classes"), labelled).labels == ("neg", "pos")


def test_what_does_not_fit_is_said(capsys):
    loaded = tiny("causal")
    prepared = prepare(loaded, [("a " * 300, "b"), ("a", "b")])
    assert (len(prepared), prepared.left_out, prepared.targets) == (1, 1, ("b",))
    assert "1 of 2 examples have more than 128 tokens and are left out" in capsys.readouterr().out
    with pytest.raises(ValueError, match="no example fits 3 tokens"):
        prepare(loaded, "number_digits", items=3, longest=3)


@pytest.mark.parametrize(
    "data, message",
    [
        ("no such task", "expected a task"),
        ([], "one or more"),
        (3, r"expected \(input, target\) pairs"),
        ([("", "x")], "none of them empty"),
        ([("a", "b"), ("c", None)], "1 of 2 targets are missing"),
        ("", "expected a task"),
        ({"a": ["x"], "b": ["y"]}, "columns such as input and target"),
    ],
)
def test_refuses_data(data, message):
    with pytest.raises(ValueError, match=message):
        prepare(tiny("seq2seq"), data)


def test_a_model_that_has_labels_keeps_them_for_data_that_lack_one():
    loaded = tiny("classes")
    tuned = finetune(loaded, [("a b", "no"), ("b c", "maybe"), ("c", "yes")] * 2, steps=1, batch_size=2, progress=False)
    prepared = prepare(tuned.loaded, [("a b", "yes"), ("b", "no")])
    assert prepared.labels == ("maybe", "no", "yes")
    assert [row["labels"] for row in prepared.examples] == [2, 1]
    with pytest.raises(ValueError, match="no labels of an encoder's job"):
        prepare(tuned.loaded, [("a b", "never")])


def test_refuses_other_data(tmp_path):
    with pytest.raises(ValueError, match="no labels of an encoder's job"):
        prepare(tiny("classes"), "firms", items=200)
    with pytest.raises(ValueError, match="items=0"):
        prepare(tiny("seq2seq"), "firms", items=0)
    (tmp_path / "train.csv").write_text("input,target\na,b\n")
    with pytest.raises(ValueError, match="no split validation or test, it has train"):
        prepare(tiny("seq2seq"), tmp_path, split="held_out")


# --- training


@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("kind", JOBS)
def test_trainer_and_peft_do_the_same(kind, method):
    loaded, prepared = job(kind)
    before = weights(loaded.model)
    settings = dict(method=method, steps=8, rank=4, batch_size=8, learning_rate=3e-3)
    ours, theirs = finetune(loaded, prepared, progress=False, **settings), with_trainer(loaded, prepared, **settings)
    assert ours.history.losses[0] > ours.history.losses[-1]
    # Trainer rounds what it logs, and the library scales the loss of a decoder in its own way.
    assert ours.history.losses == pytest.approx(theirs.history.losses, rel=1e-3)
    assert (ours.trained, ours.parameters, ours.tokens) == (theirs.trained, theirs.parameters, theirs.tokens)
    names = {name for name, one in ours.model.named_parameters() if one.requires_grad}
    assert names == {name for name, one in theirs.model.named_parameters() if one.requires_grad}
    gaps = [
        (one - other).abs().max() for one, other in zip(ours.model.parameters(), theirs.model.parameters(), strict=True)
    ]
    assert max(gaps) < 3e-3  # AdamW's first steps have the size of the rate, whatever the gradient's
    assert same(before, weights(loaded.model)) and not loaded.model.training and not ours.model.training
    assert (ours.share < 0.2) == (method == "lora")


@pytest.mark.parametrize("kind", JOBS)
def test_cut_batches_and_recomputed_blocks_change_nothing(kind):
    loaded, prepared = job(kind)
    plain = finetune(loaded, prepared, steps=4, **QUICK)
    for changes in ({"accumulate": 4}, {"accumulate": 3}, {"checkpointing": True}):
        other = finetune(loaded, prepared, steps=4, **QUICK, **changes)
        assert other.history.losses == pytest.approx(plain.history.losses, rel=1e-5), changes
        assert other.history.gradient_norms == pytest.approx(plain.history.gradient_norms, rel=1e-4), changes
    assert not any(getattr(module, "gradient_checkpointing", False) for module in other.model.modules())
    assert getattr(other.model.config, "use_cache", None) == getattr(loaded.model.config, "use_cache", None)


def test_checkpointing_recomputes():
    loaded, prepared = job("seq2seq")
    calls = []
    block = loaded.model.encoder.block[0].layer[0]
    block.register_forward_hook(lambda *_: calls.append(1))
    for checkpointing in (False, True):
        calls.clear()
        finetune(loaded, prepared, method="lora", steps=2, checkpointing=checkpointing, inplace=False, **QUICK)
        assert len(calls) == (4 if checkpointing else 2)


def test_bfloat16_is_near_and_keeps_float32_weights():
    loaded, prepared = job("seq2seq")
    plain = finetune(loaded, prepared, steps=6, **QUICK)
    half = finetune(loaded, prepared, steps=6, dtype=torch.bfloat16, **QUICK)
    assert half.history.losses == pytest.approx(plain.history.losses, rel=0.02)
    assert half.history.losses != plain.history.losses
    loaded.model.to(torch.bfloat16)
    assert {one.dtype for one in finetune(loaded, prepared, steps=1, **QUICK).model.parameters()} == {torch.float32}
    kinds = {one.dtype for one in finetune(loaded, prepared, method="lora", steps=1, **QUICK).model.parameters()}
    assert kinds == {torch.float32, torch.bfloat16}


def test_compiled_is_the_same(monkeypatch):
    loaded, prepared = job("seq2seq")
    compiled = []
    monkeypatch.setattr(nn.Module, "compile", lambda self, **settings: compiled.append(settings))
    plain, other = (finetune(loaded, prepared, steps=2, compile=one, **QUICK) for one in (False, True))
    assert plain.history.losses == other.history.losses
    assert compiled == [{"dynamic": True}] and other.model._compiled_call_impl is None


def test_no_compiler_is_said_in_one_line(monkeypatch):
    from torch._inductor.exc import InductorError, InvalidCxxCompiler

    def compile(self, **settings):
        def fails(*_, **__):
            raise InductorError(InvalidCxxCompiler(), None)

        self._compiled_call_impl = fails

    loaded, prepared = job("seq2seq")
    monkeypatch.setattr(nn.Module, "compile", compile)
    with pytest.raises(RuntimeError, match=r"^compile=True: .*No working C\+\+ compiler") as caught:
        finetune(loaded, prepared, steps=2, compile=True, **QUICK)
    assert "\n" not in str(caught.value)


def test_each_pass_has_every_example_once():
    _, prepared = job("seq2seq", items=10)
    order = tuning.Order(prepared, 4, seed=3)
    drawn = [place for step in range(5) for place in order.rows(step)]
    assert sorted(drawn) == sorted([*range(10), *range(10)])
    assert sorted(order.rows(0)) != sorted(tuning.Order(prepared, 4, seed=4).rows(0))
    lengths = [prepared.lengths[place] for place in order.rows(1)]
    assert lengths == sorted(lengths)
    parts = [order.cut(3)(number) for number in range(6)]
    assert sum(len(part["labels"]) for part in parts[:3]) == 4
    assert [len(part["labels"]) for part in parts[3:]] == [1, 1, 2]


def test_epochs_and_validation():
    loaded, prepared = job("classes", items=20)
    tuned = finetune(loaded, prepared, epochs=2, validation="sentiment", every=2, **QUICK)
    assert tuned.history.steps == 5 and [step for step, _ in tuned.history.validation] == [2, 4, 5]
    assert tuned.tokens == 2 * sum(prepared.lengths) and tuned.tokens_per_second > 0


def test_dropout_is_of_the_training_alone():
    loaded, prepared = job("seq2seq", dropout=0.5)
    held_out = prepare(loaded, "firms", split="held_out", items=12)
    state = torch.get_rng_state()
    runs = [finetune(loaded, prepared, steps=4, validation=held_out, every=2, **QUICK) for _ in range(2)]
    assert torch.equal(torch.get_rng_state(), state)
    assert runs[0].history.losses == runs[1].history.losses  # the seed draws dropout
    assert (
        runs[0].history.losses
        != finetune(loaded, prepared, steps=4, **(QUICK | {"batch_size": 8}), seed=1).history.losses
    )
    with torch.no_grad():
        value, count = loss(runs[0].model, held_out.collate(held_out.examples))
    assert float(value / count) == pytest.approx(runs[0].history.validation[-1][1], rel=1e-5)  # without dropout
    model = runs[0].model
    model.train()
    model.encoder.eval()
    modes = [module.training for module in model.modules()]
    answers = [measure(runs[0].loaded, held_out).answers for _ in range(2)]
    assert answers[0] == answers[1]
    assert [module.training for module in model.modules()] == modes


def test_early_stop_says_why():
    loaded, prepared = job("seq2seq")
    tuned = finetune(loaded, prepared, steps=40, **(QUICK | {"learning_rate": 5.0}))
    assert tuned.history.steps < 40
    assert "the loss diverges" in tuned.history.stopped and "lower the learning rate" in tuned.history.stopped
    falling = [5 - step / 20 for step in range(60)]
    assert not tuning.diverged(falling) and not tuning.diverged([1.0] * 5 + [90.0])
    assert not tuning.diverged([*falling, *[4.9] * 10])
    assert tuning.diverged([*falling, *[5.1] * 10]).startswith("step 70: the loss diverges, it was ≈2.27 and its mean")
    assert tuning.diverged([0.7, *[2.2] * 9])
    with torch.no_grad():
        loaded.model.shared.weight[5:].fill_(math.nan)
    with pytest.warns(RuntimeWarning, match="training stopped"):
        assert "the loss is nan" in finetune(loaded, prepared, steps=3, **QUICK).history.stopped
    ended = finetune(tiny("seq2seq"), prepared, steps=9, on_step=lambda step, *_: step == 2, **QUICK)
    assert (ended.history.steps, ended.history.stopped) == (2, "on_step ended it after step 2")


def test_live_plot(monkeypatch):
    from course_utils.plotting import LiveFigure

    drawn = []
    monkeypatch.setattr(LiveFigure, "draw", lambda self, figure: drawn.append((self.alt, figure)))
    loaded, prepared = job("classes")
    finetune(loaded, prepared, steps=61, live=True, **QUICK)
    assert len(drawn) == 2 and len(drawn[1][1].axes[0].lines[0].get_xdata()) == 60


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"method": "qlora"}, "method='qlora': expected one of full, lora"),
        ({"accumulate": 9}, "accumulate=9: expected a whole number from 1 to batch_size, 8"),
        ({"steps": None}, "give either steps= or epochs="),
        ({"method": "lora", "rank": 0}, "rank=0"),
        ({"method": "lora", "targets": ["c_attn"]}, "no linear map c_attn"),
    ],
)
def test_refuses_settings(changes, message):
    loaded, prepared = job("seq2seq", items=8)
    with pytest.raises(ValueError, match=message):
        finetune(loaded, prepared, **(QUICK | {"steps": 2} | changes))


def test_refuses_an_adapted_model():
    loaded, prepared = job("seq2seq", items=8)
    tuned = finetune(loaded, prepared, method="lora", steps=1, **QUICK)
    for method in finetuning.METHODS:
        with pytest.raises(ValueError, match="adapter already"):
            finetune(tuned.loaded, prepared, method=method, steps=1, **QUICK)


# --- interruption


@pytest.mark.parametrize("method", ["full", "lora"])
def test_killed_ten_times_is_the_same(method, tmp_path):
    loaded, prepared = job("seq2seq", dropout=0.3, items=30)
    settings = QUICK | dict(method=method, steps=30, rank=2, dropout=0.1, batch_size=4, accumulate=2)
    path, chance, reached = tmp_path / "state.safetensors", random.Random(7), []

    def run(end=None):
        def on_step(step, *_):
            if end is not None and step >= end:
                os.kill(os.getpid(), signal.SIGKILL)

        return finetune(loaded, prepared, checkpoint=path, checkpoint_every=2, on_step=on_step, **settings)

    undisturbed = finetune(loaded, prepared, **settings)
    for _ in range(10):
        steps = len(tuning._losses(path))
        reached.append(steps)
        child = os.fork()
        if child == 0:
            try:
                run(steps + chance.randint(1, 4))
            finally:
                os._exit(1)  # not reached: it was killed
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert len(set(reached)) > 5 and reached == sorted(reached)
    last = run()
    assert last.history.losses == undisturbed.history.losses
    assert same(weights(last.model), weights(undisturbed.model))


def test_interrupted_goes_on(tmp_path):
    loaded, prepared = job("causal")

    def stop(step, *_):
        if step == 3:
            raise KeyboardInterrupt

    settings = QUICK | dict(steps=6, checkpoint=tmp_path / "state.safetensors")
    assert finetune(loaded, prepared, on_step=stop, **settings).history.stopped == "interrupted after step 3"
    last, plain = finetune(loaded, prepared, **settings), finetune(loaded, prepared, steps=6, **QUICK)
    assert last.history.losses == plain.history.losses and same(weights(last.model), weights(plain.model))


def test_a_full_disk_loses_the_steps_since_the_last_checkpoint(tmp_path, monkeypatch):
    import safetensors.torch

    loaded, prepared = job("seq2seq")
    settings = QUICK | dict(steps=9, checkpoint=tmp_path / "state.safetensors", checkpoint_every=2)
    plain = finetune(loaded, prepared, steps=9, **QUICK)
    save, written = safetensors.torch.save_file, []

    def full(tensors, path, *rest):
        if len(written) == 2:
            path.write_bytes(b"half of it")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        written.append(path)
        save(tensors, path, *rest)

    monkeypatch.setattr(safetensors.torch, "save_file", full)
    with pytest.raises(OSError, match=r"state.safetensors.* step 4 is whole") as caught:
        finetune(loaded, prepared, **settings)
    assert caught.value.errno == errno.ENOSPC
    assert len(checkpoints.load(settings["checkpoint"])[1]["history"]["losses"]) == 4  # of 6 steps
    monkeypatch.setattr(safetensors.torch, "save_file", save)
    last = finetune(loaded, prepared, **settings)
    assert last.history.losses == plain.history.losses and same(weights(last.model), weights(plain.model))


# --- memory


def shortage(monkeypatch, rows, since=1, error=torch.OutOfMemoryError):
    """Let a step run out of memory from a step on with more than so many rows."""
    real, seen = tuning.loss, []

    def short(model, batch):
        seen.append(len(batch["labels"]))
        if len(batch["labels"]) > rows and len(seen) >= since:
            raise error(
                "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has" if since else "can't allocate memory"
            )
        return real(model, batch)

    monkeypatch.setattr(tuning, "loss", short)
    return seen


@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("kept", [False, True])
def test_out_of_memory_is_retried_in_parts(method, kept, tmp_path, monkeypatch, capsys):
    loaded, prepared = job("seq2seq", dropout=0.0)
    settings = QUICK | dict(method=method, steps=6, rank=2)
    plain = finetune(loaded, prepared, **settings)
    seen = shortage(monkeypatch, rows=3, since=5)
    kept_at = dict(checkpoint=tmp_path / "state.safetensors", checkpoint_every=2) if kept else {}
    tuned = finetune(loaded, prepared, retry=True, **settings, **kept_at)
    assert tuned.accumulate == 4
    assert tuned.history.losses == pytest.approx(plain.history.losses, rel=1e-4)
    said = capsys.readouterr().out
    assert "8 examples at a time: the same batches in 2 parts" in said and "in 4 parts" in said
    assert len(seen) == 4 + 1 + 1 + (2 if kept else 6) * 4  # only what the checkpoint did not keep is done again


def test_out_of_memory_says_what_to_change(monkeypatch):
    loaded, prepared = job("seq2seq")
    shortage(monkeypatch, rows=0)
    with pytest.raises(OutOfMemory) as caught:
        finetune(loaded, prepared, steps=2, **QUICK)
    said = str(caught.value)
    assert said.startswith("out of memory with 8 examples at a time, full fine-tuning (CUDA out of memory")
    for part in ("weights", "gradients", "optimizer", "activations", "total", "accumulate=2", "checkpointing=True"):
        assert part in said
    assert 'method="lora"' in said
    with pytest.raises(OutOfMemory) as caught:
        finetune(loaded, prepared, method="lora", steps=2, retry=True, checkpointing=True, **QUICK)
    said = str(caught.value)
    assert "with 1 examples" in said and "accumulate=" not in said and "checkpointing=" not in said
    assert 'method="lora"' not in said and "longest=" in said
    assert all(parameter.grad is None for parameter in loaded.model.parameters())
    with pytest.raises(OutOfMemory):  # of a family whose needs are not computed
        finetune(tiny("classes"), prepare(tiny("classes"), "sentiment", items=20), steps=2, **QUICK)


def test_other_errors_pass(monkeypatch):
    loaded, prepared = job("seq2seq", items=8)
    monkeypatch.setattr(tuning, "loss", lambda *_: (_ for _ in ()).throw(RuntimeError("something else")))
    with pytest.raises(RuntimeError, match="something else"):
        finetune(loaded, prepared, steps=2, retry=True, **QUICK)


# --- measures


def test_scores_of_texts():
    answers = ["Anna brings the lamp on Monday", "wrong", "Ben is here"]
    targets = ["Anna brings the lamp on Friday", "Anna is here", "Ben is here"]
    scores = score_texts("job", answers, targets)
    assert scores.items["exact match"] == (0.0, 0.0, 1.0)
    assert scores.items["ROUGE-L"] == pytest.approx([rouge_l(*pair) for pair in zip(answers, targets, strict=True)])
    assert scores.items["ROUGE-1"][0] == pytest.approx(5 / 6) and scores.items["ROUGE-2"][0] == pytest.approx(4 / 5)
    assert scores.items["entity accuracy"] == pytest.approx([2 / 3, 0, 1])
    assert scores["exact match"].value == pytest.approx(1 / 3)
    assert scores["exact match"].low < 1 / 3 < scores["exact match"].high
    import sacrebleu

    assert scores["BLEU"].value == pytest.approx(
        sacrebleu.corpus_bleu(answers, [targets], use_effective_order=True).score
    )
    assert score_texts("job", targets, targets)["BLEU"].value == pytest.approx(100)
    assert "entity accuracy" not in score_texts("job", ["a"], ["seven dwarfs' tale".replace("seven", "many")]).names
    with pytest.raises(ValueError, match="measure 'F1': job has exact match"):
        scores["F1"]


def test_scores_of_labels():
    loaded, prepared = job("classes", items=60)
    tuned = finetune(loaded, prepared, steps=1, **QUICK)
    scores = measure(tuned.loaded, prepared)
    right = [float(one == other) for one, other in zip(scores.answers, prepared.targets, strict=True)]
    assert list(scores.items["accuracy"]) == right
    from sklearn.metrics import f1_score

    assert scores["F1"].value == pytest.approx(
        f1_score(prepared.targets, scores.answers, average="macro", zero_division=0)
    )
    assert scores["F1"].low <= scores["F1"].value <= scores["F1"].high and scores["F1"].low < scores["F1"].high
    loaded, prepared = job("tags", items=30)
    headed = with_head(loaded, prepared)
    with torch.no_grad():  # always the tag "place"
        headed.model.classifier.bias.copy_(torch.tensor([0.0, 0.0, 99.0, 0.0]))
    scores = measure(headed, prepared)
    flat = [one for row in prepared.targets for one in row]
    hits, named = flat.count("place"), sum(one != "outside" for one in flat)
    assert scores["F1"].value == pytest.approx(2 * hits / (len(flat) + named))


def test_the_same_held_out_items_for_all(capsys):
    loaded, prepared = job("seq2seq")
    tuned = finetune(loaded, prepared, method="lora", steps=2, **QUICK)
    before, after = (measure(one, "firms", items=9) for one in (loaded, tuned.loaded))
    assert before.targets == after.targets == tuple(one for _, one in tasks.TASKS["firms"].generate("held_out", 9, 0))
    assert any(isinstance(module, lora.LoRALinear) for module in tuned.model.modules())  # measured, not merged
    scores_table({"before": before, "after": after}, ["exact match", "BLEU"], caption="firms")
    assert "firms: 9 items of firms, with 95 % intervals" in capsys.readouterr().out


def test_gain_share():
    targets = ["a b", "c d", "e f", "g h"] * 10
    before, part = score_texts("x", ["z"] * 40, targets), score_texts("x", ["a b", "z", "e f", "z"] * 10, targets)
    whole = score_texts("x", ["a b", "c d", "e f", "z"] * 10, targets)
    share = gain_share(before, part, whole, "exact match")
    assert share.value == pytest.approx(2 / 3) and 0.4 < share.low < 2 / 3 < share.high < 0.95
    assert gain_share(before, whole, whole, "exact match").low == 1.0
    with pytest.raises(ValueError, match="nothing was gained"):
        gain_share(whole, part, before, "exact match")
    with pytest.raises(ValueError, match="different items"):
        gain_share(before, part, score_texts("x", ["z"], ["y"]), "exact match")


def test_forgetting_shows_what_was_lost(capsys):
    copy_it, other = (
        [(f"word {number}", "yes") for number in range(4)],
        [(f"word {number}", "no") for number in range(4)],
    )
    loaded = tiny("seq2seq")
    first = finetune(loaded, prepare(loaded, copy_it), steps=25, **(QUICK | {"learning_rate": 1e-2}))
    then = finetune(first.loaded, prepare(loaded, other), steps=25, **(QUICK | {"learning_rate": 1e-2}))
    found = forgetting({"first": first.loaded, "then": then.loaded}, [prepare(loaded, copy_it)])
    assert (found.mean("first"), found.mean("then")) == (1.0, 0.0)
    found.table()
    assert "against first |  | ≈-1.00" in capsys.readouterr().out
    with pytest.raises(ValueError, match="one or more tasks"):
        forgetting({"first": first.loaded}, [])


# --- files


@pytest.mark.parametrize("kind", ["seq2seq", "causal", "classes", "tags"])
def test_files_are_read_by_the_libraries(kind, tmp_path):
    import transformers
    from peft import PeftModel

    loaded, prepared = job(kind, items=16)
    tuned = finetune(loaded, prepared, method="lora", steps=2, rank=2, **QUICK)
    tuned.save(tmp_path / "adapter")
    assert {path.name for path in (tmp_path / "adapter").iterdir()} == {lora.WEIGHTS, lora.CONFIG}
    tuned.save_merged(tmp_path / "merged")
    assert (tmp_path / "merged" / "model.safetensors").is_file()
    assert not [path for path in (tmp_path / "merged").iterdir() if path.name.startswith(".")]
    auto = {
        "seq2seq": "Seq2SeqLM",
        "causal": "CausalLM",
        "classes": "SequenceClassification",
        "tags": "TokenClassification",
    }
    read = getattr(transformers, f"AutoModelFor{auto[kind]}").from_pretrained(tmp_path / "merged").eval()
    plain = with_head(loaded, prepared, seed=5).model  # another output layer: the adapter has it
    theirs = PeftModel.from_pretrained(copy.deepcopy(plain), str(tmp_path / "adapter")).eval()
    batch = {name: one for name, one in prepared.collate(prepared.examples).items() if name != "labels"}
    with torch.no_grad():
        wanted = tuned.model(**batch).logits
        for model in (read, theirs):
            assert torch.allclose(model(**batch).logits, wanted, atol=2e-6)
    if kind in ("seq2seq", "causal"):
        again = models.load(tmp_path / "merged", profile="laptop")
        assert measure(again, prepared).answers == measure(tuned.loaded, prepared).answers


def test_full_is_saved_whole(tmp_path):
    loaded, prepared = job("seq2seq", items=8)
    tuned = finetune(loaded, prepared, steps=1, **QUICK)
    (tmp_path / "mine.txt").write_text("stays")
    for _ in range(2):
        tuned.save(tmp_path)
    assert (tmp_path / "mine.txt").read_text() == "stays"
    assert same(weights(models.load(tmp_path, profile="laptop").model), weights(tuned.model))
