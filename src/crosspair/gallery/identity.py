"""A checksum of a model: galleries hold vectors of one model and answer questions to that one only."""

import hashlib
import json

from crosspair.encode.storage import local_directory
from crosspair.errors import UserError


def model_checksum(name: str) -> str:
    """Of what decides the model's embeddings: configuration, weights and vocabulary. Raises UserError for no model."""
    directory = local_directory(name)
    checksum = hashlib.sha256()
    try:
        config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
        decisive = {key: value for key, value in config.items() if key not in ("format", "crosspair")}
        checksum.update(json.dumps(decisive, sort_keys=True).encode())
        for path in sorted(directory.iterdir()):
            if path.name in ("model.safetensors", "vocabulary.txt", "tokenizer.json"):
                with path.open("rb") as file:
                    checksum.update(f"\n{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()}".encode())
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"can't read the model {directory} ({error!s:.100}); copy the model again") from error
    return checksum.hexdigest()
