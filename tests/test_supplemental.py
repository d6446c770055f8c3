"""The texts beside the notebooks: links resolve, entries are whole, the notes' terms are explained."""

import itertools
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SUPPLEMENTAL = ROOT / "supplemental"
TEXTS = sorted([*SUPPLEMENTAL.rglob("*.md"), *ROOT.glob("*.md")])
NOTEBOOKS = sorted((ROOT / "notebooks").rglob("*.ipynb"))
LINK = re.compile(r"\]\(<?([^)\s>]+)>?\)")
NOTES = """
Foundation model; Base model; BERT; GPT; LLaMA; FLAN-T5; BLOOM; PaLM; RoBERTa; T5; BART; BloombergGPT; Context window;
Prompt; Completion; Inference; Prediction; Text generation; Summarization; Machine translation; Information retrieval;
Named entity recognition; External data and APIs; Recurrent neural network; Convolutional neural network; Transformer;
Attention; Attention map; Attention weight; Self-attention; Attention head; Encoder; Decoder; Layer;
Multi-head attention; Feed-forward network; Residual connection; Layer normalization; Positional encoding;
Prompt engineering; In-context learning; Zero-shot inference; One-shot inference; Few-shot inference; Fine-tuning;
Inference-time parameters; Greedy decoding; Random sampling; Max new tokens; Top-k sampling; Top-p sampling;
Temperature; Softmax; Probability distribution; Pre-training; Corpus; Data quality filter; Token; Encoder-only model;
Autoencoding model; Masked language modeling; Sentiment analysis; Word classification; Decoder-only model;
Autoregressive model; Causal language modeling; Emergent ability; Encoder-decoder model; Sequence-to-sequence model;
Span corruption; Question answering; GPU; Parameter; Weight; Adam; Optimizer state; Gradient; Activation; Quantization;
FP32; FP16; INT8; BFLOAT16; Dynamic range; Quantization-aware training; Scaling factor; Objective; Loss;
Compute budget; FLOP; Petaflops-day; Chinchilla; Compute-optimal training; Scaling law; Power law; Bottleneck;
Vector space model; Large language model
"""


def plain(text):
    """Markdown without its code, where brackets and hashes mean other things."""
    return re.sub(
        r"`[^`\n]+`",
        lambda code: code[0] if "](" not in code[0] else "",
        re.sub(r"```.*?```", "", text, flags=re.DOTALL),
    )


