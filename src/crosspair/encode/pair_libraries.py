"""The libraries whose ready-made pairs are read; each is imported when a pair of it is."""

from crosspair.encode.locate import ModelFiles
from crosspair.encode.pairs import ReadyPair


def load_pair(files: ModelFiles) -> ReadyPair:
    """The pair in a model's files, on the CPU. Raises UserError for what can't be used."""
    if files.library == "open_clip":
        from crosspair.encode.pairs_open_clip import load_open_clip

        return load_open_clip(files)
    if files.library == "sentence-transformers":
        from crosspair.encode.pairs_sentence_transformers import load_sentence_transformers

        return load_sentence_transformers(files)
    from crosspair.encode.pairs_transformers import load_transformers

    return load_transformers(files)
