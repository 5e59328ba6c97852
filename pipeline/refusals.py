"""What a file system refuses, as one message that says what to do about it."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from pipeline.errors import ArtifactError

STORAGE = "--storage"
"""The option behind a refusal where the caller names no other."""


@contextlib.contextmanager
def explained(what: str, within: Path | None = None, option: str = STORAGE) -> Iterator[None]:
    """Turn the operating system's refusals into one message with a remedy.

    Args:
        what: what could not be done, and where.
        within: explain only what concerns a path below this one; a full disk may also come without any path.
        option: which option chooses another place.

    Raises:
        ArtifactError: for a full disk, missing rights, and what is no directory; other errors pass unchanged.
    """
    try:
        yield
    except Exception as error:
        if _disk_is_full(error, within):
            raise ArtifactError(f"{what}: the disk is full; free some space or set {option} to another disk") from error
        if not isinstance(error, OSError) or (within is not None and not _concerns(error, within)):
            raise
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST):
            raise ArtifactError(f"{what}: {error.strerror}; set {option} to a directory you may write") from error
        raise


def _disk_is_full(error: BaseException, within: Path | None) -> bool:
    """Whether a full disk is behind an error. Libraries and other processes wrap it in errors of their own, some
    with nothing left of it but the system's sentence."""
    if isinstance(error, OSError) and error.errno is not None:
        if within is not None and error.filename is not None and not _concerns(error, within):
            return False
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    return os.strerror(errno.ENOSPC) in str(error)


def _concerns(error: OSError, directory: Path) -> bool:
    return isinstance(error.filename, str | os.PathLike) and Path(error.filename).is_relative_to(directory)


@contextlib.contextmanager
def local_refusals(what: str, option: str) -> Iterator[None]:
    """As `explained`, for a block that does nothing but use one local file system: every error of the system but an
    absent file (which callers ask for) comes out explained."""
    try:
        with explained(what, option=option):
            yield
    except (FileNotFoundError, ArtifactError):
        raise
    except OSError as error:
        raise ArtifactError(
            f"{what}: {error.strerror or error}; see to the disk, or set {option} to another place"
        ) from error


@contextlib.contextmanager
def remote_refusals(what: str, option: str) -> Iterator[None]:
    """As `local_refusals`, for a block that does nothing but use one object store.

    Clients raise errors of their own classes, different for every store; all of them are explained. What Python
    itself raises for a fault of this program (TypeError and the like) passes unchanged.
    """
    try:
        yield
    except ArtifactError:
        raise
    except Exception as error:
        if isinstance(error, FileNotFoundError) and not bucket_is_missing(error):
            raise
        if not isinstance(error, OSError) and type(error).__module__ == "builtins":
            raise
        why, remedy = _why_remote(error)
        raise ArtifactError(f"{what}: {why}; {remedy}, or set {option} to another place") from error


UNREACHABLE = ("Connect", "Timeout", "Endpoint", "DNS", "HTTPClient", "ServerDisconnected")
"""What the names of connection errors hold: clients share no base class for them."""

REFUSED_CREDENTIALS = (
    "InvalidAccessKeyId",
    "SignatureDoesNotMatch",
    "NoCredentials",
    "PartialCredentials",
    "Credential",
    "ExpiredToken",
    "InvalidToken",
    "AuthFailure",
    "Authentication",
    "Unauthorized",
)


def _why_remote(error: BaseException) -> tuple[str, str]:
    """What happened and what to do about it."""
    chain = list(_chain(error))
    names = [*sorted(codes(error)), *(type(link).__name__ for link in chain)]
    sentence = " ".join(str(error).split()) or type(error).__name__
    if bucket_is_missing(error):
        return "there is no such bucket", "make the bucket or correct its name"
    if any(mark in name for name in names for mark in REFUSED_CREDENTIALS):
        return f"the credentials are refused ({sentence})", "give the right ones (for S3: AWS_ACCESS_KEY_ID and so on)"
    if any(isinstance(link, PermissionError) for link in chain):
        return f"access is denied ({sentence})", "give the credentials the right to list, read and write there"
    if any(isinstance(link, ConnectionError | TimeoutError) for link in chain) or any(
        mark in name for name in names for mark in UNREACHABLE
    ):
        return (
            f"the endpoint cannot be reached ({sentence})",
            "check the network and the address (for S3: AWS_ENDPOINT_URL)",
        )
    return sentence, "see to the store"


def bucket_is_missing(error: BaseException) -> bool:
    """Whether it is the whole bucket that is not there, where the store says so."""
    return "NoSuchBucket" in codes(error) or any("bucket does not exist" in str(link) for link in _chain(error))


def codes(error: BaseException) -> set[str]:
    """The store's own codes for an error and what is behind it, where its client keeps them as botocore does."""
    answers = [getattr(link, "response", None) for link in _chain(error)]
    return {str(answer.get("Error", {}).get("Code", "")) for answer in answers if isinstance(answer, dict)}


def _chain(error: BaseException) -> Iterator[BaseException]:
    link: BaseException | None = error
    while link is not None:
        yield link
        link = link.__cause__ or link.__context__
