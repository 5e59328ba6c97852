"""Every exception a user can meet.

Each class is picklable (they cross process borders inside Ray) and is also a standard type, so that
code which does not know this package can still catch it sensibly. A message always says what is
wrong, where (field, row, file) and what to do; the job prints it without a traceback.
"""

from __future__ import annotations


class PipelineError(Exception):
    """Base of every error whose message is written for the user of the pipeline."""


class ConfigError(PipelineError, ValueError):
    """The description of the run is wrong: an unknown option, a bad value, an impossible combination."""


class DataError(PipelineError, ValueError):
    """The preference data cannot be read or used: a fault of the file, or too many faulty rows."""


class ModelError(PipelineError, ValueError):
    """A model or tokenizer cannot be used: missing weights, no chat template, an unsupported head."""


class ArtifactError(PipelineError, OSError):
    """An artefact is damaged or cannot be stored (for instance: the disk is full)."""


class ClusterError(PipelineError, RuntimeError):
    """The Ray cluster cannot be reached or is too small for the run."""


class RiskError(PipelineError, ValueError):
    """A risk measure or an output head is given something it cannot work on: a level out of range, tensors that do
    not fit each other, values that are not finite."""


class TrainingError(PipelineError, RuntimeError):
    """Training cannot go on: a loss that is not finite, or weights that differ from their source."""


class EvaluationError(PipelineError, ValueError):
    """Evaluation cannot be done: a scorer that cannot be loaded or that returns something unusable."""


class WorldError(PipelineError, ValueError):
    """A world of tokens, or what should be learned in it, makes no sense: no tokens, probabilities that do not sum to
    one, no pairs."""


class RegistryError(PipelineError, RuntimeError):
    """The registry of versions refuses: no such version, one that is incomplete or damaged, a trail that was changed,
    the reference."""


class ConflictError(RegistryError):
    """Somebody else was faster: the alias points elsewhere by now, or the lease was taken over. Nothing was changed."""
