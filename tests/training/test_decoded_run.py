"""A run with the decoded cache is the run without it, faster."""

from safetensors.torch import load_file

from crosspair.training.loop import train


def test_training_is_bit_identical_with_and_without_decoded_pictures(toy_recipe, toy_data, tmp_path, metrics):
    for name, budget in (("decoding", 0.0), ("cached", 1.0)):
        train(toy_recipe(decoded_cache_gb=budget), toy_data, tmp_path / name, progress=False)
    assert len(list((tmp_path / "cache" / "decoded").glob("*.pixels"))) == 1
    assert metrics(tmp_path / "decoding") == metrics(tmp_path / "cached")
    first, second = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("decoding", "cached"))
    assert all(first[name].equal(second[name]) for name in first)
