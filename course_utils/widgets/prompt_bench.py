"""Make a prompt from a task and a strategy, or type one; watch the model write, and see the score."""

import asyncio
import html
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch

from course_utils import generation, prompting
from course_utils.data.tasks import TASKS
from course_utils.models import Loaded, load
from course_utils.plotting import COLORS, figure
from course_utils.prompting import FORMATS, SELECTIONS, TEMPLATES, Strategy, Task
from course_utils.recipes.decoder import NAMES, UNSEEN
from course_utils.recipes.seq2seq import rouge_l
from course_utils.widgets.base import ONE_AT_A_TIME, Drawing, Live, choice, drawn, refused, slider, text
from course_utils.widgets.decoding_explorer import decoding, decoding_controls

OWN = "my own prompt"
SHOWN = (*UNSEEN, "sentiment", "topic", "word_category", "to_german", "entities", "question", "summary")
"""Names of the tasks to choose from."""
WAYS = FORMATS | TEMPLATES
QUESTIONS, DRAWN, LONGEST = 20, 8, 200
"""Questions of a task, labels that are drawn, and tokens that may be written, at most."""


class PromptBench(Live):
    """A bench for prompts: task, strategy, model and decoding to choose, the prompt to change, the answer scored.

    Display it as the last line of a cell. Models and tasks are loaded when they are first needed.

    Args:
        models: what :func:`course_utils.models.load` takes, or what it returned; the first one writes the example.
        tasks: names of tasks (of ``UNSEEN`` or of :data:`course_utils.data.tasks.TASKS`), or tasks.
        template: name of the template at first, of :data:`WAYS`.
        shots: examples in the prompt at first, 0 to 16.

    Raises:
        ValueError: there is no model, task or template of that name, or the example cannot be written.
    """

    def __init__(
        self,
        models: Sequence[str | Loaded] = ("decoder", "instruct"),
        tasks: Sequence[str | Task] = SHOWN,
        template: str = "plain",
        shots: int = 4,
    ):
        import ipywidgets

        unknown = [one for one in tasks if isinstance(one, str) and one not in (*UNSEEN, *TASKS)]
        if unknown or not models or not tasks or template not in WAYS:
            raise ValueError(
                f"PromptBench() got {len(models)} models, the template {template!r} and the unknown tasks {unknown}: "
                f"expected models, a template of {', '.join(WAYS)}, and tasks of {', '.join((*UNSEEN, *TASKS))}"
            )
        self._models = {one if isinstance(one, str) else one.name: one for one in models}
        self._tasks = {_title(one): one for one in tasks}
        self.strategy = {
            "task": choice("Task", [*self._tasks, OWN]),
            "question": slider("Question", 1, 1, QUESTIONS),
            "template": choice("Template", list(WAYS), template),
            "shots": slider("Examples in the prompt", shots, 0, 16),
            "selection": choice("Examples are", SELECTIONS),
            "seed": slider("Seed", 0, 0, 99),
        }
        self.settings = {
            "model": choice("Model", list(self._models)),
            "new": slider("New tokens, at most", 16, 1, LONGEST),
            **decoding_controls(),
        }
        wide = {"style": {"description_width": "initial"}, "layout": ipywidgets.Layout(width="98%", height="110px")}
        self.fields = {
            "prompt": ipywidgets.Textarea(description="Prompt", continuous_update=False, **wide),
            "expected": text("Expected answer", ""),
            "labels": text("Labels, with | between", ""),
        }
        self.write, self.stop = (ipywidgets.Button(description=name) for name in ("Write", "Stop"))
        self.body = ipywidgets.HTML()
        self._work: Iterator[bool] | None = None
        self._words, self._written, self._filling = "", "", False
        self._make()
        for _ in self._writing():
            pass
        for control in self.strategy.values():
            control.observe(self._choose, names="value")
        for control in (*self.fields.values(), *self.settings.values()):
            control.observe(self._change, names="value")
        self.write.on_click(self._start)
        self.stop.on_click(self._halt)
        columns = [
            ipywidgets.VBox([getattr(one, "panel", one) for one in controls.values()])
            for controls in (self.strategy, self.settings)
        ]
        top = ipywidgets.HBox(columns, layout=ipywidgets.Layout(flex_flow="row wrap"))
        panel = ipywidgets.VBox([top, *self.fields.values(), ipywidgets.HBox([self.write, self.stop]), self.body])
        made = self.fields["prompt"].value
        super().__init__(panel, f"<p>Prompt:</p>{_literal(made)}{self.body.value}", f"Prompt: {made}\n{self._words}")

    # --- what the learner does

    def _choose(self, change: Any) -> None:
        """Make the prompt anew; an own prompt stays."""
        if self.strategy["task"].value != OWN:
            self._safely(self._make)
        elif change["owner"] is self.strategy["task"]:
            self._set(self.fields["prompt"].value)
            self._safely(self._count)

    def _change(self, _change: object) -> None:
        self._safely(lambda: self._filling or self._count())  # type: ignore[func-returns-value]

    def _start(self, _button: object) -> None:
        """Write; in a notebook in steps, so that Stop is heard between them."""
        self._work, self._written = self._writing(), ""
        work = self._work
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            while self._safely(lambda: next(work, False)):
                pass
        else:
            self._running = loop.create_task(self._steps(work))

    async def _steps(self, work: Iterator[bool]) -> None:
        while self._safely(lambda: self._work is work and next(work, False)):
            await asyncio.sleep(0)

    def _halt(self, _button: object) -> None:
        if self._work is not None:
            self._work = None
            self._show("Stopped.", self._written)

    # --- what follows from it

    def _safely(self, act: Callable[[], Any]) -> Any:
        """Do something; what goes wrong is said in a line."""
        with ONE_AT_A_TIME:
            try:
                return act()
            except (ValueError, OSError, RuntimeError) as error:
                self._work, self.body.value = None, refused(error)

    def _set(self, prompt: str = "", expected: str = "", labels: str = "") -> None:
        """Fill in the fields, as one change."""
        self._filling = True
        for name, value in (("prompt", prompt), ("expected", expected), ("labels", labels)):
            self.fields[name].value = value
        self._filling = False

    def _make(self) -> None:
        """Make the prompt of the chosen question; where it cannot be made there is none."""
        self._set()
        name, number, way, *rest = (one.value for one in self.strategy.values())
        task = self._tasks[name]
        if isinstance(task, str):
            task = (prompting.unseen_task if task in UNSEEN else prompting.generated_task)(task, QUESTIONS)
            self._tasks[name] = task
        if number > len(task.items):
            raise ValueError(f"question {number}: {name} has {len(task.items)} questions")
        item, (shots, selection, seed) = task.items[number - 1], rest
        strategy = Strategy(WAYS[way], shots, selection)
        self._set(prompting.prompt(task, item, strategy, seed), item.target, " | ".join(item.labels))
        self._count()

    def _loaded(self) -> Loaded:
        name = self.settings["model"].value
        one = self._models[name]
        if isinstance(one, str):
            self._show(f"loading {name}…")
            one = self._models[name] = load(one)
        return one

    def _room(self) -> str:
        """Say how much of the context window is left; refuse a prompt that is none or too long."""
        loaded, prompt, new = self._loaded(), self.fields["prompt"].value, self.settings["new"].value
        if not prompt:
            raise ValueError("the prompt is empty: type one, or choose a task")
        both = loaded.model.config.is_encoder_decoder
        size, window = prompting.count_tokens(loaded, prompt), generation.context_window(loaded)
        said = f"The prompt has {size:,} tokens" + ("" if both else f", the answer at most {new}")
        left = window - size - (0 if both else new) if window else 0
        if left < 0:
            raise ValueError(
                f"{said}: {-left:,} too many for the context window of {window} of {loaded.name}. "
                "Shorten the prompt, or show fewer examples"
            )
        rest = f"{left} of the {window} tokens of the context window are left" if window else "nothing limits it"
        return f"{said}; {rest}."

    def _count(self) -> None:
        """Say what is there to be written; what was written before no longer belongs to it."""
        self._work = None
        self._show(f"{self._room()} Press Write.")

    def _writing(self) -> Iterator[bool]:
        """Write and score; True after each piece."""
        room, loaded, prompt = self._room(), self._loaded(), self.fields["prompt"].value
        own = self.strategy["task"].value == OWN
        template = TEMPLATES["prefix"] if own else WAYS[self.strategy["template"].value]
        stop = (template.end,) if template.end and not loaded.model.config.is_encoder_decoder else ()
        values = {name: one.value for name, one in self.settings.items()}
        del values["model"]
        settings = decoding(max_new_tokens=values.pop("new"), stop=stop, seed=self.strategy["seed"].value, **values)
        self._show(f"{room} Writing…", self._written)
        yield True
        for piece in generation.stream(loaded, prompt, settings):
            self._written += piece
            self._show(f"{room} Writing…", self._written)
            yield True
        task, expected = self._tasks.get(self.strategy["task"].value), self.fields["expected"].value.strip()
        labels = [one.strip() for one in self.fields["labels"].value.split("|") if one.strip()]
        answer = template.read(self._written)
        if isinstance(task, Task) and task.metric == "rouge" and expected:
            lines = [f"ROUGE-L against the expected {expected!r}: {rouge_l(answer, expected):.2f}."]
        else:
            lines = [f"Answer: {answer!r}{_verdict(answer, expected)}"]
        drawing = None
        if labels:
            labels = list(dict.fromkeys(labels))
            (scores,) = prompting.label_scores(loaded, [prompt], [labels], template.answer)
            shares = torch.tensor(scores, dtype=torch.float64).softmax(0).tolist()
            drawing = draw_labels(dict(zip(labels, shares, strict=True)), expected)
        self._work = None
        self._show(f"{room} Done.", self._written, lines, drawing)

    def _show(
        self, status: str, written: str | None = None, lines: Sequence[str] = (), drawing: Drawing | None = None
    ) -> None:
        parts, words = [f"<p role='status'>{html.escape(status)}</p>"], [status]
        if written is not None:
            parts.append(f"<p>Completion:</p>{_literal(written)}")
            words.append(f"Completion: {written}")
        parts += [f"<p>{html.escape(line)}</p>" for line in lines]
        words += lines
        if drawing is not None:
            parts.append(drawn(*drawing))
            words += [f"Figure: {drawing[1]}", *drawing[2]]
        self.body.value, self._words = "".join(parts), "\n".join(words)


