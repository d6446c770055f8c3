"""Load a model and its tokenizer by role, by name, by hub id or from a folder."""

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from course_utils.environment import PROFILES, _device, _half_type, _profile
from course_utils.models import registry
from course_utils.models.hub import PICKLES, HubError, fetch
from course_utils.models.registry import check_embedded, embedded_models, hub_models, roles

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

KINDS = {
    "causal": "AutoModelForCausalLM",
    "masked": "AutoModelForMaskedLM",
    "seq2seq": "AutoModelForSeq2SeqLM",
    "base": "AutoModel",
}
"""What a model is loaded as: with the head for the next token, for masks, for another text, or without any."""


@dataclass(frozen=True)
class Loaded:
    """A model, ready to be used.

    Attributes:
        model: the model, in evaluation mode.
        tokenizer: its tokenizer.
        name: embedded name, hub id, or path of a folder.
        source: ``"embedded"``, ``"hub"`` or ``"folder"``.
        card: its model card, as Markdown; empty where it has none.
        revision: commit on the hub; None for an embedded model or a folder.
        kind: a key of :data:`KINDS`.
    """

    model: "PreTrainedModel"
    tokenizer: "PreTrainedTokenizerBase"
    name: str
    source: str
    card: str
    revision: str | None
    kind: str


def load(
    role_or_name: str | Path,
    profile: str | None = None,
    device: "str | torch.device | None" = None,
    dtype: "torch.dtype | None" = None,
    kind: str | None = None,
    attention: str | None = None,
) -> Loaded:
    """Load a model: a role, an embedded name, a hub id or a folder.

    A role is played by an embedded model in the laptop profile, and by the hub's in the gpu profile; where that one
    cannot be had, one line says why and the embedded model takes its place. Only safetensors files are read, and no
    code of a repository is run. What was fetched once makes no request again.

    Args:
        role_or_name: a role (``"decoder"``, ``"encoder"``, ``"seq2seq"``, ``"instruct"``), the name of an embedded
            model (``"course-decoder"``), a hub id (``"openai-community/gpt2"``; of the registry's models also its last
            part, ``"gpt2"``) or a folder in Hugging Face format.
        profile: ``laptop`` or ``gpu``; by default ``COURSE_PROFILE``, else ``gpu`` where CUDA is, else ``laptop``.
        device: by default the CPU in the laptop profile and the GPU in the gpu profile.
        dtype: by default float32 on a CPU, and on a GPU bfloat16 where the chip computes in it, else float16.
        kind: a key of :data:`KINDS`; by default what the model's configuration says.
        attention: ``"eager"`` for attention maps (``output_attentions=True``), or another implementation of the
            library; by default the library's choice.

    Raises:
        ValueError: a setting is wrong, nothing has this name, or the folder cannot be loaded safely.
        HubError: a hub model that was asked for by its id cannot be had.
        RuntimeError: the device that was asked for is not there.
    """
    if profile is not None and profile not in PROFILES:
        raise ValueError(f"load(profile={profile!r}): expected one of {', '.join(PROFILES)}")
    if kind is not None and kind not in KINDS:
        raise ValueError(f"load(kind={kind!r}): expected one of {', '.join(KINDS)}")
    profile = _profile(profile)
    place = _device(str(device) if device is not None else None, profile, "load")
    if dtype is None:
        import torch

        dtype = _half_type() if place.type == "cuda" else torch.float32
    elif not dtype.is_floating_point:
        raise ValueError(f"load(dtype={dtype}): expected a floating-point type, for example torch.float32")
    settings = {"kind": kind, "device": place, "dtype": dtype, "attention": attention}
    name = str(role_or_name)
    if not isinstance(role_or_name, Path):
        role = roles().get(name)
        if role and profile == "gpu":
            try:
                return _load_hub(role.gpu, settings)
            except HubError as error:
                print(f"{error}. Until then: the embedded {role.laptop}.")
        if role or name in embedded_models():
            return _load_embedded(role.laptop if role else name, settings)
    folder = Path(name).expanduser()
    if folder.is_dir():
        return _open(folder, name, "folder", folder / "README.md", None, settings)
    if isinstance(role_or_name, Path) or name.startswith((".", "~", "/")) or "\\" in name:
        raise ValueError(f"there is no folder {name}")
    short = {repository.split("/")[1]: repository for repository in hub_models()}
    repository = short.get(name, name)
    if "/" not in repository:
        known = [*roles(), *embedded_models(), *short]
        raise ValueError(
            f"nothing is called {name!r}; expected one of {', '.join(known)}, a hub id (owner/name) or a folder"
        )
    return _load_hub(repository, settings)