def slug(heading):
    """The anchor that GitHub makes of a heading."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def markdown_of(path):
    if path.suffix == ".md":
        return path.read_text(encoding="utf-8")
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")


def anchors_of(path):
    text = plain(markdown_of(path))
    return {slug(found) for found in re.findall(r"^#+ (.+)$", text, re.MULTILINE)} | set(
        re.findall(r'<a id="([^"]+)"', text)
    )


def entries():
    text = (SUPPLEMENTAL / "reading.md").read_text(encoding="utf-8")
    found = re.findall(r'<a id="([^"]+)"></a>\n\n### ([^\n]+)\n\n(.*?)(?=\n<a id=|\n## |\Z)', text, re.DOTALL)
    assert len(found) == text.count("<a id=") == text.count("\n### ")
    return found


def sections(path):
    """Heading and body of every section of the second level."""
    parts = re.split(r"^## (.+)$", path.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    return list(zip(parts[::2], parts[1::2], strict=True))


@pytest.mark.parametrize("path", [*TEXTS, *NOTEBOOKS], ids=lambda path: path.relative_to(ROOT).as_posix())
def test_relative_links_resolve(path):
    broken = []
    for link in LINK.findall(plain(markdown_of(path))):
        if re.match(r"[a-z][a-z+.-]*:", link) or link.startswith("attachment:"):
            continue
        file, _, anchor = link.partition("#")
        target = (path.parent / file).resolve() if file else path
        if not target.exists() or (anchor and target.suffix in (".md", ".ipynb") and anchor not in anchors_of(target)):
            broken.append(link)
    assert not broken


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_texts_are_sound(path):
    text = path.read_text(encoding="utf-8")
    assert len(re.findall(r"^# ", plain(text), re.MULTILINE)) == 1, "one title"
    levels = [len(marks) for marks in re.findall(r"^(#+) ", plain(text), re.MULTILINE)]
    assert all(next_one <= one + 1 for one, next_one in itertools.pairwise(levels)), "headings skip a level"
    assert text.count("```") % 2 == 0
    assert not re.search(r"\b(TODO|FIXME|TBD|coming soon|lorem ipsum)\b", text, re.IGNORECASE)
    assert not re.search(r"(?<![\w.-])/(home|work|tmp)/\w", text), "a path of one machine"


def test_every_entry_of_the_reading_guide_is_whole():
    ids = [anchor for anchor, _, _ in entries()]
    assert len(ids) == len(set(ids)) >= 90
    links = set()
    for anchor, title, text in entries():
        summary, *facts = text.strip().split("\n\n")
        assert len(re.findall(r"[.!?](?=\s|$)", summary)) == 2, f"{anchor}: two sentences"
        (facts,) = facts
        first, belongs, link = facts.split("\n")
        assert re.fullmatch(r"- \*\*Read first:\*\* .{8,}\.", first), anchor
        assert re.fullmatch(
            r"- \*\*Belongs to:\*\* (\[[^]]+\]\(\S+\)|week [2-5])(, (\[[^]]+\]\(\S+\)|week [2-5]))*", belongs
        ), anchor
        found = re.fullmatch(r"- \*\*Link:\*\* \[[^]]+\]\((https?://\S+)\)", link)
        assert found, anchor
        assert found[1] not in links, f"{anchor}: {found[1]} stands twice"
        links.add(found[1])
        year = re.search(r"-(\d{4})[a-z]?$", anchor)
        assert not year or f"({year[1]}): " in title, f"{anchor}: {title}"


def test_the_reading_guide_has_what_the_notes_name():
    links = (SUPPLEMENTAL / "reading.md").read_text(encoding="utf-8")
    for named in (
        "arxiv.org/abs/1706.03762", "arxiv.org/abs/2211.05100", "arxiv.org/abs/2001.08361", "arxiv.org/abs/2204.05832",
        "arxiv.org/abs/2302.13971", "arxiv.org/abs/2005.14165", "arxiv.org/abs/2203.15556", "arxiv.org/abs/2303.17564",
        "wikipedia.org/wiki/Foundation_model", "wikipedia.org/wiki/Attention_(machine_learning)",
        "wikipedia.org/wiki/Bfloat16_floating-point_format", "wikipedia.org/wiki/Power_law", "nvidia.com",
        "tensorflow.org/model_optimization/guide/quantization/training", "bigscience.notion.site",
        "coursera.org/learn/classification-vector-spaces-in-nlp", "huggingface.co/tasks", "huggingface.co/models",
    ):  # fmt: skip
        assert named in links, named


def test_glossary_covers_the_notes():
    explained = {heading for heading, _ in sections(SUPPLEMENTAL / "glossary.md")}
    wanted = {term.strip() for term in " ".join(NOTES.split()).split(";")}
    assert len(wanted) > 90
    assert not wanted - explained


def test_glossary_entries_are_short_sorted_and_say_where():
    found = sections(SUPPLEMENTAL / "glossary.md")
    names = [slug(heading) for heading, _ in found]
    assert names == sorted(set(names))
    for heading, body in found:
        text = body.strip()
        assert text.count("\n") == 0, heading
        definition, _, first = text.partition(" *First used in ")
        assert re.match(r"(\[[^]]+\]\(\S+\.ipynb\)|week [2-5])", first), heading
        sentences = re.findall(r"[.!?:](?=\s[A-Z]|$)", definition)
        assert 1 <= len(sentences) <= 4 and 20 < len(definition) < 330, heading


def test_troubleshooting_goes_from_symptom_to_cure():
    path = SUPPLEMENTAL / "troubleshooting.md"
    found = sections(path)
    assert len(found) >= 25
    index = path.read_text(encoding="utf-8").split("\n## ")[0]
    for heading, body in found:
        places = [body.find(f"- **{part}:**") for part in ("You see", "Cause", "Cure")]
        assert -1 not in places and places == sorted(places), heading
        assert f"(#{slug(heading)})" in index, f"{heading}: not in the list at the top"
    assert "A number is outside its range" in dict(found), "reporting.measured names this heading"


def test_cheat_sheets_fit_a_page():
    sheets = list((SUPPLEMENTAL / "cheatsheets").glob("*.md"))
    assert sheets
    for sheet in sheets:
        lines = sheet.read_text(encoding="utf-8").splitlines()
        assert len(lines) <= 75, f"{sheet.name} is longer than a page"


def test_code_of_the_cheat_sheet_runs():
    import torch

    from course_utils.attention import causal_mask

    text = (SUPPLEMENTAL / "cheatsheets" / "week1_attention.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 2, 5, 8)
    names = {"query": query, "key": key, "value": value, "T": 5, "H": 2, "d": 4, "mask": causal_mask(5)}
    names["states"] = torch.randn(2, 5, 8)
    states = names["states"]
    exec(code.replace("lab = start(seed=0)\n", ""), names)
    expected = torch.softmax((names["scores"]).masked_fill(~names["mask"], -torch.inf), -1)
    torch.testing.assert_close(names["weights"], expected)
    torch.testing.assert_close(names["output"], names["weights"] @ value)
    assert names["heads"].shape == (2, 2, 5, 4)
    torch.testing.assert_close(names["states"], states)
    logits = names["model"](torch.randint(1000, (2, 5)))
    assert torch.isfinite(getattr(logits, "logits", logits)).all()


def test_code_of_the_second_cheat_sheet_runs():
    text = (SUPPLEMENTAL / "cheatsheets" / "week2_heads.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    names = {}
    exec(code, names)
    layers, heads = names["scores"].shape
    assert len(names["maps"]) == layers and names["maps"][0].shape == (4, heads, 48, 48)
    assert names["effects"].shape == (layers, heads) and names["effects"].max() > 0.5
    assert "layer 1, head 1" in names["view"].summary()


def test_the_second_cheat_sheet_has_the_switches_of_the_families():
    from transformers import (
        BartConfig,
        BartForConditionalGeneration,
        BertConfig,
        BertForMaskedLM,
        BloomConfig,
        BloomForCausalLM,
        GPT2Config,
        GPT2LMHeadModel,
        LlamaConfig,
        LlamaForCausalLM,
        T5Config,
        T5ForConditionalGeneration,
    )  # fmt: skip

    from course_utils.families import PALM, config_from_huggingface
    from course_utils.transformer import TransformerConfig

    text = (SUPPLEMENTAL / "cheatsheets" / "week2_heads.md").read_text(encoding="utf-8")
    table = [line.strip("| ").split(" | ") for line in text.split("| switch |")[1].split("\n\n")[0].splitlines()]
    columns = table[0]
    rows = {row[0]: dict(zip(columns, row[1:], strict=True)) for row in table[2:]}
    small = dict(vocab_size=64, num_hidden_layers=1, num_attention_heads=2, hidden_size=8, intermediate_size=16)
    two = dict(vocab_size=64, d_model=8, encoder_layers=1, decoder_layers=1, encoder_ffn_dim=16, decoder_ffn_dim=16)
    t5 = dict(vocab_size=64, d_model=8, d_kv=4, d_ff=16, num_layers=1, num_heads=2)
    models = {
        "GPT-2": GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=8, n_layer=1, n_head=2)),
        "LLaMA": LlamaForCausalLM(LlamaConfig(**small)),
        "BLOOM": BloomForCausalLM(BloomConfig(vocab_size=64, hidden_size=8, n_layer=1, n_head=2)),
        "BERT, RoBERTa": BertForMaskedLM(BertConfig(**small)),
        "BART": BartForConditionalGeneration(BartConfig(**two, encoder_attention_heads=2, decoder_attention_heads=2)),
        "T5 v1.0; v1.1, FLAN": T5ForConditionalGeneration(T5Config(**t5)),
    }
    configs = {name: [config_from_huggingface(model)] for name, model in models.items()}
    gated = T5ForConditionalGeneration(T5Config(**t5, feed_forward_proj="gated-gelu"))
    configs["T5 v1.0; v1.1, FLAN"].append(config_from_huggingface(gated))
    configs["PaLM"] = [TransformerConfig(64, width=8, heads=2, layers=1, **PALM)]
    said = {
        "norm": lambda config: {"layernorm": "layer", "rmsnorm": "RMS"}[config.norm],
        "its place": lambda config: config.norm_place,
        "positions": lambda config: {"t5": "buckets", "alibi": "ALiBi"}.get(config.positions, config.positions),
        "activation": lambda config: {
            ("relu", False): "ReLU", ("gelu", False): "GELU", ("silu", True): "SwiGLU", ("gelu", True): "gated GELU"
        }[config.activation.split("_")[0], config.gated],
        "block": lambda config: "parallel" if config.parallel else "serial",
        "key/value heads": lambda config: "1" if config.key_value_heads == 1 else "H",
    }  # fmt: skip
    assert set(said) == set(rows) and set(configs) == set(columns)
    for row, say in said.items():
        for name, given in configs.items():
            wanted = "; ".join(dict.fromkeys(map(say, given)))
            assert rows[row][name].removesuffix(" or fewer") == wanted, (row, name)


def test_code_of_the_third_cheat_sheet_runs():
    text = (SUPPLEMENTAL / "cheatsheets" / "week3_prompting.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    names = {}
    exec(code, names)
    assert names["text"] == "".join(names["stream"](names["decoder"], "Return the", names["sampled"]))
    few, zero = (names["comparison"][key].accuracy for key in ("8 examples", "0 examples"))
    assert few > 0.9 > zero
    assert names["hits"][0].text == "Clara lives in Oslo."
    assert names["run"].ended == "repeated call" and names["run"].steps[0].result == "84"


def test_code_of_the_fourth_cheat_sheet_runs():
    text = (SUPPLEMENTAL / "cheatsheets" / "week4_training.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    names = {}
    exec(code, names)
    step, compute, memory = names["step"], names["compute"], names["memory"]
    weights = memory.parameters("gpt2")
    assert step.weights == step.gradients == 4 * weights
    assert step.optimizer == pytest.approx(8 * weights, rel=1e-5)  # and a counter for each tensor
    shape, tokens = memory.SHAPES["gpt2"], 1024
    assert compute.forward_flops("gpt2", 1, tokens).scores == 4 * shape.layers * shape.width * tokens**2
    assert names["days"] == pytest.approx(3640, rel=0.01)  # Brown and others 2020, table D.1
    size, tokens = names["best"]
    assert tokens / size == pytest.approx(20, rel=0.05) and 6 * size * tokens == pytest.approx(1e21)
    assert names["kept"] == pytest.approx(1 / 3)
    trained, all_weights = names["share"]
    assert 0.01 < trained / all_weights < 0.06
    assert names["scores"]["exact match"].items == 4
    for device, peak, number in (("V100", 125e12, 8), ("A100", 312e12, 3.2)):
        assert f"{number} {device}" in text and compute.DEVICES[device].peak() == peak
        assert 1e15 / peak == pytest.approx(number, rel=0.01)


def test_code_of_the_fifth_cheat_sheet_runs():
    from course_utils.quantization import FORMATS

    text = (SUPPLEMENTAL / "cheatsheets" / "week5_quantization.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    names = {}
    exec(code, names)
    assert names["third"].item() == 0.333984375
    before, predicted, after = (sum(names[name].values()) for name in ("before", "predicted", "after"))
    assert predicted == after < before
    report, scheme = names["report"], names["scheme"]
    assert report.before["linear maps"] / report.after["linear maps"] == pytest.approx(32 / (4 + 16 / 32 + 8 / 32))
    assert scheme.bytes(1, 4096) * 8 / 4096 == 4 + 16 / 32 + 8 / 32
    row = {"fp32": "FP32", "bf16": "BF16", "fp16": "FP16", "fp8_e4m3fn": "FP8 E4M3", "fp8_e5m2": "FP8 E5M2"}
    for name, title in row.items():
        one = FORMATS[name]
        (cells,) = re.findall(rf"^\| {title} \| (.+) \|$", text, re.MULTILINE)
        fields, largest, normal, gap = cells.split(" | ")
        assert fields == f"1, {one.exponent}, {one.mantissa}"
        for said, exact in ((largest, one.largest), (normal, one.smallest_normal), (gap, one.epsilon)):
            assert float(said.replace(",", "")) == pytest.approx(exact, rel=0.03), (name, said)