def draw_labels(shares: Mapping[str, float], expected: str = "") -> Drawing:
    """Draw how a model shares the probability out among the labels of a question; the expected one is hatched.

    Args:
        shares: label to its probability; they sum to 1.
        expected: the right label; none by default.

    Returns:
        Figure, alternative text, and lines of text.
    """
    ranked = sorted(shares, key=lambda label: -shares[label])
    best, shown = ranked[0], ranked[:DRAWN]
    fig, axes = figure(6.4, 1.0 + 0.3 * len(shown))
    for place, label in enumerate(shown):
        right = label == expected
        axes.barh(place, shares[label], color=COLORS[5], edgecolor=COLORS[7], hatch="//" if right else "")
        axes.text(shares[label] + 0.01, place, f"{shares[label]:.2f}" + (" expected" if right else ""), va="center")
    axes.set_yticks(range(len(shown)), [label[:30] for label in shown], parse_math=False)
    axes.set(xlim=(0, 1.25), xlabel="probability among the labels", xticks=[0, 0.25, 0.5, 0.75, 1])
    axes.invert_yaxis()
    alt = f"Bars of the probability of {len(shown)} of {len(shares)} labels: " + ", ".join(
        f"{label} {shares[label]:.2f}" for label in shown
    )
    return fig, alt, [f"Most probable label: {best!r}{_verdict(best, expected)}"]


def _verdict(answer: str, expected: str) -> str:
    if not expected:
        return "; there is no expected answer to score it by."
    return f"; expected: {expected!r}. {'Right.' if answer == expected else 'Wrong.'}"


def _title(task: str | Task) -> str:
    if isinstance(task, Task):
        return task.name
    return f"unseen: {NAMES[task]}" if task in UNSEEN else task


def _literal(written: str) -> str:
    """Text as it is; the line break behind the tag is none of it."""
    style = "white-space:pre-wrap;background:#f4f4f4;color:#000;padding:.4em"
    return f"<pre style='{style}'>\n{html.escape(written)}</pre>"