def _load_hub(repository: str, settings: dict[str, Any]) -> Loaded:
    snapshot = fetch(repository)
    card = snapshot.folder / "README.md"
    return _open(snapshot.folder, repository, "hub", card, snapshot.revision, settings)


def _load_embedded(name: str, settings: dict[str, Any]) -> Loaded:
    check_embedded(name)
    card = registry.HERE.parents[1] / "supplemental" / "cards" / f"{name}.md"
    return _open(registry.EMBEDDED / name, name, "embedded", card, None, settings)


def _open(folder: Path, name: str, source: str, card: Path, revision: str | None, settings: dict[str, Any]) -> Loaded:
    """Read config, weights and tokenizer of a folder whose files are trusted to be whole."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise ValueError(f"{name}: no config.json that can be read; expected a model in Hugging Face format") from None
    if not any(folder.glob("*.safetensors")):
        pickles = [path.name for path in sorted(folder.iterdir()) if path.suffix in PICKLES]
        has = f"only {', '.join(pickles)}, which can run code when loaded" if pickles else "no weights"
        raise ValueError(f"{name}: it holds no safetensors, {has}. Save it with model.save_pretrained(folder)")
    kind = settings["kind"] or _kind(config, name)
    import transformers

    common: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    if settings["attention"]:
        common["attn_implementation"] = settings["attention"]
    with _quiet():
        try:
            tokenizer = transformers.AutoTokenizer.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
            model, report = getattr(transformers, KINDS[kind]).from_pretrained(
                folder, dtype=settings["dtype"], use_safetensors=True, output_loading_info=True, **common
            )
        except Exception as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise ValueError(f"{name}: cannot be loaded as {kind} ({reason[:300]})") from error
    missing = sorted(report["missing_keys"])
    if missing and all(key.startswith("pooler.") for key in missing):  # Saved with another head: do without.
        model.pooler = None
    elif missing:
        more = f"{', '.join(missing[:3])}{' and more' if len(missing) > 3 else ''}"
        raise ValueError(
            f"{name}: as kind={kind!r} it lacks the weights {more}, which would be random. "
            f"Choose another kind of {', '.join(KINDS)}"
        )
    text = card.read_text(encoding="utf-8") if card.is_file() else ""
    return Loaded(model.to(settings["device"]).eval(), tokenizer, name, source, text, revision, kind)


def _kind(config: dict[str, Any], name: str) -> str:
    """What a configuration says the model is: by its architecture's name, else by its type."""
    from transformers.models.auto import modeling_auto as auto

    architecture = (config.get("architectures") or [""])[0]
    kind = config.get("model_type")
    if config.get("is_encoder_decoder") or "ConditionalGeneration" in architecture:
        return "seq2seq"
    if "CausalLM" in architecture or "LMHead" in architecture:
        return "causal"
    if "MaskedLM" in architecture or "PreTraining" in architecture:
        return "masked"
    if kind in auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES and not config.get("is_decoder"):
        return "masked"
    if kind in auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        return "causal"
    raise ValueError(f"{name}: a model of type {kind!r} with no head that is known; say kind='base', or another kind")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the library's progress bars and reports out of a notebook; what matters in them is said otherwise."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
