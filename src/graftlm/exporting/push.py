"""Uploads what was exported to the Hugging Face Hub, on request.

The token is the user's own, from the environment (`HF_TOKEN`) or from `hf auth login`. A repository
that does not exist yet is made private.
"""

from __future__ import annotations

from pathlib import Path

from graftlm.errors import ConfigError, GraftLMError
from graftlm.exporting.model_card import CARD
from graftlm.models.source import HUB_ID

__all__ = ["UploadError", "push", "require_uploadable"]


class UploadError(GraftLMError):
    """The Hub did not take the files."""


def require_uploadable(repo: str) -> None:
    """Refuse an upload that cannot succeed, before anything is exported.

    Raises:
        ConfigError: ``repo`` is no name of a repository, or there is no token.
    """
    import huggingface_hub

    if not HUB_ID.fullmatch(repo):
        raise ConfigError(f"--push-to {repo!r}: expected OWNER/NAME, a repository of the Hub")
    if huggingface_hub.get_token() is None:
        raise ConfigError(
            "--push-to needs a token of the Hub: set HF_TOKEN, or log in with `hf auth login`"
        )


def push(path: Path, repo: str, card: str | None = None) -> str:
    """Upload a folder or a file, and return the address of the repository.

    Args:
        path: what was exported.
        repo: ``OWNER/NAME``; made as a private repository if it does not exist.
        card: the model card to put beside a single file.

    Raises:
        UploadError: the Hub refuses. What was exported stays on the disk.
    """
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError

    api = huggingface_hub.HfApi()
    message = f"Upload {path.name} by graftlm"
    try:
        address = api.create_repo(repo, private=True, exist_ok=True)
        if path.is_dir():
            api.upload_folder(folder_path=path, repo_id=repo, commit_message=message)
        else:
            api.upload_file(
                path_or_fileobj=path,
                path_in_repo=path.name,
                repo_id=repo,
                commit_message=message,
            )
            if card is not None:
                api.upload_file(
                    path_or_fileobj=card.encode(),
                    path_in_repo=CARD,
                    repo_id=repo,
                    commit_message=f"{message}: model card",
                )
    except (HfHubHTTPError, OSError) as error:
        raise UploadError(
            f"the Hub did not take {path}: {error}. It stays on the disk; check the token's rights "
            f"and upload it with `hf upload {repo} {path}`"
        ) from error
    return str(address)
